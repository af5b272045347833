"""Which variants of a bundle can run here, and in which order they stand: the default, then by what was measured when
the bundle was built, the portable one last. `deploykit.runtime.decide` tries them.

A variant's ``requires`` may hold:

- ``architecture``: a list, one of which the machine must be (``x86_64``, ``aarch64``);
- ``cpu_features``: a list, *all* of which every core must have; an entry ``"amx_bf16|avx512_bf16"`` asks for either;
- ``compute_capability``: the smallest that an NVIDIA GPU must have (``"8.9"``); the driver is asked for it;
- ``packages``: the versions of Python packages, ``{"openvino": ">=2025.0,<2027"}``;
- ``memory_mib``: what must be free; where it is not said, the weights and the engine must fit (`memory.least_needed`).

Any other key is something that this deploykit cannot check, and a reason not to choose the variant.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from deploykit.runtime import hardware, memory
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.manifest import Variant
from deploykit.runtime.tensorrt.driver import Gpu, gpu

Prefer = Literal["speed", "size"]
#: A variant that is less than so many times as fast as another is not worth more drift.
WORTH = 1.05
PORTABLE = "the portable fp32 model"
PREFERENCES: tuple[Prefer, ...] = ("speed", "size")

_CHECKED = {"architecture", "compute_capability", "cpu_features", "memory_mib", "packages"}
# One import name, several packages that bring it.
_PACKAGES = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}
# The import name of an engine's package, where the target is called otherwise.
_ENGINE_PACKAGES = {"onnxruntime-cuda": "onnxruntime", "tensorrt-rtx": "tensorrt_rtx"}
_COMPARE: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": lambda have, want: have >= want,
    "<=": lambda have, want: have <= want,
    "==": lambda have, want: have == want,
    "!=": lambda have, want: have != want,
    ">": lambda have, want: have > want,
    "<": lambda have, want: have < want,
}


@dataclass(frozen=True)
class Device:
    """What a variant's needs are held against. ``gpu`` is asked only for variants that need one, ``memory`` (bytes
    that can still be had, None where unknown) once for each variant.
    """

    cpu: hardware.Cpu = field(default_factory=hardware.cpu)
    gpu: Callable[[], Gpu | None] = gpu
    memory: Callable[[], int | None] = memory.available


@dataclass(frozen=True)
class Candidate:
    """A variant in the order of trial. ``why`` it stands there; ``unmet`` is what it lacks here, or empty; ``known`` is
    what the manifest says of it, in brackets behind it.
    """

    variant: Variant
    why: str
    unmet: str = ""
    known: str = "not measured"


@dataclass(frozen=True)
class Row:
    """What became of one variant here. ``usable``: it could run, and another is used. ``cosine_min`` is the self-test's
    worst example and ``p50_ms`` the median time of one input; None where the variant was not tried, or not timed.
    """

    variant: str
    status: Literal["used", "usable", "refused"]
    why: str
    cosine_min: float | None = None
    p50_ms: float | None = None


@dataclass(frozen=True)
class Report:
    """What runs and why: one row for each variant, what the engine says of itself, and what else there is to know
    (``notes``: a choice that was remembered, or could not be).
    """

    variant: str
    why: str
    rows: tuple[Row, ...]
    effective: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def passed_over(self) -> Mapping[str, str]:
        """The variants that do not run here, each with the reason."""
        return {row.variant: row.why for row in self.rows if row.status == "refused"}

    @property
    def behind(self) -> Mapping[str, str]:
        """The variants that could run here, each with what is known of it."""
        return {row.variant: row.why for row in self.rows if row.status == "usable"}

    def __str__(self) -> str:
        running = ", ".join(f"{key} {value}" for key, value in self.effective.items())
        return "\n".join([f"{self.variant}: {self.why}", f"  {running}", *_lines(self.rows), *self._remarks()])

    def _remarks(self) -> list[str]:
        return [f"  note: {note}" for note in self.notes]


def _lines(rows: Sequence[Row]) -> list[str]:
    """The rows as columns; a column that would be empty in all is left out."""
    cells = [
        (
            row.status,
            row.variant,
            "" if row.cosine_min is None else f"cosine {row.cosine_min:.6f}",
            "" if row.p50_ms is None else f"p50 {row.p50_ms:.3g} ms",
            row.why,
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    shown = [[f"{text:<{width}}" for text, width in zip(row, widths, strict=True) if width] for row in cells]
    return [("  " + "  ".join(row)).rstrip() for row in shown]


def candidates(bundle: Bundle, prefer: Prefer, device: Device) -> list[Candidate]:
    """Every variant in the order in which it should be tried, the portable model last if it is there."""
    manifest = bundle.manifest
    ordered: list[tuple[Variant, str, str]] = []
    if prefer == "size":
        by_size = sorted(manifest.variants, key=lambda v: model_bytes(bundle, v))
        ordered += [(v, "the smallest", f"{model_bytes(bundle, v):,} bytes") for v in by_size]
    else:
        timed = [v for v in manifest.variants if _p50_ms(v) < math.inf]
        by_speed = sorted(timed, key=lambda v: (v.batch_dependent, _p50_ms(v)))
        known = {v.name: f"{_p50_ms(v):.3g} ms where it was built" for v in by_speed}
        default = [v for v in manifest.variants if v.name == manifest.default]
        ordered += [(v, "the bundle's default", known.get(v.name, "not measured")) for v in default]
        ordered += [(v, f"the fastest measured, {known[v.name]}", known[v.name]) for v in by_speed]
    if manifest.portable:
        ordered.append((bundle.portable, PORTABLE, PORTABLE))
    ordered += [(v, "not measured", "not measured") for v in manifest.variants]
    first: dict[str, Candidate] = {}
    for variant, why, fact in ordered:
        if variant.name not in first:
            lacking = unmet(variant, device, model_bytes(bundle, variant))
            first[variant.name] = Candidate(variant, why, lacking, fact)
    return list(first.values())


def drift_of(variant: Variant) -> float:
    """How far its vectors are from fp32, as it was measured when it was built; what is below 1e-6 is rounding.

    Where that was not measured: nothing for fp32 itself, and for any other the worst case of its proof.
    """
    terms = variant.drift.get("terms")
    value = terms.get("drift") if isinstance(terms, Mapping) else None
    if not isinstance(value, int | float):
        worst = variant.proof.get("cosine_min")
        known = isinstance(worst, int | float) and variant.precision != "fp32"
        value = 1 - float(worst) if known and worst is not None else 0.0
    return max(0.0, round(float(value), 6))


def unmet(variant: Variant, device: Device, size_bytes: int = 0) -> str:
    """Why ``variant``, whose files have that size, cannot run on ``device``, in words; empty when it can."""
    requires: Mapping[str, Any] = variant.requires
    unknown = sorted(set(requires) - _CHECKED)
    if unknown:
        return f"it requires '{unknown[0]}', which this deploykit cannot check"
    if reason := cpu_fault(requires, device.cpu):
        return reason
    if "compute_capability" in requires and (reason := _gpu_fault(device.gpu(), str(requires["compute_capability"]))):
        return reason
    if importlib.util.find_spec(variant.target.replace("-", "_")) is None and not _third_party(variant.target):
        return f"{variant.target} is not installed"
    for package, wanted in requires.get("packages", {}).items():
        if reason := _version_fault(str(package), str(wanted)):
            return reason
    return _memory_fault(requires.get("memory_mib"), size_bytes, device)


def cpu_fault(requires: Mapping[str, Any], cpu: hardware.Cpu) -> str:
    """Why a processor cannot run what requires this, in words; empty if it can, or if nothing is asked of it."""
    architectures = [hardware.normalize_architecture(str(name)) for name in requires.get("architecture", [])]
    if architectures and cpu.architecture not in architectures:
        return f"it is for {' or '.join(architectures)}, this machine is {cpu.architecture}"
    for entry in requires.get("cpu_features", []):
        if cpu.features.isdisjoint(str(entry).split("|")):
            return f"the CPU lacks {' or '.join(str(entry).split('|'))}"
    return ""


def _third_party(target: str) -> bool:
    """An engine from an entry point imports what it needs itself, under whatever name."""
    from deploykit.runtime.engines import names

    return target in names() and target not in ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")


def _gpu_fault(found: Gpu | None, wanted: str) -> str:
    if found is None:
        return "no NVIDIA GPU is here, or no driver for it"
    if _release(found.compute_capability) < _release(wanted):
        return f"it needs compute capability {wanted}, and the {found.name} has {found.compute_capability}"
    return ""


def _memory_fault(wanted_mib: Any, size_bytes: int, device: Device) -> str:
    if wanted_mib is not None and (isinstance(wanted_mib, bool) or not isinstance(wanted_mib, int | float)):
        return f"its demand 'memory_mib' {wanted_mib!r} is not understood"
    needed = math.ceil(wanted_mib * 2**20) if wanted_mib is not None else memory.least_needed(size_bytes)
    free = device.memory() if wanted_mib is not None or size_bytes else None
    if free is None or needed <= free:
        return ""
    return f"it needs {-(-needed >> 20)} MiB of memory, and {free >> 20} MiB can be had"


def _version_fault(package: str, wanted: str) -> str:
    have = installed(package)
    if have is None:
        return f"{package} is not installed"
    for part in filter(None, (p.strip() for p in wanted.split(","))):
        match = re.fullmatch(r"(>=|<=|==|!=|>|<)\s*(\d+(?:\.\d+)*)", part)
        if match is None:
            return f"its demand '{package}{part}' is not understood"
        want = _release(match[2])
        length = max(len(want), len(_release(have)))
        if not _COMPARE[match[1]](_padded(_release(have), length), _padded(want, length)):
            return f"it needs {package}{part}, and {have} is installed"
    return ""


def installed(package: str) -> str | None:
    """The version of the package that brings the import name ``package``, or None."""
    for name in _PACKAGES.get(package, (package,)):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def engine_version(target: str) -> str | None:
    """The version of the package that brings an engine, one that a third party registered among them."""
    if have := installed(_ENGINE_PACKAGES.get(target, target)):
        return have
    from importlib.metadata import entry_points

    for entry in entry_points(group="deploykit.engines"):
        if entry.name == target and entry.dist is not None:
            return f"{entry.dist.name} {entry.dist.version}"
    return None


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a version; what follows them (rc1, .dev0, +cpu) is not compared."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _padded(release: tuple[int, ...], length: int) -> tuple[int, ...]:
    return release + (0,) * (length - len(release))


def _p50_ms(variant: Variant) -> float:
    """The median time of a single input when the bundle was built; infinite where it was not measured."""
    row = variant.latency.get("single", variant.latency)
    value = row.get("p50_ms") if isinstance(row, Mapping) else None
    return float(value) if isinstance(value, int | float) else math.inf


def model_bytes(bundle: Bundle, variant: Variant) -> int:
    """Size of the variant's file, or files."""
    files = bundle.manifest.files
    weights = variant.path.removesuffix(".xml") + ".bin"
    return files[variant.path].size + (files[weights].size if variant.path.endswith(".xml") else 0)
