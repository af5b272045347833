"""What this machine is, as far as choosing a variant and a number of threads needs it. Standard library only."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
# What a limit in ONEDNN_MAX_CPU_ISA hides (oneDNN's guide, "CPU dispatcher control"), by how the kernel's names
# begin. OpenVINO obeys it; ONNX Runtime does not, and what is chosen for fewer features runs there as well.
_ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"
_BEYOND_AVX512 = ("amx", "avx512_fp16", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx_ne_convert")
_HIDDEN = {
    "AVX": ("amx", "avx512", "avx_", "avx2", "fma"),
    "AVX2": ("amx", "avx512", "avx_"),
    "AVX2_VNNI": ("amx", "avx512", "avx_ne_convert"),
    "AVX512_CORE": _BEYOND_AVX512,
    "AVX512_CORE_VNNI": ("amx", "avx512_fp16", "avx512_bf16"),
    "AVX512_CORE_BF16": ("amx", "avx512_fp16"),
    "AVX512_CORE_FP16": ("amx",),
    "AVX10_1_512": ("amx",),
}
_CGROUP = Path("/sys/fs/cgroup")
# The instruction sets that decide which kernels the engines pick, on x86 and ARM.
_DECISIVE = ("amx", "avx", "fma", "f16c", "asimd", "bf16", "fphp", "i8mm", "neon", "sve")
# Instructions that multiply and add numbers of 8 bits: x86's VNNI and AMX, and ARM's dot products.
_INT8_INSTRUCTIONS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


@dataclass(frozen=True)
class Cpu:
    """A processor: ``architecture`` is ``x86_64`` or ``aarch64`` (or as the system calls it); ``features`` are the
    kernel's flags.
    """

    architecture: str
    model: str
    features: frozenset[str]


def cpu(cpuinfo: Path = Path("/proc/cpuinfo"), machine: str | None = None) -> Cpu:
    """The processor, from the kernel's list: ``flags`` on x86, ``Features`` on ARM.

    The features that *every* listed core has count, since a thread may run on any. Where there is no such file (not
    Linux), no feature is known, and variants that require one are not chosen. What ``ONEDNN_MAX_CPU_ISA`` hides from
    the engine is left out.
    """
    architecture = normalize_architecture(machine if machine is not None else os.uname().machine)
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Cpu(architecture, "", frozenset())
    flags: list[frozenset[str]] = []
    model = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        key = key.strip().lower()
        if key in ("flags", "features"):
            flags.append(frozenset(value.split()))
        elif key in ("model name", "model") and not value.strip().isdigit():
            model = model or value.strip()
    features = frozenset.intersection(*flags) if flags else frozenset()
    hidden = _HIDDEN.get(os.environ.get(_ISA_LIMIT, "").upper(), ())
    return Cpu(architecture, model, frozenset(name for name in features if not name.startswith(hidden)))


def cpu_model() -> str:
    """The processor's name as the kernel gives it, or empty."""
    return cpu().model


def cpu_features() -> frozenset[str]:
    """The kernel's flags that every core has."""
    return cpu().features


def multiplies_int8(features: Collection[str]) -> bool:
    """Whether a CPU with these features has instructions for int8 products; others run them as several others."""
    return not _INT8_INSTRUCTIONS.isdisjoint(features)


def machine() -> dict[str, Any]:
    """CPU model, features that decide speed, usable cores, memory, system, and ``id``: eight hex digits of all that.

    It names the machine that a figure was measured on.
    """
    found, system = cpu(), os.uname()
    facts: dict[str, Any] = {
        "cpu": found.model,
        "architecture": system.machine,
        "features": sorted(f for f in found.features if f.startswith(_DECISIVE)),
        "cores": usable_cores(),
        "memory_gib": round(_memory_bytes() / 2**30),
        "system": system.sysname,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return {"id": digest[:8], **facts}


def _memory_bytes() -> int:
    if Path("/proc/meminfo").exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0


def normalize_architecture(machine: str) -> str:
    """One spelling per architecture: AMD64 is x86_64, arm64 is aarch64."""
    return _ARCHITECTURES.get(machine.lower(), machine.lower())


def usable_cores(cgroup: Path = _CGROUP, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may keep busy: its affinity, cut by the CPU quota of its control groups.

    A quota of 1.5 cores counts as one: a second thread would spend its time throttled, and stall the first at each
    barrier.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    quota = _quota(cgroup, membership)
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def _quota(cgroup: Path, membership: Path) -> float | None:
    """The tightest CPU quota in cores, over the process's group and its parents; None where there is none."""
    read = {1: _quota_v1, 2: _quota_v2}
    quotas = [read[kind](folder) for kind, folder in control_groups("cpu", cgroup, membership)]
    return min((quota for quota in quotas if quota is not None), default=None)


def control_groups(
    controller: str, cgroup: Path = _CGROUP, membership: Path = Path("/proc/self/cgroup")
) -> list[tuple[int, Path]]:
    """(1 or 2, the version of control groups; folder) of each group that bounds this process for ``controller``."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: list[tuple[int, Path]] = []
    for line in lines:
        _, controllers, name = (*line.split(":", 2), "", "")[:3]
        group = name.strip("/")
        if controllers == "":
            found += [(2, folder) for folder in _upwards(cgroup, group)]
        elif controller in controllers.split(","):
            found += [(1, folder) for folder in _upwards(cgroup / controller, group)]
    return found


def _upwards(root: Path, group: str) -> list[Path]:
    """The folder of a group and of each parent. Inside a container the path may not exist: its root then holds the
    quota.
    """
    folder = root / group
    return [folder, *(p for p in folder.parents if p == root or root in p.parents)]


def _quota_v2(folder: Path) -> float | None:
    try:
        limit, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
        period = int((folder / "cpu.cfs_period_us").read_text(encoding="utf-8"))
        return None if limit <= 0 else limit / period
    except (OSError, ValueError, ZeroDivisionError):
        return None
