"""Running an engine: contexts, buffers and a stream of its own for each lane, a CUDA graph for each shape in use.

The addresses of a lane's buffers stay the same while shapes do, so that a whole call (copies in, kernels, copies out)
can be recorded once and launched as one graph. A buffer that has to grow drops the lane's graphs. A graph has a context
to itself, which keeps its shapes: what a graph launches is undefined once its context was told others. TensorRT for RTX
swaps kernels while it runs, so that its contexts record graphs of their own and nothing is recorded here.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from deploykit.runtime.errors import DeploykitError, InputError, MissingError
from deploykit.runtime.tensorrt.build import failed
from deploykit.runtime.tensorrt.recipe import Recipe

Outputs = dict[str, np.ndarray]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]

# A graph is recorded when a shape comes back for the third time, and this many are kept: each holds a context, with the
# memory for the layers between. More shapes than that are counted.
_WARM_UP_CALLS = 2
_MOST_GRAPHS = 16
_MOST_SHAPES = 1024
_logger = logging.getLogger("deploykit")
_DTYPES = {"float": "float32", "half": "float16", "bool": "bool", "bf16": "uint16", "fp8": "uint8"}


class Device(Protocol):
    """What a lane needs of the driver; see `deploykit.runtime.tensorrt.driver.Cuda`."""

    def enter(self) -> None: ...
    def allocate(self, size: int) -> int: ...
    def free(self, address: int) -> None: ...
    def allocate_host(self, size: int) -> int: ...
    def free_host(self, address: int) -> None: ...
    def stream(self) -> int: ...
    def close_stream(self, stream: int) -> None: ...
    def to_device(self, address: int, host: int, size: int, stream: int) -> None: ...
    def to_host(self, host: int, address: int, size: int, stream: int) -> None: ...
    def wait(self, stream: int) -> None: ...
    def begin_capture(self, stream: int) -> None: ...
    def end_capture(self, stream: int) -> int: ...
    def launch(self, graph: int, stream: int) -> None: ...
    def close_graph(self, graph: int) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Tensor:
    """An input or output of the engine; ``dtype`` as numpy names it."""

    name: str
    dtype: np.dtype[Any]
    is_input: bool


def tensors_of(trt: ModuleType, engine: Any) -> tuple[Tensor, ...]:
    """The engine's inputs and outputs, in its order."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return tuple(
        Tensor(name, _dtype(engine.get_tensor_dtype(name)), engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
        for name in names
    )


def _dtype(value: Any) -> np.dtype[Any]:
    name = str(getattr(value, "name", value)).lower()
    return np.dtype(_DTYPES.get(name, name))


@dataclass
class _Buffer:
    """Memory of one tensor on both sides; ``size`` in bytes."""

    size: int = 0
    device: int = 0
    host: int = 0


@dataclass
class _Recorded:
    """How often a shape was seen, its graph and that one's context once it was recorded, the shapes of its outputs."""

    calls: int = 0
    graph: int = 0
    context: Any = None
    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)


def runtime_config(trt: ModuleType, engine: Any) -> Any:
    """How contexts of TensorRT for RTX run: kernels for the sizes at hand from the first call on, and graphs that they
    record themselves. None for TensorRT, whose contexts know neither."""
    graphs = getattr(trt, "CudaGraphStrategy", None)
    kernels = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if graphs is None or kernels is None:
        return None
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE
    config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
    return config


