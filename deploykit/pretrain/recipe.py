"""The ``[pretrain]`` section of a recipe.

::

    [pretrain]                      [pretrain.data]                 [pretrain.training]
    output = "../build/digits"      train = ["builtin:digits"]      epochs = 20
    seed = 0                        probe = ""   # labelled         batch = 256
                                    test = ""    # judged once      lr = 2e-3
    [pretrain.objective]            [pretrain.encoder]              [pretrain.modality]
    name = "match"                  name = "resnet"                 name = "image"
    views = 4   # its own Options   width = 32                      size = 16

Unknown keys are refused with the nearest valid spelling; ``key=value`` on the command line replaces one key
(``training.epochs=3``). Data paths and ``output`` are relative to the recipe's file.
"""

from __future__ import annotations

import dataclasses
import importlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from deploykit import registry, settings
from deploykit.errors import RecipeError, UnknownNameError, nearest

PIECES = ("objective", "encoder", "modality")
_PLURALS = {"objective": "objectives", "encoder": "encoders", "modality": "modalities"}


@dataclass(frozen=True)
class DataSection:
    """Unlabelled data and what judges the encoder.

    ``train``: data specs, of which the labels are not learnt. ``probe``: labelled data for the probes; without it the
    training data's own labels are used where they have some. ``holdout``: the share of the probe's data that is judged
    and, where it comes from the training data, not trained on. ``test``: labelled data or scored pairs, judged once at
    the end. ``limit``: at most so many inputs of each, 0 for all. ``unreadable``: the largest share of inputs that may
    be skipped because they cannot be read.

    ``memory``: where decoded inputs are held; ``disk`` is a file of the run's folder that is mapped into memory and
    gone with the process, for what does not fit.

    ``names``: what the names of files say, without their ending, such as ``{label}_{speaker}_{take}``; it gives the
    labels where neither folders nor columns do. ``test_names``: files of ``train`` whose names fit one of these shell
    patterns (``*_[0-4].wav``, ``*_theo_*``) are not trained on but are the test data.
    """

    train: tuple[str, ...]
    probe: str = ""
    test: str = ""
    holdout: float = 0.1
    limit: int = 0
    unreadable: float = 0.01
    memory: Literal["ram", "disk"] = "ram"
    names: str = ""
    test_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingSection:
    """The loop. ``batch`` counts samples per step over all processes; ``accumulate`` splits it into so many parts.

    ``steps`` 0: as many as ``epochs`` are. ``schedule``: cosine to 0, or warm-up-stable-decay, which decays over the
    last fifth; both rise over ``warmup`` of the steps. ``ema`` is the decay of averaged weights, 0 for none: they are
    what is then judged and exported. ``save_every`` and ``log_every`` count steps. ``precision``: bf16 is
    autocast; auto is bf16 on a device that computes in it, else fp32. ``tensorboard`` writes the metrics as its event
    files too, into the folder of that name.
    ``shard``: every process keeps a part of the weights and of the optimizer's state alone (FSDP2), not all of them.
    ``grouped``: so many batches of texts are sorted by length together, so that a batch holds little padding; 0: none.
    ``compile`` hands the encoder's forward to torch.compile; objectives that hide elements go past it.
    """

    epochs: float = 10.0
    steps: int = 0
    batch: int = 256
    accumulate: int = 1
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, ...] = (0.9, 0.95)
    clip: float = 1.0
    warmup: float = 0.1
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu"] = "auto"
    compile: bool = False
    shard: bool = False
    grouped: int = 0
    ema: float = 0.0
    log_every: int = 10
    save_every: int = 200
    tensorboard: bool = False


@dataclass(frozen=True)
class ProbeSection:
    """Judging. ``every`` steps during training, 0 for at the end alone; at most ``samples`` labelled inputs.

    ``neighbours`` of the kNN vote; ``ridges`` are strengths of the linear probe's penalty, per sample, of which each
    encoder takes the one that does best at leaving one out. ``rank_alarm``: an effective rank below this is a collapse.
    ``precision``: bf16 encodes the probe's data under autocast, which halves the time that judging takes; auto as in
    `TrainingSection`.
    """

    every: int = 0
    samples: int = 50_000
    neighbours: int = 20
    ridges: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    rank_alarm: float = 4.0
    precision: Literal["auto", "fp32", "bf16"] = "fp32"


