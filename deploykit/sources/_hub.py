"""Models on a Hugging Face hub: fetched once into its own cache, then local folders like any other."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from deploykit.errors import MissingError, SourceError
from deploykit.runtime.install import pip_install

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = (".json", ".txt", ".model", ".vocab", ".md", ".jinja", ".py")
# Folder names that say nothing about what is in them: the folder above is the name then.
_NAMELESS = ("model", "models", "checkpoint", "final", "best", "output", "")


def is_hub_id(spec: str) -> bool:
    """``org/name`` that is nothing on this disk."""
    return _HUB_ID.fullmatch(spec) is not None and not Path(spec).exists()


def snapshot(name: str, revision: str | None) -> Path:
    """The local folder of a hub model, fetched if need be: small files, and safetensors rather than pickled weights.

    Without a network the cached copy is used; `MissingError` when there is none, `SourceError` when the hub has no
    such model.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        hint = f"{pip_install('export')}, or give a local folder"
        raise MissingError(f"'{name}' is no folder here, and huggingface_hub is not installed", hint=hint) from error
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        wanted = needed_files(HfApi().list_repo_files(name, revision=revision))
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (RepositoryNotFoundError, HfHubHTTPError) as error:
        raise SourceError(
            f"the hub does not give '{name}': {_first_line(error)}",
            hint="check the name and the revision; a private model needs `hf auth login`",
        ) from error
    except Exception as error:
        failure = error
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise MissingError(
            f"'{name}' is no folder here, is not in the hub's cache, and the hub cannot be reached "
            f"({type(failure).__name__}: {_first_line(failure)})",
            hint="give the path of a local folder, or run once with a network",
        ) from failure


def needed_files(names: list[str]) -> list[str]:
    """The files of a repository to fetch: small ones, and per folder safetensors or else pickled weights."""
    folders_with_safetensors = {PurePosixPath(n).parent for n in names if n.endswith(".safetensors")}
    wanted = []
    for name in names:
        path = PurePosixPath(name)
        pickled = path.name.startswith("pytorch_model") and path.suffix == ".bin"
        plain = path.suffix in (*_SMALL_FILES, ".safetensors") or path.name.startswith("LICENSE")
        if plain or (pickled and path.parent not in folders_with_safetensors):
            wanted.append(name)
    return wanted


def origin(folder: Path) -> tuple[str, str | None]:
    """(name, revision) of a model folder: from the layout of the hub's cache, else the folder's name and None."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/"), folder.name
    named = [part.name for part in (folder, *folder.parents) if part.name not in _NAMELESS]
    return (named[0] if named else folder.name), None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
