"""What the rows of `benchmarks.strangers` are made with: cases, tokenizers trained on the spot, weights, and judges.

A judge here is the original library alone: it gets the same raw inputs, one at a time, so that neither batching nor
padding can hide a difference, and nothing of deploykit is imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LEAST_COSINE = 0.99999
TRAP = "trap"
"""The file beside the source that code inside it makes when it is run, against the user's will."""
TEXTS = (
    "The cat sat on the mat.",
    "river",
    "  A big RED dog runs,\tin the house\n of the cat  ",
    "Café naïve Ünïcödé élan ÀÉÎ",
    "今天天气很好 и русский текст 🙂",
    "one [SEP] two </s> three <pad> four <|endoftext|> five <mask>six [MASK]",
    "No. 12,345.67 (see p. 8) — e-mail a.b@c.org!",
    " ".join(f"word {number} of the long text about rivers" for number in range(12)),
    " ".join("the quick brown fox jumps over the lazy dog and runs" for _ in range(40)),
)
"""Short, blank at the ends, accents, other scripts, special tokens as words, figures, and two beyond most limits."""
SHORT = TEXTS[:7]
"""Those that fit into every model here."""

CORPUS = (
    "the cat sat on the mat and the dog runs in the house of the river",
    "a big red dog and a small blue bird sing one two three four",
    "The quick brown fox jumps over the lazy dog. No one sees it, said the king!",
    "Café naïve élan Ünïcödé: words with accents, and figures 0 1 2 3 4 5 6 7 8 9",
    "rivers of long text about words, houses and cats; e-mail a.b@c.org (see p. 8)",
    "query: passage: search document: title: none | text: Instruct: Represent this sentence for retrieval",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 今天天气很好 русский",
)


@dataclass(frozen=True)
class Call:
    """One call of `encode`, and the rows that the original library gives for it.

    ``inputs`` are texts, paths of files, or named tensors. ``expected`` None: nothing but a refusal is right.
    ``kind`` names a prompt, ``least`` is the cosine to reach.
    """

    inputs: Sequence[str] | Mapping[str, np.ndarray]
    expected: np.ndarray | None
    kind: str | None = None
    least: float = LEAST_COSINE


@dataclass(frozen=True)
class Case:
    """What is exported, with which options, and how it is called; without calls only a refusal is right."""

    source: str | Path
    calls: tuple[Call, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stranger:
    """One row: ``make`` writes it below an empty folder and asks the original library."""

    name: str
    group: str
    make: Callable[[Path], Case]


@dataclass
class Rows:
    """The rows of one module, in the order in which they were written down."""

    group: str
    found: list[Stranger] = field(default_factory=list)

    def row(self, name: str) -> Callable[[Callable[[Path], Case]], Callable[[Path], Case]]:
        """Register the function below as a row."""

        def register(make: Callable[[Path], Case]) -> Callable[[Path], Case]:
            self.add(name, make)
            return make

        return register

    def add(self, name: str, make: Callable[[Path], Case]) -> None:
        """Register ``make`` as the row ``name``."""
        self.found.append(Stranger(name, self.group, make))


def write_json(path: Path, content: Any) -> Path:
    """Write one JSON file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one away."""
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    write_json(path, content)


def spread(model: Any, seed: int = 1) -> Any:
    """Weights large enough that every token, mask and position shows in the embedding, and biases that are not 0."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * max(1, parameter[0].numel()) ** -0.5)
            else:
                parameter.add_(0.1 * noise)
    return model.eval()


def save_model(folder: Path, config: str, settings: Mapping[str, Any], model: str = "", **how: Any) -> Any:
    """Save a random model of transformers' ``config`` class; ``model`` as AutoModel picks it when empty."""
    import transformers

    made = getattr(transformers, config)(**settings)
    body = getattr(transformers, model)(made) if model else transformers.AutoModel.from_config(made)
    spread(body).save_pretrained(folder, **how)
    return body


def wordpiece(folder: Path, **settings: Any) -> int:
    """Train a WordPiece tokenizer and save it as BERT's folders have it; the size of its vocabulary."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import AutoTokenizer

    lower = bool(settings.get("do_lower_case", True))
    trained = BertWordPieceTokenizer(lowercase=lower, strip_accents=settings.get("strip_accents"))
    trained.train_from_iterator(CORPUS, vocab_size=260, min_frequency=1, show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    trained.save_model(str(folder))
    plain = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}
    write_json(folder / "tokenizer_config.json", {**plain, **settings})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def byte_level(folder: Path, name: str, tokens: Sequence[str], **settings: Any) -> int:
    """Train a byte-level BPE and save it as tokenizer.json under the class ``name``; the size of its vocabulary."""
    from tokenizers import ByteLevelBPETokenizer, processors

    trained = ByteLevelBPETokenizer(add_prefix_space=False)
    trained.train_from_iterator(
        CORPUS, vocab_size=400, min_frequency=1, show_progress=False, special_tokens=list(tokens)
    )
    ids = {token: trained.token_to_id(token) for token in tokens}
    if name.startswith("Roberta"):
        frame = processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=False)
        trained._tokenizer.post_processor = frame
    elif settings.pop("ends", False):
        end = str(settings["eos_token"])
        trained._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, ids[end])]
        )
    folder.mkdir(parents=True, exist_ok=True)
    trained._tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": name, "model_max_length": 64, **settings})
    return int(trained.get_vocab_size())


ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def roberta_tokenizer(folder: Path, **settings: Any) -> int:
    """RoBERTa's own layout of special tokens."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    named |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    return byte_level(folder, "RobertaTokenizerFast", ROBERTA, **{**named, **settings})


def decoder_tokenizer(folder: Path, **settings: Any) -> int:
    """A decoder's byte-level tokenizer that pads with its end token, puts it last, and pads in front."""
    named = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "padding_side": "left", "ends": True}
    return byte_level(folder, "PreTrainedTokenizerFast", ("<|endoftext|>",), **{**named, **settings})


