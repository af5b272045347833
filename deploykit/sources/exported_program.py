"""``.pt2``: a program saved by torch.export.

Inputs, types and dynamic axes are those it was exported with. Files that hold pickled objects are refused: torch.load
would run what is in them.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import SourceError
from deploykit.runtime.manifest import TensorSpec
from deploykit.sources import Identity, Options, Source, _folder
from deploykit.sources._options import only

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

KIND = "exported-program"
LARGEST_SIZE = 128
"""Of an axis that the program does not bound more tightly."""


def matches(spec: str) -> bool:
    """``….pt2``."""
    return spec.endswith(".pt2")


def identify(spec: str, options: Options) -> Identity:
    """Digest of the file."""
    path = _require_file(spec)
    return _folder.identity(KIND, path, [path], options, {"name": path.stem})


def open(spec: str, options: Options) -> Source:
    """Load the program; its first input axis must have been exported as dynamic."""
    import torch

    path = _require_file(spec)
    only(options, ("pooling", "normalize", "dim", "preprocess"), f"{path.name} takes ready tensors")
    _refuse_pickles(path)
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise SourceError(
            f"torch {torch.__version__} cannot load {path}: {error}",
            hint="it was saved by another version of torch, or is damaged",
        ) from error
    return _wrap(path, program, options)


def _wrap(path: Path, program: ExportedProgram, options: Options) -> Source:
    from deploykit.sources._assemble import Parts, assemble, explained
    from deploykit.sources._encoders import Head, Named, renormalized, stages
    from deploykit.sources._tensors import TensorInput

    inputs = _user_inputs(program)
    axes = _axis_names(inputs)
    specs = _specs(inputs, axes)
    _check_batch(path, specs)
    modes = [] if options.pooling in (None, "none") else [str(options.pooling)]
    body, examples = program.module(check_guards=False), _examples(program, inputs)
    with explained(path.name, examples):
        plain = Named(body, list(inputs), Head(modes, []), _keywords(program))
        options = renormalized(options, lambda: plain(**examples))
    head = Head(modes, stages(options, bool(options.normalize)))
    module = Named(body, list(inputs), head, _keywords(program))
    return assemble(
        Parts(
            name=path.stem,
            modality="tensor",
            module=module,
            inputs=specs,
            make_inputs=TensorInput(specs, examples).make,
            sizes=_sizes(program, axes),
            preprocess={"kind": "none"},
            pooling=options.pooling or "none",
            normalized=bool(options.normalize),
            provenance={"kind": KIND, "name": path.stem, "weights_sha256": _folder.digest_of([path])},
        )
    )


def _require_file(spec: str) -> Path:
    path = Path(spec).expanduser()
    if not path.is_file():
        raise SourceError(f"there is no file '{spec}'", hint="check the path")
    if not zipfile.is_zipfile(path):
        raise SourceError(f"{path} is no torch.export archive, or is cut off", hint="save it with torch.export.save")
    return path


def _refuse_pickles(path: Path) -> None:
    """`SourceError` when loading the archive would unpickle anything but tensors."""
    import torch

    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            member = Path(name).name
            if member.startswith(("custom_obj", "opaque_obj")):
                raise _pickled(path, name)
            if member.endswith("_config.json") and _asks_for_pickle(archive.read(name)):
                raise _pickled(path, name)
            if member.endswith(".pt") and archive.getinfo(name).file_size:
                try:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
                    raise _pickled(path, name) from error


def _asks_for_pickle(raw: bytes) -> bool:
    entries = json.loads(raw).get("config", {})
    return any(entry.get("use_pickle") for entry in entries.values())


def _pickled(path: Path, member: str) -> SourceError:
    hint = "save the program again from plain tensors, without custom objects"
    return SourceError(f"{path} holds pickled objects ({member}), which are refused", hint=hint)


def _user_inputs(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """The program's own inputs by name, as fake tensors whose shapes may hold symbols."""
    wanted = set(program.graph_signature.user_inputs)
    return {
        node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted
    }


def _axis_names(inputs: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Names of the symbols in the inputs' shapes; the same symbol is the same axis everywhere."""
    names: dict[str, str] = {}
    for value in inputs.values():
        for position, size in enumerate(value.shape):
            if isinstance(size, int) or str(size) in names:
                continue
            usual = "batch" if position == 0 else "length" if position == 1 and value.ndim <= 3 else f"axis{position}"
            names[str(size)] = usual if usual not in names.values() else f"{usual}_{size}"
    return names


def _specs(inputs: Mapping[str, torch.Tensor], axes: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name,
            str(value.dtype).removeprefix("torch."),
            tuple(size if isinstance(size, int) else axes[str(size)] for size in value.shape),
        )
        for name, value in inputs.items()
    )


def _check_batch(path: Path, specs: tuple[TensorSpec, ...]) -> None:
    for spec in specs:
        if not spec.shape or spec.shape[0] != "batch":
            raise SourceError(
                f"the first axis of '{spec.name}' in {path} is fixed at {spec.shape[0] if spec.shape else 'nothing'}",
                hint="export it with dynamic_shapes that make the batch dynamic",
            )


def _sizes(program: ExportedProgram, axes: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Sizes of the dynamic axes inside the ranges that the program was exported with."""
    bounds = {str(symbol): (int(bound.lower), str(bound.upper)) for symbol, bound in program.range_constraints.items()}
    sizes = {}
    for symbol, axis in axes.items():
        if axis == "batch":
            continue
        low, upper = bounds.get(symbol, (1, ""))
        high = min(int(upper), LARGEST_SIZE) if upper.isdigit() else LARGEST_SIZE
        sizes[axis] = tuple(sorted(n for n in {low, 1, 2, 7, 16, 64, high} if low <= n <= high))
    return sizes


def _examples(program: ExportedProgram, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that the program was exported with, or plain ones where they were not saved."""
    import torch

    saved = program.example_inputs
    given = [*saved[0], *saved[1].values()] if saved else []
    if len(given) == len(inputs) and all(isinstance(value, torch.Tensor) for value in given):
        return dict(zip(inputs, given, strict=True))
    return {
        name: torch.tensor([-1.0, 1.0]) if value.is_floating_point() else torch.zeros(2, dtype=value.dtype)
        for name, value in inputs.items()
    }


def _keywords(program: ExportedProgram) -> list[str]:
    """The inputs that were given by keyword when the program was exported."""
    spec = program.call_spec.in_spec
    return [] if spec is None else [str(name) for name in spec.child(1).context]
