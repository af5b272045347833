"""The folder of a finished pretraining run: its encoder with pooling inside, and its preprocessing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError
from deploykit.runtime.manifest import TensorSpec, from_json
from deploykit.sources import Identity, Options, Source, _folder
from deploykit.sources._options import only

if TYPE_CHECKING:
    import torch

KIND = "checkpoint"
_CARD, _WEIGHTS = "card.json", "encoder.safetensors"
_FORMAT = "deploykit.pretrain/1"


def matches(spec: str) -> bool:
    """A folder with a card of ours."""
    path = Path(spec).expanduser() / _CARD
    return path.is_file() and _FORMAT in path.read_text(encoding="utf-8", errors="replace")[:200]


def identify(spec: str, options: Options) -> Identity:
    """Digest of the weights and of the parts of the card that decide the vectors."""
    folder, card = _read(spec)
    files = [folder / _WEIGHTS, *(folder / name for name in card["files"].values())]
    for path in files:
        if not path.exists():
            raise SourceError(f"{folder} lacks {path.name}", hint="let the run finish: deploykit pretrain … --resume")
    _folder.check_whole(folder / _WEIGHTS)
    facts = {"name": str(card["name"]), "encoder": card["encoder"], "preprocess": card["preprocess"]}
    return _folder.identity(KIND, folder, files, options, facts)


def trained_on(spec: str) -> tuple[str, ...]:
    """The data specs that the run was trained on, which are there for calibration; some may be gone by now."""
    return tuple(str(data) for data in _read(spec)[1]["data"]["train"])


def tested_on(spec: str) -> tuple[str, ...]:
    """Shell patterns of the files among them that the run kept for its test."""
    return tuple(map(str, _read(spec)[1]["recipe"]["data"].get("test_names", ())))


def unreadable(spec: str) -> float:
    """The share of unreadable inputs that the run allowed; 0 where it found none."""
    card = _read(spec)[1]
    return float(card["recipe"]["data"]["unreadable"]) if card["data"]["skipped"] else 0.0


def open(spec: str, options: Options) -> Source:
    """Build the encoder that the card names, and load its weights."""
    from safetensors.torch import load_file

    from deploykit.pretrain import checkpoint, elements
    from deploykit.pretrain.recipe import piece
    from deploykit.settings import read
    from deploykit.sources._assemble import Parts, assemble
    from deploykit.sources._encoders import stages
    from deploykit.sources._pretrained import Pretrained

    folder, card = _read(spec)
    identify(spec, options)
    only(options, ("pooling", "normalize", "max_length", "dim", "prompts"), f"{folder} is a pretraining run")
    if options.pooling not in (None, card["pooling"]):
        raise SourceError(f"{folder} pools by {card['pooling']}", hint="leave pooling out")
    made = piece("modality", card["modality"]["name"])
    settings = read(made.Options, card["modality"]["options"], f"{folder / _CARD}: modality")
    adapter = made.Adapter(settings, card["modality"]["facts"])
    architecture = piece("encoder", card["encoder"]["name"])
    own = read(architecture.Options, card["encoder"]["options"], f"{folder / _CARD}: encoder")
    encoder = architecture.build(adapter.space, own)
    checkpoint.fit_weights(encoder, load_file(folder / _WEIGHTS), folder / _WEIGHTS)
    discrete = isinstance(adapter.space, elements.Tokens)
    inputs = tuple(from_json(TensorSpec, item, _CARD) for item in card["inputs"])
    preprocess, sizes = dict(card["preprocess"]), dict[str, tuple[int, ...]]()
    if discrete:
        from deploykit.sources._text import length_sizes

        preprocess["max_length"] = _length(options, adapter.space.length)
        preprocess["prompts"] = {**preprocess.get("prompts", {}), **(options.prompts or {})}
        sizes = length_sizes(preprocess["max_length"], None)
    else:
        only(options, ("pooling", "normalize", "dim"), f"{folder} takes inputs of one size")
    module = Pretrained(encoder, stages(options, bool(options.normalize)), [spec.name for spec in inputs])
    return assemble(
        Parts(
            name=str(card["name"]),
            modality=card["modality"]["name"],
            module=module.eval().requires_grad_(False),
            inputs=inputs,
            make_inputs=lambda batch, sizes, seed: _make(adapter.space, inputs, preprocess, batch, sizes, seed),
            sizes=sizes,
            preprocess=preprocess,
            pooling=str(card["pooling"]),
            normalized=bool(options.normalize),
            provenance=_provenance(card),
            files={inside: folder / name for inside, name in card["files"].items()},
        )
    )


def _read(spec: str) -> tuple[Path, dict[str, Any]]:
    folder = _folder.require_folder(spec)
    if not (folder / _CARD).exists():
        hint = "let the run finish: deploykit pretrain … --resume"
        raise SourceError(f"{folder} has no {_CARD}: it is no finished run", hint=hint)
    card = _folder.read_table(folder / _CARD)
    if card.get("format") != _FORMAT:
        raise SourceError(f"{folder / _CARD} has the format {card.get('format')!r}", hint=f"this is {_FORMAT}")
    return folder, card


def _length(options: Options, longest: int) -> int:
    if options.max_length is not None and not 1 <= options.max_length <= longest:
        raise SourceError(f"max_length {options.max_length} is not possible", hint=f"the model has {longest} positions")
    return options.max_length or longest


def _make(
    space: Any,
    inputs: tuple[TensorSpec, ...],
    preprocess: Mapping[str, Any],
    batch: int,
    sizes: Mapping[str, int],
    seed: int,
) -> dict[str, torch.Tensor]:
    """Ids with padding in every row but the first, or smooth random pictures."""
    import torch

    if len(inputs) == 1:
        from deploykit.sources._image import pixels

        pictures = preprocess if preprocess["kind"] == "image" else None
        return {inputs[0].name: pixels(inputs[0], batch, sizes, seed, pictures)}
    generator = torch.Generator().manual_seed(seed)
    length = sizes["length"]
    ids = torch.randint(space.reserved, space.vocabulary, (batch, length), generator=generator)
    counts = torch.tensor([max(1, length - (row * max(length, batch)) // batch) for row in range(batch)])
    mask = (torch.arange(length)[None] < counts[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def _provenance(card: Mapping[str, Any]) -> dict[str, Any]:
    told = json.loads(
        json.dumps({key: card[key] for key in ("objective", "data", "training", "probes", "finetuned") if key in card})
    )
    return {"kind": KIND, "name": card["name"], "architecture": card["encoder"]["name"], **told}
