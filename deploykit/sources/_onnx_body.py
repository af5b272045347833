"""An ONNX graph as others wrote it, brought into the form that deploykit exports: batch first and dynamic, float32.

The graph as it was given is the judge: onnxruntime runs it without any rewriting, one input at a time (`Original`).
A rewritten graph counts if it gives the same for every row of a batch; if none does, the encoder runs row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import SourceError
from deploykit.graph import prove
from deploykit.graph.prove import Case, Tolerance
from deploykit.precisions import is_quantized
from deploykit.runtime.manifest import TensorSpec
from deploykit.sources import _onnx_batch, _onnx_bind, _onnx_branches, _onnx_float, _onnx_ports
from deploykit.sources._checkpoint import first_line
from deploykit.sources._onnx_ports import Port

if TYPE_CHECKING:
    import onnx

    from deploykit.sources._onnx_graph import Run

Feeds = Mapping[str, np.ndarray]

BATCH = "batch"
_SAME = Tolerance(cosine=0.9999, relative_error=1e-3)
# fp16 keeps 11 bits, and layer upon layer rounds to them; quantized graphs round what depends on the whole batch.
_SAME_BUT_ROUNDED = Tolerance(cosine=0.99, relative_error=0.1)
_WORST = Tolerance(cosine=0.99, relative_error=0.1)
_NOISE = 10.0


@dataclass(frozen=True)
class Graph:
    """A graph as it was given, and what is to become of it.

    ``bound`` are the inputs that are constants, ``shape`` is what the output needs to be one vector for each input
    (`deploykit.sources._onnx_batch.to_front`).
    """

    model: onnx.ModelProto
    inputs: tuple[Port, ...]
    bound: Mapping[str, np.ndarray]
    output: Port
    shape: str = "kept"

    @property
    def fixed(self) -> int | None:
        """The size at which the batch of its inputs is fixed; None if it is dynamic."""
        sizes = [port.batch for port in self.inputs if isinstance(port.batch, int)]
        return max(sizes) if sizes else None

    @property
    def half(self) -> bool:
        """Whether it computes in fp16."""
        return _onnx_float.computes_in_half(self.model)


@dataclass(frozen=True)
class Body:
    """A graph in deploykit's form: its ``output`` has the batch first; ``notes`` are for the user."""

    model: onnx.ModelProto
    output: str
    batch: int | str
    notes: tuple[str, ...] = field(default=())


def quantized_operators(model: onnx.ModelProto) -> list[str]:
    """The operators of a graph that was quantized before, each once."""
    found = {node.op_type for node in model.graph.node}
    return sorted(name for name in found if is_quantized(name))


def specs_of(graph: Graph, batch: int | str = BATCH) -> tuple[TensorSpec, ...]:
    """deploykit's inputs: the batch first, float32 for every float."""
    names = _onnx_ports.axis_names(list(graph.inputs))
    return tuple(TensorSpec(port.name, _dtype(port), (batch, *names[port.name])) for port in graph.inputs)


def _dtype(port: Port) -> str:
    return "float32" if np.issubdtype(port.dtype, np.floating) else str(port.dtype)


class Original:
    """The file as it was given, on onnxruntime without its rewriting; inputs in deploykit's form, one by one."""

    def __init__(self, graph: Graph, path: Path, name: str) -> None:
        from deploykit.sources._onnx_graph import runner

        self._graph = graph
        self._run = runner(path, graph.output.name, name, as_it_is=True)
        self._rewritten = runner(path, graph.output.name, name)

    def rows(self, feeds: Feeds, *, rewritten: bool = False) -> np.ndarray:
        """What it gives for each row alone, float32, the batch first; ``rewritten`` as onnxruntime runs it usually."""
        count, run = len(next(iter(feeds.values()))), self._rewritten if rewritten else self._run
        return np.concatenate([self._row(run, {k: v[i : i + 1] for k, v in feeds.items()}) for i in range(count)])

    def _row(self, run: Run, feeds: Feeds) -> np.ndarray:
        graph, size = self._graph, self._graph.fixed or 1
        given: dict[str, np.ndarray] = {}
        for port in graph.inputs:
            array = np.repeat(feeds[port.name], size, axis=0).astype(port.dtype)
            given[port.name] = np.ascontiguousarray(np.moveaxis(array, 0, port.axis or 0))
        answer = run({**given, **graph.bound})
        if answer.ndim != len(graph.output.dims):
            fact = f"'{graph.output.name}' has {answer.ndim} axes, and the file declares {len(graph.output.dims)}"
            raise SourceError(fact, hint="export it again, or choose another output: --output-name NAME")
        if graph.output.axis is not None and answer.ndim and answer.shape[graph.output.axis] == size:
            answer = np.moveaxis(answer, graph.output.axis, 0)[:1]
        else:
            raise SourceError(
                f"'{graph.output.name}' has the shape {list(answer.shape)} for a batch of {size}: no vector per input",
                hint="choose another output: --output-name NAME",
            )
        vector = answer if graph.shape == "kept" else answer.reshape(1, -1)
        return np.asarray(vector, np.float32)


