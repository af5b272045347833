"""The recipe: every choice of one run, as a TOML file; a command line is a short way to write one.

::

    [source]                          [variants]                             [bundle]
    model = "all-MiniLM-L6-v2"        targets = ["onnxruntime", "openvino"]  output = "minilm.bundle"
    max_length = 256                  precisions = ["fp32", "bf16"]
                                                                             [report]
    [export]                          [targets.openvino]                     enabled = true
    opset = 20                        # that target's own Options
                                                                             [proof]
                                                                             judge = true
                                                                             [budget]
    [calibration]                     [evaluation]                           limits = "drift<=0.01"  # or "none"
    data = "texts.txt"                data = "other.txt"                     workload = "batch"

Only ``source.model`` is needed; a section ``[pretrain]`` (`deploykit.pretrain.recipe`) stands in its place, and the
encoder is trained before it is exported. Paths are relative to the recipe's file. Unknown sections, keys and names are
refused with a message that names the file and the nearest valid spelling.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from deploykit import registry, settings
from deploykit.budget import Budget
from deploykit.errors import RecipeError, UnknownNameError, nearest
from deploykit.pretrain.recipe import PretrainRecipe
from deploykit.sources import Options as SourceOptions

Kind = Literal["targets", "precisions"]
Section = TypeVar("Section", "CalibrationSection", "EvaluationSection")
OPSETS = range(18, 24)
_COUNTS = {"max_length": "tokens", "fixed_length": "tokens", "dim": "the numbers of a vector"}
_SUFFIXES = (".onnx", ".pt2", ".safetensors", ".pt", ".pth", ".ckpt", ".jit", ".bin")
AUTO = "auto"
NO_BUDGET = "none"


@dataclass(frozen=True)
class SourceSection:
    """What is exported: a folder, a hub id, ``py:module:factory``, ``package:name/folder``, a ``.pt2`` or ``.onnx``."""

    model: str
    options: SourceOptions = field(default_factory=SourceOptions)


@dataclass(frozen=True)
class ExportSection:
    """How torch is brought to ONNX. ``timeout_s`` bounds each step that runs in a child process, in seconds."""

    opset: int = 20
    timeout_s: int = 1800
    exporter: Literal["auto", "dynamo", "torchscript"] = "auto"


@dataclass(frozen=True)
class ProofSection:
    """``judge``: whether raw inputs also go through the library that the model comes from (`deploykit.judge`)."""

    judge: bool = True


@dataclass(frozen=True)
class VariantsSection:
    """Which targets, at which precisions: one variant is made for each pair.

    The precision ``auto`` makes all that a target has and keeps the one that measured fastest inside the budget.
    """

    targets: tuple[str, ...] = ("onnxruntime",)
    precisions: tuple[str, ...] = ("fp32",)


@dataclass(frozen=True)
class CalibrationSection:
    """Real inputs from which the ranges of a calibrated precision are taken.

    Without ``data``: those that the encoder was trained on where that is known, else a builtin set. ``unreadable`` is
    the largest share of them that may be skipped because they cannot be read; files whose names fit one of the shell
    patterns ``skip`` are left out, as what is kept for a test should be.
    """

    data: str = ""
    samples: int = 300
    unreadable: float = 0.0
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationSection:
    """Inputs on which drift is measured; without ``data`` those of the calibration data that were not calibrated on."""

    data: str = ""
    samples: int = 512


@dataclass(frozen=True)
class BudgetSection:
    """What a variant may lose and must gain (`deploykit.budget`), and the workload whose time decides.

    ``limits`` none: no budget. ``undecided`` is what becomes of a variant whose drift lies inside, and that too few
    evaluation inputs leave undecided: ``keep`` hands it over, or lets ``auto`` take it, and says that it was not
    judged, which is how the default budget is meant; a budget that somebody wrote refuses it unless told otherwise.
    """

    limits: str = "standard"
    undecided: Literal["keep", "refuse"] = "keep"
    workload: Literal["batch", "single"] = "batch"

    def parsed(self) -> Budget:
        """The limits; empty where there is no budget."""
        return Budget(()) if self.limits.strip() == NO_BUDGET else Budget.parse(self.limits)


@dataclass(frozen=True)
class BundleSection:
    """Where the bundle goes."""

    output: Path


@dataclass(frozen=True)
class ReportSection:
    """Whether the report (HTML, Markdown, JSON) is written."""

    enabled: bool = True


@dataclass(frozen=True)
class Recipe:
    """One run, fully decided. ``targets`` and ``precisions`` hold the options that were set, by name.

    With ``pretrain`` the source is the folder of that run.
    """

    source: SourceSection
    bundle: BundleSection
    export: ExportSection = ExportSection()
    proof: ProofSection = ProofSection()
    variants: VariantsSection = VariantsSection()
    calibration: CalibrationSection = CalibrationSection()
    evaluation: EvaluationSection = EvaluationSection()
    budget: BudgetSection = BudgetSection()
    report: ReportSection = ReportSection()
    targets: Mapping[str, Any] = field(default_factory=dict)
    precisions: Mapping[str, Any] = field(default_factory=dict)
    pretrain: PretrainRecipe | None = None

    @classmethod
    def from_toml(cls, path: Path | str) -> Recipe:
        """Read a recipe file; its relative paths are taken from its own folder."""
        path = Path(path)
        try:
            text = path.read_bytes().decode()
        except FileNotFoundError:
            raise RecipeError(f"there is no recipe '{path}'", hint=_recipes_near(path)) from None
        except IsADirectoryError:
            raise RecipeError(f"'{path}' is a folder, not a recipe", hint=_recipes_near(path / "recipe.toml")) from None
        except UnicodeDecodeError:
            raise RecipeError(f"'{path}' is not text", hint="a recipe is a TOML file in UTF-8") from None
        return cls.from_text(text, where=str(path), base=path.parent)

    @classmethod
    def from_text(cls, text: str, *, where: str = "recipe", base: Path | None = None) -> Recipe:
        """Parse a recipe; ``where`` is what messages call it, ``base`` the folder its relative paths start from."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            hint = 'a recipe is TOML: [section], then key = "value" lines'
            raise RecipeError(f"{where} is not valid TOML: {error}", hint=hint) from None
        return cls.from_data(data, where=where, base=base)

    @classmethod
    def from_data(cls, data: Mapping[str, Any], *, where: str = "recipe", base: Path | None = None) -> Recipe:
        """Check plain data (parsed TOML) and build the recipe. ``base`` None leaves paths as they are written."""
        settings.refuse_unknown(data, [f.name for f in dataclasses.fields(cls)], f"{where} has no section")
        tables = {key: settings.table(value, f"{where}: {key}") for key, value in data.items()}
        training = PretrainRecipe.from_data(tables["pretrain"], where, base) if "pretrain" in tables else None
        source = _source(_trained(tables.get("source", {}), training, where), where, base)
        output = f"{training.output}.bundle" if training else default_output(source.model)
        return cls(
            source=source,
            bundle=_bundle(tables.get("bundle", {}), output, where, base),
            export=_export(tables.get("export", {}), where),
            proof=settings.read(ProofSection, tables.get("proof", {}), f"{where}: [proof]"),
            variants=_variants(tables.get("variants", {}), where),
            calibration=_data(CalibrationSection, "calibration", tables.get("calibration", {}), where, base),
            evaluation=_data(EvaluationSection, "evaluation", tables.get("evaluation", {}), where, base),
            budget=_budget(tables.get("budget", {}), where),
            report=settings.read(ReportSection, tables.get("report", {}), f"{where}: [report]"),
            targets=_pieces("targets", tables.get("targets", {}), where),
            precisions=_pieces("precisions", tables.get("precisions", {}), where),
            pretrain=training,
        )

    def to_data(self) -> dict[str, Any]:
        """Plain data with every effective value; `from_data` gives an equal recipe back."""
        kinds = {"targets": self.targets, "precisions": self.precisions}
        return {
            **({} if self.pretrain is None else {"pretrain": self.pretrain.to_data()}),
            "source": {"model": self.source.model, **settings.plain(self.source.options)},
            "export": settings.plain(self.export),
            "proof": settings.plain(self.proof),
            "variants": settings.plain(self.variants),
            "calibration": settings.plain(self.calibration),
            "evaluation": settings.plain(self.evaluation),
            "budget": settings.plain(self.budget),
            "bundle": settings.plain(self.bundle),
            "report": settings.plain(self.report),
            **{kind: {n: settings.plain(o) for n, o in named.items()} for kind, named in kinds.items() if named},
        }

    def to_toml(self) -> str:
        """The recipe as TOML, defaults written out."""
        return settings.dumps(self.to_data())

    def options(self, kind: Kind, name: str) -> Any:
        """The ``Options`` of a target or a precision: as the recipe sets them, else their defaults."""
        chosen = (self.targets if kind == "targets" else self.precisions).get(name)
        return registry.module(kind, name).Options() if chosen is None else chosen


