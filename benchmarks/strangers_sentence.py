"""sentence-transformers folders of every kind of module and setting, judged by ``SentenceTransformer.encode``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.coverage_models import BERT
from benchmarks.strangers_kit import (
    TEXTS,
    Call,
    Case,
    Rows,
    by_sentence_transformers,
    edit_json,
    save_model,
    sentencepiece,
    spread,
    wordpiece,
    write_json,
)
from benchmarks.strangers_text import bert, decoder, roberta

ROWS = Rows("sentence-transformers")
WIDTH = 48
_OLD = "sentence_transformers.models."


def modules(folder: Path, *listed: tuple[str, str], prefix: str = _OLD) -> None:
    """Write modules.json from (kind, path)."""
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": kind if "." in kind else f"{prefix}{kind}"}
        for index, (kind, path) in enumerate(listed)
    ]
    write_json(folder / "modules.json", entries)


def old_folder(
    folder: Path,
    pooling: Mapping[str, Any] | None = None,
    bert_config: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A folder as versions below 5 wrote it: Transformer at the root, 1_Pooling, and the two config files."""
    bert(folder)
    modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"))
    flags = pooling or {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, **flags})
    write_json(
        folder / "sentence_bert_config.json",
        bert_config if bert_config is not None else {"max_seq_length": 32, "do_lower_case": False},
    )
    if settings:
        write_json(folder / "config_sentence_transformers.json", {"__version__": {}, **settings})
    return folder


def judged(folder: Path, prompts: Sequence[str] = (), options: tuple[str, ...] = (), **how: Any) -> Case:
    """The plain call, and one for each prompt."""
    calls = [Call(TEXTS, by_sentence_transformers(folder, **how))]
    calls += [Call(TEXTS, by_sentence_transformers(folder, TEXTS, name, **how), name) for name in prompts]
    return Case(folder, tuple(calls), options)


def built(place: Path, *stages: Callable[[], Any], pooling: str | tuple[str, ...] = "mean", **settings: Any) -> Case:
    """A folder that sentence-transformers itself puts together and saves."""
    return judged(saved(place / "model", *stages, pooling=pooling, **settings), tuple(settings.get("prompts", ())))


