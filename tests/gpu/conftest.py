import pytest

from deploykit.runtime.tensorrt import driver
from tests.quantize.conftest import bert, calibration  # noqa: F401


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU and its driver; run them with `make test-gpu`")


def pytest_collection_modifyitems(items):
    """Without a GPU every test of this folder is skipped, and says why."""
    if driver.gpu() is None:
        reason = pytest.mark.skip(reason="no NVIDIA GPU is here, or no driver for it")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(reason)


@pytest.fixture
def gpu():
    """The first GPU."""
    return driver.gpu()
