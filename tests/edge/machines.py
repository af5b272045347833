"""Emulated devices: qemu's user mode, a CPU model, and an environment that holds what a device would install.

An aarch64 device is a folder of Debian's arm64 packages; an x86-64 one is this machine with another CPU. Each gets its
own ``/proc/cpuinfo``, since libraries (onnxruntime's cpuinfo among them) and deploykit read the CPU from there. Its
interpreter is a script that starts qemu: it is ``sys.executable`` of the emulated Python, so that a child process
which that one starts is emulated as well, without binfmt_misc.

Everything lies below ``build/edge`` (DEPLOYKIT_EDGE) and is used again by the next run. Emulation shows loading and
numerics, never speed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("DEPLOYKIT_EDGE") or ROOT / "build" / "edge")
EXTRAS = "ort,text"
# Until a device counts as hung. Emulation is slow, and the machine may have other work.
TIMEOUT_S = 900
# The processes of one test run share what the first of them has set up, even where the working tree changes meanwhile.
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEBIAN_PYTHON = "python3.11"
PACKAGES = (f"{DEBIAN_PYTHON}-minimal", f"lib{DEBIAN_PYTHON}-stdlib", "libstdc++6", "libgomp1")
SOURCES = """\
deb [signed-by={keyring}] http://deb.debian.org/debian bookworm main
deb [signed-by={keyring}] http://deb.debian.org/debian-security bookworm-security main
"""
# Nothing of the host's apt is read but its proxy settings, and nothing of it is written.
APT = """\
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
Debug::NoLocking "true";
Dir::State "{apt}/state";
Dir::State::status "{apt}/status";
Dir::Cache "{apt}/cache";
Dir::Etc::SourceList "{apt}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
"""
WHEELS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")


@dataclass(frozen=True)
class Model:
    """A processor that qemu knows, and the lines that the kernel would show for each of its cores."""

    architecture: str
    cpu: str
    cpuinfo: str


_ARM = (
    "Features\t: {features}\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: {variant}\nCPU part\t: {part}\nCPU revision\t: 1\n"
)
_CORTEX_A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
_HASWELL = (
    "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ss ht syscall "
    "nx pdpe1gb rdtscp lm constant_tsc rep_good nopl pni pclmulqdq ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt "
    "aes xsave avx f16c rdrand lahf_lm abm fsgsbase bmi1 avx2 smep bmi2 erms xsaveopt"
)
MODELS = {
    # As on a Raspberry Pi 4 and 5.
    "cortex-a72": Model(
        "aarch64",
        "cortex-a72",
        _ARM.format(features="fp asimd evtstrm crc32 cpuid", variant="0x0", part="0xd08"),
    ),
    "cortex-a76": Model(
        "aarch64",
        "cortex-a76",
        _ARM.format(features=_CORTEX_A76, variant="0x4", part="0xd0b"),
    ),
    "haswell": Model(
        "x86_64",
        "Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm",
        "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 60\nmodel name\t: Intel Core Processor (Haswell)\n"
        f"stepping\t: 4\nflags\t\t: {_HASWELL}\n",
    ),
}


@dataclass(frozen=True)
class Machine:
    """An emulated device: ``python`` runs on it, ``site`` holds its packages."""

    name: str
    python: Path
    site: Path

    def run(self, *arguments: str | Path, home: Path, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """``python arguments`` there, with caches below ``home`` and nothing of this process's environment."""
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(home),
            "TMPDIR": tempfile.gettempdir(),
        }
        command = [self.python, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, timeout=timeout_s)

    def installed(self) -> set[str]:
        """The names of the distributions that are installed there."""
        names = (path.name.partition("-")[0] for path in self.site.glob("*.dist-info"))
        return {name.lower().replace("_", "-") for name in names}


def unavailable(name: str) -> str:
    """Why the device cannot be emulated here, with the command that helps; empty when it can."""
    model = MODELS[name]
    if _qemu(model.architecture) is None:
        return f"qemu-{model.architecture} is not here: apt-get install qemu-user-static"
    if model.architecture == "x86_64":
        return "" if platform.machine() == "x86_64" else "it emulates another x86 CPU for this Python: run it on x86-64"
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            return f"{tool} is not here: the device is made of Debian's packages, so run it on Debian or Ubuntu"
    return "" if KEYRING.exists() else f"'{KEYRING}' is not here: apt-get install debian-archive-keyring"


def prepare(name: str) -> Machine:
    """The device, set up as far as it is not yet, with deploykit as it stands in the working tree."""
    model = MODELS[name]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / f".{model.architecture}.lock"):
        base = _debian() if model.architecture == "aarch64" else Path("/")
        home = base / "usr" / "bin" if model.architecture == "aarch64" else Path(sys.base_prefix) / "bin"
        version = DEBIAN_PYTHON if model.architecture == "aarch64" else f"python{_this_python()}"
        site = _site(model.architecture)
        return _environment(name, model, base, home / version, site)


