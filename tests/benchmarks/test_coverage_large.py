"""Models of real size: what is measured is every process of the command, and the page says what was found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks import coverage_large

ROW = {
    "command": "deploykit export bert-base --max-length 512 -t onnxruntime",
    "weights_mib": 418,
    "seconds": 71.2,
    "proof_seconds": 51.2,
    "peak_mib": 2345,
    "load_before": 0.1,
    "external_data": False,
    "proven": ["onnxruntime-fp32"],
    "why": "",
    "machine": {"id": "3f9c0000"},
}
HOLDS = "import time; held = bytearray(b'x' * (300 << 20)); print('ready', flush=True); time.sleep(60)"


def test_memory_of_a_process_below_counts_too():
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLDS!r}])"
    above = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert above.stdout.readline() == b"ready\n"
        assert sum(coverage_large.tree_mib(above.pid).values()) >= 300
        alone = int((coverage_large.Path(f"/proc/{above.pid}/statm")).read_text().split()[1])
        assert alone * os.sysconf("SC_PAGE_SIZE") < 200 << 20
    finally:
        os.killpg(above.pid, 9)
        above.wait()
        above.stdout.close()


def test_a_command_is_watched_until_its_end():
    words = [
        sys.executable,
        "-c",
        "import sys, time; print('out'); print('error: no', file=sys.stderr); time.sleep(.3)",
    ]
    begun = time.perf_counter()
    code, out, log, peak = coverage_large._watched(words, dict(os.environ))
    assert (code, out, log) == (0, "out\n", "error: no\n")
    assert peak.total > 0
    assert time.perf_counter() - begun >= 0.3


@pytest.mark.parametrize(
    ("code", "out", "log", "proven", "why"),
    [
        (0, '{"variants": [{"name": "onnxruntime-fp32"}], "refused": []}', "", ["onnxruntime-fp32"], ""),
        (1, '{"variants": [], "refused": [{"variant": "v", "reason": "wrong"}]}', "", [], "v: wrong"),
        (2, "", "exporting\nerror: too large\n  → less", [], "error: too large"),
        (-9, "", "", [], ""),
    ],
)
def test_what_came_out_is_told(code, out, log, proven, why):
    found = coverage_large._outcome(code, out, log)
    assert (found["proven"], found["why"]) == (proven, why)


def test_the_seconds_of_export_and_proof_leave_the_timing_out(tmp_path):
    records = [
        {"run": {"seconds": 3.5}, "proof": {}},
        {"run": {"seconds": 2.0}},
        {"run": {"seconds": 9}, "latency": {}},
    ]
    for index, metadata in enumerate(records):
        (tmp_path / "artifacts" / str(index)).mkdir(parents=True)
        path = tmp_path / "artifacts" / str(index) / "artifact.json"
        path.write_text(json.dumps({"metadata": metadata}))
    assert sum(coverage_large._step_seconds(tmp_path)) == 5.5


def test_the_page_has_a_line_for_each_model():
    lost = ROW | {"proven": [], "why": "error: too large", "external_data": True}
    page = coverage_large.markdown({"rows": {"bert-base": ROW, "other": lost}})
    assert "| bert-base | 418 | onnxruntime | 71 | 51 | 2,345 | onnxruntime-fp32 | 0.1 | 3f9c0000 |" in page
    assert "418, beside the graph" in page
    assert "no: error: too large" in page


def test_the_models_are_those_of_real_size():
    names = [entry.name for entry in coverage_large.LARGE]
    assert names == ["bert-base", "vit-b-16", "convnext-t", "wav2vec2-base", "siglip-b-vision"]
    transformers = pytest.importorskip("transformers")
    for entry in coverage_large.LARGE:
        assert getattr(transformers, entry.config)(**entry.settings)