def default_output(model: str) -> Path:
    """``NAME.bundle`` in the current folder, NAME being the last part of the model's spec."""
    name = Path(model.rstrip("/").rpartition(":")[2]).name.removesuffix(".index.json")
    name = next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)
    return Path((name.strip(".") or "model") + ".bundle")


def _source(data: Mapping[str, Any], where: str, base: Path | None) -> SourceSection:
    place = f"{where}: [source]"
    known = ["model", *(f.name for f in dataclasses.fields(SourceOptions))]
    settings.refuse_unknown(data, known, f"{place} has no key")
    model = settings.typed(str, data.get("model", ""), f"{place} model")
    if not model.strip():
        raise RecipeError(f"{place} names no model", hint='add model = "a folder, a hub id, a .pt2 or an .onnx"')
    options = settings.read(SourceOptions, {k: v for k, v in data.items() if k != "model"}, place)
    if options.example:
        options = dataclasses.replace(options, example=_data_from_base(options.example, base))
    for name, counts in _COUNTS.items():
        value = getattr(options, name)
        if value is not None and value < 1:
            raise RecipeError(f"{place} {name} is {value}", hint=f"it counts {counts}: give 1 or more")
    return SourceSection(_from_base(model, base), _own_from_base(_checked(options, place), base))


def _checked(options: SourceOptions, place: str) -> SourceOptions:
    """`RecipeError` for an argument of a class that no recipe can hold."""
    empty = [key for key, value in (options.init or {}).items() if value is None]
    if empty:
        raise RecipeError(f"{place} init has null for '{empty[0]}'", hint="leave it out, and let it be the default")
    return options


