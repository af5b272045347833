"""From a torch module to a portable ONNX file that was proven against torch.

The exporters are tried in turn, and a try only counts when its graph keeps every dynamic axis, loads in onnxruntime
and passes the proof (`deploykit.graph.prove`): both exporters have been seen to fix an axis, or to give wrong vectors
at one length, without a word. Giving up an exporter is announced in the result, never silent.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import BundleError, DeploykitError, ExportError, InputError, ProofError
from deploykit.graph import prove
from deploykit.graph.plain_weights import plain_weights
from deploykit.graph.scripted import as_script, holds_script
from deploykit.graph.time_limit import at_most
from deploykit.graph.weights import ONE_FILE, constant_bytes
from deploykit.runtime.manifest import Card, TensorSpec

if TYPE_CHECKING:
    import onnx
    import torch

    from deploykit.runtime.engines import Engine
    from deploykit.sources import Source

EXPORTERS = ("dynamo", "torchscript")
# Of the time that is there: the model has to be loaded and the self-test written too.
_SHARE = 0.8
_LATE = "give it longer with timeout_s in the recipe's [export], or choose the other exporter there"


@dataclass(frozen=True)
class ExportOptions:
    """``opset`` of the portable model; ``exporter`` auto tries dynamo and, when it fails, announces TorchScript.

    ``seconds`` are there for all exporters together: each gets an equal share, so that one which hangs leaves the next
    its time. None is no limit.
    """

    opset: int = 20
    exporter: str = "auto"
    seconds: float | None = None


@dataclass(frozen=True)
class Exported:
    """The proven portable model, the proof, and ``notes`` for the user: what was tried and did not work."""

    model: Path
    exporter: str
    proof: dict[str, Any]
    notes: tuple[str, ...]


def export(source: Source, options: ExportOptions, out: Path) -> tuple[Exported, list[prove.Case]]:
    """Write ``out/model.onnx`` and prove it; also returns the cases of the proof, for the engines to come.

    Raises `ExportError` when no exporter succeeds, and `ProofError` when one does and its vectors are wrong.
    """
    if options.exporter not in ("auto", *EXPORTERS):
        raise ExportError(f"there is no exporter '{options.exporter}'", hint="auto, dynamo or torchscript")
    path = out / "model.onnx"
    if source.model_path is not None:
        return _adopt(source, source.model_path, options.opset, path)
    if source.module is not None:
        plain_weights(source.module)
    cases = prove.make_cases(source, reference(source), further(source))
    failures: list[tuple[str, Exception]] = []
    exporters = EXPORTERS if options.exporter == "auto" else (options.exporter,)
    exporters = ("torchscript",) if options.exporter == "auto" and holds_script(source.module) else exporters
    seconds = None if options.seconds is None else _SHARE * options.seconds / len(exporters)
    for exporter in exporters:
        try:
            with at_most(seconds, f"the {exporter} exporter", _LATE):
                proof, found = _attempt(exporter, source, options.opset, path, cases)
        except Exception as error:
            failures.append((exporter, error))
            continue
        notes = tuple(f"the {name} exporter was given up: {_told(error)}" for name, error in failures)
        return Exported(path, exporter, proof, (*notes, *found)), cases
    raise _give_up(failures)


def _attempt(
    exporter: str, source: Source, opset: int, path: Path, cases: Sequence[prove.Case]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Export, clean and prove; once more from other sizes where those of the first trace were right and others wrong.

    A trace follows one branch of what a model decides by its sizes. Often one of the branches is right for every size:
    padding to an even length changes nothing where it already is even.
    """
    sizes = _tracing_sizes(source)
    try:
        return _finish(source.card, path, cases, _run_exporter(exporter, source, opset, path, sizes)), ()
    except ProofError as error:
        others = _sizes_to_try(sizes, error.wrong_at)
        if others is None:
            raise
        try:
            proof = _finish(source.card, path, cases, _run_exporter(exporter, source, opset, path, others))
        except Exception as again:
            raise error from again
        note = f"traced at {prove.describe(others)}: a trace at {prove.describe(sizes)} was wrong at other sizes"
        return proof, (note,)


