"""A folder of a PEFT adapter (LoRA): merged into its base model, and then read as the base's own folder is.

A merged weight is W + scaling * B @ A, with scaling alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (Hu et al.
2021, Kalajdzievski 2023). Weights, biases and tables that the adapter holds whole take the place of the base's. Other
kinds of adapters are refused by name.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError
from deploykit.sources import Identity, Options, Source, _folder

if TYPE_CHECKING:
    import torch

KIND = "peft"
_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_PARTS = re.compile(r"(.+)\.lora_(A|B|embedding_A|embedding_B)(?:\.\w+)?(?:\.weight)?")
_MERGE = "merge it where it was trained (merge_and_unload), and export what save_pretrained writes"
_UNREAD = ("use_dora", "use_qalora", "layer_replication", "lora_bias", "alora_invocation_tokens", "target_parameters")


def matches(spec: str) -> bool:
    """A folder with adapter_config.json and no weights of a whole model."""
    folder = Path(spec).expanduser()
    whole = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
    return any((folder / name).is_file() for name in _WEIGHTS) and not any((folder / n).exists() for n in whole)


def identify(spec: str, options: Options) -> Identity:
    """Digest of the adapter's files and of the base's."""
    from deploykit.sources import resolve

    folder = _folder.require_folder(spec)
    base = resolve(str(_base(folder)), Options(revision=options.revision))
    files = [p for p in folder.iterdir() if p.is_file() and p.suffix in (".json", ".txt", ".safetensors", ".bin")]
    facts = {**_folder.folder_facts(folder), "base": base.facts.get("name", base.location), "base_digest": base.digest}
    return _folder.identity(KIND, folder, [p for p in files if not _folder.is_report(p)], options, facts)


def open(spec: str, options: Options) -> Source:
    """Write the merged folder, which lives until the process ends, and open it."""
    from dataclasses import replace

    from deploykit.sources import open_source
    from deploykit.sources._text import scratch_folder

    folder = _folder.require_folder(spec)
    base = _base(folder)
    merged = scratch_folder() / folder.resolve().name
    _lay_out(folder, base, merged)
    count = merge(folder, base, merged)
    source = open_source(str(merged), replace(options, kind=None))
    note = f"the adapter's {count} changed weights are merged into {_settings(folder)['base_model_name_or_path']}"
    facts = {**source.card.provenance, "adapter": _folder.folder_facts(folder)["name"]}
    facts["notes"] = [*facts.get("notes", []), note]
    return replace(source, card=replace(source.card, provenance=facts))


def _settings(folder: Path) -> dict[str, Any]:
    settings = _folder.read_table(folder / _CONFIG)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise SourceError(f"{folder} holds an adapter of the kind {kind}, and LoRA alone is merged", hint=_MERGE)
    unread = [name for name in _UNREAD if settings.get(name)]
    if unread or settings.get("bias", "none") not in ("none", "all", "lora_only"):
        what = ", ".join(unread) or f"bias = {settings['bias']}"
        raise SourceError(f"the adapter in {folder} has {what}, which is not merged", hint=_MERGE)
    return settings


def _base(folder: Path) -> Path:
    """The folder of the base model: beside the adapter, where its config says, or from the hub."""
    from deploykit.sources import _hub

    settings = _settings(folder)
    name = str(settings.get("base_model_name_or_path") or "")
    for place in (Path(name).expanduser(), folder / name):
        if name and (place / "config.json").is_file():
            return place
    if name and _hub.is_hub_id(name):
        return _hub.snapshot(name, settings.get("revision"))
    raise SourceError(
        f"the base model '{name}' of the adapter in {folder} is not here",
        hint=f"write the path of its folder as base_model_name_or_path in {_CONFIG}",
    )


def _lay_out(folder: Path, base: Path, merged: Path) -> None:
    """The base's small files, and over them those of the adapter's folder: its tokenizer, its pooling."""
    weights = {path.name for path in _folder.weight_files(base)}
    for root in (base, folder):
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root)
            if not path.is_file() or name.as_posix() in weights or path.name in (_CONFIG, *_WEIGHTS):
                continue
            if path.suffix in (".onnx", ".h5", ".gguf", ".msgpack", ".ot") or ".git" in name.parts:
                continue
            (merged / name.parent).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, merged / name)


def merge(folder: Path, base: Path, merged: Path) -> int:
    """Write the base's weights with the adapter's merged into ``merged``; returns how many changed."""
    from safetensors.torch import save_file

    settings = _settings(folder)
    deltas, whole = _adapter(folder)
    left, files = {*deltas, *whole}, _folder.weight_files(base)
    places: dict[str, str] = {}
    owners = _owners([*deltas, *whole], [key for path in files for key in _keys(path)], folder)
    for path in files:
        tensors = _read(path)
        for name, key in owners.items():
            if key in tensors:
                tensors[key] = _changed(tensors[key], name, deltas, whole, settings)
                left.discard(name)
        target = f"{path.name.removesuffix('.bin').removesuffix('.safetensors')}.safetensors"
        target = "model.safetensors" if len(files) == 1 else target
        save_file({k: t.contiguous().clone() for k, t in tensors.items()}, merged / target, {"format": "pt"})
        places |= dict.fromkeys(tensors, target)
    for index in merged.glob("*.index.json"):
        index.unlink()
    if len(files) > 1:
        (merged / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    return len(owners)


def _adapter(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """The factors of each weight by its name in the base, and the tensors that are held whole."""
    path = next(folder / name for name in _WEIGHTS if (folder / name).is_file())
    deltas: dict[str, dict[str, torch.Tensor]] = {}
    whole: dict[str, torch.Tensor] = {}
    for key, tensor in _read(path).items():
        plain = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
        found = _PARTS.fullmatch(plain)
        if found and found[2].startswith("embedding"):  # a table of rows: its change is the product turned round
            part = {"A": "B", "B": "A"}[found[2][-1]]
            deltas.setdefault(f"{found[1]}.weight", {})[part] = tensor.float().T
        elif found:
            deltas.setdefault(f"{found[1]}.weight", {})[found[2]] = tensor.float()
        elif "lora_" in plain:
            raise SourceError(f"the adapter in {folder} holds '{key}', which is not merged", hint=_MERGE)
        else:
            whole[plain.replace(".modules_to_save.", ".").replace(".default.", ".")] = tensor
    return deltas, whole


def _owners(names: list[str], keys: list[str], folder: Path) -> dict[str, str]:
    """Which weight of the base each name of the adapter means: heads put a name before the encoder's, or lack it."""
    owners = {}
    for name in names:
        ends = [k for k in keys if k.endswith(f".{name}") or name.endswith(f".{k}")]
        fitting = [name] if name in keys else ends
        if len(fitting) == 1:
            owners[name] = fitting[0]
        elif fitting or ".lora" in name or name.endswith(".weight"):
            raise SourceError(
                f"the adapter in {folder} changes '{name}', and the base has {len(fitting)} weights of that name",
                hint="another base model, or a head that the base lacks: " + _MERGE,
            )
    return owners


