"""The rules of the house, read from the source: who imports whom, what stays lazy, what a function owes its reader."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "deploykit"
FILES = sorted(PACKAGE.rglob("*.py"))
SOURCES = FILES + sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "benchmarks").glob("*.py"))
HEAVY = {
    "PIL",
    "huggingface_hub",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "safetensors",
    "sentence_transformers",
    "sentencepiece",
    "soundfile",
    "timm",
    "tokenizers",
    "torch",
    "transformers",
}
# The only places that may know torch.
TORCH = ("sources/", "graph/", "judge/", "measure/", "pipeline/", "pretrain/")
# Those that define torch modules import it at the top; whoever needs them imports them inside a function.
TORCH_MODULES = {
    "graph/pooling.py",
    "sources/_encoders.py",
    "sources/_own_inputs.py",
    "sources/_pretrained.py",
    "sources/_sentence_transformers/layers.py",
    "sources/_tensors.py",
    *(p.relative_to(PACKAGE).as_posix() for p in (PACKAGE / "pretrain").rglob("*.py")),
} - {"pretrain/__init__.py", "pretrain/recipe.py", "pretrain/run.py", "pretrain/modalities/__init__.py"}
MAX_LINES = 450


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(node: ast.AST, *, inside_functions: bool) -> Iterator[str]:
    """The absolute names of the modules imported below ``node``; those under TYPE_CHECKING are never executed."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield str(child.module)
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif inside_functions or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imports(child, inside_functions=inside_functions)


def at_import(path: Path) -> set[str]:
    return set(imports(tree(path), inside_functions=False))


def anywhere(path: Path) -> set[str]:
    return set(imports(tree(path), inside_functions=True))


def below(package: str, modules: set[str]) -> set[str]:
    return {m for m in modules if m == package or m.startswith(package + ".")}


def test_the_device_half_needs_the_standard_library_and_numpy_alone() -> None:
    allowed = sys.stdlib_module_names | {"numpy", "deploykit"}
    for path in (PACKAGE / "runtime").rglob("*.py"):
        assert {module.partition(".")[0] for module in at_import(path)} <= allowed, place(path)
        own = below("deploykit", anywhere(path))
        assert own == below("deploykit.runtime", own), place(path)


def test_heavy_packages_are_imported_by_the_functions_that_need_them() -> None:
    torch_modules = {dotted(PACKAGE / name) for name in TORCH_MODULES}
    for path in FILES:
        if place(path) not in TORCH_MODULES:
            modules = at_import(path)
            assert not {module.partition(".")[0] for module in modules} & HEAVY, place(path)
            assert not modules & torch_modules, place(path)


def test_torch_is_met_only_where_sources_are_opened_exported_and_proven() -> None:
    assert not [place(p) for p in FILES if below("torch", anywhere(p)) and not place(p).startswith(TORCH)]


def test_the_judge_shares_no_reading_with_the_sources() -> None:
    allowed = {f"deploykit.{name}" for name in ("judge", "runtime", "data", "errors")}
    for path in (PACKAGE / "judge").rglob("*.py"):
        own = {".".join(name.split(".")[:2]) for name in below("deploykit", anywhere(path))} - {"deploykit"}
        assert own <= allowed, place(path)


def test_nothing_but_the_entry_point_knows_the_command_line() -> None:
    for path in FILES:
        if "cli" not in path.parts and path.name != "__main__.py":
            modules = anywhere(path)
            assert not below("deploykit.cli", modules) | below("typer", modules), place(path)


def test_only_the_command_line_prints_and_exits() -> None:
    for path in FILES:
        if "cli" in path.parts or path.name == "__main__.py":
            continue
        for call in (n for n in ast.walk(tree(path)) if isinstance(n, ast.Call)):
            name = ast.unparse(call.func)
            assert name not in ("exit", "quit"), f"{place(path)}:{call.lineno}"
            # A child process is an entry point of its own.
            assert name != "sys.exit" or is_script(path), f"{place(path)}:{call.lineno}"
            assert name != "print" or any(k.arg == "file" for k in call.keywords), f"{place(path)}:{call.lineno}"


def is_script(path: Path) -> bool:
    return "__name__ == " in path.read_text(encoding="utf-8")


