"""What an audit says in words, and how two of them differ. No engine is needed: an audit is plain data.

An audit is what a target's `audit` found in the compiled artefact::

    {"engine": "openvino 2026.4.1", "device": "CPU",
     "asked": "int8",                          the precision that was asked for
     "effective": "int8",                      what the engine says that it computes in; a table in a bundle's manifest
     "stored": "int8",                         the type of the weights in the file, where it is not that of the products
     "operations": {operator: {precision: n}},
     "products": {precision: n},               matrix products and convolutions, those inside a fused attention left out
     "attention": {"found": 6, "fused": 6}}

Bundles written by an older deploykit lack some of these; what is not there is neither described nor compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, Any]

#: The operators that count as products, as onnxruntime, OpenVINO and TensorRT call them.
PRODUCTS = frozenset(
    {
        *("Conv", "ConvInteger", "FusedConv", "QLinearConv"),
        *(
            "DynamicQuantizeMatMul",
            "FusedGemm",
            "FusedMatMul",
            "Gemm",
            "MatMul",
            "MatMulInteger",
            "MatMulIntegerToFloat",
        ),
        *("MatMulNBits", "QGemm", "QLinearMatMul"),
        *("Convolution", "FullyConnected"),
        *("CaskConvolution", "MatrixMultiply"),
    }
)
# From the narrowest to the widest. Moving right costs time, and is what a silent fallback does.
_WIDTHS = {"int4": 4, "fp8": 8, "int8": 8, "uint8": 8, "bf16": 16, "fp16": 16, "tf32": 19, "fp32": 32, "fp64": 64}
_NAMES = {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "uint8", "float": "fp32", "float16": "fp16"}


@dataclass(frozen=True)
class Change:
    """One difference between two audits. ``what`` names it (``device``, ``products``, ``operations.MVN``); ``before``
    and ``after`` are plain data; ``worse`` when it costs speed: a fallback, a lost fusion, another device.
    """

    what: str
    before: Any
    after: Any
    sentence: str
    worse: bool


def describe(facts: Facts) -> str:
    """One sentence: the engine and its device, what was asked, what the products really run in, the fused attentions.

    ``openvino 2026.4.1 on CPU, asked for int8, runs 31 of 36 matrix products in int8 and 5 in bf16; 6 of 6 attentions
    are fused.``
    """
    who = str(facts.get("engine", "the engine"))
    if facts.get("device"):
        who += f" on {facts['device']}"
    asked = str(facts.get("asked", ""))
    if asked:
        who += f", asked for {asked},"
    parts = [f"{who} runs {_counted(products(facts), kernel(asked))}"]
    stored = str(facts.get("stored", ""))
    if stored in _WIDTHS and all(_WIDTHS.get(kind, 64) > _WIDTHS[stored] for kind in products(facts)):
        parts.append(f"only the storage of the weights is {stored}")
    attention = facts.get("attention") or {}
    if attention.get("found"):
        parts.append(f"{attention.get('fused', 0)} of {attention['found']} attentions are fused")
    if facts.get("casts_folded") is False:
        parts.append("stored weights are cast at every call")
    return "; ".join(parts) + "."


def diff(before: Facts, after: Facts) -> tuple[Change, ...]:
    """Every difference that matters, those that made it worse first; empty when the two run alike."""
    found = [
        *_engine(before, after),
        *_device(before, after),
        *_precision("asked", before, after),
        *_precision("effective", before, after),
        *_products(before, after),
        *_attention(before, after),
        *_casts(before, after),
        *_operations(before, after),
    ]
    return tuple(sorted(found, key=lambda change: not change.worse))


def products(facts: Facts) -> dict[str, int]:
    """{precision: how many products}; summed over the operators where an older audit does not give it."""
    given = facts.get("products")
    if given is not None:
        return {_name(kind): int(count) for kind, count in given.items()}
    totals: dict[str, int] = {}
    for operator, kinds in (facts.get("operations") or {}).items():
        for kind, count in kinds.items() if operator in PRODUCTS else ():
            totals[_name(kind)] = totals.get(_name(kind), 0) + int(count)
    return totals


def kernel(precision: str) -> str:
    """What products run in when a precision is carried out in full: ``int8-dynamic`` runs int8 kernels."""
    return _name(precision.partition("-")[0])


def is_kernel(name: str) -> bool:
    """Do engines have kernels of that name? A precision of another package may have a name of its own."""
    return name in _WIDTHS


def _counted(counts: Mapping[str, int], asked: str) -> str:
    """``31 of 36 matrix products in int8 and 5 in bf16``; what was asked first, even when it is none."""
    total = sum(counts.values())
    if not total:
        return "no matrix product"
    by_count = sorted((kind for kind in counts if counts[kind]), key=lambda kind: (kind != asked, -counts[kind], kind))
    if len(by_count) == 1:
        only = by_count[0]
        none = f", none in {asked}" if asked and only != asked else ""
        return f"{'all ' if total > 1 else ''}{_many(total)} in {only}{none}"
    first, *rest = by_count
    said = [f"{counts[first]} of {_many(total)} in {first}", *(f"{counts[kind]} in {kind}" for kind in rest)]
    if asked and not counts.get(asked):
        said.append(f"none in {asked}")
    return ", ".join(said[:-1]) + f" and {said[-1]}"


def _many(count: int) -> str:
    return "1 matrix product" if count == 1 else f"{count} matrix products"


def _engine(before: Facts, after: Facts) -> Iterator[Change]:
    old, new = before.get("engine"), after.get("engine")
    if old and new and old != new:
        yield Change("engine", old, new, f"the engine is {new}, and was {old}", worse=False)


def _device(before: Facts, after: Facts) -> Iterator[Change]:
    old, new = before.get("device"), after.get("device")
    if old and new and _plain_device(old) != _plain_device(new):
        yield Change("device", old, new, f"it runs on {new}, and ran on {old}", worse=True)


def _plain_device(device: Any) -> str:
    """``CPUExecutionProvider`` and ``CPU`` are one device."""
    return str(device).replace("ExecutionProvider", "").upper()


def _precision(key: str, before: Facts, after: Facts) -> Iterator[Change]:
    """A wider precision is worse. A bundle's manifest holds under ``effective`` a table with the precision in it."""
    old, new = (_stated(facts.get(key)) for facts in (before, after))
    if old and new and old != new:
        worse = _WIDTHS.get(kernel(new), 0) > _WIDTHS.get(kernel(old), 64)
        said = "the precision asked for is" if key == "asked" else "the engine says that it computes in"
        yield Change(key, old, new, f"{said} {new}, and was {old}", worse)


