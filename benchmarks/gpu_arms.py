"""The arms of ``benchmarks.gpu``: torch, onnxruntime with CUDA, and TensorRT, each on torch's memory and stream."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import BASELINES, Arm, Feeds, Point, Runner, Timer, wall_clock
from deploykit.runtime import Bundle
from deploykit.runtime.engines import EngineOptions, open_engine
from deploykit.runtime.manifest import Variant
from deploykit.runtime.selection import Device, unmet
from deploykit.runtime.tensorrt import driver

_TARGETS = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
_PACKAGES = ("torch", "transformers", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "numpy")
_NO_GPU = "no NVIDIA GPU is here, or no driver for it"


@dataclass(frozen=True)
class Bench:
    """Everything that `benchmarks.gpu.compare` takes, and what it ran on."""

    arms: list[Arm]
    feeds: Callable[[Point], Feeds]
    reference: Callable[[Feeds], np.ndarray]
    timer: Timer
    device: str
    versions: dict[str, str]


def bench(path: Path, model: str, *, dry: bool) -> Bench:
    """The arms of a bundle; those that this machine lacks something for say what. ``dry``: torch in fp32 on the CPU."""
    bundle = Bundle.open(path)
    bundle.verify()
    found = driver.gpu()
    device = "none: a dry run on the CPU" if dry else _NO_GPU
    if found is not None and not dry:
        device = f"{found.name}, SM {found.compute_capability}, {found.memory / 2**30:.0f} GiB, CUDA {found.driver}"
    runs = dry or found is not None
    source = _Source(model, "cpu" if dry else "cuda") if runs else None
    arms = [_torch_arm(source, graph=graph, dry=dry) for graph in (False, True)]
    arms += [_variant_arm(bundle, variant, dry=dry) for variant in _variants(bundle)]
    return Bench(
        arms,
        source.feeds if source else lambda point: {},
        source.reference if source else lambda feeds: np.empty((0, 0)),
        wall_clock if dry or not runs else event_clock,
        device,
        {name: found for name in _PACKAGES if (found := _version(name))},
    )


def _variants(bundle: Bundle) -> list[Variant | str]:
    """The bundle's variants for GPUs; the target's name where it has none for it."""
    listed: list[Variant | str] = []
    for target in _TARGETS:
        listed += [v for v in bundle.manifest.variants if v.target == target] or [target]
    return listed


def _torch_arm(source: _Source | None, *, graph: bool, dry: bool) -> Arm:
    name = BASELINES[graph]
    if source is None:
        return Arm(name, "fp16", None, _NO_GPU)
    if graph and dry:
        return Arm(name, "fp16", None, "a CPU records no graphs")
    return Arm(name, "fp16", lambda: TorchRunner(source, graph=graph))


def _variant_arm(bundle: Bundle, variant: Variant | str, *, dry: bool) -> Arm:
    if isinstance(variant, str):
        return Arm(variant, "", None, "the bundle has no such variant")
    if dry:
        return Arm(variant.name, variant.precision, None, "a dry run")
    if lacking := unmet(variant, Device()):
        return Arm(variant.name, variant.precision, None, lacking)
    runner = OrtRunner if variant.target == "onnxruntime-cuda" else TensorRtRunner
    return Arm(variant.name, variant.precision, lambda: runner(bundle, variant))


class _Source:
    """The encoder in torch, fp32 with TF32 off: what every arm must agree with."""

    def __init__(self, model: str, device: str) -> None:
        import torch

        from deploykit.sources import Options, open_source

        if device == "cuda":
            # Every arm runs in this stream: onnxruntime takes the default one for none at all.
            torch.cuda.set_stream(torch.cuda.Stream())
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self.device = device
        self.source = open_source(model, Options())
        if self.source.module is None:
            raise SystemExit(f"{model} is no torch model, and torch is what everything is compared with")
        self.module = self.source.module.eval().to(device)

    def feeds(self, point: Point) -> Feeds:
        """The same inputs for every arm."""
        made = self.source.make_inputs(point.batch, {"length": point.length}, point.batch * 1000 + point.length)
        return {name: tensor.cpu().numpy() for name, tensor in made.items()}

    def reference(self, feeds: Feeds) -> np.ndarray:
        """float32 [batch, dim]."""
        import torch

        with torch.inference_mode():
            return self.module(**_tensors(feeds, self.device)).float().cpu().numpy()


def _tensors(feeds: Feeds, device: str) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in feeds.items()}


class TorchRunner:
    """Torch in fp16 with a fused attention: the kernel that is not fused is forbidden, so it cannot be measured."""

    def __init__(self, source: _Source, *, graph: bool) -> None:
        import torch

        self._device, self._records = source.device, graph
        module = copy.deepcopy(source.module)
        self._module = module if self._device == "cpu" else module.to(torch.float16)
        self._graph: Any = None

    def load(self, feeds: Feeds) -> None:
        """See `benchmarks.gpu.Runner`."""
        import torch

        self._feeds, self._graph = _halves(_tensors(feeds, self._device), self._device), None
        if self._records:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())  # which made the inputs
            with torch.cuda.stream(side):
                for _ in range(3):
                    self._forward()
            side.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._forward()
            self._graph = graph

    def call(self) -> None:
        """See `benchmarks.gpu.Runner`."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._forward()

    def vectors(self) -> np.ndarray:
        """See `benchmarks.gpu.Runner`."""
        return np.asarray(self._output.float().cpu().numpy())

    def close(self) -> None:
        """See `benchmarks.gpu.Runner`."""
        self._graph = self._module = None

    def _forward(self) -> None:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
        allowed = contextlib.nullcontext() if self._device == "cpu" else sdpa_kernel(fused)
        with torch.inference_mode(), allowed:
            self._output = self._module(**self._feeds)


