"""The coverage sweep: its models save as folders, its rows become a page, and a lost process becomes a row."""

from __future__ import annotations

import json
import os
import time

import pytest

from benchmarks import coverage, coverage_page
from benchmarks.coverage_models import ARCHITECTURES, save
from benchmarks.coverage_worker import wait

ROWS = {
    "bert": {
        "name": "bert",
        "modality": "text",
        "stages": "fp32",
        "seconds": 9.0,
        "peak_mib": 700,
        "results": {
            "export": {"result": "proven"},
            "onnxruntime-fp32": {"result": "proven"},
            "openvino-fp32": {"result": "refused", "why": "batch 2 differs"},
        },
    },
    "odd": {
        "name": "odd",
        "modality": "text",
        "stages": "fp32",
        "seconds": 5.0,
        "peak_mib": 0,
        "results": {"export": {"result": "hang", "why": "still running after 5 s"}},
    },
}


def test_there_are_enough_architectures_of_every_modality():
    counts = [sum(entry.modality == kind for entry in ARCHITECTURES.values()) for kind in ("text", "image", "audio")]
    assert sum(counts) >= 100
    assert min(counts) >= 15


@pytest.mark.parametrize("name", ["bert", "vit", "wav2vec2"])
def test_an_architecture_is_saved_as_a_user_has_it(tmp_path, name):
    pytest.importorskip("transformers")
    folder = save(ARCHITECTURES[name], tmp_path / name)
    files = {path.name for path in folder.iterdir()}
    wanted = "tokenizer.json" if name == "bert" else "preprocessor_config.json"
    assert {"config.json", "model.safetensors", wanted} <= files


def test_what_stopped_an_architecture_counts_at_every_stage_behind_it():
    assert coverage_page.end_of(ROWS["odd"], "openvino-fp32") == "hang"
    assert coverage_page.end_of(ROWS["odd"], "openvino-int8") == "–"
    assert coverage_page.end_of(ROWS["bert"], "openvino-fp32") == "refused"


def test_the_page_counts_and_gives_reasons():
    page = coverage_page.markdown({"deploykit": ROWS}, {"torch": "1"})
    assert "| deploykit | onnxruntime-fp32 | 2 | 1 | 0 | 0 | 0 | 1 |" in page
    assert "- **bert**, openvino-fp32: batch 2 differs" in page
    assert "– " in page


def test_the_last_row_of_a_name_stands(tmp_path):
    path = tmp_path / "deploykit.jsonl"
    path.write_text("".join(json.dumps({"name": "bert", "seconds": s}) + "\n" for s in (1, 2)))
    assert coverage.read_rows(path) == {"bert": {"name": "bert", "seconds": 2}}


def test_a_process_that_hangs_is_ended():
    process = os.fork()
    if process == 0:
        time.sleep(30)
        os._exit(0)
    assert wait(process, 0.2) is None
