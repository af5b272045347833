"""config_sentence_transformers.json: prompts, truncation of vectors, and what kind of model the folder is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import MissingError, SourceError
from deploykit.sources import _folder
from deploykit.sources._sentence_transformers.keys import count, one_of, refuse_unknown

_KNOWN = (
    *("model_type", "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim"),
    *("__version__", "requirements"),
)
_ALWAYS = ("query", "document")
"""Prompts that every model has there: empty unless the folder says otherwise."""

_OTHERS = {
    "SparseEncoder": "its vectors are sparse, one number for each word of a vocabulary",
    "CrossEncoder": "it scores pairs of texts and gives no vector of one",
    "MultiVectorEncoder": "it gives a vector for each token",
    "ColBERT": "it gives a vector for each token",
}


@dataclass(frozen=True)
class Encoding:
    """What config_sentence_transformers.json says of encoding.

    ``prompts`` are put before an input, by name, ``default`` is the one used when none is named, and ``dim`` how many
    dimensions of a vector are kept (None: all). ``similarity`` is the function that vectors are compared with.
    """

    prompts: Mapping[str, str]
    default: str | None
    dim: int | None
    similarity: str | None = None


def read_encoding(folder: Path) -> Encoding:
    """The file's content; nothing of either if there is no such file."""
    path = folder / "config_sentence_transformers.json"
    config = _folder.read_table(path) if path.exists() else {}
    refuse_unknown(path, config, _KNOWN)
    kind = config.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        reason = _OTHERS.get(str(kind), "that kind of model is not known")
        hint = "only a SentenceTransformer gives one vector for each input"
        raise SourceError(f"{folder} is a {kind}: {reason}", hint=hint)
    _check_requirements(path, config.get("requirements"))
    texts = _prompts(path, config.get("prompts") or {})
    default = one_of(path, "default_prompt_name", config.get("default_prompt_name"), (str, type(None)))
    if default in _ALWAYS:
        texts.setdefault(str(default), "")
    if default is not None and default not in texts:
        hint = f"it has: {', '.join(texts) or 'none'}"
        raise SourceError(f"{path} names the default prompt '{default}', which is not there", hint=hint)
    similarity = config.get("similarity_fn_name")
    dim = count(path, "truncate_dim", config.get("truncate_dim"))
    return Encoding(texts, default, dim, None if similarity is None else str(similarity))


def _prompts(path: Path, given: Any) -> dict[str, str]:
    one_of(path, "prompts", given, dict)
    return {
        str(name): one_of(path, f"prompts.{name}", "" if text is None else text, str) for name, text in given.items()
    }


def _check_requirements(path: Path, requirements: Any) -> None:
    """`MissingError` for a package that is here in another version than the authors ask for."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    for name, wanted in (requirements or {}).items():
        specifier = wanted.get("specifier", "") if isinstance(wanted, dict) else wanted
        package = "torch" if name == "pytorch" else name
        if package in ("python", "sentence-transformers", "sentence_transformers"):
            continue
        try:
            here, allowed = version(package), SpecifierSet(str(specifier))
        except (PackageNotFoundError, InvalidSpecifier):
            continue
        if not allowed.contains(here, prereleases=True):
            raise MissingError(f"{path} requires {package} {specifier}, got {here}", hint="install that version")
