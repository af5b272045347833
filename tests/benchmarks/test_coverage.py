"""The coverage sweep: its models save as folders, its rows become a page, and a lost process becomes a row."""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np
import pytest

from benchmarks import coverage, coverage_optimum, coverage_page, coverage_worker, peers
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


def test_rows_that_were_published_stay_until_there_is_a_newer_one(tmp_path):
    (tmp_path / "results").mkdir()
    coverage_page.write({"deploykit": ROWS, "torch": {"bert": ROWS["bert"]}}, tmp_path)
    newer = {**ROWS["odd"], "seconds": 7.0}
    coverage_page.write({"deploykit": {"odd": newer}}, tmp_path)
    arms = json.loads((tmp_path / "results" / "coverage.json").read_text())["arms"]
    assert arms == {"deploykit": [ROWS["bert"], newer], "torch": [ROWS["bert"]]}
    assert "## torch, one by one" in (tmp_path / "coverage.md").read_text()


def test_what_was_lowered_is_added_to_the_row():
    more = {"results": {"export": {"result": "hang"}, "onnxruntime-int8": {"result": "proven"}}, "seconds": 4.0}
    row = coverage.added(ROWS["bert"], {**more, "peak_mib": 900})
    assert (row["stages"], row["seconds"], row["peak_mib"]) == ("all", 13.0, 900)
    assert row["results"] == {**ROWS["bert"]["results"], "onnxruntime-int8": {"result": "proven"}}
    stopped = coverage.added(ROWS["odd"], {})
    assert coverage_page.end_of(stopped, "openvino-int8") == "hang"


def test_the_last_row_of_a_name_stands(tmp_path):
    path = tmp_path / "deploykit.jsonl"
    path.write_text("".join(json.dumps({"name": "bert", "seconds": s}) + "\n" for s in (1, 2)))
    assert coverage.read_rows(path) == {"bert": {"name": "bert", "seconds": 2}}


@pytest.mark.parametrize(
    ("kind", "message", "result"),
    [
        ("StepCrashError", "step 'export' was still running after 9 s and was stopped", "hang"),
        ("StepCrashError", "step 'compile' died of SIGSEGV", "crash"),
        ("ExportError", "the model cannot be exported", "refused"),
    ],
)
def test_a_crash_and_a_hang_are_no_refusals(kind, message, result):
    found = coverage_worker._refused(kind, message, "do this\nand that")
    assert found["result"] == result
    assert found["why"].endswith("→ do this")


def test_a_process_that_hangs_is_ended():
    process = os.fork()
    if process == 0:
        time.sleep(30)
        os._exit(0)
    assert wait(process, 0.2) is None


@pytest.fixture
def optimum(tmp_path, monkeypatch):
    """``optimum(script)``: what its export comes to, with ``script`` in the place of the one in its environment."""

    def ask(script):
        (tmp_path / "coverage_optimum_export.py").write_text(script)
        monkeypatch.setattr(coverage_optimum, "HERE", tmp_path)
        monkeypatch.setattr(peers, "python", lambda name, folder: sys.executable)
        return coverage_optimum.export("bert", tmp_path / "bert", 20)

    return ask


def test_what_optimum_refuses_crashes_at_or_hangs_on_is_told_apart(optimum, monkeypatch):
    assert optimum("print('a warning'); print('{}')") == {}
    told = optimum("""print('{"step": "export", "error": "ValueError", "why": "no config"}')""")
    assert (told["result"], told["step"], told["why"]) == ("refused", "export", "no config")
    assert optimum("import os; os._exit(3)")["result"] == "crash"
    monkeypatch.setattr(coverage_optimum.subprocess, "run", _too_late)
    assert optimum("")["result"] == "hang"


def _too_late(command, timeout, **given):
    raise coverage_optimum.subprocess.TimeoutExpired(command, timeout)


def test_padding_does_not_count_where_token_vectors_are_compared():
    answer = np.ones((2, 3, 4))
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    assert coverage_optimum.unpadded(answer, {"attention_mask": mask}).sum(axis=1).tolist() == [12, 4]
    assert coverage_optimum.unpadded(answer, {"attention_mask": mask[:, :2]}).sum() == 24
    assert coverage_optimum.unpadded(answer[:, 0], {}).shape == (2, 4)


def test_a_graph_gets_the_inputs_that_it_names():
    ids = np.full((2, 5), 9)
    feeds = coverage_optimum._completed({"input_ids": ids}, ["input_ids", "token_type_ids", "pixel_values"])
    assert list(feeds) == ["input_ids", "token_type_ids", "pixel_values"]
    assert feeds["input_ids"] is ids
    assert (feeds["token_type_ids"].shape, feeds["token_type_ids"].any()) == ((2, 5), False)
    assert feeds["pixel_values"].shape == (2, 3, 48, 48)
