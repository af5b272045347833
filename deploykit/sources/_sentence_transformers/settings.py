"""sentence_bert_config.json: how the Transformer module loads its model and its tokenizer, and how it calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.errors import SourceError
from deploykit.sources import _folder
from deploykit.sources._sentence_transformers.keys import count, one_of, refuse_unknown

TOKENS, VECTOR = "token_embeddings", "sentence_embedding"
_FILES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_RENAMED = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs", "config_args": "config_kwargs"}
_KNOWN = (
    *("transformer_task", "modality_config", "module_output_name", "processing_kwargs", "unpad_inputs"),
    *("max_seq_length", "do_lower_case", "backend", "cache_dir", *_RENAMED, *_RENAMED.values()),
)
# The caller decides these there, whatever the file says.
_CALLERS = ("subfolder", "token", "cache_dir", "revision", "local_files_only", "trust_remote_code")
# Where and in which type the model is held: an export has its own answer, and the function stays the same.
_PLACEMENT = (
    *("dtype", "torch_dtype", "attn_implementation", "low_cpu_mem_usage", "device_map", "max_memory"),
    *("offload_folder", "offload_state_dict", "use_safetensors"),
)
_OTHER_WEIGHTS = (
    *("variant", "gguf_file", "quantization_config", "load_in_8bit", "load_in_4bit", "state_dict", "adapter_kwargs"),
    *("file_name", "provider", "export"),
)
_MODALITIES = ("text", "image", "audio", "video", "message")
_STYLES = ("flat", "structured", "auto")
_METHODS = ("forward", "get_text_features", "get_image_features")
_TEXT_KEYS = ("max_length", "truncation", "padding", "padding_side", "add_special_tokens", "logits_to_keep")
_SIZES = ("padding", "truncation", "max_length", "return_tensors")
_CUT = (True, "longest_first", "only_first")
_NOT_CUT = (False, "do_not_truncate")
_NOT_FILLED = (True, False, "longest", "do_not_pad")


@dataclass(frozen=True)
class Way:
    """How one modality is encoded: the method of the model, the path to the value in what it returns, and how chat
    messages are written (``style``).
    """

    method: str = "forward"
    path: tuple[str | int, ...] = ("last_hidden_state",)
    style: str = "auto"


@dataclass(frozen=True)
class Calls:
    """How the tokenizer is called. ``max_length`` None: as the tokenizer says. ``template`` are arguments of the chat
    template, ``image`` settings of pictures.
    """

    max_length: int | None = None
    cut: bool = True
    filled: bool = False
    padding_side: str | None = None
    special_tokens: bool = True
    template: Mapping[str, Any] = field(default_factory=dict)
    image: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """The file's content. ``model``, ``config`` and ``tokenizer`` are arguments to load these with; ``gives`` is the
    name of the module's output: token vectors, or the embedding itself.
    """

    path: Path
    max_length: int | None
    lower_case: bool
    ways: Mapping[str, Way]
    gives: str
    calls: Calls
    model: Mapping[str, Any]
    config: Mapping[str, Any]
    tokenizer: Mapping[str, Any]


def read_settings(folder: Path, *, dual: bool = False) -> Settings:
    """The settings of a Transformer module; ``dual``: of the older CLIPModel, whose halves give embeddings."""
    path, data = _read(folder)
    refuse_unknown(path, data, _KNOWN)
    task = data.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        hint = "only token vectors make embeddings: wrap it in a Python factory, py:package.module:factory"
        raise SourceError(f"{path} is for the task {task}", hint=hint)
    ways, gives = _ways(path, data, dual)
    loading = {name: dict(one_of(path, name, data.get(name) or {}, dict)) for name in _RENAMED.values()}
    for arguments in loading.values():
        for name in _CALLERS:
            arguments.pop(name, None)
    tokenizer = {key: value for key, value in loading["processor_kwargs"].items() if key != "use_fast"}
    own = count(path, "max_seq_length", data.get("max_seq_length"))
    asked = count(path, "processor_kwargs.model_max_length", tokenizer.pop("model_max_length", None))
    return Settings(
        path=path,
        max_length=asked or own,
        lower_case=bool(one_of(path, "do_lower_case", data.get("do_lower_case", False), bool)),
        ways=ways,
        gives=gives,
        calls=_calls(path, data.get("processing_kwargs") or {}, messages="message" in ways),
        model=_model(path, loading["model_kwargs"]),
        config=loading["config_kwargs"],
        tokenizer=tokenizer,
    )


def _read(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The first file that holds something, with today's names of its keys."""
    paths = [folder / f"sentence_{name}_config.json" for name in _FILES]
    read = ((path, _folder.read_table(path)) for path in paths if path.exists())
    path, data = next(((path, data) for path, data in read if data), (paths[0], {}))
    for old, new in _RENAMED.items():
        if old in data:
            data[new] = data.pop(old)
    return path, data