def _halves(tensors: Mapping[str, Any], device: str) -> dict[str, Any]:
    return {n: t.half() if t.is_floating_point() and device != "cpu" else t for n, t in tensors.items()}


class OrtRunner:
    """ONNX Runtime with its CUDA provider, bound to torch's memory, in torch's stream."""

    def __init__(self, bundle: Bundle, variant: Variant) -> None:
        import onnxruntime
        import torch

        from deploykit.runtime.engines import onnxruntime_cuda as cuda

        cuda.check_package(onnxruntime)
        onnxruntime.preload_dlls()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        path = bundle.file(variant.path)
        own = {"use_tf32": "0", "user_compute_stream": str(torch.cuda.current_stream().cuda_stream)}
        self._session = onnxruntime.InferenceSession(path, options, providers=[(cuda.NAME, own)], enable_fallback=0)
        # It waits for the device at the end of each call otherwise, which no other arm does.
        self._run_options = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        cuda.inspect(self._session, path)
        embedding = bundle.manifest.card.embedding
        self._output_name, self._dim = embedding.output, embedding.dim

    def load(self, feeds: Feeds) -> None:
        """See `benchmarks.gpu.Runner`."""
        import torch

        self._inputs = _tensors(feeds, "cuda")
        rows = len(next(iter(feeds.values())))
        self._output = torch.full((rows, self._dim), float("nan"), device="cuda")
        self._binding = self._session.io_binding()
        for name, tensor in self._inputs.items():
            kind = np.dtype(feeds[name].dtype)
            self._binding.bind_input(name, "cuda", 0, kind, tuple(tensor.shape), tensor.data_ptr())
        shape = tuple(self._output.shape)
        self._binding.bind_output(self._output_name, "cuda", 0, np.float32, shape, self._output.data_ptr())

    def call(self) -> None:
        """See `benchmarks.gpu.Runner`."""
        self._session.run_with_iobinding(self._binding, self._run_options)

    def vectors(self) -> np.ndarray:
        """See `benchmarks.gpu.Runner`."""
        return np.asarray(self._output.cpu().numpy())

    def close(self) -> None:
        """See `benchmarks.gpu.Runner`."""
        self._session = self._binding = None


class TensorRtRunner:
    """A TensorRT engine from the device's cache, or built now, recorded as a graph as the runtime does it.

    Contexts of TensorRT for RTX record graphs of their own.
    """

    def __init__(self, bundle: Bundle, variant: Variant) -> None:
        from deploykit.runtime.tensorrt.recipe import Recipe

        card, path = bundle.manifest.card, bundle.file(variant.path)
        self._engine: Any = open_engine(variant.target, path, card, variant.settings, EngineOptions())
        self._recipe = Recipe.read(variant.settings)
        self._output_name, self._output_names = card.embedding.output, [spec.name for spec in card.outputs]
        self._graph: Any = None

    def load(self, feeds: Feeds) -> None:
        """See `benchmarks.gpu.Runner`."""
        import torch

        self._inputs, self._graph = _tensors(feeds, "cuda"), None
        self._context = self._engine.context()
        shapes = {name: tuple(tensor.shape) for name, tensor in self._inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())  # which made the inputs
        with torch.cuda.stream(stream):
            if self._recipe.profiles:
                self._must(
                    self._context.set_optimization_profile_async(self._recipe.choose(shapes), stream.cuda_stream)
                )
            for name, tensor in self._inputs.items():
                self._must(self._context.set_input_shape(name, shapes[name]))
                self._must(self._context.set_tensor_address(name, tensor.data_ptr()))
            self._must(not self._context.infer_shapes())
            self._outputs = {
                name: torch.full(tuple(self._context.get_tensor_shape(name)), float("nan"), device="cuda")
                for name in self._output_names
            }
            for name, tensor in self._outputs.items():
                self._must(self._context.set_tensor_address(name, tensor.data_ptr()))
            for _ in range(2):
                self._must(self._context.execute_async_v3(stream.cuda_stream))
        stream.synchronize()
        if self._engine.records_graphs:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._run()
            self._graph = graph

    def call(self) -> None:
        """See `benchmarks.gpu.Runner`."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._run()

    def vectors(self) -> np.ndarray:
        """See `benchmarks.gpu.Runner`."""
        return np.asarray(self._outputs[self._output_name].cpu().numpy())

    def close(self) -> None:
        """See `benchmarks.gpu.Runner`."""
        self._graph = self._context = None
        self._engine.close()

    def _run(self) -> None:
        import torch

        self._must(self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream))

    def _must(self, done: bool) -> None:
        if not done:
            raise RuntimeError("TensorRT refuses the call: the shapes or the memory do not suit the engine")


def event_clock(call: Callable[[], None], count: int) -> list[float]:
    """Milliseconds of each call between two events in the current stream."""
    import torch

    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for begin, end in pairs:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [float(begin.elapsed_time(end)) for begin, end in pairs]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


__all__ = ["Bench", "Runner", "bench"]
