"""What a hint names is there: the packages stand in pyproject.toml, the commands and options on the command line."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploykit.runtime import install

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "deploykit").rglob("*.py"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
PACKAGES = {re.split(r"[\[<>=~!; ]", need)[0] for needs in EXTRAS.values() for need in needs} - {"deploykit"}
# Optional ones that no extra can name: NVIDIA's own flavour, and what a timm model needs beside this torch.
ELSEWHERE = {"tensorrt", "timm", "torchvision"}
# Commands for other programs, whose options they are: the servers' READMEs, and what is run in a process of its own.
FOREIGN = ("bundle/layouts/", "runtime/trial", "measure/process.py")
OTHERS = {"--force", "--help"}


def strings(path: Path) -> Iterator[str]:
    """Every string of a file but docstrings, f-strings with their holes as ``{}``."""
    tree = ast.parse(path.read_text("utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in docs or id(node) in inside:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)


def calls(path: Path) -> Iterator[str]:
    """The extras that `install.pip_install` is called with by name."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "pip_install":
            yield from (str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))


@pytest.fixture(scope="module")
def commands() -> dict[str, set[str]]:
    """The options of every command, by its words."""
    import typer

    from deploykit.cli import app

    found: dict[str, set[str]] = {}

    def walk(command: object, words: tuple[str, ...]) -> None:
        found[" ".join(words)] = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, (*words, name))

    walk(typer.main.get_command(app.app), ())
    return found


def test_no_message_sends_pip_for_deploykit_itself():
    assert [f"{path.name}: {text}" for path in FILES for text in strings(path) if "deploykit[" in text] == []


def test_extras_that_hints_name_exist():
    named = {extra for path in FILES for extra in calls(path)}
    assert {"export", "ort", "image", "sign"} <= named
    assert named <= set(EXTRAS)


def test_packages_that_hints_name_are_declared():
    named = set()
    for path in FILES:
        for text in strings(path):
            for found in re.findall(r'pip install ((?:"?[\w.\[\]<>=-]+"? ?)+)', text):
                words = [word.strip('"') for word in found.split() if not word.startswith(("-", "git"))]
                named |= {re.split(r"[\[<>=]", word)[0] for word in words[: 2 if "timm" in words else 1]}
    assert "timm" in named
    assert named - PACKAGES - ELSEWHERE - {""} == set()


def test_options_and_commands_that_messages_name_exist(commands):
    options = OTHERS.union(*commands.values())
    first_words = {name.split()[0] for name in commands if name}
    unknown = []
    for path in FILES:
        if path.relative_to(ROOT / "deploykit").as_posix().startswith(FOREIGN):
            continue
        for text in strings(path):
            if " " in text:
                unknown += [(path.name, option) for option in re.findall(r"(?<![\w-])--[a-z][\w-]+", text)]
            unknown += [(path.name, name) for name in re.findall(r"`deploykit ([a-z]+)", text)]
    assert len(unknown) > 20
    assert [entry for entry in unknown if entry[1] not in options | first_words] == []


def test_the_command_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(install, "_installed", lambda need: not need.startswith("cryptography"))
    assert install.pip_install("sign") == 'pip install "cryptography>=42"'
    assert install.pip_install("image", "sign") == 'pip install "cryptography>=42"'
    monkeypatch.setattr(install, "_installed", lambda need: True)
    assert install.pip_install("ort") == 'pip install "onnxruntime>=1.20"'
    assert "no-such" in install.pip_install("no-such")
    assert "pip install" not in install.pip_install("no-such")


def test_an_installed_deploykit_tells_its_extras_from_its_metadata(monkeypatch, tmp_path):
    from importlib import metadata

    lines = ["numpy>=1.26", "onnxruntime>=1.20; extra == 'ort'", "deploykit[ort]; extra == 'all'"]
    lines.append("""tensorrt-rtx>=1.7; (platform_machine == "x86_64") and extra == "dev\"""")
    monkeypatch.setattr(install, "__file__", str(tmp_path / "a" / "b" / "install.py"))
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    found = install._declared.__wrapped__()
    assert found == {"ort": ("onnxruntime>=1.20",), "all": (), "dev": ("tensorrt-rtx>=1.7",)}