def test_every_module_imports() -> None:
    for path in FILES:
        if path.name != "__main__.py":
            importlib.import_module(dotted(path))


def test_every_function_is_annotated() -> None:
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                missing = [a.arg for a in args if a.annotation is None and a.arg not in ("self", "cls")]
                assert node.returns is not None, f"{place(path)}:{node.lineno}: {node.name} returns what?"
                assert not missing, f"{place(path)}:{node.lineno}: {node.name}"


def test_every_module_says_what_it_is() -> None:
    assert not [place(p) for p in FILES if p.stat().st_size and not ast.get_docstring(tree(p))]


def test_nothing_is_left_half_done() -> None:
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)))
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not marks.search(text), name_of(path)
        assert len(text.splitlines()) <= MAX_LINES, name_of(path)


def test_nothing_is_unpickled() -> None:
    for path in FILES:
        modules = {module.partition(".")[0] for module in anywhere(path)}
        assert not modules & {"dill", "joblib", "cloudpickle", "marshal", "shelve"}, place(path)
        used = {ast.unparse(n) for n in ast.walk(tree(path)) if isinstance(n, ast.Attribute)}
        assert not {n for n in used if n.startswith("pickle.")} - {"pickle.UnpicklingError"}, place(path)
        for call in (n for n in ast.walk(tree(path)) if isinstance(n, ast.Call)):
            settings = {k.arg: ast.unparse(k.value) for k in call.keywords}
            if ast.unparse(call.func) == "torch.load":
                assert settings.get("weights_only") == "True", f"{place(path)}:{call.lineno}"
            if ast.unparse(call.func) in ("np.load", "numpy.load"):
                assert settings.get("allow_pickle", "False") == "False", f"{place(path)}:{call.lineno}"


def documented_commands(page: str) -> list[str]:
    """The first words of every `deploykit …` line in the page's code blocks."""
    blocks = re.findall(r"```(?:bash|console|sh)\n(.*?)```", page, flags=re.S)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line.removeprefix("deploykit ").split("#")[0].strip() for line in lines if line.startswith("deploykit ")]


def test_the_commands_of_the_readme_exist() -> None:
    commands = {" ".join(re.match(r"(bundle )?[a-z]+|", line)[0].split()) for line in documented_commands(readme())}
    assert len(commands) >= 8
    for command in sorted(commands - {""}):
        answer = run_command(*command.split(), "--help")
        assert answer.returncode == 0, f"deploykit {command}: {answer.stderr}"


def test_the_options_of_the_readme_exist() -> None:
    for line in documented_commands(readme()):
        words = line.split()
        command = words[:2] if words[0] == "bundle" else words[:1]
        options = {word.partition("=")[0] for word in words if word.startswith("-")}
        if options:
            known = run_command(*command, "--help").stdout
            assert not {o for o in options if not re.search(rf"(?<![\w-]){re.escape(o)}(?![\w-])", known)}, line


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.M))
    wanted = set(re.findall(r"^make ([a-z]+)", readme(), flags=re.M))
    assert {"demo", "test"} <= wanted <= targets


def test_the_extras_of_the_readme_are_those_of_the_package() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    table = set(re.findall(r"^\| `([a-z0-9-]+)` \|", readme().split("## Extras")[1].split("\n## ")[0], flags=re.M))
    assert table == extras


def test_the_two_onnxruntimes_never_come_together() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.search(r"\[(.*)\]", extras["all"][0])
    assert named
    assert not {"ort-gpu", "tensorrt"} & set(named[1].split(","))
    for packages in extras.values():
        assert len({re.split("[<>=]", p)[0] for p in packages} & {"onnxruntime", "onnxruntime-gpu"}) <= 1


def test_a_wheel_holds_the_package_and_its_type_marker(tmp_path: Path) -> None:
    from zipfile import ZipFile

    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    wheel = ZipFile(next(tmp_path.glob("*.whl")))
    held = {n for n in wheel.namelist() if n.startswith("deploykit/")}
    kept = {name_of(p) for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert "deploykit/py.typed" in held
    assert held == kept


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "deploykit", *arguments], capture_output=True, text=True, cwd=ROOT)