def saved(
    folder: Path, *stages: Callable[[], Any], pooling: str | tuple[str, ...] = "mean", include: bool = True, **how: Any
) -> Path:
    """`built`'s folder alone."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    first = Transformer(str(bert(folder.parent / "bert")))
    chain = [first, Pooling(WIDTH, pooling, include_prompt=include), *(stage() for stage in stages)]
    SentenceTransformer(modules=chain, device="cpu", **how).save(str(folder))
    return folder


def _dense(inputs: int, outputs: int, activation: str = "Tanh", **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        from sentence_transformers.sentence_transformer.modules import Dense
        from torch import nn

        return spread(Dense(inputs, outputs, activation_function=getattr(nn, activation)(), **settings), 3)

    return make


def _normalize() -> Any:
    from sentence_transformers.sentence_transformer.modules import Normalize

    return Normalize()


def _layer_norm() -> Any:
    from sentence_transformers.sentence_transformer.modules import LayerNorm

    return spread(LayerNorm(WIDTH), 5)


for _mode in ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"):
    ROWS.add(f"pooling-{_mode}", lambda place, mode=_mode: built(place, pooling=mode))  # type: ignore[misc]
ROWS.add("pooling-cls-mean-max-side-by-side", lambda place: built(place, pooling=("cls", "mean", "max")))
ROWS.add(
    "old-flags-mean-and-max",
    lambda place: judged(old_folder(place / "m", {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True})),
)
ROWS.add("dense-tanh", lambda place: built(place, _dense(WIDTH, 20)))
ROWS.add(
    "dense-identity-no-bias-normalize",
    lambda place: built(place, _dense(WIDTH, 20, "Identity", bias=False), _normalize),
)
ROWS.add("dense-gelu-sigmoid", lambda place: built(place, _dense(WIDTH, 60, "GELU"), _dense(60, 20, "Sigmoid")))
ROWS.add("dense-residual", lambda place: built(place, _dense(WIDTH, WIDTH, "Identity", use_residual=True)))
ROWS.add("normalize", lambda place: built(place, _normalize))
ROWS.add("normalize-then-dense", lambda place: built(place, _normalize, _dense(WIDTH, 20, "Identity")))
ROWS.add("layer-norm", lambda place: built(place, _layer_norm, _normalize))
ROWS.add("prompts", lambda place: built(place, prompts={"query": "query: ", "passage": "passage: "}))
ROWS.add(
    "default-prompt-name",
    lambda place: built(place, prompts={"query": "query: ", "document": ""}, default_prompt_name="query"),
)
ROWS.add(
    "prompt-left-out-of-the-mean",
    lambda place: built(place, include=False, prompts={"query": "Represent this sentence for retrieval: "}),
)
ROWS.add(
    "prompt-left-out-of-the-cls",
    lambda place: built(place, include=False, pooling="lasttoken", prompts={"query": "Represent this: "}),
)
ROWS.add(
    "prompts-title-none",
    lambda place: built(
        place,
        _dense(WIDTH, 60, "Identity", bias=False),
        _dense(60, WIDTH, "Identity", bias=False),
        _normalize,
        prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
    ),
)
ROWS.add("truncate-dim", lambda place: built(place, truncate_dim=16))
ROWS.add("truncate-dim-normalized", lambda place: built(place, _normalize, truncate_dim=16))
ROWS.add("max-seq-length-12", lambda place: judged(old_folder(place / "m", None, {"max_seq_length": 12})))
ROWS.add("max-seq-length-null", lambda place: judged(old_folder(place / "m", None, {"max_seq_length": None})))
ROWS.add("sentence-bert-config-absent", lambda place: _without(place, "sentence_bert_config.json"))


def _without(place: Path, name: str) -> Case:
    folder = old_folder(place / "m")
    (folder / name).unlink()
    return judged(folder)


@ROWS.row("do-lower-case-on-a-cased-tokenizer")
def _lower(place: Path) -> Case:
    folder = old_folder(place / "m", None, {"max_seq_length": 32, "do_lower_case": True})
    wordpiece(folder, do_lower_case=False)
    size = len((folder / "vocab.txt").read_text("utf-8").splitlines())
    save_model(folder, "BertConfig", {**BERT, "pad_token_id": 0, "vocab_size": size})
    return judged(folder)


def _settings(place: Path, **config: Any) -> Case:
    return judged(old_folder(place / "m", None, config))


ROWS.add("tokenizer-args", lambda place: _settings(place, tokenizer_args={"model_max_length": 10}))
ROWS.add(
    "tokenizer-args-truncation-left",
    lambda place: _settings(place, max_seq_length=10, tokenizer_args={"truncation_side": "left"}),
)
ROWS.add("processor-kwargs", lambda place: _settings(place, processor_kwargs={"model_max_length": 10}))
ROWS.add(
    "processing-kwargs-text",
    lambda place: _settings(place, processing_kwargs={"text": {"max_length": 10, "truncation": True}}),
)
ROWS.add(
    "processing-kwargs-no-special-tokens",
    lambda place: _settings(place, max_seq_length=32, processing_kwargs={"text": {"add_special_tokens": False}}),
)
_TEXT_KWARGS: dict[str, dict[str, Any]] = {
    "padded-to-20": {"padding": "max_length", "max_length": 20, "truncation": True},
    "padding-side-left": {"padding_side": "left"},
}
for _told, _given in _TEXT_KWARGS.items():
    ROWS.add(
        f"processing-kwargs-{_told}",
        lambda place, given=_given: _settings(  # type: ignore[misc]
            place, max_seq_length=64, processing_kwargs={"text": given}
        ),
    )
ROWS.add("tokenizer-args-lower-case", lambda place: _settings(place, tokenizer_args={"do_lower_case": False}))
ROWS.add("tokenizer-args-slow", lambda place: _settings(place, tokenizer_args={"use_fast": False}))
ROWS.add(
    "model-args-eager", lambda place: _settings(place, max_seq_length=32, model_args={"attn_implementation": "eager"})
)
ROWS.add(
    "config-args-one-layer", lambda place: _settings(place, max_seq_length=32, config_args={"num_hidden_layers": 1})
)
ROWS.add(
    "modality-config-pooler-output",
    lambda place: _modality(place, {"method": "forward", "method_output_name": "pooler_output"}, "sentence_embedding"),
)


def _modality(place: Path, text: Mapping[str, Any], output: str) -> Case:
    folder = old_folder(place / "m", None, {"modality_config": {"text": dict(text)}, "module_output_name": output})
    modules(folder, ("Transformer", ""))
    return judged(folder)


@ROWS.row("dense-on-tokens-before-the-pooling")
def _token_dense(place: Path) -> Case:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    dense = _dense(WIDTH, 20, "Identity", module_input_name="token_embeddings", module_output_name="token_embeddings")
    chain = [Transformer(str(bert(place / "bert"))), dense(), Pooling(20, "mean")]
    SentenceTransformer(modules=chain, device="cpu").save(str(place / "m"))
    return judged(place / "m")


@ROWS.row("settings-file-of-an-old-name")
def _old_name(place: Path) -> Case:
    folder = old_folder(place / "m", None, {"max_seq_length": 10, "do_lower_case": False})
    (folder / "sentence_bert_config.json").rename(folder / "sentence_roberta_config.json")
    return judged(folder)


@ROWS.row("max-seq-length-beyond-the-table")
def _beyond(place: Path) -> Case:
    """RoBERTa's own 514: the library fails on what is longer than its table, and embeds the rest."""
    folder = roberta(place / "m")
    modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"))
    write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 70, "do_lower_case": False})
    return Case(folder, (Call(TEXTS[:7], by_sentence_transformers(folder, TEXTS[:7])),))