def _changed(
    weight: torch.Tensor,
    name: str,
    deltas: Mapping[str, Mapping[str, torch.Tensor]],
    whole: Mapping[str, torch.Tensor],
    settings: Mapping[str, Any],
) -> torch.Tensor:
    """One weight with what the adapter adds, in float32."""
    if name in whole:
        return whole[name].float()
    a, b = deltas[name]["A"], deltas[name]["B"]
    layer = name.removesuffix(".weight")
    rank = int(_of(settings.get("rank_pattern"), layer, settings["r"]))
    alpha = float(_of(settings.get("alpha_pattern"), layer, settings["lora_alpha"]))
    scaling = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    product = b.flatten(1) @ a.flatten(1)
    product = product.T if settings.get("fan_in_fan_out") and a.ndim == 2 else product
    product = product.reshape(weight.shape) if product.numel() == weight.numel() and a.ndim > 2 else product
    if product.shape != weight.shape:
        shapes = f"{list(b.shape)} @ {list(a.shape)}, expected {list(weight.shape)}"
        raise SourceError(f"the adapter's '{name}' is {shapes}", hint="is this the base that it was trained on?")
    return weight.float() + scaling * product


def _of(pattern: Any, layer: str, default: Any) -> Any:
    """The value of the first pattern that ends a layer's name."""
    for key, value in (pattern or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", layer):
            return value
    return default


def _keys(path: Path) -> list[str]:
    return list(_read(path))


def _read(path: Path) -> dict[str, torch.Tensor]:
    _folder.check_whole(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    import torch

    return dict(torch.load(path, map_location="cpu", weights_only=True))
