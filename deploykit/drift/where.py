"""Where a drift enters: the layers of the portable fp32 graph and of a variant side by side, on a few inputs.

A variant keeps the names of the values between its blocks (normalisations, residual sums, activations), because every
lowering and every converter here does. They are made outputs of both graphs, and their SQNR is followed through the
network. Values inside an attention are left alone: as outputs they would take apart the kernel that is looked at.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import InputError
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.engines import Engine, EngineOptions, Feeds, open_engine
from deploykit.runtime.engines.openvino import without_telemetry
from deploykit.runtime.manifest import Card, TensorSpec, Variant
from deploykit.runtime.preprocess import open_preprocessor
from deploykit.runtime.selftest import cosines
from deploykit.runtime.trust.models import check_model

if TYPE_CHECKING:
    import onnx

#: The engines whose artefacts can be opened up.
TARGETS = ("onnxruntime", "openvino")

_NORMALISATIONS = frozenset(
    {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"}
)
_ACTIVATIONS = frozenset({"Clip", "Elu", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Swish"})
_POOLINGS = frozenset({"AveragePool", "GlobalAveragePool", "MaxPool"})
# From an attention's scores to its softmax: the sum itself, a guard, a cast.
_REACH = 3
# One step that brings this share of all noise is where the drift enters; below it the drift builds up.
_MOST = 0.3
# Less than this between the plain variant and the opened one is rounding, not another kernel.
_SAME = 1e-4
# Two fp32 engines agree to 110 to 130 dB.
_ROUNDING_DB = 90.0


@dataclass(frozen=True)
class Layer:
    """One layer's output. ``drop_db`` is how far its SQNR lies below the layer before (None for the first);
    ``added`` is the noise that it adds, relative to its signal's power: 10^(-SQNR/10), less that of the layer before.
    """

    name: str
    sqnr_db: float
    drop_db: float | None
    added: float


@dataclass(frozen=True)
class Where:
    """``layers`` by the noise that each adds, most first; ``notes`` say what makes the picture unsure."""

    layers: tuple[Layer, ...]
    sentence: str
    inputs: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; an SQNR that is not finite becomes None."""
        rows = [{"name": row.name, "added": _finite(row.added)} for row in self.layers]
        for row, layer in zip(rows, self.layers, strict=True):
            row |= {"sqnr_db": _finite(layer.sqnr_db), "drop_db": _finite(layer.drop_db)}
        return {"sentence": self.sentence, "inputs": self.inputs, "layers": rows, "notes": list(self.notes)}


def where(
    bundle: Bundle, variant: Variant, inputs: Sequence[Any], *, kind: str | None = None, threads: int | None = None
) -> Where:
    """Run ``inputs`` one by one through the bundle's portable graph and ``variant``, every layer's output laid open.

    `InputError` for a variant that cannot be opened up: of another engine, or the portable graph itself.
    `BundleError` when one of the two models is none that an encoder needs: neither is read then.
    """
    check(bundle, variant)
    for model in (bundle.portable, variant):
        check_model(bundle, model)
    card, options = bundle.manifest.card, EngineOptions(threads)
    portable, artefact = bundle.file(bundle.portable.path), bundle.file(variant.path)
    kept = _value_names(variant.target, artefact)
    shared = {value: name for value, name in boundaries(portable, card).items() if value in kept}
    if len(shared) < 2:
        return Where((), f"'{variant.name}' keeps none of the portable graph's names: its layers cannot be told.", 0)
    preprocessor = open_preprocessor(card, bundle.root)
    batches = [preprocessor.collate(preprocessor.items([value], kind=kind)) for value in inputs]
    opened = replace(card, outputs=(*card.outputs, *(TensorSpec(value, "float32", ()) for value in shared)))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        both = []
        for name, one in (("reference", bundle.portable), ("candidate", variant)):
            path = _lay_open(one.target, bundle.file(one.path), tuple(shared), folder / name)
            engine = open_engine(one.target, path, opened, one.settings, options)
            both.append(stack.enter_context(closing(engine)))
        plain = stack.enter_context(closing(open_engine(variant.target, artefact, card, variant.settings, options)))
        values = [*shared, card.embedding.output]
        powers, notes = _run(both[0], both[1], plain, batches, values, card.embedding.output)
    names = [*shared.values(), card.embedding.output]
    layers = _layers([(name, powers[value]) for name, value in zip(names, values, strict=True) if value in powers])
    ordered = sorted(layers, key=lambda layer: -layer.added)
    return Where(tuple(ordered), _sentence(layers, ordered[0], len(batches)), len(batches), notes)