@dataclass(frozen=True)
class FinetuneSection:
    """Supervised training of a copy at the end, judged on the held-out part and once on the test data.

    ``epochs`` 0: none. It learns from the labels of the data that the probes learn from, all of them; ``augment``: on
    one view of each input. ``precision`` as in `TrainingSection`. ``begin``: with the trained encoder, with the same
    encoder untrained, which is supervised training, or with each in its turn. ``log_every`` counts steps.
    """

    epochs: float = 0.0
    batch: int = 128
    lr: float = 5e-4
    weight_decay: float = 0.05
    augment: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    begin: Literal["both", "trained", "untrained"] = "both"
    log_every: int = 50


@dataclass(frozen=True)
class PretrainRecipe:
    """One pretraining run, fully decided; ``options`` of the pieces are their own dataclasses.

    ``start``: the folder of a finished run of the same encoder, whose weights and vocabulary this one begins with.
    """

    objective: str
    encoder: str
    modality: str
    options: Mapping[str, Any]
    data: DataSection
    output: Path
    seed: int = 0
    start: str = ""
    training: TrainingSection = TrainingSection()
    probe: ProbeSection = field(default_factory=ProbeSection)
    finetune: FinetuneSection = field(default_factory=FinetuneSection)

    @classmethod
    def from_toml(cls, path: Path | str, overrides: Iterable[str] = ()) -> PretrainRecipe:
        """Read the ``[pretrain]`` section of a recipe file; ``overrides`` are ``key=value`` below it."""
        path = Path(path)
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RecipeError(f"there is no recipe '{path}'", hint="give the path of a .toml file") from None
        except (IsADirectoryError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(f"'{path}' is not a recipe: {error}", hint="a recipe is a TOML file in UTF-8") from None
        section = data.get("pretrain")
        if section is None:
            raise RecipeError(
                f"{path} has no section [pretrain]", hint="`deploykit run` carries out the other sections"
            )
        plain = _copied(settings.table(section, f"{path}: pretrain"))
        for text in overrides:
            _override(plain, text)
        return cls.from_data(plain, str(path), path.parent)

    @classmethod
    def from_data(cls, data: Mapping[str, Any], where: str = "recipe", base: Path | None = None) -> PretrainRecipe:
        """Check plain data (the section) and build the recipe."""
        place = f"{where}: [pretrain]"
        known = ["output", "seed", "start", "data", "training", "probe", "finetune", *PIECES]
        settings.refuse_unknown(data, known, f"{place} has no key")
        for key in ("output", "data"):
            if key not in data:
                raise RecipeError(f"{place} lacks the key '{key}'", hint=f"add {key} = …")
        names, options = {}, {}
        for kind in PIECES:
            table = settings.table(data.get(kind, {}), f"{place} {kind}")
            names[kind] = settings.typed(str, table.get("name", ""), f"{place} {kind}.name")
            module = piece(kind, names[kind])
            own = {key: value for key, value in table.items() if key != "name"}
            options[kind] = settings.read(module.Options, own, f"{where}: [pretrain.{kind}]")
        section = settings.read(DataSection, settings.table(data["data"], f"{place} data"), f"{where}: [pretrain.data]")
        recipe = cls(
            **names,
            options=options,
            data=_located(section, base),
            output=_from(base, Path(settings.typed(str, data["output"], f"{place} output"))),
            seed=settings.typed(int, data.get("seed", 0), f"{place} seed"),
            start=_run_at(base, settings.typed(str, data.get("start", ""), f"{place} start")),
            training=settings.read(TrainingSection, data.get("training", {}), f"{where}: [pretrain.training]"),
            probe=settings.read(ProbeSection, data.get("probe", {}), f"{where}: [pretrain.probe]"),
            finetune=settings.read(FinetuneSection, data.get("finetune", {}), f"{where}: [pretrain.finetune]"),
        )
        _check(recipe, place)
        return recipe

    def to_data(self) -> dict[str, Any]:
        """Plain data with every effective value; `from_data` gives an equal recipe back."""
        return {
            "output": str(self.output),
            "seed": self.seed,
            "start": self.start,
            "data": settings.plain(self.data),
            **{k: {"name": getattr(self, k), **settings.plain(self.options[k])} for k in PIECES},
            "training": settings.plain(self.training),
            "probe": settings.plain(self.probe),
            "finetune": settings.plain(self.finetune),
        }


def piece(kind: str, name: str) -> ModuleType:
    """The module of an objective, an encoder or a modality; `UnknownNameError` gives the nearest names."""
    if kind == "objective":
        return registry.module("objectives", name)
    folder = Path(__file__).parent / _PLURALS[kind]
    known = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))
    if name not in known:
        raise UnknownNameError(f"there is no {kind} '{name}'", hint=nearest(name, known))
    return importlib.import_module(f"deploykit.pretrain.{_PLURALS[kind]}.{name}")


