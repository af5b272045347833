"""Folders of images or of sounds."""

from __future__ import annotations

from pathlib import Path

from deploykit.data import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Dataset
from deploykit.errors import InputError
from deploykit.runtime.manifest import Modality


def read(folder: Path) -> Dataset:
    """Every image or every sound below ``folder``, in the order of their paths.

    When all of them lie in folders directly below it, the names of those are the labels. Hidden files are left out.
    """
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not _hidden(p.relative_to(folder))]
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    sounds = [p for p in files if p.suffix.lower() in AUDIO_SUFFIXES]
    if images and sounds:
        raise InputError(
            f"'{folder}' holds {len(images)} images and {len(sounds)} sounds", hint="give one kind at a time"
        )
    if not images and not sounds:
        hint = f"readable here: {', '.join((*IMAGE_SUFFIXES, *AUDIO_SUFFIXES))}"
        raise InputError(f"'{folder}' holds no image and no sound", hint=hint)
    modality: Modality = "image" if images else "audio"
    found = images or sounds
    parts = [p.relative_to(folder).parts for p in found]
    labels = [p[0] for p in parts] if all(len(p) > 1 for p in parts) else None
    return Dataset(folder.name, modality, found, labels)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
