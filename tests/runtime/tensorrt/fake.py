"""A TensorRT and a driver of plain Python: device memory is the host's, and engines add up their input's columns."""

from __future__ import annotations

import ctypes
import enum
import json
from types import SimpleNamespace

import numpy as np

from deploykit.errors import MissingError


class ILogger:
    ERROR = 1

    def __init__(self):
        pass


class IProgressMonitor:
    def __init__(self):
        pass


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class LayerType(enum.Enum):
    QUANTIZE = 1
    DEQUANTIZE = 2
    OTHER = 3


def module(*, fail="", sm=(86, 89), version="11.0.0", strongly_typed=True, rtx=False):
    """A flavour's module. ``fail`` names the call that answers as TensorRT does when it fails, with a line logged.

    ``rtx``: its contexts take a configuration, and record graphs of their own.
    """
    made = SimpleNamespace(builds=0, inspected=0, configs=[], flags=None, contexts=[], runtimes=[])

    class Parser:
        num_errors = 1

        def __init__(self, network, log):
            self.log = log

        def parse_from_file(self, path):
            return fail != "parse"

        def get_error(self, index):
            return SimpleNamespace(
                desc=lambda: "UNSUPPORTED_NODE", node_operator=lambda: "Loop", node_name=lambda: "loop_1"
            )

    class Config(SimpleNamespace):
        def set_memory_pool_limit(self, pool, size):
            self.workspace = size

        def set_flag(self, flag):
            self.flag = flag

        def clear_flag(self, flag):
            self.cleared = flag

        def set_compute_capability(self, capability, index):
            self.capability = capability
            return fail != "capability"

        def add_optimization_profile(self, profile):
            self.profiles = [*getattr(self, "profiles", []), profile]
            return -1 if fail == "profile" else len(self.profiles) - 1

        def create_timing_cache(self, data):
            self.timings = data
            return self

        def set_timing_cache(self, cache, ignore):
            return True

        def get_timing_cache(self):
            return self

        def serialize(self):
            return b"timings"

    class Profile:
        def __init__(self):
            self.shapes = {}

        def set_shape(self, name, low, usual, high):
            if fail == "shape":
                raise ValueError("min is larger than max")
            self.shapes[name] = (low, usual, high)

    class Builder:
        def __init__(self, log):
            self.log = log

        def create_network(self, flags):
            made.flags = flags
            x = SimpleNamespace(name="x", shape=(-1, 3), dtype="DataType.FLOAT")
            y = SimpleNamespace(name="y", shape=(-1, 1), dtype="DataType.FLOAT")
            kinds = (LayerType.QUANTIZE, "INT8"), (LayerType.DEQUANTIZE, "HALF"), (LayerType.DEQUANTIZE, "HALF")
            layers = [
                SimpleNamespace(type=kind, num_outputs=1, get_output=lambda i, d=dtype: SimpleNamespace(dtype=d))
                for kind, dtype in kinds
            ]
            return SimpleNamespace(
                num_inputs=1,
                num_outputs=1,
                num_layers=3,
                get_input=lambda i: x,
                get_output=lambda i: y,
                get_layer=layers.__getitem__,
            )

        def create_builder_config(self):
            made.configs.append(Config())
            return made.configs[-1]

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            made.builds += 1
            config.progress_monitor.phase_start("Choosing kernels", None, 3)
            for step in range(3):
                assert config.progress_monitor.step_complete("Choosing kernels", step)
            config.progress_monitor.phase_finish("Choosing kernels")
            if fail == "memory":
                self.log.log(1, "Error Code 2: OutOfMemory (requested size was 4294967296 bytes)")
                return None
            if fail in ("build", "profile", "capability"):
                self.log.log(1, "Error Code 9: no kernel for node 5")
                self.log.log(1, "noise (cudaError 35: CUDA driver version is insufficient)")
                self.log.log(2, "a warning")
                return None
            return json.dumps({"engine": made.builds}).encode()

    class Context:
        def __init__(self, config=None):
            self.addresses, self.shapes, self.profile, self.config = {}, {}, 0, config
            self.put_off = True
            made.contexts.append(self)

        def set_optimization_profile_async(self, profile, stream):
            self.profile = profile
            return True

        def set_input_shape(self, name, shape):
            self.put_off = self.put_off or self.shapes.get(name) != tuple(shape)
            self.shapes[name] = tuple(shape)
            return fail != "input shape"

        def infer_shapes(self):
            return []

        def get_tensor_shape(self, name):
            return (self.shapes["x"][0], 1)

        def set_tensor_address(self, name, address):
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream):
            assert stream, "the default stream"
            if fail == "execute":
                return False
            rows = self.shapes["x"][0]
            addresses, shapes = dict(self.addresses), dict(self.shapes)
            assert not (self.put_off and stream in made.device.recording), "new shapes were put off into the recording"
            self.put_off = False

            def work():
                assert self.shapes == shapes, "the context was told other shapes since"
                total(addresses, rows)

            made.device.queue(work, stream)
            return True

    class Engine:
        num_io_tensors = 2

        def get_tensor_name(self, index):
            return "xy"[index]

        def get_tensor_dtype(self, name):
            return "FLOAT"

        def get_tensor_mode(self, name):
            return TensorIOMode.INPUT if name == "x" else TensorIOMode.OUTPUT

        def create_engine_inspector(self):
            made.inspected += 1
            if fail == "inspector":
                return None
            outputs = [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}]
            layers = [{"Name": "fused MatMul + Add", "LayerType": "gemm", "Outputs": outputs}, "a name alone"]
            text = json.dumps({"Layers": layers, "Bindings": ["x", "y"]})
            return SimpleNamespace(get_engine_information=lambda form: text if form == "json" else "")

        def create_execution_context(self, config=None):
            if fail == "context" or (fail == "second context" and made.contexts):
                return None
            return Context(config)

        def create_runtime_config(self):
            made.runtime_cache = RuntimeCache()
            return SimpleNamespace(
                create_runtime_cache=lambda: made.runtime_cache, set_runtime_cache=lambda cache: True
            )

    class RuntimeCache:
        held = b""

        def deserialize(self, data):
            self.held = data
            return True

        def serialize(self):
            return self.held or b"compiled"

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, log):
            self.log = log
            made.runtimes.append(self)

        def deserialize_cuda_engine(self, blob):
            if fail == "deserialize":
                self.log.log(1, "the engine was built by another version")
                return None
            return Engine()

    flags = SimpleNamespace(STRONGLY_TYPED=0) if strongly_typed else SimpleNamespace()
    return SimpleNamespace(
        __name__="fake",
        __version__=version,
        made=made,
        ILogger=ILogger,
        IProgressMonitor=IProgressMonitor,
        Builder=Builder,
        OnnxParser=Parser,
        Runtime=Runtime,
        NetworkDefinitionCreationFlag=flags,
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        BuilderFlag=SimpleNamespace(VERSION_COMPATIBLE="version", TF32="tf32"),
        HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="ampere"),
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
        LayerType=LayerType,
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        TensorIOMode=TensorIOMode,
        **({"ComputeCapability": SimpleNamespace(**{f"SM{n}": n for n in sm})} if sm else {}),
        **({"CudaGraphStrategy": SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")} if rtx else {}),
        **({"DynamicShapesKernelSpecializationStrategy": SimpleNamespace(EAGER="eager")} if rtx else {}),
    )


def total(addresses, rows):
    x = np.frombuffer((ctypes.c_float * (rows * 3)).from_address(addresses["x"]), np.float32).reshape(rows, 3)
    y = np.frombuffer((ctypes.c_float * rows).from_address(addresses["y"]), np.float32)
    y[...] = x.sum(1)


class Device:
    """The driver: work waits in its stream until `wait`, or is recorded. Lanes run in threads, each with its stream."""

    def __init__(self, trt=None, *, memory=1 << 20, captures=True):
        self.held, self.waiting, self.recording, self.graphs = {}, {}, {}, {}
        self.memory, self.captures, self.launched, self.closed = memory, captures, 0, False
        if trt is not None:
            trt.made.device = self

    def enter(self):
        assert not self.closed

    def allocate(self, size):
        if size > self.memory:
            raise MissingError(f"there is not enough memory on the GPU for {size} bytes", hint="smaller batches")
        block = ctypes.create_string_buffer(size + 64)
        address = ctypes.addressof(block)
        self.held[address] = block
        return address

    allocate_host = allocate

    def free(self, address):
        del self.held[address]

    free_host = free

    def stream(self):
        stream = 7 + len(self.waiting)
        self.waiting[stream] = []
        return stream

    def close_stream(self, stream):
        pass

    def queue(self, work, stream):
        self.recording.get(stream, self.waiting[stream]).append(work)

    def to_device(self, address, host, size, stream):
        self.queue(lambda: ctypes.memmove(address, host, size), stream)

    def to_host(self, host, address, size, stream):
        self.queue(lambda: ctypes.memmove(host, address, size), stream)

    def wait(self, stream):
        for work in self.waiting[stream]:
            work()
        self.waiting[stream].clear()

    def begin_capture(self, stream):
        self.recording[stream] = []

    def end_capture(self, stream):
        recorded = self.recording.pop(stream)
        if not self.captures:
            raise MissingError("the NVIDIA driver answers cuStreamEndCapture with CUDA_ERROR", hint="")
        self.graphs[len(self.graphs) + 1] = recorded
        return len(self.graphs)

    def launch(self, graph, stream):
        self.launched += 1
        self.waiting[stream] += self.graphs[graph]

    def close_graph(self, graph):
        self.graphs[graph] = None

    def close(self):
        self.closed = True
