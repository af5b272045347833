import subprocess
import sys

import pytest

import deploykit

PUBLIC = ["Bundle", "Encoder", "Recipe", "__version__", "export", "load", "run"]


def test_the_public_names_are_these():
    assert sorted(deploykit.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_listed(name):
    assert getattr(deploykit, name) is not None
    assert name in dir(deploykit)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'exprot'"):
        deploykit.exprot  # noqa: B018


def loaded_after(code):
    script = f"import sys\n{code}\nprint(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


HEAVY = {"numpy", "torch", "onnx", "onnxruntime", "openvino", "transformers", "tokenizers", "PIL"}


def test_importing_deploykit_loads_nothing_heavy():
    assert not loaded_after("import deploykit") & (HEAVY | {"typer"})


def test_the_command_line_starts_without_anything_heavy():
    assert not loaded_after("import deploykit.cli.app") & (HEAVY | {"rich", "asyncio"})