def _own_from_base(options: SourceOptions, base: Path | None) -> SourceOptions:
    """The options with what they name beside the recipe: a class in a file, the folder of a tokenizer."""
    if base is None:
        return options
    file, mark, name = (options.architecture or "").rpartition(":")
    if file.endswith(".py"):
        file = str((base / Path(file).expanduser()).resolve())
        options = dataclasses.replace(options, architecture=f"{file}{mark}{name}")
    if options.text is not None:
        options = dataclasses.replace(options, text=str((base / Path(options.text).expanduser()).resolve()))
    return options


def _trained(data: Mapping[str, Any], training: PretrainRecipe | None, where: str) -> Mapping[str, Any]:
    """The ``[source]`` section with the run's folder as its model, where there is a run."""
    if training is None:
        return data
    folder = str(training.output)
    if data.get("model", folder) != folder:
        raise RecipeError(
            f"{where}: [source] names a model, and [pretrain] trains one",
            hint="leave source.model out, or the section [pretrain]",
        )
    return {"model": folder, **data}


def _from_base(model: str, base: Path | None) -> str:
    """The spec itself, unless it names something beside the recipe."""
    path = Path(model).expanduser()
    if base is None or path.is_absolute():
        return str(path) if model.startswith("~") else model
    explicit = model.startswith(("./", "../")) or model.endswith(_SUFFIXES)
    return str((base / path).resolve()) if explicit or (base / path).exists() else model


