"""Which variant of a bundle runs here: the default if this machine can, else the fastest measured, else the portable
one.

A variant's ``requires`` may hold:

- ``architecture``: a list, one of which the machine must be (``x86_64``, ``aarch64``);
- ``cpu_features``: a list, *all* of which every core must have; an entry ``"amx_bf16|avx512_bf16"`` asks for either;
- ``compute_capability``: the smallest that an NVIDIA GPU must have (``"8.9"``); the driver is asked for it;
- ``packages``: the versions of Python packages, ``{"openvino": ">=2025.0,<2027"}``.

Any other key is something that this deploykit cannot check, and a reason not to choose the variant.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from deploykit.runtime import hardware
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.engines import EXTRAS
from deploykit.runtime.manifest import Variant
from deploykit.runtime.tensorrt.driver import Gpu, gpu

Prefer = Literal["speed", "size"]
PREFERENCES: tuple[Prefer, ...] = ("speed", "size")

# One import name, several packages that bring it.
_PACKAGES = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}
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
    """What a variant's needs are held against. ``gpu`` is asked only for variants that need one."""

    cpu: hardware.Cpu = field(default_factory=hardware.cpu)
    gpu: Callable[[], Gpu | None] = gpu


@dataclass(frozen=True)
class Candidate:
    """A variant in the order of trial. ``why`` it stands there; ``unmet`` is what it lacks here, or empty."""

    variant: Variant
    why: str
    unmet: str = ""


@dataclass(frozen=True)
class Report:
    """What runs and why. ``passed_over`` gives the reason for each variant that stood before it in the order of trial,
    ``behind`` says of each one that stood after it whether it could have run.
    """

    variant: str
    why: str
    passed_over: Mapping[str, str]
    behind: Mapping[str, str]
    effective: Mapping[str, Any]

    def __str__(self) -> str:
        running = ", ".join(f"{key} {value}" for key, value in self.effective.items())
        lines = [f"{self.variant}: {self.why}", f"  {running}"]
        lines += [f"  not {name}: {reason}" for name, reason in self.passed_over.items()]
        lines += [f"  behind it {name}: {state}" for name, state in self.behind.items()]
        return "\n".join(lines)


def candidates(bundle: Bundle, prefer: Prefer, device: Device) -> list[Candidate]:
    """Every variant in the order in which it should be tried, the portable model last."""
    manifest = bundle.manifest
    ordered: list[tuple[Variant, str]] = []
    if prefer == "size":
        by_size = sorted(manifest.variants, key=lambda v: _bytes(bundle, v))
        ordered += [(v, f"the smallest ({_bytes(bundle, v)} bytes)") for v in by_size]
    else:
        ordered += [(v, "the bundle's default") for v in manifest.variants if v.name == manifest.default]
        by_speed = sorted(manifest.variants, key=_p50_ms)
        ordered += [(v, f"the fastest measured ({_p50_ms(v)} ms)") for v in by_speed if _p50_ms(v) < math.inf]
    ordered.append((bundle.portable, "the portable fp32 model"))
    ordered += [(v, "not measured") for v in manifest.variants]
    first: dict[str, Candidate] = {}
    for variant, why in ordered:
        if variant.name not in first:
            first[variant.name] = Candidate(variant, why, unmet(variant, device))
    return list(first.values())


def unmet(variant: Variant, device: Device) -> str:
    """Why ``variant`` cannot run on ``device``, in words; empty when it can."""
    requires: Mapping[str, Any] = variant.requires
    unknown = sorted(set(requires) - {"architecture", "compute_capability", "cpu_features", "packages"})
    if unknown:
        return f"it requires '{unknown[0]}', which this deploykit cannot check"
    architectures = [hardware.normalize_architecture(str(name)) for name in requires.get("architecture", [])]
    if architectures and device.cpu.architecture not in architectures:
        return f"it is for {' or '.join(architectures)}, this machine is {device.cpu.architecture}"
    for entry in requires.get("cpu_features", []):
        if device.cpu.features.isdisjoint(str(entry).split("|")):
            return f"the CPU lacks {' or '.join(str(entry).split('|'))}"
    if "compute_capability" in requires and (reason := _gpu_fault(device.gpu(), str(requires["compute_capability"]))):
        return reason
    if importlib.util.find_spec(variant.target.replace("-", "_")) is None and not _third_party(variant.target):
        return f"{variant.target} is not installed"
    for package, wanted in requires.get("packages", {}).items():
        if reason := _version_fault(str(package), str(wanted)):
            return reason
    return ""


def install_hint(targets: list[str]) -> str:
    """The pip command for the engines that are missing."""
    if set(targets) == {"tensorrt"}:
        return "pip install tensorrt"
    extras = ",".join(dict.fromkeys(EXTRAS.get(target, target) for target in targets))
    return f'pip install "deploykit[{extras}]"'


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


def _version_fault(package: str, wanted: str) -> str:
    have = _installed(package)
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


def _installed(package: str) -> str | None:
    for name in _PACKAGES.get(package, (package,)):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
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


def _bytes(bundle: Bundle, variant: Variant) -> int:
    files = bundle.manifest.files
    weights = variant.path.removesuffix(".xml") + ".bin"
    return files[variant.path].size + (files[weights].size if variant.path.endswith(".xml") else 0)
