import pytest

from tests.runtime import made


@pytest.fixture
def tiny(tmp_path):
    """A fresh bundle of the tiny encoder, to break or to load."""
    pytest.importorskip("onnx")
    pytest.importorskip("tokenizers")
    return made.bundle(tmp_path)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """The same bundle, for tests that only read it."""
    pytest.importorskip("onnx")
    pytest.importorskip("tokenizers")
    return made.bundle(tmp_path_factory.mktemp("shared"))
