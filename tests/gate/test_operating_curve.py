import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gate_operating_curve.py"
QUICK = [
    "--seconds",
    "0",
    "--calls",
    "3",
    "--warm-seconds",
    "0",
    "--warm-calls",
    "1",
    "--screen",
    "1",
    "--confirm",
    "1",
]


def curve(folder, bundle, *words):
    files = ["--results", str(folder / "results" / "r.json"), "--page", str(folder / "p.md")]
    command = [sys.executable, str(SCRIPT), "--bundle", f"{bundle}@onnxruntime-fp32", *QUICK, *files, *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_runs_are_kept_one_by_one_and_gone_on_with(bundles, tmp_path):
    """One pair a run: the script's way, not the clock's."""
    done = curve(tmp_path, bundles(), "--scale", "0.05")
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "results" / "r.json").read_text())
    assert [run["slower"] for run in kept["runs"]] == [0.0, 0.05]
    assert kept["runs"][0]["metrics"][0]["half_width"] is None
    page = (tmp_path / "p.md").read_text()
    assert "| 5% slower | 1 |" in page
    assert kept["machine"]["id"] in page
    again = curve(tmp_path, bundles(), "--scale", "0.05")
    assert again.returncode == 0
    assert json.loads((tmp_path / "results" / "r.json").read_text())["runs"] == kept["runs"]
    other = curve(tmp_path, bundles(), "--budget", "p50<=+9%")
    assert other.returncode == 1
    assert "holds runs with budget" in other.stderr