def _sizes_to_try(sizes: Mapping[str, int], wrong_at: Sequence[Mapping[str, int]]) -> dict[str, int] | None:
    """Sizes at which the first trace was wrong, the smallest of each axis; None where it was wrong at its own, or at
    those alone that no exporter can be traced with.
    """
    wrong = {axis: {at[axis] for at in wrong_at} for axis in sizes} if wrong_at else {}
    others = {axis: min((size for size in found if size > 3), default=0) for axis, found in wrong.items()}
    if not others or 0 in others.values() or all(sizes[axis] in found for axis, found in wrong.items()):
        return None
    return others


def reference(source: Source) -> Callable[[prove.Feeds], np.ndarray]:
    """What every artefact is compared with: the torch module in fp32, or the ONNX file as given, unoptimised."""
    if source.model_path is not None:
        return _reference_session(source.model_path, source.card)
    import torch

    module = source.module
    assert module is not None

    def run(feeds: prove.Feeds) -> np.ndarray:
        with torch.inference_mode():
            answer = module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
            embedding: np.ndarray = (answer[0] if isinstance(answer, tuple) else answer).float().numpy()
        return embedding

    return run


def further(source: Source) -> Callable[[prove.Feeds], dict[str, np.ndarray]]:
    """What the torch module gives beside the embedding, by name; nothing for most encoders."""
    names = [spec.name for spec in source.card.outputs if spec.name != source.card.embedding.output]
    if not names or source.module is None:
        return lambda feeds: {}
    import torch

    module = source.module

    def run(feeds: prove.Feeds) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            _, *others = module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        return {name: other.numpy() for name, other in zip(names, others, strict=True)}

    return run


def _run_exporter(exporter: str, source: Source, opset: int, path: Path, sizes: Mapping[str, int]) -> str:
    """Trace at ``sizes`` and export; the line that fixed a size, if one did. Raises whatever the exporter raises."""
    import torch

    from deploykit.graph.plain_attention import plain_attention
    from deploykit.graph.plain_experts import plain_experts

    assert source.module is not None
    write = _export_dynamo if exporter == "dynamo" else _export_torchscript
    with warnings.catch_warnings(), torch.no_grad(), plain_attention(), plain_experts(source.module):
        warnings.simplefilter("ignore")
        return write(source, tracing_inputs(source, sizes), opset, path)


def tracing_inputs(source: Source, sizes: Mapping[str, int] | None = None) -> dict[str, torch.Tensor]:
    """Inputs to trace with: batch 3 and ``sizes``, middle ones without, never 0 or 1, which exporters take for
    constants.
    """
    return source.make_inputs(3, _tracing_sizes(source) if sizes is None else sizes, 0)


def _tracing_sizes(source: Source) -> dict[str, int]:
    return {axis: _tracing_size(options) for axis, options in source.sizes.items()}


def _tracing_size(sizes: Sequence[int]) -> int:
    candidates = [size for size in sizes if size > 3] or [max(sizes)]
    return candidates[min(1, len(candidates) - 1)]


def _export_dynamo(source: Source, inputs: Mapping[str, torch.Tensor], opset: int, path: Path) -> str:
    import torch

    from deploykit.graph.diagnose import specialised

    assert source.module is not None
    try:
        program = torch.onnx.export(
            source.module,
            (),
            kwargs=dict(inputs),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes={spec.name: _dynamic_axes(spec) for spec in source.card.inputs},
            input_names=[spec.name for spec in source.card.inputs],
            output_names=[spec.name for spec in source.card.outputs],
            verbose=False,
        )
    except Exception as error:
        _refuse_frozen(error, source, inputs)
        raise
    assert program is not None
    program.save(str(path), external_data=_weight_bytes(source.module) > ONE_FILE)
    return "" if program.exported_program is None else specialised(program.exported_program)


def _refuse_frozen(error: Exception, source: Source, inputs: Mapping[str, torch.Tensor]) -> None:
    """`ExportError` with axis and source line where the exporter failed because the model makes a size a number."""
    from deploykit.graph.diagnose import freezing_line, frozen

    found = frozen(error)
    specs = {spec.name: spec for spec in source.card.inputs}
    if found is None or found[0] not in specs or source.module is None:
        return
    name, axis, size = found
    line = freezing_line(source.module, inputs, {key: _dynamic_axes(spec) for key, spec in specs.items()})
    raise _fixed(str(specs[name].shape[axis]), name, size, line) from error