@dataclass(frozen=True)
class Wanted:
    """Inputs in a batch, what the original gives for each row alone, and how near to it is the same."""

    feeds: Feeds
    answer: np.ndarray
    tolerance: Tolerance

    def alone(self) -> Wanted:
        """The first row."""
        return Wanted({key: array[:1] for key, array in self.feeds.items()}, self.answer[:1], self.tolerance)


def _wanted(graph: Graph, original: Original, feeds: Feeds) -> Wanted:
    """An ill-conditioned model differs from itself when onnxruntime rewrites it: no closer can anything be."""
    answer = original.rows(feeds)
    noise = _score(original.rows(feeds, rewritten=True), answer)
    rough = graph.half or bool(quantized_operators(graph.model))
    least = _SAME_BUT_ROUNDED if rough else _SAME
    cosine = min(least.cosine, 1 - _NOISE * (1 - noise.cosine))
    error = max(least.relative_error, _NOISE * noise.relative_error)
    return Wanted(feeds, answer, Tolerance(max(cosine, _WORST.cosine), min(error, _WORST.relative_error)))


def bring(graph: Graph, original: Original, batches: Sequence[Feeds], specs: Sequence[TensorSpec], name: str) -> Body:
    """The first rewriting of the graph that gives what ``original`` gives for every row of the batches.

    ``specs`` are the inputs that it is declared with. Raises `SourceError` if its batch is fixed at more than 1 and
    cannot be made dynamic.
    """
    wanted = [_wanted(graph, original, feeds) for feeds in batches]
    why = ""
    for axes in _growing(graph):
        try:
            return _right(graph, axes, specs, wanted, name)
        except SourceError as error:
            why = error.message
        except Exception as error:  # a guess about a foreign graph that does not fit, whatever it trips over
            why = f"{type(error).__name__}: {first_line(error)}"
    if graph.fixed not in (None, 1):
        hint = "export it again with a dynamic batch axis"
        raise SourceError(f"the batch of {name} is fixed at {graph.fixed}, and cannot be freed: {why}", hint=hint)
    alone = [each.alone() for each in wanted]
    body = _right(graph, None, specs, alone, name)
    note = f"it runs one input at a time, because a batch does not give what its inputs give alone: {why}"
    return Body(body.model, body.output, 1, (*body.notes, note))


def _right(
    graph: Graph,
    axes: Mapping[str, int | None] | None,
    specs: Sequence[TensorSpec],
    wanted: Sequence[Wanted],
    name: str,
) -> Body:
    """The rewriting in which the constants grow along ``axes``; without any the batch is 1.

    Raises `SourceError` if it does not give what is wanted.
    """
    model, output = _rewritten(graph, axes, specs)
    branches = [node for node in model.graph.node if node.op_type == "If"]
    if branches:
        model = _onnx_branches.settle(model, [each.feeds for each in wanted], name)
    wrong = _difference(model, output, wanted, name)
    if wrong:
        raise SourceError(f"{name} cannot be brought into one form: {wrong}", hint="export it again with opset 20")
    told = ["branches that no input took were taken out"] if branches else []
    return Body(model, output, 1 if axes is None else BATCH, (*_notes(graph, axes is not None), *told))


def _growing(graph: Graph) -> list[dict[str, int | None]]:
    """Which axis of each constant grows with the batch: as declared; else the first axis of size 1 behind the first."""
    known = {port.name: port for port in _onnx_ports.inputs(graph.model)}
    declared: dict[str, int | None] = {}
    guessed: dict[str, int | None] = {}
    for key, array in graph.bound.items():
        dims = known[key].dims
        open_axis = next((i for i, dim in enumerate(dims) if isinstance(dim, str)), None)
        declared[key] = open_axis
        ones = [i for i, size in enumerate(array.shape) if size == (graph.fixed or 1)]
        guessed[key] = open_axis if open_axis is not None else next((i for i in ones if i > 0), next(iter(ones), None))
    return [declared] if guessed == declared else [guessed, declared]


def _rewritten(
    graph: Graph, axes: Mapping[str, int | None] | None, specs: Sequence[TensorSpec]
) -> tuple[onnx.ModelProto, str]:
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    if axes is not None and graph.fixed is not None:
        _onnx_batch.free(model, graph.inputs, graph.fixed)
    lead = graph.inputs[0]
    _onnx_bind.bind(model, graph.bound, axes or {}, (lead.name, lead.axis or 0))
    if graph.half:
        _onnx_float.widen(model)
    _keep(model, graph.output.name)
    moved = _onnx_batch.to_front(model, graph.inputs, graph.output, graph.shape)
    _declare(model, graph, specs, moved, 1 if axes is None else BATCH)
    return model, _onnx_float.double_to_float(model, moved)


