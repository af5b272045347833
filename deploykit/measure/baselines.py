"""What a variant has to beat: the same model as an engineer would run it without deploykit.

::

    torch               the source's own module in torch, eager, float32
    torch-bf16          the same after `.bfloat16()`
    torch-compile       the same after `.bfloat16()` and `torch.compile(dynamic=True)`
    plain-onnxruntime   the portable fp32 export in onnxruntime with its default settings
    plain-openvino      the portable fp32 export in OpenVINO without hints (it picks bf16 on CPUs with AMX)

``plain`` is both of the last two. All get the bundle's tokenizer or image reader, the same threads and the same inputs;
texts are sorted by length and run at most `ROWS` at a time, padded to the longest, as sentence-transformers does.

A bundle says what it was exported from. Only a model in a folder of this machine, or in an installed package or the
hub's cache, that still has the digest in the bundle is opened, and no code that it brings: nothing is fetched. The
portable export is checked as `deploykit.load` checks a variant, before an engine sees it.

The names that end in ``_subject`` run in the process that measures; the package that they need is imported when they
are looked up, so that its import is not counted as loading.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deploykit import settings
from deploykit.errors import DeploykitError, UnknownNameError, nearest
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.install import pip_install

ROWS = 32
TORCH = ("torch", "torch-bf16", "torch-compile")
PLAIN = ("plain-onnxruntime", "plain-openvino")
NAMES = (*TORCH, *PLAIN)
NONE = "none"
_GROUPS = {"plain": PLAIN, "all": NAMES, NONE: ()}
_KINDS = ("sentence-transformers", "transformers", "checkpoint")
_WHAT = {
    "torch": "the source in torch, eager, float32",
    "torch-bf16": "the source in torch, eager, bfloat16",
    "torch-compile": "the source in bfloat16 through torch.compile",
    "plain-onnxruntime": "the fp32 export in onnxruntime, default settings",
    "plain-openvino": "the fp32 export in OpenVINO, no hints",
}

Encode = Callable[[Mapping[str, np.ndarray]], np.ndarray]
#: Where the source lies, and the options that it is opened with.
Source = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Baseline:
    """A baseline that can run here. ``options`` go to the function of this module that the worker calls."""

    name: str
    what: str
    target: str
    precision: str
    bytes: int | None
    function: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def subject(self) -> dict[str, Any]:
        """What `deploykit.measure.worker` is given."""
        return {"kind": f"python:{__name__}:{self.function}", "options": dict(self.options)}


@dataclass(frozen=True)
class Unreachable:
    """A baseline that cannot run here, why, and what would help."""

    name: str
    reason: str
    hint: str


def wanted(names: Sequence[str]) -> tuple[str, ...]:
    """The baselines that ``names`` mean, groups taken apart; `UnknownNameError` gives the nearest."""
    found: list[str] = []
    for name in names:
        if name not in NAMES and name not in _GROUPS:
            raise UnknownNameError(f"there is no baseline '{name}'", hint=nearest(name, [*NAMES, *_GROUPS]))
        found += _GROUPS.get(name, (name,))
    if NONE in names and len(names) > 1:
        raise UnknownNameError("'none' stands beside other baselines", hint="give it alone")
    return tuple(dict.fromkeys(found))


def find(bundle: Bundle, names: Sequence[str]) -> tuple[list[Baseline], list[Unreachable]]:
    """Of the baselines called ``names``, those that can run here, and why the others cannot."""
    found: list[Baseline] = []
    missing: list[Unreachable] = []
    source = _source(bundle) if set(names) & set(TORCH) and _has_torch() else None
    for name in names:
        made = _plain(bundle, name) if name in PLAIN else _torch(bundle, name, source)
        if isinstance(made, Baseline):
            found.append(made)
        else:
            missing.append(Unreachable(name, *made))
    return found, missing


def _plain(bundle: Bundle, name: str) -> Baseline | tuple[str, str]:
    target = name.removeprefix("plain-")
    if importlib.util.find_spec(target) is None:
        return f"{target} is not installed", pip_install("ort" if target == "onnxruntime" else target)
    options = {"bundle": str(bundle.root.resolve())}
    size = bundle.manifest.files[bundle.portable.path].size
    return Baseline(name, _WHAT[name], target, "fp32", size, f"{target}_subject", options)


def _has_torch() -> bool:
    return all(importlib.util.find_spec(package) is not None for package in ("torch", "transformers"))


def _torch(bundle: Bundle, name: str, source: Source | DeploykitError | None) -> Baseline | tuple[str, str]:
    if source is None:
        return "torch and transformers are not both installed", pip_install("export")
    if isinstance(source, DeploykitError):
        return source.message, source.hint
    compiler = os.environ.get("CXX", "g++")
    if name == "torch-compile" and not shutil.which(compiler):
        return f"torch.compile needs a C++ compiler, and there is no {compiler}", "install g++, or set CXX"
    options = {
        "bundle": str(bundle.root.resolve()),
        "model": source[0],
        "source": source[1],
        "bfloat16": name != "torch",
        "compiled": name == "torch-compile",
    }
    precision = "fp32" if name == "torch" else "bf16"
    return Baseline(name, _WHAT[name], "torch", precision, _weight_bytes(source[0]), "torch_subject", options)


def _source(bundle: Bundle) -> Source | DeploykitError:
    """The folder that the bundle was exported from and its options, or an error that says why it cannot be used."""
    from deploykit.errors import MissingError, SourceError
    from deploykit.sources import Options, resolve

    said = bundle.manifest.provenance.get("source")
    said = said if isinstance(said, Mapping) else {}
    model, kind, digest = (str(said.get(key) or "") for key in ("model", "kind", "digest"))
    if not model or not digest:
        return SourceError("the bundle does not say what it was exported from", hint="build it again")
    if kind not in _KINDS:
        # A bundle may come from anybody: code, and graphs of other kinds, are not run because it names them.
        return SourceError(f"its source is of the kind '{kind}', which is not opened for a baseline", hint="")
    try:
        options = settings.read(Options, settings.table(said.get("options", {}), "options"), "the bundle's source")
        if options.trust_remote_code:
            return SourceError("its source runs code of its own, which is not done because a bundle says so", hint="")
        identity = resolve(_local(model, options.revision), options)
    except DeploykitError as error:
        return error
    except ImportError as error:
        hint = pip_install("export")
        return MissingError(f"{error.name or error} cannot be imported, which its source needs", hint=hint)
    except (OSError, ValueError) as error:  # a name too long for a path, or none that a hub could have
        return SourceError(f"its source cannot be looked for: {error}", hint="build the bundle again")
    if identity.digest == digest:
        return identity.location, {**settings.plain(options), "kind": kind}
    return SourceError(
        f"'{model}' is not what the bundle was exported from: its digest differs",
        hint="it has changed since; build the bundle again",
    )


def _local(model: str, revision: str | None) -> str:
    """``model`` itself, or the folder of that revision in the hub's cache; never fetched."""
    from deploykit.sources import _hub

    if not _hub.is_hub_id(model):
        return model
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from deploykit.errors import MissingError

    try:
        return str(snapshot_download(model, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        wanted = f" --revision {revision}" if revision else ""
        raise MissingError(
            f"'{model}' is not in the hub's cache on this machine", hint=f"fetch it first: hf download {model}{wanted}"
        ) from error


def _weight_bytes(folder: str) -> int | None:
    sizes = [path.stat().st_size for path in Path(folder).rglob("*.safetensors")]
    return sum(sizes) or None


class Subject:
    """What the worker measures: texts (images, sounds, tensors) in, vectors out, through the bundle's preprocessing."""

    def __init__(self, bundle: str, run: Encode, facts: Mapping[str, Any]) -> None:
        from deploykit.runtime.preprocess import open_preprocessor

        self._bundle = Bundle.open(bundle)
        self._card = self._bundle.manifest.card
        self._preprocessor = open_preprocessor(self._card, self._bundle.root)
        self._run, self._facts = run, dict(facts)
        self.tensors = self._card.modality == "tensor"

    def encode(self, inputs: Any) -> np.ndarray:
        """Vectors float32 [n, dim] in the order of ``inputs``."""
        rows: list[int] = []
        vectors = []
        for order, feeds in self._batches(inputs):
            vectors.append(self._run(feeds))
            rows += order
        result = np.empty((len(rows), self._card.embedding.dim), np.float32)
        result[rows] = np.concatenate(vectors)
        return result

    def tokens(self, inputs: Any) -> tuple[int, int] | None:
        """Useful tokens, and all with their padding."""
        if self._card.modality != "text":
            return None
        useful = padded = 0
        for _, feeds in self._batches(inputs):
            padded += feeds["input_ids"].size
            useful += int(feeds["attention_mask"].sum()) if "attention_mask" in feeds else feeds["input_ids"].size
        return useful, padded

    @property
    def effective(self) -> dict[str, Any]:
        """What really runs, and how near its vectors are to the bundle's own: asked for after the measurement."""
        return {**self._facts, "selftest": against_reference(self._bundle, self.encode)}

    def _batches(self, inputs: Any) -> list[tuple[list[int], dict[str, np.ndarray]]]:
        items = self._preprocessor.items(inputs)
        order = sorted(range(len(items)), key=lambda i: -items[i].cost)
        pads = any("mask" in spec.name for spec in self._card.inputs)
        groups: dict[Any, list[int]] = {}
        for i in order:
            key = () if pads else tuple(tensor.shape for tensor in items[i].tensors.values())
            groups.setdefault(key, []).append(i)
        chunks = [group[start : start + ROWS] for group in groups.values() for start in range(0, len(group), ROWS)]
        return [(chunk, self._preprocessor.collate([items[i] for i in chunk])) for chunk in chunks]


def against_reference(bundle: Bundle, encode: Callable[[Any], np.ndarray]) -> dict[str, Any]:
    """Cosine of ``encode`` to the bundle's reference vectors over its self-test: mean, lowest, number of inputs."""
    from deploykit.runtime.selftest import cosines, read_inputs, read_reference

    found = cosines(encode(read_inputs(bundle)), read_reference(bundle))
    return {"mean": float(found.mean()), "min": float(found.min()), "n": len(found)}


def preprocess_subject(threads: int | None, bundle: str) -> Subject:
    """Preprocessing and nothing else: tokenizing (decoding, resizing) and padding; the vectors are zeros."""
    card = Bundle.open(bundle).manifest.card

    def run(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.zeros((len(next(iter(feeds.values()))), card.embedding.dim), np.float32)

    return Subject(bundle, run, {})


class _Judged:
    """A variant whose vectors are looked at, not its times."""

    def __init__(self, path: str, variant: str, threads: int | None) -> None:
        from deploykit.runtime.loading import load

        self._encoder = load(path, variant, threads, verify=False)
        self.encode = self._encoder.encode
        self.tensors = self._encoder.modality == "tensor"

    @property
    def effective(self) -> dict[str, Any]:
        """How near its vectors are to the reference."""
        return {"selftest": against_reference(self._encoder.bundle, self.encode)}

    def close(self) -> None:
        """Free the engine."""
        self._encoder.close()


def variant_subject(threads: int | None, bundle: str, variant: str) -> _Judged:
    """A variant of the bundle, for `against_reference`."""
    return _Judged(bundle, variant, threads)


def _portable(bundle: str) -> tuple[Path, str]:
    """The portable export, checked, and the name of its output; `BundleError` when it is none for an engine to see."""
    from deploykit.runtime.trust.models import check_model

    opened = Bundle.open(bundle)
    check_model(opened, opened.portable)
    return opened.file(opened.portable.path), opened.manifest.card.embedding.output


def _open_onnxruntime(threads: int | None, bundle: str) -> Subject:
    import onnxruntime

    path, output = _portable(bundle)
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(session.run([output], dict(feeds))[0], np.float32)

    facts = {
        "engine": "onnxruntime",
        "version": onnxruntime.__version__,
        "device": session.get_providers()[0],
        "precision": "as stored in the file",
        "threads": threads,
    }
    return Subject(bundle, run, facts)


def _open_openvino(threads: int | None, bundle: str) -> Subject:
    import openvino

    path, output = _portable(bundle)
    config = {"INFERENCE_NUM_THREADS": threads} if threads else {}
    compiled = openvino.Core().compile_model(path, "CPU", config)
    # A request serves one caller at a time.
    own = threading.local()

    def run(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        own.request.infer(dict(feeds))
        return np.array(own.request.get_tensor(output).data, np.float32)

    facts = {
        "engine": "openvino",
        "version": openvino.get_version().split("-")[0],
        "device": "CPU",
        "precision": str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()),
        "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
    }
    return Subject(bundle, run, facts)


def _open_torch(
    threads: int | None,
    bundle: str,
    model: str,
    source: Mapping[str, Any],
    bfloat16: bool = False,
    compiled: bool = False,
) -> Subject:
    import torch

    from deploykit.sources import Options, open_source

    if threads:
        torch.set_num_threads(threads)
    alone = {name: value for name, value in source.items() if name != "outputs"}  # what is timed is the embedding
    module = open_source(model, Options(**alone)).module
    assert module is not None
    module.eval()
    if bfloat16:
        module.bfloat16()
    call: Callable[..., torch.Tensor] = torch.compile(module, dynamic=True) if compiled else module

    def run(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}
        if bfloat16:
            tensors = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors.items()}
        with torch.inference_mode():
            return call(**tensors).float().numpy()

    facts = {
        "engine": "torch",
        "version": torch.__version__,
        "device": "cpu",
        "precision": "bf16" if bfloat16 else "fp32",
        "compiled": compiled,
        "threads": torch.get_num_threads(),
    }
    return Subject(bundle, run, facts)


_OPENERS: Mapping[str, tuple[Sequence[str], Callable[..., Subject]]] = {
    "torch_subject": (("torch", "transformers"), _open_torch),
    "onnxruntime_subject": (("onnxruntime",), _open_onnxruntime),
    "openvino_subject": (("openvino",), _open_openvino),
}


def __getattr__(name: str) -> Any:
    if name not in _OPENERS:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    packages, opener = _OPENERS[name]
    for package in packages:
        importlib.import_module(package)
    return opener
