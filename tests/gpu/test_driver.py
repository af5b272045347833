"""The driver through ctypes, on a real GPU: memory there and back, streams, recorded graphs."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from deploykit.runtime.errors import MissingError
from deploykit.runtime.tensorrt.driver import Cuda

pytestmark = pytest.mark.gpu


@pytest.fixture
def cuda():
    device = Cuda()
    device.enter()
    yield device
    device.close()


def array_at(address, count):
    return np.frombuffer((ctypes.c_float * count).from_address(address), np.float32)


def test_the_gpu_is_described(gpu):
    assert gpu.name
    assert float(gpu.compute_capability) >= 5.0
    assert float(gpu.driver) >= 11.0
    assert gpu.memory > 1 << 30


@pytest.mark.parametrize("recorded", [False, True])
def test_data_come_back_from_the_device_as_they_were(cuda, recorded):
    count, size = 1000, 4000
    stream, device = cuda.stream(), cuda.allocate(size)
    source, target = cuda.allocate_host(size), cuda.allocate_host(size)
    numbers = np.random.default_rng(0).normal(size=count).astype(np.float32)
    array_at(source, count)[...] = numbers
    array_at(target, count)[...] = 0
    if recorded:
        cuda.begin_capture(stream)
    cuda.to_device(device, source, size, stream)
    cuda.to_host(target, device, size, stream)
    graph = cuda.end_capture(stream) if recorded else 0
    if recorded:
        cuda.wait(stream)
        assert not array_at(target, count).any()  # recorded, not run
        cuda.launch(graph, stream)
    cuda.wait(stream)
    np.testing.assert_array_equal(array_at(target, count), numbers)
    if graph:
        cuda.close_graph(graph)
    cuda.free(device)
    cuda.free_host(source)
    cuda.free_host(target)
    cuda.close_stream(stream)


def test_more_memory_than_there_is_is_an_error(cuda, gpu):
    with pytest.raises(MissingError, match="not enough memory on the GPU"):
        cuda.allocate(4 * gpu.memory)