def check(bundle: Bundle, variant: Variant) -> None:
    """`InputError` when `where` cannot open ``variant`` up."""
    if variant.target not in TARGETS:
        hint = f"the layers of {' and '.join(TARGETS)} variants can"
        raise InputError(f"the layers of '{variant.name}' cannot be looked at ({variant.target})", hint=hint)
    if variant.path == bundle.portable.path and variant.target == bundle.portable.target:
        raise InputError(
            f"'{variant.name}' runs the portable graph itself: no layer differs", hint="name another variant"
        )


def boundaries(path: Path, card: Card) -> dict[str, str]:
    """{value: layer} of the ONNX graph at ``path``, in its order: what leaves each block, and a name for people.

    Names come from the nearest weights: ``encoder.layer.5.output.LayerNorm``.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    graph = _Graph(model)
    found = {node.output[0]: graph.layer(node) for node in model.graph.node if graph.is_boundary(node)}
    found.pop(card.embedding.output, None)
    return _distinct(found)


class _Graph:
    """Who makes and who reads each value of an ONNX graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._weights = {tensor.name for tensor in model.graph.initializer}
        # What the weight matrices reach: masks and positions on their way to the network are none of its layers.
        self._hidden = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
        for node in model.graph.node:
            if not self._hidden.isdisjoint(node.input):
                self._hidden.update(node.output)
        self._place = {node.output[0]: place for place, node in enumerate(model.graph.node)}
        self._made = {value: node for node in model.graph.node for value in node.output}
        self._readers: dict[str, list[Any]] = defaultdict(list)
        for node in model.graph.node:
            for value in node.input:
                self._readers[value].append(node)
        floats = (1, 10, 11, 16)  # float32, float16, float64, bfloat16
        infos = [*model.graph.value_info, *model.graph.output]
        self._floats = {info.name for info in infos if info.type.tensor_type.elem_type in floats}

    def is_boundary(self, node: onnx.NodeProto) -> bool:
        """Does a block end here, in floating point?"""
        value = node.output[0]
        if value not in self._floats or value not in self._hidden:
            return False
        if node.op_type in _NORMALISATIONS | _ACTIVATIONS | _POOLINGS:
            return True
        return node.op_type == "Add" and self._is_residual(node) and not self._only_prepares(value)

    def layer(self, node: onnx.NodeProto) -> str:
        """The name of the weights nearest above, without ``.weight``; else the node's own."""
        level, seen = [node], 0
        while level and seen < 12:
            for one in level:
                weights = [name for name in one.input if name in self._weights and "." in name]
                if weights:
                    return str(weights[0]).rpartition(".")[0]
            above = [self._made[name] for one in level for name in one.input if name in self._made]
            level, seen = sorted(above, key=lambda one: -self._place[one.output[0]]), seen + 1
        return str(node.name).strip("/").replace("/", ".") or str(node.output[0])

    def _is_residual(self, node: onnx.NodeProto) -> bool:
        return not any(name in self._weights for name in node.input) and not self._leads_to_softmax(node.output[0])

    def _leads_to_softmax(self, value: str, reach: int = _REACH) -> bool:
        readers = self._readers[value]
        return reach > 0 and any(
            reader.op_type == "Softmax" or self._leads_to_softmax(reader.output[0], reach - 1)
            for reader in readers
            if reader.op_type in ("Softmax", "Where", "Cast", "IsNaN", "Add", "Clip", "Max")
        )

    def _only_prepares(self, value: str) -> bool:
        """Is the sum read by nothing but a normalisation or an activation, which stands for it?"""
        readers = self._readers[value]
        return len(readers) == 1 and readers[0].op_type in _NORMALISATIONS | _ACTIVATIONS


def _distinct(found: dict[str, str]) -> dict[str, str]:
    """Without the leading parts that all names share; a name that comes twice is followed by its value's."""
    parts = [name.split(".") for name in found.values()]
    skip = 0
    while all(len(p) > skip + 1 and not p[skip + 1].isdigit() for p in parts) and len({p[skip] for p in parts}) == 1:
        skip += 1
    names = {value: ".".join(name.split(".")[skip:]) for value, name in found.items()}
    counts = Counter(names.values())
    return {value: f"{name} ({value})" if counts[name] > 1 else name for value, name in names.items()}


