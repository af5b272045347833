"""modules.json: the chain of modules, with the route of a router in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.errors import RemoteCodeError, SourceError, nearest
from deploykit.sources import _folder
from deploykit.sources._sentence_transformers.keys import one_of, refuse_unknown

FIRST = ("Transformer", "CLIPModel", "StaticEmbedding", "WordEmbeddings")
ON_TOKENS = ("Dense", "Normalize", "WordWeights", "CNN", "LSTM", "WeightedLayerPooling")
ON_VECTORS = ("Dense", "LayerNorm", "Normalize", "Dropout")
_ROUTERS = ("Router", "Asym")
_WITHOUT_FILES = ("Normalize", "Dropout")
_SPARSE = "it gives sparse vectors, one number for each word of a vocabulary"
_MULTI = "it gives a vector for each token"
_REFUSED = {
    **dict.fromkeys(("SpladePooling", "MLMTransformer", "SparseAutoEncoder", "SparseStaticEmbedding"), _SPARSE),
    **dict.fromkeys(("CSRSparsity", "IDF"), _SPARSE),
    **dict.fromkeys(("MultiVectorMask", "TokenPooling"), _MULTI),
    "LogitScore": "it scores pairs of texts",
    "BoW": "its vector counts words, one number for each word of a vocabulary",
}
_STRANGERS = {"pylate": "a ColBERT model of PyLate gives a vector for each token"}


@dataclass(frozen=True)
class Module:
    """One module of the chain: the class name, the folder of its files, and the route that it stands in."""

    kind: str
    folder: Path
    route: str = ""


@dataclass(frozen=True)
class Chain:
    """A chain, in its parts: what reads the input, what works on token vectors, the pooling (None if the first module
    gives a vector itself), and what works on the vector.
    """

    first: Module
    on_tokens: tuple[Module, ...] = ()
    pooling: Module | None = None
    on_vectors: tuple[Module, ...] = field(default=())

    @property
    def modules(self) -> tuple[Module, ...]:
        """All of them in order."""
        return (self.first, *self.on_tokens, *([self.pooling] if self.pooling else []), *self.on_vectors)


def read_chain(folder: Path, route: str | None) -> Chain:
    """The chain of modules.json; `SourceError` names what in it is not understood."""
    modules = [part for module in _listed(folder) for part in _routed(module, route)]
    if route is not None and not any(module.route for module in modules):
        raise SourceError(f"{folder} has no routes, and route = '{route}' was asked for", hint="leave 'route' out")
    for module in modules:
        if not module.folder.is_dir() and module.kind not in _WITHOUT_FILES:
            hint = "the folder was not downloaded whole"
            raise SourceError(f"{folder} lacks {module.folder.name}, named in modules.json", hint=hint)
    kinds = [module.kind for module in modules]
    where = kinds.index("Pooling") if "Pooling" in kinds else None
    before = kinds[1:where] if where is not None else []
    behind = kinds[1 if where is None else where + 1 :]
    if not kinds or kinds[0] not in FIRST or _others(before, ON_TOKENS) or _others(behind, ON_VECTORS):
        raise _not_understood(folder, kinds, before, behind)
    if where is None:
        return Chain(modules[0], on_vectors=tuple(modules[1:]))
    return Chain(modules[0], tuple(modules[1:where]), modules[where], tuple(modules[where + 1 :]))


def _others(kinds: list[str], known: tuple[str, ...]) -> list[str]:
    return [kind for kind in kinds if kind not in known]


def _not_understood(folder: Path, kinds: list[str], before: list[str], behind: list[str]) -> SourceError:
    refused = next((kind for kind in kinds if kind in _REFUSED), None)
    if refused:
        hint = "only encoders that give one dense vector for each input are exported"
        return SourceError(f"{folder} holds the module {refused}: {_REFUSED[refused]}", hint=hint)
    return SourceError(
        f"{folder} is a chain of {' → '.join(kinds) or 'nothing'}",
        hint=f"understood are {' or '.join(FIRST)}; then any of {', '.join(ON_TOKENS)} on token vectors; then Pooling; "
        f"then any of {', '.join(ON_VECTORS)}",
    )


def _listed(folder: Path) -> list[Module]:
    path = folder / "modules.json"
    entries = _folder.read_json(path)
    try:
        named = [(str(entry["type"]), str(entry.get("path", ""))) for entry in entries]
        forwarded = [argument for entry in entries for argument in entry.get("kwargs") or []]
    except (TypeError, KeyError, AttributeError) as error:
        raise SourceError(f"{path} is no list of modules", hint="fetch the file again") from error
    if forwarded:
        raise SourceError(
            f"{path} hands '{forwarded[0]}' from the caller to a module, which a graph cannot take",
            hint="wrap the model in a Python factory that sets it: py:package.module:factory",
        )
    return [Module(_class_of(kind, folder), _inside(folder, folder / place, path)) for kind, place in named]


def _class_of(kind: str, folder: Path) -> str:
    """The class's own name; `RemoteCodeError` if it is not one of sentence-transformers."""
    package = kind.partition(".")[0]
    if package in _STRANGERS:
        raise SourceError(f"{folder} needs the module {kind}: {_STRANGERS[package]}", hint="it cannot be exported")
    if package != "sentence_transformers":
        hint = "only the modules of sentence-transformers itself are read"
        raise RemoteCodeError(f"{folder} needs the module {kind}, which is code of its own", hint=hint)
    return kind.rpartition(".")[2]


def _inside(folder: Path, place: Path, named_in: Path) -> Path:
    if not place.resolve().is_relative_to(folder.resolve()):
        raise SourceError(f"{named_in} points outside its folder: {place}", hint="do not use it")
    return place


def _routed(module: Module, route: str | None) -> list[Module]:
    """The module itself, or the modules of the route that was asked for."""
    if module.kind not in _ROUTERS:
        return [module]
    folder = module.folder
    path = next((folder / name for name in ("router_config.json", "config.json") if (folder / name).exists()), None)
    config = _folder.read_table(path or folder / "router_config.json")
    assert path is not None
    refuse_unknown(path, config, ("types", "structure", "parameters"))
    routes: Mapping[str, Any] = one_of(path, "structure", config.get("structure"), dict)
    types: Mapping[str, Any] = one_of(path, "types", config.get("types"), dict)
    name = _choice(folder, routes, route, one_of(path, "parameters", config.get("parameters") or {}, dict))
    found = []
    for key in one_of(path, f"structure.{name}", routes[name], list):
        if not isinstance(key, str) or key not in types:
            raise SourceError(f"{path} names no type for the module '{key}'", hint="fetch the folder again")
        kind = _class_of(str(types[key]), folder)
        if kind in _ROUTERS:
            raise SourceError(f"{folder} holds a router inside a router", hint="export each encoder by itself")
        found.append(Module(kind, _inside(folder, folder / key, path), name))
    return found


def _choice(folder: Path, routes: Mapping[str, Any], asked: str | None, more: Mapping[str, Any]) -> str:
    """The route that was asked for, or the only one: no other is a choice that this can make for its user."""
    if asked is None and len(routes) == 1:
        return next(iter(routes))
    if asked in routes:
        return str(asked)
    if asked is not None:
        raise SourceError(f"{folder} has no route '{asked}'", hint=nearest(asked, list(routes)))
    usual = more.get("default_route") or next(iter(routes), None)
    raise SourceError(
        f"{folder} routes its inputs through {len(routes)} encoders, and a bundle holds one",
        hint="choose one: "
        + " or ".join(f"route = '{name}'" for name in routes)
        + f" (without a task, inputs go to '{usual}' there)",
    )
