"""The Transformer module, and the older CLIPModel: a transformers model, called as the folder's settings say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploykit.errors import SourceError
from deploykit.sources import Options, _checkpoint, _limits
from deploykit.sources import _text as text
from deploykit.sources._sentence_transformers.chat import frames
from deploykit.sources._sentence_transformers.encoding import Encoding
from deploykit.sources._sentence_transformers.modules import Chain
from deploykit.sources._sentence_transformers.settings import VECTOR, Settings, Way, checked_method
from deploykit.sources._sentence_transformers.stages import on_tokens, pooling_config

if TYPE_CHECKING:
    from torch import nn

_TOWERS: dict[str, Literal["text", "vision"]] = {"text": "text", "image": "vision"}
_ENCODERS_ALONE = (
    *("t5", "mt5", "umt5", "udop", "longt5", "prophetnet", "switch_transformers", "blenderbot", "blenderbot-small"),
    *("m2m_100", "pegasus", "pegasus_x", "marian", "t5gemma", "t5gemma2", "t5gemma2_text"),
)
"""Model types of two halves whose encoder alone is run there; any other is run as a whole."""


def chosen_modality(folder: Path, settings: Settings, options: Options) -> str:
    """text or image: the one that there is, or the tower that was asked for."""
    known = [modality for modality in ("text", "image") if modality in settings.ways]
    towers = {_TOWERS[modality]: modality for modality in known}
    if options.tower in towers:
        return towers[options.tower]
    if options.tower is None and len(towers) == 1:
        return known[0]
    asked = f"no tower '{options.tower}'" if options.tower else "more than one"
    raise SourceError(
        f"{folder} encodes {', '.join(settings.ways) or 'nothing'}: {asked}",
        hint="choose one: " + (" or ".join(f"tower = '{tower}'" for tower in towers) or "there is none for a bundle"),
    )


def load(chain: Chain, settings: Settings, way: Way, modality: str, options: Options) -> _checkpoint.Checkpoint:
    """The model as it is loaded there; `SourceError` if another part of it would be called."""
    inner, method = chain.first.folder, checked_method(settings, way)
    if (inner / "adapter_config.json").exists():
        hint = "merge it into its base model first (merge_and_unload) and save that"
        raise SourceError(f"{inner} holds a PEFT adapter", hint=hint)
    tower = None if method == "forward" else _TOWERS[modality]
    asked = replace(options, tower=tower, pooling=None)
    checkpoint = _checkpoint.load(
        inner, asked, pooling_is_explicit=True, model_arguments=settings.model, config_arguments=settings.config
    )
    whole = getattr(checkpoint.config, "model_type", "")
    halved = any(note.startswith("the encoder half") for note in checkpoint.notes)
    if halved and whole not in _ENCODERS_ALONE:
        hint = "its vectors are those of its decoder there: wrap it in a Python factory, py:package.module:factory"
        raise SourceError(f"{checkpoint.architecture} in {inner} is run as a whole by sentence-transformers", hint=hint)
    if checkpoint.method != method or checkpoint.modality != modality:
        hint = "export the folder of the transformers model in it by itself"
        raise SourceError(
            f"{inner} is to encode {modality} with {method}, and holds a model for {checkpoint.modality}", hint=hint
        )
    return checkpoint


def staged(
    checkpoint: _checkpoint.Checkpoint, chain: Chain, settings: Settings, way: Way, modes: tuple[str, ...]
) -> _checkpoint.Checkpoint:
    """The checkpoint with what works on its token vectors, and with the output that the settings name."""
    layered = bool(getattr(checkpoint.config, "output_hidden_states", False))
    stages: list[nn.Module] = on_tokens(chain, modes, layered=layered)
    if any(module.kind == "LSTM" for module in chain.on_tokens):
        hint = "it follows WordEmbeddings alone: the folder is not whole"
        raise SourceError(f"{chain.first.folder} has an LSTM behind a Transformer, which fails there too", hint=hint)
    plain = ("pooler_output",) if settings.gives == VECTOR else ("last_hidden_state",)
    if way.path == plain and not stages:
        return checkpoint
    from deploykit.sources._sentence_transformers.layers import Staged

    vector = settings.gives == VECTOR
    body = Staged(checkpoint.body, checkpoint.method, way.path, stages, vector=vector).eval()
    return replace(checkpoint, body=body, method="forward")


def text_input(
    chain: Chain,
    settings: Settings,
    checkpoint: _checkpoint.Checkpoint,
    options: Options,
    encoding: Encoding,
    modes: tuple[str, ...],
) -> text.TextInput:
    """How texts become ids: the folder's tokenizer, its length, and the chat template around every text."""
    inner, calls = chain.first.folder, settings.calls
    tokenizer = text.read_tokenizer(inner, options, lower_case=settings.lower_case, arguments=settings.tokenizer)
    bound = _limits.bound_of(checkpoint, text.ordinary_token(tokenizer))
    said = _limits.said_by_files(tokenizer) if calls.cut else {}
    declared = calls.max_length or settings.max_length or _limits.capped(said, bound)
    length = _limits.decide(options, declared if calls.cut else None, said, bound)
    more: dict[str, Any] = {}
    if "message" in settings.ways:
        _refuse_processor(inner)
        more = frames(tokenizer, settings, encoding.prompts, str(getattr(checkpoint.config, "model_type", "")))
    if more or not calls.special_tokens:
        _drop_special_tokens(tokenizer)
    left_out = not more and _leaves_prompts_out(chain, settings, encoding, modes)
    if left_out:
        more = {"prompt_tokens": _prompt_tokens(tokenizer, encoding, length.tokens)}
    rows = getattr(checkpoint.config, "vocab_size", None)
    given = text.text_input(tokenizer, rows, checkpoint.accepts("token_type_ids"), length.tokens)
    fixed = options.fixed_length is not None or calls.filled
    prompts, side = encoding.prompts, calls.padding_side or given.padding_side
    given = replace(given, fixed=fixed, padding_side=side, more=more, notes=length.notes, prompts_left_out=left_out)
    return replace(given, prompts=prompts, default_prompt=encoding.default)


