"""What an engine is built with beside the model: shapes, memory, effort, compatibility. Plain data in a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.runtime.errors import BundleError, InputError
from deploykit.runtime.manifest import from_json, to_json

_SHARED_WEIGHTS = "model.onnx.data"


@dataclass(frozen=True)
class Bounds:
    """The smallest, the usual and the largest shape of one input; the engine is tuned for the usual one."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Is every size of ``shape`` inside?"""
        return len(shape) == len(self.smallest) and all(
            low <= size <= high for low, size, high in zip(self.smallest, shape, self.largest, strict=True)
        )


Profile = Mapping[str, Bounds]


@dataclass(frozen=True)
class Recipe:
    """``profiles`` give the bounds of every dynamic input, one profile for each bucket of lengths.

    ``workspace_mib`` bounds the scratch memory in MiB; None leaves it and the ``optimization_level`` (0 to 5) to
    TensorRT. ``compute_capability`` is the smallest that the model's precision runs on.
    """

    precision: str
    compute_capability: str
    profiles: tuple[dict[str, Bounds], ...]
    workspace_mib: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Recipe:
        """The recipe of a variant's settings; `BundleError` where it has none or it is damaged."""
        if set(settings) != {"recipe"}:
            raise BundleError("the variant's settings are not a TensorRT build recipe", hint="build the bundle again")
        return from_json(cls, settings["recipe"], "recipe")

    @property
    def settings(self) -> dict[str, Any]:
        """What `read` takes."""
        return {"recipe": json.loads(json.dumps(to_json(self)))}

    @property
    def digest(self) -> str:
        """One for every recipe."""
        return hashlib.sha256(json.dumps(to_json(self), sort_keys=True).encode()).hexdigest()

    def choose(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The tightest profile that holds all shapes; `InputError` names the profiles where none does."""
        fitting = [i for i, profile in enumerate(self.profiles) if _holds(profile, shapes)]
        if not fitting:
            given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise InputError(
                f"the shapes are outside the engine's profiles: {given}",
                hint=f"it was built for {'; or '.join(map(describe, self.profiles))}: cut the batch, or export with "
                "other shapes",
            )
        return min(fitting, key=lambda i: sum(_volume(bounds.largest) for bounds in self.profiles[i].values()))


def describe(profile: Profile) -> str:
    """``input_ids [1, 1] to [32, 256]``."""
    return ", ".join(f"{name} {list(b.smallest)} to {list(b.largest)}" for name, b in profile.items())


def digest_of(model: Path) -> str:
    """SHA-256 over the ONNX and the weights beside it: its own, or those that a bundle's large models share."""
    digest = hashlib.sha256()
    for path in dict.fromkeys([model, model.with_name(model.name + ".data"), model.with_name(_SHARED_WEIGHTS)]):
        if path.exists():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _holds(profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(bounds.holds(shapes[name]) for name, bounds in profile.items() if name in shapes)


def _volume(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