def _stated(value: Any) -> str:
    """The precision, or nothing where it is no precision (``as stored in the file``)."""
    stated = str((value.get("precision") if isinstance(value, Mapping) else value) or "")
    return _name(stated) if kernel(stated) in _WIDTHS else ""


def _products(before: Facts, after: Facts) -> Iterator[Change]:
    """Judged by the share of products in the precision asked for, the narrower one where the two audits disagree."""
    old, new = products(before), products(after)
    if not old or not new or old == new:
        return
    asked = [kernel(str(facts["asked"])) for facts in (before, after) if facts.get("asked")]
    kinds = asked or [*old, *new]
    narrow = min(kinds, key=lambda kind: _WIDTHS.get(kind, 64))
    worse = new.get(narrow, 0) * sum(old.values()) < old.get(narrow, 0) * sum(new.values())
    # fp16 weights on a CPU compute in fp32, asked or not: then any wider product tells.
    worse = worse or (not old.get(narrow) and _mean_width(new) > _mean_width(old))
    yield Change("products", old, new, f"it runs {_counted(new, narrow)}, and ran {_counted(old, narrow)}", worse)


def _attention(before: Facts, after: Facts) -> Iterator[Change]:
    old, new = (facts.get("attention") or {} for facts in (before, after))
    if "fused" not in old or "fused" not in new:
        return
    was, now = (f"{a['fused']} of {a.get('found', a['fused'])}" for a in (old, new))
    if was == now:
        return
    lost = new["fused"] * old.get("found", old["fused"]) < old["fused"] * new.get("found", new["fused"])
    # A graph in which no attention is recognised any more has lost them all.
    worse = bool(lost or (old["fused"] and not new["fused"]))
    yield Change("attention", dict(old), dict(new), f"{now} attentions are fused, and {was} were", worse)


def _casts(before: Facts, after: Facts) -> Iterator[Change]:
    old, new = before.get("casts_folded"), after.get("casts_folded")
    if old is not None and new is not None and old != new:
        when = {True: "once, when the model is loaded", False: "at every call"}
        yield Change(
            "casts_folded", old, new, f"stored weights are cast {when[bool(new)]}, and were {when[bool(old)]}", not new
        )


def _operations(before: Facts, after: Facts) -> Iterator[Change]:
    """Operators that moved to a wider precision are worse, one change each; all that came, went or moved otherwise is
    one change: engines shuffle their helpers with every version.
    """
    old, new = ({k: v for k, v in (f.get("operations") or {}).items() if k not in PRODUCTS} for f in (before, after))
    if not old or not new:
        return
    others: list[str] = []
    for operator in sorted({*old, *new}):
        was, now = (_known(kinds.get(operator, {})) for kinds in (old, new))
        if was == now:
            continue
        if sum(was.values()) == sum(now.values()) and _mean_width(now) > _mean_width(was):
            sentence = f"{operator} runs {_listed(now)}, and ran {_listed(was)}"
            yield Change(f"operations.{operator}", was, now, sentence, worse=True)
        else:
            others.append(f"{operator} {_listed(was)} → {_listed(now)}")
    if others:
        yield Change("operations", old, new, "other operations changed: " + "; ".join(others), worse=False)


def _known(kinds: Mapping[str, Any]) -> dict[str, int]:
    return {_name(kind): int(count) for kind, count in kinds.items()}


def _mean_width(kinds: Mapping[str, int]) -> float:
    """Mean bits of the operations whose precision is one; integers of other widths (indices, shapes) have none."""
    widths = [(_WIDTHS[kind], count) for kind, count in kinds.items() if kind in _WIDTHS]
    total = sum(count for _, count in widths)
    return sum(width * count for width, count in widths) / total if total else 0.0


def _listed(kinds: Mapping[str, int]) -> str:
    return " and ".join(f"{count} in {kind}" for kind, count in kinds.items()) or "none"


def _name(precision: str) -> str:
    return _NAMES.get(precision.lower(), precision)