def _check(recipe: PretrainRecipe, place: str) -> None:
    training, data = recipe.training, recipe.data
    wrong = [
        (not data.train, "data.train is empty", 'name data: train = ["folder/"]'),
        (training.batch < 2, f"training.batch is {training.batch}", "give 2 or more"),
        (training.steps < 0, f"training.steps is {training.steps}", "give 0 for as many as training.epochs are"),
        (training.epochs <= 0 and training.steps < 1, "training lasts no step", "give epochs or steps"),
        (training.lr <= 0, f"training.lr is {training.lr}", "give 1e-3"),
        (not 0 <= training.warmup <= 1, f"training.warmup is {training.warmup}", "it is a share of the steps: 0.1"),
        (recipe.probe.neighbours < 1, f"probe.neighbours is {recipe.probe.neighbours}", "give 20"),
        (recipe.probe.samples < 2, f"probe.samples is {recipe.probe.samples}", "give 2 or more"),
        (recipe.probe.every < 0, f"probe.every is {recipe.probe.every}", "give 0 for at the end alone, or more"),
        (data.limit < 0, f"data.limit is {data.limit}", "give 0 for all of the data, or more"),
        (not 0 <= data.unreadable <= 1, f"data.unreadable is {data.unreadable}", "it is a share: give 0.01"),
        (not recipe.probe.ridges or min(recipe.probe.ridges) <= 0, "probe.ridges has none above 0", "give [1e-3]"),
        (training.accumulate < 1, f"training.accumulate is {training.accumulate}", "give 1 or more"),
        (not 0 <= training.ema < 1, f"training.ema is {training.ema}", "give 0, or a decay such as 0.999"),
        (recipe.finetune.epochs < 0, f"finetune.epochs is {recipe.finetune.epochs}", "give 0 for none, or more"),
        (recipe.finetune.batch < 2, f"finetune.batch is {recipe.finetune.batch}", "give 2 or more"),
        (recipe.finetune.lr <= 0, f"finetune.lr is {recipe.finetune.lr}", "give 5e-4"),
        (len(training.betas) != 2, f"training.betas are {list(training.betas)}", "give two numbers"),
        (training.grouped < 0, f"training.grouped is {training.grouped}", "give 0 for none, or more"),
        (training.log_every < 1 or training.save_every < 1, "log_every or save_every is below 1", "give 1 or more"),
        (recipe.finetune.log_every < 1, f"finetune.log_every is {recipe.finetune.log_every}", "give 1 or more"),
        (bool(data.test and data.test_names), "data has test and test_names", "leave one of them out"),
        (
            bool(data.names) and data.names.count("{label}") != 1,
            f"data.names is '{data.names}'",
            "it needs one {label}",
        ),
        (not 0 < data.holdout < 1, f"data.holdout is {data.holdout}", "it is a share: give 0.1"),
    ]
    for is_wrong, fact, hint in wrong:
        if is_wrong:
            raise RecipeError(f"{place} {fact}", hint=hint)


def _copied(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in table.items()}


def _override(data: dict[str, Any], text: str) -> None:
    """Set one key; the value is TOML, or a bare word for a string."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"'{text}' sets nothing", hint="write key=value, such as training.epochs=3")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *path, last = key.split(".")
    table: Any = data
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise RecipeError(f"'{key}' goes through '{part}', which is no section", hint="see `--help`")
    table[last] = parsed


def _located(data: DataSection, base: Path | None) -> DataSection:
    def located(spec: str) -> str:
        if not spec or spec.startswith("builtin:") or base is None:
            return spec
        path, mark, columns = spec.partition("#")
        return f"{_from(base, Path(path))}{mark}{columns}"

    return dataclasses.replace(
        data, train=tuple(located(s) for s in data.train), probe=located(data.probe), test=located(data.test)
    )


def _run_at(base: Path | None, folder: str) -> str:
    return str(_from(base, Path(folder))) if folder else ""


def _from(base: Path | None, path: Path) -> Path:
    path = Path(path).expanduser()
    return path if base is None or path.is_absolute() else (base / path).resolve()