def _value_names(target: str, path: Path) -> set[str]:
    if path.suffix == ".onnx":
        import onnx

        return {value for node in onnx.load(path, load_external_data=False).graph.node for value in node.output}
    without_telemetry()
    import openvino

    model = openvino.Core().read_model(path)
    return {name for node in model.get_ops() for output in node.outputs() for name in output.get_names()}


def _lay_open(target: str, path: Path, values: tuple[str, ...], stem: Path) -> Path:
    """A copy of the artefact with ``values`` as outputs too."""
    if path.suffix == ".onnx":
        import onnx

        model = onnx.load(path)
        # Without a type: the engine knows it, and it differs between precisions.
        model.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
        copy = stem.with_suffix(".onnx")
        onnx.save(model, copy, save_as_external_data=True, location=f"{stem.name}.data")
        return copy
    without_telemetry()
    import openvino

    converted = openvino.Core().read_model(path)
    converted.add_outputs(list(values))
    openvino.save_model(converted, stem.with_suffix(".xml"), compress_to_fp16=False)
    return stem.with_suffix(".xml")


def _run(
    reference: Engine, candidate: Engine, plain: Engine, batches: Sequence[Feeds], values: Sequence[str], output: str
) -> tuple[dict[str, tuple[float, float]], tuple[str, ...]]:
    """{value: (power of the signal, of the noise)} over all batches, and notes; values of other shapes are left out."""
    powers: dict[str, tuple[float, float]] = {}
    skipped: set[str] = set()
    changed = 0.0
    for feeds in batches:
        wanted, got = reference.run(feeds), candidate.run(feeds)
        changed = max(changed, 1 - float(cosines(got[output], plain.run(feeds)[output]).min()))
        for value in values:
            if wanted[value].shape != got[value].shape:
                skipped.add(value)
                continue
            signal, noise = powers.get(value, (0.0, 0.0))
            truth = wanted[value].astype(np.float64)
            difference = float(((got[value] - truth) ** 2).sum())
            noise += difference if math.isfinite(difference) else math.inf
            powers[value] = (signal + float((truth**2).sum()), noise)
    notes = []
    if changed > _SAME:
        notes.append(
            f"laid open, the variant gives other vectors (cosine {1 - changed:.4f} to itself): "
            "a kernel that joins several layers has a part in the drift"
        )
    return {value: power for value, power in powers.items() if value not in skipped}, tuple(notes)


def _layers(powers: Sequence[tuple[str, tuple[float, float]]]) -> list[Layer]:
    """In the graph's order."""
    layers: list[Layer] = []
    before: float | None = None
    for name, (signal, noise) in powers:
        if signal == 0:
            continue
        ratio = noise / signal
        sqnr_db = -10 * math.log10(ratio) if 0 < ratio < math.inf else (math.inf if ratio == 0 else -math.inf)
        drop_db = None if not layers else _drop(layers[-1].sqnr_db, sqnr_db)
        added = ratio - (before or 0.0) if before != math.inf else 0.0
        layers.append(Layer(name, sqnr_db, drop_db, added))
        before = ratio
    return layers


def _drop(before: float, after: float) -> float:
    return 0.0 if before == after else before - after


def _sentence(layers: Sequence[Layer], worst: Layer, count: int) -> str:
    over = f"over the {count} worst inputs" if count > 1 else "on the worst input"
    place = layers.index(worst)
    lowest = min(layer.sqnr_db for layer in layers)
    if lowest >= _ROUNDING_DB:
        said = "no loss at all" if lowest == math.inf else f"SQNR {lowest:.0f} dB or more"
        return f"No layer differs from the portable graph's by more than rounding ({said}) {over}."
    if worst.sqnr_db == -math.inf:
        return f"The variant computes what is not finite at {worst.name} {over}."
    steps = sum(layer.added for layer in layers if layer.added > 0)
    opening = "The drift enters at" if worst.added >= _MOST * steps else "The drift builds up; the largest step is at"
    if place == 0:
        return f"{opening} {worst.name}, the first layer looked at: its SQNR is {worst.sqnr_db:.0f} dB {over}."
    before = layers[place - 1].sqnr_db
    start = f"{before:.0f}" if math.isfinite(before) else "no loss"
    return f"{opening} {worst.name}: SQNR falls from {start} to {worst.sqnr_db:.0f} dB {over}."


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
