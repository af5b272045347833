"""The device half where nothing else is: numpy, onnxruntime, tokenizers and deploykit's base install."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from tests.runtime import made

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
OFFLINE = re.compile(r"No matching distribution|Could not find a version|connection|Temporary failure|timed out", re.I)

IMPORT_EVERY_RUNTIME_MODULE = """
import importlib, importlib.abc, pkgutil, sys

class OnlyNumpy(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        own = name == "deploykit" or name.startswith("deploykit.runtime")
        if not own and top not in {*sys.stdlib_module_names, "numpy"}:
            raise ModuleNotFoundError(f"the device half imported {name}", name=name)

sys.meta_path.insert(0, OnlyNumpy())
import deploykit.runtime
for module in pkgutil.walk_packages(deploykit.runtime.__path__, "deploykit.runtime."):
    importlib.import_module(module.name)
    print(module.name)
"""

HELP_AND_WHAT_IT_LOADED = """
import contextlib, io, json, sys
from deploykit.cli import main
with contextlib.redirect_stdout(io.StringIO()) as page:
    assert main(["--help"]) == 0
print(json.dumps([page.getvalue(), sorted(sys.modules)]))
"""

ENCODE = """
import json, sys
import deploykit
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.selftest import selftest
encoder = deploykit.load(sys.argv[1])
vectors = encoder.encode(json.loads(sys.argv[2]))
results = selftest(Bundle.open(sys.argv[1]))
loaded = sorted(name for name in sys.modules if "." not in name)
print(json.dumps([vectors.tolist(), {r.variant: r.status for r in results}, loaded]))
"""


def run(python: Path | str, *arguments: str) -> str:
    """Standard output of ``python -I arguments``; its standard error stands in the failure."""
    done = subprocess.run([str(python), "-I", *arguments], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the base install and one engine, none of the builders' packages in it."""
    folder = tmp_path_factory.mktemp("bare")
    python = folder / "env" / "bin" / "python"
    venv.create(folder / "env", with_pip=True)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    install(python, "--constraint", str(CONSTRAINTS), str(next(folder.glob("*.whl"))))
    # Neither needs at run time what it declares: tokenizers asks for a hub client, onnxruntime for protobuf.
    install(python, "--no-deps", "--constraint", str(CONSTRAINTS), "onnxruntime", "tokenizers")
    return python


@pytest.fixture(scope="session")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with one onnxruntime variant and one that this environment has no engine for."""
    return made.bundle(tmp_path_factory.mktemp("text")).root


def install(python: Path, *arguments: str) -> None:
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *arguments]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode and OFFLINE.search(done.stderr):
        pytest.skip(f"pip reaches no package index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def test_every_module_of_the_device_half_imports_with_numpy_alone() -> None:
    imported = set(run(sys.executable, "-c", IMPORT_EVERY_RUNTIME_MODULE).split())
    files = (ROOT / "deploykit" / "runtime").rglob("*.py")
    wanted = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files}
    assert imported | {"deploykit.runtime"} == wanted


def test_help_loads_nothing_heavy() -> None:
    page, loaded = json.loads(run(sys.executable, "-c", HELP_AND_WHAT_IT_LOADED))
    assert "export" in page
    assert not {"torch", "transformers", "onnx", "onnxruntime", "openvino", "tokenizers", "numpy"} & set(loaded)


def test_nothing_of_the_builders_is_there(bare: Path) -> None:
    for package in ("torch", "transformers", "onnx", "openvino", "PIL", "huggingface_hub"):
        assert run(bare, "-c", f"import importlib.util as u; print(u.find_spec({package!r}))").strip() == "None"


def test_a_bundle_encodes_and_tests_itself(bare: Path, text_bundle: Path) -> None:
    texts = ["w1 w2 w3", "", "w4 " * 200, "never heard of"]
    vectors, statuses, loaded = json.loads(run(bare, "-c", ENCODE, str(text_bundle), json.dumps(texts)))
    np.testing.assert_allclose(vectors, [made.expected(text) for text in texts], rtol=1e-5, atol=1e-6)
    assert statuses == {"onnxruntime-fp32": "passed", "openvino-fp32": "refused"}
    assert {"onnxruntime", "tokenizers"} <= set(loaded)


def test_the_command_line_answers(bare: Path, text_bundle: Path, tmp_path: Path) -> None:
    assert "embed" in run(bare, "-m", "deploykit", "--help")
    run(bare, "-m", "deploykit", "inspect", str(text_bundle))
    run(bare, "-m", "deploykit", "bundle", "selftest", str(text_bundle))
    (tmp_path / "texts.txt").write_text("w1 w2\nw3\n", encoding="utf-8")
    out = tmp_path / "vectors.npy"
    run(bare, "-m", "deploykit", "embed", str(text_bundle), str(tmp_path / "texts.txt"), "-o", str(out))
    expected = [made.expected("w1 w2"), made.expected("w3")]
    np.testing.assert_allclose(np.load(out, allow_pickle=False), expected, rtol=1e-5, atol=1e-6)


def test_building_says_which_extra_is_missing(bare: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "bert"}')
    save_file({"weight": np.zeros((4, 6), np.float32)}, model / "model.safetensors")
    command = [str(bare), "-I", "-m", "deploykit", "export", str(model), "-o", str(tmp_path / "out.bundle")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path)})
    assert done.returncode == 4, done.stderr
    assert "→ pip install " in done.stderr
    assert '"torch>=' in done.stderr
    assert "Traceback" not in done.stderr
