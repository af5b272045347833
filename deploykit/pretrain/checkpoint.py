"""The state of a run in one safetensors file, replaced in one move: a killed run leaves the old state or the new one.

Importing this module imports torch. All randomness of a step follows from the seed and the step (`draws`), so weights,
the optimizer's state, the averaged weights and the step are the whole state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import SourceError
from deploykit.pretrain import distributed

NAME = "last.safetensors"


@dataclass(frozen=True)
class State:
    """What training goes on from; ``seconds`` it took so far, and those of them spent waiting for data."""

    step: int
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Mapping[int, Mapping[str, Tensor]]
    rng: Tensor
    facts: Mapping[str, Any]
    seconds: tuple[float, float] = (0.0, 0.0)


def save(path: Path, state: State) -> None:
    """Write ``state`` to ``path``: to a file beside it, flushed to the disk, then moved over it."""
    tensors = {f"model.{k}": v for k, v in state.model.items()}
    tensors |= {f"ema.{k}": v for k, v in state.ema.items()}
    tensors |= {f"optimizer.{i}.{k}": v for i, entry in state.optimizer.items() for k, v in entry.items()}
    tensors["rng"] = state.rng
    facts = json.dumps(state.facts, default=str)
    write_tensors(path, tensors, {"step": str(state.step), "facts": facts, "seconds": json.dumps(state.seconds)})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, atomically."""
    from safetensors.torch import save_file

    part = path.with_name(path.name + ".part")
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, part, dict(metadata))
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def load(path: Path) -> State:
    """Read a state; `SourceError` when the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise SourceError(f"there is no checkpoint '{path}'", hint="start the run without --resume")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}}
    optimizer: dict[int, dict[str, Tensor]] = {}
    rng = torch.empty(0)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            for key in file.keys():  # noqa: SIM118
                kind, _, name = key.partition(".")
                tensor = file.get_tensor(key)
                if kind == "rng":
                    rng = tensor
                elif kind == "optimizer":
                    index, _, name = name.partition(".")
                    optimizer.setdefault(int(index), {})[name] = tensor
                else:
                    parts[kind][name] = tensor
        facts, (trained, waited) = json.loads(metadata["facts"]), json.loads(metadata.get("seconds", "[0, 0]"))
        step, seconds = int(metadata["step"]), (float(trained), float(waited))
        return State(step, parts["model"], parts["ema"], optimizer, rng, facts, seconds)
    except (SafetensorError, KeyError, ValueError) as error:
        raise SourceError(f"{path} is no checkpoint of a run: {error}", hint="start again in another folder") from error


def fit_weights(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load weights; `SourceError` names the first tensor of another architecture."""
    own = module.state_dict()
    for name in [*own, *tensors]:
        have, want = tensors.get(name), own.get(name)
        if have is None or want is None or have.shape != want.shape:
            here = "no such tensor" if have is None else f"shape {list(have.shape)}"
            there = "none" if want is None else f"shape {list(want.shape)}"
            raise SourceError(
                f"{path} holds another architecture: '{name}' has {here} and the model wants {there}",
                hint="use the recipe that the run was made with, or another output folder",
            )
    module.load_state_dict({name: distributed.spread_like(tensors[name], value) for name, value in own.items()})