def _fixed(axis: str, name: str, size: int, line: str) -> ExportError:
    from deploykit.graph.diagnose import ADVICE

    by = f" by {line}" if line else ": some line of the model makes it a Python number"
    error = ExportError(f"axis '{axis}' of '{name}' was fixed at {size}{by}", hint=ADVICE)
    error.frozen = axis
    return error


def _export_torchscript(source: Source, inputs: Mapping[str, torch.Tensor], opset: int, path: Path) -> str:
    import torch

    assert source.module is not None
    specs = (*source.card.inputs, *source.card.outputs)
    module, positional, named = as_script(source.module, inputs)
    torch.onnx.export(
        module,
        positional,
        str(path),
        kwargs=named,
        dynamo=False,
        opset_version=opset,
        dynamic_axes={spec.name: _dynamic_axes(spec) for spec in specs},
        input_names=[spec.name for spec in source.card.inputs],
        output_names=[spec.name for spec in source.card.outputs],
        do_constant_folding=True,
    )
    return ""  # it follows the tensors alone, and does not know which size became a number


def _dynamic_axes(spec: TensorSpec) -> dict[int, str]:
    return {i: axis for i, axis in enumerate(spec.shape) if isinstance(axis, str)}


def _weight_bytes(module: torch.nn.Module) -> int:
    tensors = {t.data_ptr(): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _finish(card: Card, path: Path, cases: Sequence[prove.Case], fixed_at: str = "") -> dict[str, Any]:
    """Clean the graph, check that it is what the card says, and prove it on onnxruntime."""
    from deploykit.precisions.fp32 import TOLERANCE

    _clean(card, path, fixed_at)
    with _onnxruntime(path, card) as engine:
        return prove.prove_outputs(cases, engine.run, card.embedding.output, TOLERANCE, "the exported ONNX model")


def _clean(card: Card, path: Path, fixed_at: str) -> None:
    """Clean the graph at ``path`` in place. Its copies of the weights are gone before an engine makes its own."""
    import onnx

    from deploykit.graph import control_flow
    from deploykit.graph.rewrite import clean

    exported = onnx.load(path)
    lines = control_flow.lines(exported)
    model = clean(exported)
    check_axes(model, card, fixed_at)
    control_flow.refuse(model, lines)
    save(model, path)


def check_axes(model: onnx.ModelProto, card: Card, fixed_at: str = "") -> None:
    """Raise `ExportError` when an input is absent, or an axis that should be dynamic was fixed by the exporter.

    ``fixed_at`` is the source line that did it, where that is known.
    """
    inputs = {value.name: value for value in model.graph.input}
    for spec in card.inputs:
        if spec.name not in inputs:
            raise ExportError(
                f"the exporter dropped the input '{spec.name}'",
                hint="the module does not use it: take it from the inputs",
            )
        dims = inputs[spec.name].type.tensor_type.shape.dim
        for i, axis in enumerate(spec.shape):
            if isinstance(axis, str) and dims[i].HasField("dim_value"):
                raise _fixed(axis, spec.name, dims[i].dim_value, fixed_at)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write the model, with its weights beside it in ``<name>.data`` when they would not fit into one protobuf."""
    import onnx

    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)
    if constant_bytes(model) > ONE_FILE:
        onnx.save(model, path, save_as_external_data=True, location=data.name)
    else:
        onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=False)


@contextmanager
def onnxruntime_runner(path: Path, card: Card) -> Iterator[Callable[[prove.Feeds], np.ndarray]]:
    """A function from feeds to the embedding, on onnxruntime's CPU provider."""
    with _onnxruntime(path, card) as engine:
        yield lambda feeds: engine.run(feeds)[card.embedding.output]


@contextmanager
def _onnxruntime(path: Path, card: Card) -> Iterator[Engine]:
    from deploykit.runtime.engines import EngineOptions, open_engine

    engine = open_engine("onnxruntime", path, card, {}, EngineOptions())
    try:
        yield engine
    finally:
        engine.close()


def _adopt(source: Source, given: Path, opset: int, path: Path) -> tuple[Exported, list[prove.Case]]:
    """Take over a model that already is ONNX: the model as given, unoptimised, is its own reference.

    Operators of an older opset are converted; if that fails or is wrong they stay, which is in the notes.
    """
    import onnx

    from deploykit.graph.opset import opset_of, raised

    check_axes(onnx.load(given, load_external_data=False), source.card)
    cases = prove.make_cases(source, reference(source))
    have = opset_of(model := onnx.load(given))
    newer, why = raised(model, opset)
    told = tuple(source.card.provenance.get("notes", ()))
    notes = (f"its operators are of opset {opset_of(newer)}, not {opset}: {why}",) if why else ()
    exporter = "none: the source is ONNX"
    if opset_of(newer) == have:
        save(model, path)
        return Exported(path, exporter, _finish(source.card, path, cases), (*told, *notes)), cases
    try:
        save(newer, path)
        proof = _finish(source.card, path, cases)
        notes = (f"its operators were converted from opset {have} to {opset_of(newer)}", *notes)
    except Exception as error:  # the converter, or an engine on what it wrote
        save(model, path)
        proof = _finish(source.card, path, cases)
        notes = (f"its operators stay of opset {have}: converted to {opset_of(newer)}, {_first_line(error)}",)
    return Exported(path, exporter, proof, (*told, *notes)), cases


def _reference_session(path: Path, card: Card) -> Callable[[prove.Feeds], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"onnxruntime cannot load {path.name}: {_first_line(error)}",
            hint="an operator or opset that it does not know: export the model anew with standard operators",
        ) from error

    def run(feeds: prove.Feeds) -> np.ndarray:
        try:
            result: np.ndarray = session.run([card.embedding.output], dict(feeds))[0]
        except Exception as error:
            raise ExportError(
                f"{path.name} fails on onnxruntime: {_first_line(error)}",
                hint="the message names the operator; the model itself is at fault, or the sizes that it was given",
            ) from error
        return result

    return run


def _give_up(failures: Sequence[tuple[str, Exception]]) -> DeploykitError:
    """One error for all exporters: a deploykit error as it is, anything else as an `ExportError` that names each."""
    from deploykit.graph.diagnose import ADVICE

    for _, error in failures:
        # That an engine cannot load or run what one exporter wrote is its failure, no fault of a bundle or input.
        if isinstance(error, DeploykitError) and not isinstance(
            error, (ExportError, BundleError, InputError, ProofError)
        ):
            return error
    first = failures[0][1]
    # Wrong vectors are the diagnosis only where no exporter found out why.
    if isinstance(first, ProofError) and all(isinstance(error, ProofError) for _, error in failures):
        return first
    tried = "; ".join(f"{name}: {_told(error)}" for name, error in failures)
    given_up = ExportError(f"the model cannot be exported ({tried})", hint=ADVICE)
    # What froze an axis, or at which sizes a graph is wrong, can be acted upon: the export is narrowed.
    cause = next((error for _, error in failures if isinstance(error, ExportError) and error.frozen), None)
    wrong = next((error for _, error in failures if isinstance(error, ProofError)), None)
    given_up.frozen, given_up.__cause__ = cause.frozen if cause else "", cause or wrong
    given_up.wrong_at = wrong.wrong_at if wrong else ()
    return given_up


def _told(error: Exception) -> str:
    """What went wrong, and at which line of the model."""
    from deploykit.graph.diagnose import line_of

    place = "" if isinstance(error, DeploykitError) else line_of(error)
    return _first_line(error) + (f", at {place}" if place else "")


def _first_line(error: Exception) -> str:
    """The line of an exporter's message that says what went wrong; exporters wrap it in pages."""
    lines = [line.strip() for line in str(getattr(error, "message", error)).splitlines() if line.strip()]
    cause = error.__cause__
    if not isinstance(error, DeploykitError) and cause is not None and str(cause).strip():
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
