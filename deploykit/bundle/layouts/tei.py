"""Text Embeddings Inference: a model folder like those of the Hugging Face hub, with ``onnx/model.onnx``.

What its router and its ONNX backend read is said by their sources (huggingface/text-embeddings-inference,
``router/src/lib.rs`` and ``backends/ort/src/lib.rs``): an output named ``sentence_embedding`` is taken as it is, and
neither pooled nor projected again; ``input_ids`` and ``attention_mask`` are always given.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from deploykit.bundle.layouts import README, Layout, _readme, model_files, rounding_caveat
from deploykit.errors import RecipeError
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.manifest import Card, Variant

TARGETS: Final = ("onnxruntime",)

_OUTPUT: Final = "sentence_embedding"
_ALWAYS: Final = {"input_ids", "attention_mask"}
_KNOWN: Final = {*_ALWAYS, "token_type_ids", "position_ids"}
# The router asks for one of these three. It does not pool with it here, since the graph has pooled.
_POOLINGS: Final = {"cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
_MEAN: Final = "pooling_mode_mean_tokens"


def check(bundle: Bundle) -> None:
    """`RecipeError` with what in the encoder this server would feed or read differently."""
    card = bundle.manifest.card
    if fault := next(_faults(card), ""):
        raise RecipeError(
            f"Text Embeddings Inference cannot serve '{card.name}': {fault}",
            hint="lay it out for triton or openvino-model-server",
        )


def _faults(card: Card) -> Iterator[str]:
    names = {spec.name for spec in card.inputs}
    if card.modality != "text":
        yield f"it takes texts, and this one is for {card.modality}"
    if missing := sorted(_ALWAYS - names):
        yield f"it always gives '{missing[0]}', which the graph does not take"
    if unknown := sorted(names - _KNOWN):
        yield f"it does not give '{unknown[0]}', which the graph takes"
    if card.embedding.output != _OUTPUT:
        yield f"it reads the output '{_OUTPUT}', and the graph's is '{card.embedding.output}'"
    for spec in (*card.inputs, *card.outputs):
        wanted = "int64" if spec in card.inputs else "float32"
        if spec.dtype != wanted:
            yield f"'{spec.name}' is {spec.dtype}, and it uses {wanted}"
    if not str(card.preprocess.get("tokenizer", "")).endswith("tokenizer.json"):
        yield "it takes tokenizers of the tokenizers library alone, and this one splits texts at whitespace"
    if card.preprocess.get("frames"):
        yield "the preprocessing puts each text into a chat template, which it cannot do"
    if changed := next((key for key in ("lowercase", "strip") if card.preprocess.get(key)), ""):
        yield f"the preprocessing has '{changed}' before the tokenizer, which it cannot do"
    if card.preprocess.get("padding_side") == "left" and "position_ids" in names:
        yield "it counts position_ids over the padding on the left, and this encoder behind it"


def caveat(variant: Variant) -> str:
    """The server makes its session itself."""
    return rounding_caveat(variant, "Text Embeddings Inference")


def lay_out(bundle: Bundle, variant: Variant, name: str) -> Layout:
    """The folder that ``--model-id`` names."""
    card = bundle.manifest.card
    tokenizer = json.loads(bundle.file(card.preprocess["tokenizer"]).read_text(encoding="utf-8"))
    # The server truncates and pads as its request and its batch want it.
    pages: dict[str, Any] = {"tokenizer.json": {**tokenizer, "truncation": None, "padding": None}}
    pages |= _configuration(card)
    start = [f"text-embeddings-router --model-id $PWD --dtype float32{_prompt(card)}"]
    texts = {place: json.dumps(page, indent=1, ensure_ascii=False) + "\n" for place, page in pages.items()}
    notes = [note for note in (caveat(variant), *_notes(card)) if note]
    texts[README] = _readme.render(bundle, variant, "Text Embeddings Inference", start, notes)
    return Layout(copies=model_files(bundle, variant, "onnx"), texts=texts)


def _configuration(card: Card) -> dict[str, Mapping[str, Any]]:
    longest = _readme.longest_text(card)
    pooling = _POOLINGS.get(card.embedding.pooling, _MEAN)
    return {
        # model_type is none that the server knows, since for some of those it changes the tokenizer or the positions.
        # The sizes of the network are read for graphs that take past keys and values; this one does not.
        "config.json": {
            "architectures": ["Encoder"],
            "model_type": "deploykit",
            "max_position_embeddings": longest,
            "pad_token_id": card.preprocess.get("pad_id", 0),
            "hidden_size": card.embedding.dim,
            "num_hidden_layers": 0,
        },
        "tokenizer_config.json": {"padding_side": card.preprocess.get("padding_side", "right")},
        "sentence_bert_config.json": {"max_seq_length": longest, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": card.preprocess.get("prompts") or {}},
        "1_Pooling/config.json": {
            "word_embedding_dimension": card.embedding.dim,
            **{key: key == pooling for key in (_MEAN, *_POOLINGS.values())},
        },
    }


def _prompt(card: Card) -> str:
    default = card.preprocess.get("default_prompt")
    return f" --default-prompt-name {default}" if default else ""


def _notes(card: Card) -> Iterator[str]:
    yield (
        f"The release must read an ONNX output named `{_OUTPUT}`; one that does not stops with `Unknown output keys`. "
        "The graph pools and normalises; what `1_Pooling/config.json` says is demanded, and not used."
    )
    if not card.embedding.normalized:
        yield 'The vectors are not of length 1: send `"normalize": false`, or the server makes them so.'
    yield 'Texts that are too long are cut only with `"truncate": true` in the request, or `--auto-truncate`.'
    if card.preprocess.get("truncation_side") == "left":
        yield 'Texts are cut at their beginning: send `"truncation_direction": "Left"`.'
    shortest = card.limits.axes.get("length", (1, 1))[0]
    if shortest > 1:
        yield f"Texts of fewer than {shortest} tokens are not proven: the server does not pad them to that length."