def _model(path: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    refused = next((name for name in arguments if name in _OTHER_WEIGHTS), None)
    if refused:
        raise SourceError(
            f"{path} loads other weights than the folder's own (model_kwargs.{refused})",
            hint="save the model in the form in which it is to be exported, with save_pretrained",
        )
    return {name: value for name, value in arguments.items() if name not in _PLACEMENT}


def _ways(path: Path, data: Mapping[str, Any], dual: bool) -> tuple[dict[str, Way], str]:
    """How each modality is encoded, and the name of what comes out."""
    given = data.get("modality_config")
    if given is None:
        if not dual:
            return {"text": Way()}, TOKENS
        names = {"text": "get_text_features", "image": "get_image_features"}
        return {modality: Way(method, ("pooler_output",)) for modality, method in names.items()}, VECTOR
    gives = data.get("module_output_name")
    if gives not in (TOKENS, VECTOR):
        hint = f"an encoder's is {TOKENS} or {VECTOR}"
        raise SourceError(f"{path} has a modality_config and the module_output_name {gives!r}", hint=hint)
    one_of(path, "modality_config", given, dict)
    ways = {}
    for modality, entry in given.items():
        if not set(modality.split("+")) <= set(_MODALITIES):
            refuse_unknown(path, {modality: entry}, _MODALITIES, "modality_config.")
        ways[modality] = _way(path, f"modality_config.{modality}.", entry)
    return ways, gives


def _way(path: Path, where: str, entry: Any) -> Way:
    one_of(path, where[:-1], entry, dict)
    refuse_unknown(path, entry, ("method", "method_output_name", "format"), where)
    if "method" not in entry or "method_output_name" not in entry:
        raise SourceError(f"{path} lacks {where}method or its method_output_name", hint="fetch the file again")
    output, style = entry["method_output_name"], entry.get("format", "auto")
    if style not in _STYLES:
        raise SourceError(f"{path} has {where}format {style!r}", hint=f"it is one of {', '.join(_STYLES)}")
    steps = [] if output is None else [output] if isinstance(output, str) else list(one_of(path, where, output, list))
    return Way(str(entry["method"]), tuple(steps), style)


def checked_method(settings: Settings, way: Way) -> str:
    """The method's name, if it is one that encodes."""
    if way.method not in _METHODS:
        raise SourceError(
            f"{settings.path} encodes with the method {way.method}", hint=f"understood are {', '.join(_METHODS)}"
        )
    return way.method


def _calls(path: Path, given: Any, *, messages: bool) -> Calls:
    """The arguments of every call of the tokenizer. What is common to all modalities wins; around a chat template the
    arguments of texts do, and before them those that stand among the template's own.
    """
    one_of(path, "processing_kwargs", given, dict)
    refuse_unknown(path, given, ("common", "text", "audio", "image", "video", "chat_template"), "processing_kwargs.")
    parts = {name: one_of(path, f"processing_kwargs.{name}", value or {}, dict) for name, value in given.items()}
    text, common = dict(parts.get("text", {})), dict(parts.get("common", {}))
    template = dict(parts.get("chat_template", {}))
    sizes = {name: template.pop(name) for name in _SIZES if name in template}
    text = {**common, **text, **sizes} if messages else {**text, **common}
    text.pop("return_tensors", None)
    refuse_unknown(path, text, _TEXT_KEYS, "processing_kwargs.text.")
    cut, filled = text.get("truncation", True), text.get("padding", True)
    if cut not in (*_CUT, *_NOT_CUT):
        raise SourceError(f"{path} truncates texts by {cut!r}", hint="that is for pairs of texts: say true or false")
    if filled not in (*_NOT_FILLED, "max_length"):
        raise SourceError(f"{path} pads texts by {filled!r}", hint="true, false, longest or max_length")
    side = text.get("padding_side")
    if side not in (None, "left", "right"):
        raise SourceError(f"{path} pads texts on the side {side!r}", hint="left or right")
    return Calls(
        max_length=count(path, "processing_kwargs.text.max_length", text.get("max_length")),
        cut=cut in _CUT,
        filled=filled == "max_length",
        padding_side=None if side is None else str(side),
        special_tokens=bool(text.get("add_special_tokens", True)),
        template=template,
        image=parts.get("image", {}),
    )