@ROWS.row("chat-template-message")
def _chat(place: Path) -> Case:
    folder = place / "m"
    decoder(folder, "Qwen3Config", {"padding_side": "left", "ends": False})
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    edit_json(folder / "tokenizer_config.json", chat_template=template)
    ways = {kind: {"method": "forward", "method_output_name": "last_hidden_state"} for kind in ("text", "message")}
    ways["message"]["format"] = "flat"
    write_json(
        folder / "sentence_bert_config.json", {"modality_config": ways, "module_output_name": "token_embeddings"}
    )
    modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"))
    write_json(folder / "1_Pooling" / "config.json", {"embedding_dimension": WIDTH, "pooling_mode": "lasttoken"})
    return judged(folder)


@ROWS.row("qwen3-lasttoken-instruct")
def _qwen3(place: Path) -> Case:
    folder = decoder(place / "Qwen3-Embedding-0.6B", "Qwen3Config")
    modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    flags = {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True, "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, **flags})
    prompts = {"query": "Instruct: Given a web search query\nQuery:", "document": ""}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})
    return judged(folder, ("query", "document"))


@ROWS.row("t5-dense-normalize")
def _sentence_t5(place: Path) -> Case:
    folder = place / "sentence-t5"
    named = {"tokenizer_class": "T5Tokenizer", "model_max_length": 64, "extra_ids": 10}
    named |= {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    size = sentencepiece(folder, "spiece.model", named, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    t5 = {"d_model": WIDTH, "d_kv": 10, "d_ff": 88, "num_layers": 2, "num_heads": 4, "vocab_size": size + 20}
    save_model(folder, "T5Config", {**t5, "pad_token_id": 0}, "T5EncoderModel")
    modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_Normalize"))
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 40, "do_lower_case": False})
    flags = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", flags)
    (folder / "2_Dense").mkdir()
    _dense(WIDTH, 30, "Identity", bias=False)().save(str(folder / "2_Dense"), safe_serialization=False)
    return judged(folder)


@ROWS.row("layout-0-transformer")
def _old_layout(place: Path) -> Case:
    folder = place / "distilbert-base-nli"
    inner = bert(folder / "0_Transformer")
    write_json(inner / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False})
    modules(folder, ("Transformer", "0_Transformer"), ("Pooling", "1_Pooling"))
    flags = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, **flags})
    write_json(folder / "config.json", {"__version__": "0.2.5"})
    return judged(folder)


@ROWS.row("module-folders-of-other-names")
def _names(place: Path) -> Case:
    folder = place / "m"
    bert(folder / "my encoder")
    modules(folder, ("Transformer", "my encoder"), ("Pooling", "heads/how to pool"), ("Dense", "heads/projection"))
    write_json(folder / "my encoder" / "sentence_bert_config.json", {"max_seq_length": 24})
    flags = {"word_embedding_dimension": WIDTH, "pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}
    write_json(folder / "heads" / "how to pool" / "config.json", flags)
    (folder / "heads" / "projection").mkdir(parents=True)
    _dense(WIDTH, 20, "ReLU")().save(str(folder / "heads" / "projection"))
    return judged(folder)