def _bundle(data: Mapping[str, Any], default: Path | str, where: str, base: Path | None) -> BundleSection:
    place = f"{where}: [bundle]"
    section = settings.read(BundleSection, {"output": default, **data}, place)
    if str(section.output) in ("", "."):
        raise RecipeError(f"{place} output is empty", hint='name a folder to create: output = "minilm.bundle"')
    output = section.output.expanduser()
    return BundleSection(output if base is None else (base / output).resolve())


def _export(data: Mapping[str, Any], where: str) -> ExportSection:
    place = f"{where}: [export]"
    section = settings.read(ExportSection, data, place)
    if section.opset not in OPSETS:
        hint = f"give {OPSETS[0]} to {OPSETS[-1]}; 20 suits every target"
        raise RecipeError(f"{place} opset is {section.opset}", hint=hint)
    if section.timeout_s < 1:
        raise RecipeError(f"{place} timeout_s is {section.timeout_s}", hint="it is in seconds: give 1 or more")
    return section


def _data(cls: type[Section], name: str, data: Mapping[str, Any], where: str, base: Path | None) -> Section:
    place = f"{where}: [{name}]"
    section = settings.read(cls, data, place)
    if section.samples < 1:
        raise RecipeError(f"{place} samples is {section.samples}", hint="it counts inputs: give 1 or more")
    return dataclasses.replace(section, data=_data_from_base(section.data, base))


def _data_from_base(spec: str, base: Path | None) -> str:
    """The data's spec with its path taken from the recipe's folder; ``builtin:NAME`` as it is."""
    if not spec or spec.startswith("builtin:"):
        return spec
    path, mark, columns = (spec, "", "") if Path(spec).exists() else spec.partition("#")
    located = Path(path).expanduser()
    return f"{located if base is None else (base / located).resolve()}{mark}{columns}"


def _budget(data: Mapping[str, Any], where: str) -> BudgetSection:
    written = {"undecided": "refuse"} if "limits" in data else {}
    section = settings.read(BudgetSection, {**written, **data}, f"{where}: [budget]")
    if not section.limits.strip():
        hint = f'write limits = "{NO_BUDGET}" for no budget; without [budget] it is "{BudgetSection.limits}"'
        raise RecipeError(f"{where}: [budget] limits is empty", hint=hint)
    for limit in section.parsed().only(["drift"]).limits:  # a fault is told now, not after minutes of work
        if limit.relative:
            raise RecipeError(
                f"{where}: [budget] {limit.text} limits how much further from fp32 than a baseline something may be",
                hint="a variant is held against fp32 itself: write drift<=0.01; `deploykit gate` has a baseline",
            )
    return section


def _variants(data: Mapping[str, Any], where: str) -> VariantsSection:
    place = f"{where}: [variants]"
    section = settings.read(VariantsSection, data, place)
    chosen = {}
    for kind in ("targets", "precisions"):
        names = tuple(dict.fromkeys(getattr(section, kind)))
        if not names:
            raise RecipeError(f"{place} {kind} is empty", hint=f"name at least one: {', '.join(registry.names(kind))}")
        for name in names:
            _check_name(kind, name, where)
        chosen[kind] = names
    return VariantsSection(**chosen)


def _pieces(kind: Kind, data: Mapping[str, Any], where: str) -> dict[str, Any]:
    pieces = {}
    for name, values in data.items():
        _check_name(kind, name, where)
        place = f"{where}: [{kind}.{name}]"
        pieces[name] = settings.read(registry.module(kind, name).Options, settings.table(values, place), place)
    return pieces


def _check_name(kind: Kind, name: str, where: str) -> None:
    known = [*registry.names(kind), *([AUTO] if kind == "precisions" else [])]
    if name not in known:
        raise UnknownNameError(f"{where}: there is no {kind[:-1]} '{name}'", hint=nearest(name, known))


def _recipes_near(path: Path) -> str:
    for folder in (path.parent, Path("recipes")):
        found = sorted(folder.glob("*.toml"))
        if found:
            return nearest(str(path), [str(f) for f in found])
    return "give the path of a .toml file; `deploykit export MODEL --show-recipe` writes one"
