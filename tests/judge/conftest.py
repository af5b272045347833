"""Exports to judge, each made once: the folder of the model, and what the export step wrote."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploykit import sources
from deploykit.pipeline import actions, judging
from deploykit.pipeline.plan import plain
from tests import tiny

PROMPTS = {"query": "the cat and "}


@dataclass(frozen=True)
class Made:
    """``judge`` reads ``library`` (another folder than the one that was exported) with the library of ``kind``."""

    kind: str
    model: Path
    export: Path
    options: sources.Options

    def judge(self, library=None, **asked):
        options = {
            "kind": self.kind,
            "model": str(self.model),
            "location": str(library or self.model),
            "source": plain(sources.Options(**asked) if asked else self.options),
        }
        return judging.carry_out(options, {"export": self.export}, self.export)

    def with_card(self, folder, change):
        """The same export with another card."""
        shutil.copytree(self.export, folder)
        card = json.loads((folder / "card.json").read_text())
        change(card)
        (folder / "card.json").write_text(json.dumps(card))
        return Made(self.kind, self.model, folder, self.options)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """``exported("bert", pooling="cls")``."""
    pytest.importorskip("transformers")
    pytest.importorskip("onnxruntime")
    found = {}

    def make(name, **options):
        key = (name, *sorted(options))
        if key not in found:
            folder = tmp_path_factory.mktemp(name)
            model = folder / "model"
            kind = "transformers"
            if name == "sentence":
                pytest.importorskip("sentence_transformers")
                pooling = {"pooling_mode_mean_tokens": True}
                tiny.tiny_sentence_transformer(model, pooling, (("Normalize", {}),), prompts=PROMPTS)
                kind = "sentence-transformers"
            else:
                getattr(tiny, f"tiny_{name}")(model)
            asked = sources.Options(**options)
            how = {"model": str(model), "source": plain(asked), "opset": 20, "exporter": "auto"}
            (folder / "export").mkdir()
            actions.export(how, {}, folder / "export")
            found[key] = Made(kind, model, folder / "export", asked)
        return found[key]

    return make


@pytest.fixture
def other_folder(tmp_path):
    """``other_folder(model, name, change)``: a copy of a model folder, ``change`` applied to one of its JSON files."""

    def make(model, name, change):
        copy = tmp_path / "library"
        shutil.copytree(model, copy)
        data = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(change(data) or data))
        return copy

    return make