def _environment(name: str, model: Model, base: Path, interpreter: Path, site: Path) -> Machine:
    """The folder of one device: what its programs see below ``/``, and a virtual environment."""
    folder = FOLDER / name
    seen, environment = folder / "seen", folder / "env"
    packages = environment / "lib" / interpreter.name / "site-packages"
    shutil.rmtree(folder, ignore_errors=True)
    for part in (seen / "proc", seen / "sys" / "devices" / "system" / "cpu", environment / "bin", packages.parent):
        part.mkdir(parents=True)
    cores = len(os.sched_getaffinity(0))
    listed = "".join(f"processor\t: {core}\n{model.cpuinfo}\n" for core in range(cores))
    (seen / "proc" / "cpuinfo").write_text(listed)
    for file in ("possible", "present", "online"):
        (seen / "sys" / "devices" / "system" / "cpu" / file).write_text(f"0-{cores - 1}\n" if cores > 1 else "0\n")
    if base != Path("/"):
        for entry in base.iterdir():
            (seen / entry.name).symlink_to(entry)
    packages.symlink_to(site)
    (environment / "pyvenv.cfg").write_text(f"home = {interpreter.parent}\ninclude-system-site-packages = false\n")
    python = environment / "bin" / "python"
    # -0: its own name, from which Python finds its environment and tells its children who it is.
    qemu = f'"{_qemu(model.architecture)}" -cpu {model.cpu} -L "{seen}" -0 "{python}" "{interpreter}"'
    python.write_text(f'#!/bin/sh\nexec {qemu} "$@"\n')
    python.chmod(0o755)
    return Machine(name, python, site)


def _debian() -> Path:
    """A folder with Debian's arm64 Python, from packages that apt has checked."""
    done = FOLDER / "debian-arm64"
    if done.is_dir():
        return done
    with tempfile.TemporaryDirectory(dir=FOLDER) as work:
        apt, root = Path(work) / "apt", Path(work) / "root"
        archives = apt / "cache" / "archives"
        for part in (archives / "partial", apt / "state" / "lists" / "partial", root):
            part.mkdir(parents=True)
        (apt / "status").touch()
        (apt / "sources.list").write_text(SOURCES.format(keyring=KEYRING))
        (apt / "apt.conf").write_text(APT.format(apt=apt))
        environment = os.environ | {"APT_CONFIG": str(apt / "apt.conf"), "LC_ALL": "C"}
        _run(["apt-get", "-q", "update"], environment)
        _run(["apt-get", "-q", "--yes", "--download-only", "install", *PACKAGES], environment)
        for package in sorted(archives.glob("*.deb")):
            _run(["dpkg-deb", "--extract", package, root])
        root.rename(done)
    return done


def _site(architecture: str) -> Path:
    """The packages of ``deploykit[ort,text]`` for a device, with deploykit from the working tree."""
    pins = ROOT / ".ci" / "constraints.txt"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [project["optional-dependencies"][name] for name in EXTRAS.split(",")]
    wanted = repr((project["dependencies"], extras, pins.read_text(encoding="utf-8")))
    key = hashlib.sha256(wanted.encode()).hexdigest()[:12]
    site, run = FOLDER / f"site-{architecture}-{key}", FOLDER / f".{architecture}.run"
    if run.exists() and run.read_text().startswith(f"{RUN}\n"):
        return Path(run.read_text().splitlines()[1])
    with tempfile.TemporaryDirectory(dir=FOLDER) as work:
        _run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", work], cwd=ROOT)
        wheel = next(Path(work).glob("*.whl"))
        if not site.is_dir():
            for old in FOLDER.glob(f"site-{architecture}-*"):
                shutil.rmtree(old)
            _run([*_pip(architecture), "--constraint", pins, "--target", Path(work) / "site", f"{wheel}[{EXTRAS}]"])
            (Path(work) / "site").rename(site)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        stamp = site / ".deploykit-wheel"
        if not stamp.exists() or stamp.read_text() != digest:
            shutil.rmtree(site / "deploykit", ignore_errors=True)
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(site)
            stamp.write_text(digest)
    run.write_text(f"{RUN}\n{site}\n")
    return site


def _pip(architecture: str) -> list[str]:
    """``pip install`` of ready wheels; those of another architecture by its platform tags."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--only-binary=:all:"]
    if architecture == platform.machine():
        return command
    for tag in WHEELS:
        command += ["--platform", f"{tag}_{architecture}"]
    return [*command, "--implementation", "cp", "--python-version", DEBIAN_PYTHON.removeprefix("python")]


def _qemu(architecture: str) -> str | None:
    return shutil.which(f"qemu-{architecture}-static") or shutil.which(f"qemu-{architecture}")


def _this_python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _run(command: list[str | Path], environment: dict[str, str] | None = None, cwd: Path = FOLDER) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise RuntimeError(f"setting up an emulated device failed: {' '.join(map(str, command))}\n{said}")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or MODELS:
        print(wanted, unavailable(wanted) or prepare(wanted).python)