class Lane:
    """One stream with contexts and buffers; used by one thread at a time.

    ``open_context`` makes a context of the engine, or None; ``records``: whole calls are recorded as graphs.
    """

    def __init__(
        self,
        open_context: Callable[[], Any],
        tensors: tuple[Tensor, ...],
        recipe: Recipe,
        device: Device,
        log: Any,
        *,
        records: bool,
    ) -> None:
        self._open_context, self._tensors, self._recipe = open_context, tensors, recipe
        self._device, self._log, self._records_graphs = device, log, records
        device.enter()
        self._stream = device.stream()
        self._contexts: dict[int, Any] = {}
        self._buffers = {tensor.name: _Buffer() for tensor in tensors}
        self._seen: dict[Shapes, _Recorded] = {}

    def run(self, feeds: Mapping[str, np.ndarray]) -> Outputs:
        """One batch; arrays of the outputs' own types that the caller owns."""
        self._device.enter()
        given = self._inputs(feeds)
        shapes = tuple((name, array.shape) for name, array in given.items())
        record = self._record(shapes)
        if not record.graph:
            profile = self._recipe.choose(dict(shapes))
            context = self._context(profile)
            record.outputs = self._shape(context, given)
            self._reserve(given, record.outputs)
            record = self._record(shapes, record)
        for name, array in given.items():
            _view(self._buffers[name].host, array.shape, array.dtype)[...] = array
        if record.graph:
            self._device.launch(record.graph, self._stream)
        elif self._records_graphs and record.calls >= _WARM_UP_CALLS:
            self._capture(profile, given, record)
        else:
            self._enqueue(context, given, record.outputs)
        self._device.wait(self._stream)
        record.calls += 1
        return {
            tensor.name: _view(self._buffers[tensor.name].host, record.outputs[tensor.name], tensor.dtype).copy()
            for tensor in self._tensors
            if not tensor.is_input
        }

    def close(self) -> None:
        """Free memory, graphs and the stream."""
        self._device.enter()
        self._drop_graphs()
        self._contexts.clear()
        for buffer in self._buffers.values():
            self._release(buffer)
        self._device.close_stream(self._stream)

    def _inputs(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        wanted = [tensor for tensor in self._tensors if tensor.is_input]
        missing = [tensor.name for tensor in wanted if tensor.name not in feeds]
        if missing:
            raise InputError(f"the input '{missing[0]}' is not given", hint="give every input of the model")
        return {tensor.name: np.ascontiguousarray(feeds[tensor.name], tensor.dtype) for tensor in wanted}

    def _record(self, shapes: Shapes, record: _Recorded | None = None) -> _Recorded:
        """What is known of these shapes; the one that was not used for longest goes when there are too many."""
        found = record or self._seen.pop(shapes, None) or _Recorded()
        self._seen.pop(shapes, None)
        self._seen[shapes] = found
        if len(self._seen) > _MOST_SHAPES:
            self._close_graph(self._seen.pop(next(iter(self._seen))))
        return found

    def _context(self, profile: int) -> Any:
        """The execution context of a profile: contexts keep one profile each, as switching waits for the device."""
        if profile not in self._contexts:
            self._contexts[profile] = self._new_context(profile)
        return self._contexts[profile]

    def _new_context(self, profile: int) -> Any:
        context = self._open_context()
        if context is None:
            hint = "close what else runs on the GPU, or export with smaller largest shapes"
            raise failed("TensorRT makes no context: not enough device memory?", self._log, hint, MissingError)
        if self._recipe.profiles and not context.set_optimization_profile_async(profile, self._stream):
            raise failed("TensorRT refuses the optimization profile", self._log, "build the engine again")
        self._device.wait(self._stream)
        return context

    def _shape(self, context: Any, given: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
        """Tell the context the inputs' shapes; the outputs' shapes."""
        for name, array in given.items():
            if not context.set_input_shape(name, array.shape):
                hint = "cut the batch, or export with other shapes"
                raise failed(f"TensorRT refuses {list(array.shape)} for '{name}'", self._log, hint, InputError)
        if lacking := context.infer_shapes():
            raise failed(
                f"TensorRT needs more to know its shapes: {lacking}", self._log, "give every input", InputError
            )
        outputs = [tensor.name for tensor in self._tensors if not tensor.is_input]
        return {name: tuple(int(size) for size in context.get_tensor_shape(name)) for name in outputs}

    def _reserve(self, given: Mapping[str, np.ndarray], outputs: Mapping[str, tuple[int, ...]]) -> None:
        """Buffers that are large enough."""
        for tensor in self._tensors:
            shape = given[tensor.name].shape if tensor.is_input else outputs[tensor.name]
            size = max(1, _bytes(shape, tensor.dtype))
            buffer = self._buffers[tensor.name]
            if buffer.size < size:
                self._drop_graphs()
                self._release(buffer)
                buffer.device = self._device.allocate(size)
                buffer.host = self._device.allocate_host(size)
                buffer.size = size

    def _enqueue(self, context: Any, given: Mapping[str, np.ndarray], outputs: Mapping[str, tuple[int, ...]]) -> None:
        """Copies in, kernels, copies out: everything in the stream's order, nothing waited for."""
        for tensor in self._tensors:
            if not context.set_tensor_address(tensor.name, self._buffers[tensor.name].device):
                raise failed(f"TensorRT refuses the memory of '{tensor.name}'", self._log, "load the bundle again")
        for name, array in given.items():
            buffer = self._buffers[name]
            self._device.to_device(buffer.device, buffer.host, array.nbytes, self._stream)
        if not context.execute_async_v3(self._stream):
            raise failed("TensorRT does not run the engine", self._log, "load another variant", InputError)
        for tensor in self._tensors:
            if not tensor.is_input:
                buffer, size = self._buffers[tensor.name], _bytes(outputs[tensor.name], tensor.dtype)
                self._device.to_host(buffer.host, buffer.device, size, self._stream)

    def _capture(self, profile: int, given: Mapping[str, np.ndarray], record: _Recorded) -> None:
        """Record the call as a graph of a context of its own and launch it; where that is not to be, run it plainly.

        The context runs once before: what new shapes put off must not be done inside of the recording.
        """
        recorded = sum(1 for known in self._seen.values() if known.graph)
        if recorded >= _MOST_GRAPHS:
            oldest = next(known for known in self._seen.values() if known.graph)
            self._close_graph(oldest)
            oldest.calls = 0
        try:
            context = self._new_context(profile)
        except DeploykitError as error:  # no memory for one more
            self._give_up(error)
            self._enqueue(self._context(profile), given, record.outputs)
            return
        self._shape(context, given)
        self._enqueue(context, given, record.outputs)
        self._device.wait(self._stream)
        self._device.begin_capture(self._stream)
        fault: DeploykitError | None = None
        try:
            self._enqueue(context, given, record.outputs)
        except DeploykitError as error:
            fault = error
        try:
            graph = self._device.end_capture(self._stream)
        except DeploykitError as error:
            graph, fault = 0, error
        if fault is None and graph:
            record.graph, record.context = graph, context
            self._device.launch(graph, self._stream)
            return
        self._give_up(fault)
        if graph:
            self._device.close_graph(graph)
        self._log.lines = []
        self._enqueue(self._context(profile), given, record.outputs)

    def _give_up(self, reason: DeploykitError | None) -> None:
        self._records_graphs = False
        said = reason.message if reason is not None else "the driver gives no graph"
        _logger.warning("no more calls are recorded as CUDA graphs, each is launched kernel by kernel: %s", said)

    def _drop_graphs(self) -> None:
        for record in self._seen.values():
            self._close_graph(record)
        self._seen.clear()

    def _close_graph(self, record: _Recorded) -> None:
        if record.graph:
            self._device.close_graph(record.graph)
            record.graph, record.context = 0, None

    def _release(self, buffer: _Buffer) -> None:
        if buffer.size:
            self._device.free(buffer.device)
            self._device.free_host(buffer.host)
            buffer.size = 0


def _bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _view(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An array over memory that numpy does not own."""
    memory = (ctypes.c_byte * max(1, _bytes(shape, dtype))).from_address(address)
    return np.frombuffer(memoryview(memory), dtype=dtype, count=int(np.prod(shape, dtype=np.int64))).reshape(shape)
