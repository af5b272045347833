"""NVIDIA's driver through ctypes: what GPU is here, memory, streams, copies, graphs. Nothing has to be installed.

The functions are those of the CUDA driver API (``libcuda.so.1``); contexts are the device's primary one, which TensorRT
and torch use too.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

from deploykit.runtime.errors import MissingError

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…
_NON_BLOCKING = 1
_THREAD_LOCAL_CAPTURE = 1
_OUT_OF_MEMORY = 2


@dataclass(frozen=True)
class Gpu:
    """``compute_capability`` "8.9"; ``driver`` is the newest CUDA that the driver speaks ("13.0"); bytes of memory."""

    name: str
    compute_capability: str
    driver: str
    memory: int


@functools.cache
def gpu(library: str = _LIBRARY) -> Gpu | None:
    """The first GPU; None where there is no driver or it sees no GPU."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return None
    count, device, number = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    if cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        numbers.append(number.value)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    cuda.cuDriverGetVersion(ctypes.byref(number))
    driver = f"{number.value // 1000}.{number.value % 1000 // 10}"
    return Gpu(name.value.decode(errors="replace"), f"{numbers[0]}.{numbers[1]}", driver, memory.value)


class Cuda:
    """The first GPU's primary context. Addresses and handles are plain integers.

    `enter` makes it current in the calling thread, which every other call needs.
    """

    def __init__(self, library: str = _LIBRARY) -> None:
        try:
            self._cuda = ctypes.CDLL(library)
        except OSError as error:
            raise MissingError("no NVIDIA GPU: its driver cannot be loaded", hint="install the driver") from error
        self._device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)

    def enter(self) -> None:
        """Make the context current in this thread."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Device memory of ``size`` bytes; `MissingError` when there is not enough."""
        return self._handle("cuMemAlloc_v2", ctypes.c_size_t(size), what=f"{size} bytes of device memory")

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def allocate_host(self, size: int) -> int:
        """Pinned memory of the host, which copies need to run beside the processor."""
        return self._handle("cuMemHostAlloc", ctypes.c_size_t(size), ctypes.c_uint(0), what=f"{size} pinned bytes")

    def free_host(self, address: int) -> None:
        """Give pinned memory back."""
        self._call("cuMemFreeHost", ctypes.c_void_p(address))

    def stream(self) -> int:
        """A stream that does not wait for the default one."""
        return self._handle("cuStreamCreate", ctypes.c_uint(_NON_BLOCKING), what="a stream")

    def close_stream(self, stream: int) -> None:
        """Give a stream back."""
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def to_device(self, address: int, host: int, size: int, stream: int) -> None:
        """Copy ``size`` bytes of pinned memory to the device, in the stream's order."""
        into, source = ctypes.c_uint64(address), ctypes.c_void_p(host)
        self._call("cuMemcpyHtoDAsync_v2", into, source, ctypes.c_size_t(size), ctypes.c_void_p(stream))

    def to_host(self, host: int, address: int, size: int, stream: int) -> None:
        """Copy ``size`` bytes of the device to pinned memory, in the stream's order."""
        into, source = ctypes.c_void_p(host), ctypes.c_uint64(address)
        self._call("cuMemcpyDtoHAsync_v2", into, source, ctypes.c_size_t(size), ctypes.c_void_p(stream))

    def wait(self, stream: int) -> None:
        """Until everything in the stream is done."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def begin_capture(self, stream: int) -> None:
        """What goes into the stream from here on is recorded, not run."""
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), ctypes.c_int(_THREAD_LOCAL_CAPTURE))

    def end_capture(self, stream: int) -> int:
        """What was recorded, ready to `launch`."""
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_uint64(0))
        finally:
            self._call("cuGraphDestroy", graph)
        return ready.value or 0

    def launch(self, graph: int, stream: int) -> None:
        """Run a recorded graph in the stream."""
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def close_graph(self, graph: int) -> None:
        """Give a graph back."""
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def close(self) -> None:
        """Give the context back."""
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _handle(self, name: str, *arguments: Any, what: str) -> int:
        handle = ctypes.c_uint64()
        self._call(name, ctypes.byref(handle), *arguments, what=what)
        return handle.value

    def _call(self, name: str, *arguments: Any, what: str = "") -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code == _OUT_OF_MEMORY:
            raise MissingError(
                f"there is not enough memory on the GPU{f' for {what}' if what else ''}",
                hint="close what else runs on it, or give smaller batches",
            )
        if code:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorName(code, ctypes.byref(text))
            said = (text.value or b"").decode() or str(code)
            raise MissingError(f"the NVIDIA driver answers {name} with {said}", hint="see `nvidia-smi` and `dmesg`")
