"""Python code that a folder brings along (``auto_map``): refused unless it is allowed, and never passed over.

transformers passes it over where it knows the ``model_type`` itself and nobody allowed the code, and builds its own
class from the same weights: a decoder that the code had made bidirectional is a decoder again, and nothing fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit.errors import RemoteCodeError
from deploykit.sources import Options, _folder

_OF_MODELS = ("AutoConfig", "AutoModel")
_OF_PROCESSORS = ("AutoImageProcessor", "AutoFeatureExtractor", "AutoProcessor")
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "config.json")


def model_classes(settings: Mapping[str, Any]) -> dict[str, str]:
    """The model's classes that config.json says are the folder's own, by the name of the Auto class."""
    named = _named(settings)
    return {auto: named[auto] for auto in named if auto.startswith(_OF_MODELS)}


def refuse_model(folder: Path, settings: Mapping[str, Any], options: Options, instead: str = "") -> None:
    """`RemoteCodeError` where the model is to be run by code of its own and that is not allowed.

    ``instead``: transformers' class for the same ``model_type``, which somebody may want all the same.
    """
    found = model_classes(settings)
    if not found or options.trust_remote_code:
        return
    # The model's class decides the vectors; AutoConfig alone stands for a model that only the code knows.
    auto = next((name for name in ("AutoModel", *sorted(found, reverse=True)) if name in found), "")
    why = f", and not by {instead} of transformers" if instead else ""
    fact = f"{folder} names code of its own for {auto}: it is run by {_class_and_file(found[auto])}{why}"
    other = f"; for {instead} all the same, take auto_map out of its config.json" if instead else ""
    raise RemoteCodeError(fact, hint=f"read that code, then allow it: trust_remote_code (--trust-remote-code){other}")


def refuse_tokenizer(folder: Path, options: Options) -> None:
    """As `refuse_model`, for the tokenizer of tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    found = _named(_folder.read_table(path) if path.exists() else {}).get("AutoTokenizer")
    if found is None or options.trust_remote_code:
        return
    raise RemoteCodeError(
        f"the tokenizer of {folder} is code of its own: {_class_and_file(found)}",
        hint="read that code, then allow it: trust_remote_code (--trust-remote-code); for the tokenizer of "
        "transformers all the same, take auto_map out of its tokenizer_config.json",
    )


def refuse_processor(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """`RemoteCodeError` where images or sounds are prepared by code of the folder's own: no bundle carries that."""
    for name, settings in files.items():
        named = _named(settings)
        auto = next((auto for auto in _OF_PROCESSORS if auto in named), None)
        if auto is not None:
            raise RemoteCodeError(
                f"{folder} names code of its own for {auto} in {name}: {_class_and_file(named[auto])}",
                hint="bundles carry no Python code: preprocess by yourself (preprocess = 'none'), or take auto_map out "
                f"of {name} if the class of transformers does the same",
            )


def note(settings: Mapping[str, Any], model: Any) -> tuple[str, ...]:
    """Whose code runs the loaded ``model``, where its config.json names code of the folder's own."""
    found = model_classes(settings)
    if not found:
        return ()
    name = type(model).__name__
    if not type(model).__module__.startswith("transformers."):
        return (f"the model is run by code of its own: {_class_and_file(found.get('AutoModel', name))}",)
    listed = ", ".join(sorted(found))
    return (f"{name} of transformers runs the model: the folder has code of its own for {listed} alone",)


def _named(settings: Mapping[str, Any]) -> dict[str, str]:
    """``auto_map``, each entry as one reference; a tokenizer's is the pair of its slow and its fast class."""
    given = settings.get("auto_map")
    if isinstance(given, (list, tuple)):  # of a tokenizer, in older folders
        given = {"AutoTokenizer": given}
    if not isinstance(given, Mapping):
        return {}
    named = {str(auto): _fast(entry) if isinstance(entry, (list, tuple)) else entry for auto, entry in given.items()}
    return {auto: str(entry) for auto, entry in named.items() if entry}


def _fast(pair: Sequence[Any]) -> Any:
    return next((entry for entry in reversed(pair) if entry), None)


def _class_and_file(reference: str) -> str:
    """``modeling.Model`` as "Model (modeling.py)"; ``org/name--modeling.Model`` stands in another repository."""
    repository, _, inner = reference.rpartition("--")
    module, _, name = inner.rpartition(".")
    return f"{name or inner} ({module or inner}.py{f' of {repository}' if repository else ''})"