def _keep(model: onnx.ModelProto, output: str) -> None:
    """Leave one output, so that what only others need is not run."""
    kept = [value for value in model.graph.output if value.name == output]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def _declare(model: onnx.ModelProto, graph: Graph, specs: Sequence[TensorSpec], output: str, batch: int | str) -> None:
    """State the shapes of inputs and output as they are now: axes by deploykit's names."""
    from onnx import helper

    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    inputs = [helper.make_tensor_value_info(s.name, kinds[s.name], [batch, *s.shape[1:]]) for s in specs]
    held = {tensor.name for tensor in model.graph.initializer}
    inputs += [value for value in model.graph.input if value.name in held]
    rank = len(graph.output.dims) if graph.shape == "kept" else 2
    element = model.graph.output[0].type.tensor_type.elem_type
    result = helper.make_tensor_value_info(output, element, [batch, *([None] * (rank - 1))])
    del model.graph.input[:], model.graph.output[:], model.graph.value_info[:]
    model.graph.input.extend(inputs)
    model.graph.output.append(result)


def _difference(model: onnx.ModelProto, output: str, wanted: Sequence[Wanted], name: str) -> str:
    """How the graph's answers differ from what is wanted; empty if they do not."""
    from deploykit.sources._onnx_graph import runner, save

    run = runner(save(model), output, name)
    for each in wanted:
        got = np.asarray(run(each.feeds), np.float32)
        if got.shape != each.answer.shape:
            return f"shape {list(got.shape)}, expected {list(each.answer.shape)}"
        found = _score(got, each.answer)
        if not found.passes(each.tolerance):
            return f"cosine {found.cosine:.5f}, error {found.relative_error:.2g} of the largest component"
    return ""


def _score(got: np.ndarray, want: np.ndarray) -> prove.Score:
    return prove.score(Case({}, {}, want.reshape(len(want), -1)), got.reshape(len(got), -1))


def _notes(graph: Graph, dynamic: bool) -> tuple[str, ...]:
    """What was done to the graph, in sentences."""
    notes: list[str] = []
    if graph.fixed is not None and dynamic:
        notes.append(f"the batch, fixed at {graph.fixed} in the file, was made dynamic; each row is what it is alone")
    if graph.bound:
        listed = ", ".join(f"{key} {_shown(array)}" for key, array in graph.bound.items())
        notes.append(f"inputs that are constants now: {listed}")
    if graph.half:
        notes.append("it is stored in fp16 and computes in fp32 here: the precision fp16 stores it in 16 bits again")
    moved = [port.name for port in (*graph.inputs, graph.output) if port.axis]
    if moved:
        notes.append(f"the batch of {', '.join(moved)} was brought to the first axis")
    if graph.shape == "flat":
        notes.append(f"the axes of '{graph.output.name}' behind the batch are one vector")
    operators = quantized_operators(graph.model)
    if operators:
        notes.append(f"the file is quantized already ({', '.join(operators[:4])}): fp32 runs it as it is")
    return tuple(notes)


def _shown(array: np.ndarray) -> str:
    values = np.unique(array)
    shape = "" if array.ndim == 0 else f" {list(array.shape)}"
    return f"{values[0]}{shape}" if len(values) == 1 else f"array{shape}"


def choose(outputs: Sequence[Port], name: str | None, pooled: bool, file: str, order: Any) -> tuple[Port, str]:
    """The output to embed with, and the shape that it needs: token vectors for a pooling, else one vector.

    Without a ``name`` the first of ``order`` counts, or the only float output of the right rank.
    """
    floats = [port for port in outputs if np.issubdtype(port.dtype, np.floating)]
    wanted = 3 if pooled else 2
    if name is not None:
        return _by_name(outputs, name, pooled, file)
    fitting = {port.name: port for port in floats if len(port.dims) == wanted}
    chosen = next((fitting[n] for n in order if n in fitting), None)
    if chosen is None and len(fitting) == 1:
        chosen = next(iter(fitting.values()))
    if chosen is not None:
        return chosen, "kept"
    listed = ", ".join(f"{port.name} ({port.dtype}, rank {len(port.dims)})" for port in outputs)
    if not fitting and not pooled and any(len(port.dims) == 3 for port in floats):
        hint = "its token vectors need a pooling: mean, cls, last, max, mean_sqrt_len or weighted_mean"
    else:
        hint = f"name the one that is meant: --output-name {floats[0].name if floats else 'NAME'}"
    raise SourceError(f"{file} has no output that is the embedding: {listed}", hint=hint)


def _by_name(outputs: Sequence[Port], name: str, pooled: bool, file: str) -> tuple[Port, str]:
    from deploykit.errors import nearest

    known = {port.name: port for port in outputs}
    if name not in known:
        raise SourceError(f"{file} has no output '{name}'", hint=nearest(name, list(known)))
    port = known[name]
    rank = len(port.dims)
    if not np.issubdtype(port.dtype, np.floating):
        others = [p.name for p in outputs if np.issubdtype(p.dtype, np.floating)]
        hint = f"choose a float output: {', '.join(others) or 'it has none'}"
        raise SourceError(f"the output '{name}' of {file} is {port.dtype}, and no embedding", hint=hint)
    if rank == 0 or (pooled and rank != 3):
        hint = "leave the pooling out" if rank else "choose an output with a batch axis"
        raise SourceError(f"the output '{name}' of {file} has the rank {rank}", hint=hint)
    return port, "kept" if pooled or rank == 2 else "row" if rank == 1 else "flat"
