"""The Dockerfile as stages of instructions, and its RUN lines carried out in a folder instead of an image."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Stage:
    """``base`` is an image or another stage; ``steps`` are (instruction, its text) in order."""

    name: str
    base: str
    steps: tuple[tuple[str, str], ...]

    def last(self, instruction: str) -> str:
        """The text of the last such instruction; empty where there is none."""
        return next((text for name, text in reversed(self.steps) if name == instruction), "")

    def command(self, instruction: str) -> list[str]:
        """The words of the last ENTRYPOINT, CMD or HEALTHCHECK, which must be in the form of a JSON list."""
        found = json.loads(self.last(instruction).partition("CMD ")[2] or self.last(instruction))
        assert isinstance(found, list)
        return found


def stages(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found: dict[str, Stage] = {}
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = Stage(name, base, ())
        elif found:
            name, stage = list(found.items())[-1]
            found[name] = Stage(name, stage.base, (*stage.steps, (instruction, rest.strip())))
    return found


@dataclass(frozen=True)
class Container:
    """A folder that stands for an image's root, and a virtual environment that stands for its Python."""

    root: Path
    environment: Path

    def run(self, step: str) -> subprocess.CompletedProcess[str]:
        """A RUN line by ``sh``. Its absolute paths are those below ``root``; ``useradd`` is only noted."""
        tools = self.root / "tools"
        tools.mkdir(parents=True, exist_ok=True)
        (tools / "useradd").write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(self.root / "users"))}\n')
        (tools / "useradd").chmod(0o755)
        line = re.sub(r"(?<![\w.}/])/(wheels|cache|tmp/constraints\.txt)\b", rf"{self.root}/\1", step)
        if os.geteuid() != 0:
            line = line.replace("--owner=10001 ", "")
        path = os.pathsep.join(map(str, (tools, self.environment / "bin", os.environ.get("PATH", os.defpath))))
        return self.start(["sh", "-euc", line], ROOT, PATH=path)

    def start(self, command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command with the environment that images set."""
        fixed = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        own = {key: value for key, value in os.environ.items() if key.startswith("PIP_") or key in ("HOME", "PATH")}
        fixed |= {"XDG_CACHE_HOME": str(self.root / "cache")}
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=own | fixed | environment)