def sentencepiece(folder: Path, name: str, config: Mapping[str, Any], **ids: int) -> int:
    """Train a SentencePiece model and leave it alone in the folder, under the file name ``name``; its size."""
    import sentencepiece as spm

    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "corpus.txt"
    text.write_text("\n".join(CORPUS * 3), encoding="utf-8")
    spm.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "trained"),
        vocab_size=140,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        **ids,
    )
    (folder / "trained.model").rename(folder / name)
    for leftover in ("corpus.txt", "trained.vocab"):
        (folder / leftover).unlink()
    write_json(folder / "tokenizer_config.json", dict(config))
    return int(spm.SentencePieceProcessor(model_file=str(folder / name)).get_piece_size())


def pooled(tokens: Any, mode: str) -> Any:
    """The token vectors [length, width] of one text to one vector, written out."""
    import torch

    if mode == "mean":
        return tokens.mean(dim=0)
    if mode == "max":
        return tokens.max(dim=0).values
    if mode == "weighted_mean":
        weights = torch.arange(1, len(tokens) + 1, dtype=tokens.dtype).unsqueeze(1)
        return (tokens * weights).sum(dim=0) / weights.sum()
    return tokens[{"cls": 0, "last": -1}[mode]]


def by_transformers(
    folder: Path,
    texts: Sequence[str] = TEXTS,
    pooling: str = "mean",
    *,
    auto: str = "AutoModel",
    trust: bool = False,
    pick: str = "last_hidden_state",
    half: bool = False,
    **tokenized: Any,
) -> np.ndarray:
    """AutoTokenizer and AutoModel (or the class ``auto``), one text at a time, in float32; ``half``: its encoder."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    model = getattr(transformers, auto).from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust).eval()
    model = model.get_encoder() if half and hasattr(model, "get_decoder") else model
    rows = []
    with torch.inference_mode():
        for text in texts:
            given = tokenizer(text, return_tensors="pt", **{"truncation": True, **tokenized})
            output = model(**given)[pick][0]
            rows.append((pooled(output, pooling) if output.ndim == 2 else output).numpy())
    return np.stack(rows)


def by_sentence_transformers(
    folder: Path, texts: Sequence[Any] = TEXTS, prompt: str | None = None, **how: Any
) -> np.ndarray:
    """``SentenceTransformer(folder).encode``, one text or picture at a time, in float32."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"}, **how)
    rows = model.encode(list(texts), prompt_name=prompt, batch_size=1, show_progress_bar=False)
    return np.asarray(rows, dtype=np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to an L2 norm of 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
