"""The step ``judge``: the exported encoder beside the library that its source comes from (`deploykit.judge`)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import judge, settings, sources
from deploykit.judge import Choices, NotJudged, Raw
from deploykit.runtime.manifest import Card

if TYPE_CHECKING:
    from deploykit.judge.where import Ours
    from deploykit.runtime.encoder import Encoder
    from deploykit.sources import Identity

NAME = "judge"
PACKAGES = (
    "sentence-transformers",
    "transformers",
    "timm",
    "torch",
    "tokenizers",
    "onnxruntime",
    "numpy",
    "pillow",
    "soundfile",
)
_CARRIED = frozenset(
    {
        *("kind", "revision", "preprocess", "outputs", "trust_remote_code"),
        *("pooling", "normalize", "max_length", "fixed_length", "dim", "tower", "route", "prompts"),
    }
)
"""The options of a source that `choices` hands on, or that do not change the embedding."""
_SWITCHED_OFF = "it was switched off (judge = false)"
_WAVEFORM_SECONDS = 30


def unjudged(wanted: bool, identity: Identity, options: sources.Options) -> str:
    """Why the plan has no step ``judge``; empty where it has one."""
    return judge.why_not(identity.kind, options.preprocess) if wanted else _SWITCHED_OFF


def record(unjudged: str, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the manifest keeps: the outcome of the step, or why there was none."""
    if metadata is None:
        return {"judged": False, "reason": unjudged}
    return {key: value for key, value in metadata.items() if key not in ("run", "notes")}


def carry_out(options: Mapping[str, Any], inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Compare both sides over raw inputs; the record, with a note where nothing could be judged.

    ``options``: ``kind`` and ``location`` of the source, ``model`` (its spec) and ``source`` (its options).
    """
    from deploykit.judge.compare import judge as compare
    from deploykit.pipeline.variants import read_card

    exported, asked = inputs["export"], sources.Options(**options["source"])
    card = read_card(exported)
    try:
        library = judge.open_library(options["kind"], options["location"], choices(card, asked))
    except NotJudged as reason:
        return _with_note({"judged": False, "reason": reason.message})
    with tempfile.TemporaryDirectory(prefix="deploykit-judge-") as folder:
        raws = _raws(card, exported, {**library.prompts, **_prompts(card)}, Path(folder))
        ours = _ours(card, exported, _hidden(options["model"], asked))
        try:
            return _with_note(compare(library, ours, raws))
        finally:
            ours.encoder.close()


def choices(card: Card, asked: sources.Options) -> Choices:
    """What the library cannot know: decided by the export (the card says it) or asked for.

    Raises `NotJudged` for an option that the libraries are not asked for here: the two sides would not mean the same.
    """
    for name, value in settings.plain(asked).items():
        if name not in _CARRIED and value not in (None, False):
            raise NotJudged(f"'{name}' was asked for, and there is no way to ask the library for it")
    longest = card.preprocess.get("max_length")
    return Choices(
        modality=card.modality,
        pooling=card.embedding.pooling,
        asked_pooling=asked.pooling,
        tower=asked.tower,
        route=asked.route,
        dim=asked.dim,
        normalize=asked.normalize,
        longest=longest if isinstance(longest, int) else None,
        max_length=asked.max_length,
        fixed_length=asked.fixed_length,
        prompts=dict(asked.prompts or {}),
        trust_remote_code=asked.trust_remote_code,
    )


def _with_note(found: dict[str, Any]) -> dict[str, Any]:
    return found if found["judged"] else {**found, "notes": [f"not judged: {found['reason']}"]}


def _prompts(card: Card) -> dict[str, str]:
    found: dict[str, str] = card.preprocess.get("prompts") or {}
    return found


def _raws(card: Card, exported: Path, prompts: Mapping[str, str], folder: Path) -> list[Raw]:
    from deploykit.judge import inputs

    selftest = inputs.of_selftest(card.modality, exported)
    if card.modality == "text":
        known = [name for name in prompts if name in _prompts(card)]
        return inputs.texts(selftest, int(card.preprocess["max_length"]), known)
    if card.modality == "image":
        return inputs.images(selftest, folder)
    rate = int(card.preprocess["sampling_rate"])
    bounds = card.limits.axes.get("samples", (1, _WAVEFORM_SECONDS * rate))
    return inputs.sounds(selftest, rate, bounds, folder)


def _ours(card: Card, exported: Path, hidden: Callable[[Mapping[str, np.ndarray]], np.ndarray | None]) -> Ours:
    from deploykit.judge.where import Ours
    from deploykit.runtime.preprocess import open_preprocessor

    encoder = _encoder(card, exported)
    return Ours(encoder, open_preprocessor(card, exported), _prompts(card), hidden)


def _encoder(card: Card, exported: Path) -> Encoder:
    """The encoder of a bundle's portable model, from the export's own folder: nothing is copied."""
    from deploykit.graph.ranges import threads
    from deploykit.runtime.bundle import PORTABLE_PATH, Bundle
    from deploykit.runtime.engines import EngineOptions
    from deploykit.runtime.loading import open_variant
    from deploykit.runtime.manifest import SCHEMA, FileEntry, Manifest, SelfTest

    files = {"model.onnx": FileEntry("", 0), PORTABLE_PATH: FileEntry("", 0)}
    bundle = Bundle(exported, Manifest(SCHEMA, card, (), SelfTest("", "", {}), files), "")
    return open_variant(bundle, replace(bundle.portable, path="model.onnx"), EngineOptions(threads()))


def _hidden(model: str, asked: sources.Options) -> Callable[[Mapping[str, np.ndarray]], np.ndarray | None]:
    """The last hidden state of the module that is exported, which is loaded when it is first asked for."""

    def hidden(feeds: Mapping[str, np.ndarray]) -> np.ndarray | None:
        import torch

        from deploykit.sources._encoders import BodyEncoder

        module = sources.open_source(model, asked).module
        if not isinstance(module, BodyEncoder):
            return None
        seen: list[Any] = []
        pick = module.pick

        def watched(output: Any) -> Any:
            seen.append(output)
            return pick(output)

        module.pick = watched
        with torch.inference_mode():
            module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        state = getattr(seen[0], "last_hidden_state", None)
        return None if state is None else np.asarray(state.float())

    return hidden