def _leaves_prompts_out(chain: Chain, settings: Settings, encoding: Encoding, modes: tuple[str, ...]) -> bool:
    """Whether the tokens of a prompt are to be left out of the pooling. The last token stands behind every prompt, so
    that it makes no difference there.
    """
    if chain.pooling is None or modes == ("last",) or not any(encoding.prompts.values()):
        return False
    if pooling_config(chain.pooling).get("include_prompt", True):
        return False
    if "weighted_mean" in modes or settings.calls.filled:
        hint = "wrap it in a Python factory, py:package.module:factory"
        way = "weighted_mean" if "weighted_mean" in modes else "padding to the longest text"
        raise SourceError(f"{settings.path.parent} leaves prompts out (include_prompt = false) with {way}", hint=hint)
    return True


def _prompt_tokens(tokenizer: Any, encoding: Encoding, max_length: int) -> dict[str, int]:
    """How many tokens each prompt has, without a special one behind it."""
    found = {}
    for name, prompt in encoding.prompts.items():
        ids = tokenizer(prompt, truncation=True, max_length=max_length)["input_ids"] if prompt else []
        found[name] = len(ids) - (1 if ids and ids[-1] in tokenizer.all_special_ids else 0)
    return found


def _refuse_processor(inner: Path) -> None:
    """`SourceError` for a chat template of a processor: what that puts in beside the text is not the tokenizer's."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (inner / name).exists():
            hint = "save the folder with its tokenizer alone, or with a modality_config for text"
            raise SourceError(f"{inner} wraps texts in the chat template of a processor ({name})", hint=hint)


def _drop_special_tokens(tokenizer: Any) -> None:
    """Let a tokenizer add nothing around a text."""
    from tokenizers import Tokenizer

    data = json.loads(tokenizer.backend_tokenizer.to_str()) | {"post_processor": None}
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(data))
