import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.gate import Row
from deploykit.pytest_plugin import _reasons
from tests.gate import made
from tests.gate.test_outputs import result

EXAMPLE = Path(__file__).parents[1] / "example_project"
# The clock is made up and facts come from the same process: what is tested is what the plugin does with a verdict.
CONFTEST = """
import json
from deploykit.gate import facts
from deploykit.measure import fingerprint, process
from tests.gate import made

def ask(module, request, arm, *, python=None, timeout_s=0):
    return facts.answer(json.loads(json.dumps(request)))

def measure(job, arm, *, python=None, timeout_s=0):
    measure.count += 1
    spread = {spread} * ((measure.count * 7919) % 11 - 5)
    ms = 4.0 * (1 + spread) * ({slower} if "candidate" in arm.split()[1] else 1.0)
    names = [point["name"] for point in job["points"]]
    return made.answer({{name: [ms] * 3 for name in names}}, hardware=fingerprint.machine()["id"])

measure.count = 0
process.measure, process.ask = measure, ask
"""


@pytest.fixture
def project(bundles, tmp_path):
    """The example project in a folder of its own; ``project(candidate, slower, spread)`` runs its tests."""
    shutil.copy(EXAMPLE / "example_encoder.py", tmp_path / "test_encoder.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    made.lines(tmp_path / "texts.txt")

    def run(candidate, slower=1.0, spread=0.002, tests="test_encoder.py", more=None):
        for name, source in (more or {}).items():
            (tmp_path / name).write_text(source)
        for name, source in (("production", bundles()), ("build", candidate)):
            shutil.copytree(source, tmp_path / name / "encoder.bundle", dirs_exist_ok=True)
        (tmp_path / "conftest.py").write_text(CONFTEST.format(slower=slower, spread=spread))
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
        done = subprocess.run([*command, tests], cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout

    return run


def test_a_good_bundle_passes(bundles, project):
    code, out = project(bundles("careful", noise=0.02))
    assert code == 0, out
    assert "2 passed" in out


def test_a_slow_one_fails_with_the_gates_sentence_and_no_traceback(bundles, project):
    code, out = project(
        bundles("careful", noise=0.02), slower=1.1, tests="test_encoder.py::test_the_new_encoder_is_as_good_and_as_fast"
    )
    assert code == 1, out
    assert "slower for sure" in out
    assert "30 pairs" in out
    assert "Traceback" not in out
    assert "pytest_plugin.py" not in out


def test_one_that_cannot_be_judged_is_skipped_with_the_reason(bundles, project):
    code, out = project(
        bundles("careful", noise=0.02),
        spread=0.06,
        tests="test_encoder.py::test_the_new_encoder_is_as_good_and_as_fast",
    )
    assert code == 0, out
    assert "1 skipped" in out
    assert "this machine cannot tell" in out


def test_what_a_bundle_says_of_itself_does_not_steer_a_terminal():
    reasons = _reasons(result(rows=(Row("audit", "FAIL", "", "runs \x1b[2Jon\x9b", "look\u202e"),)))
    assert all(c.isprintable() or c == "\n" for c in reasons)
    assert "runs" in reasons


def test_drift_fails_before_any_clock_runs(bundles, project):
    code, out = project(
        bundles("careless", noise=0.25), tests="test_encoder.py::test_the_new_encoder_is_as_good_and_as_fast"
    )
    assert code == 1, out
    assert "outside drift<=0.01" in out
    assert "single p50" not in out


def test_what_cannot_be_judged_is_one_sentence_without_our_frames(bundles, project):
    text = 'def test_a(deploykit_gate):\n    deploykit_gate("gone.bundle", "production/encoder.bundle")\n'
    code, out = project(bundles(), tests="test_gone.py", more={"test_gone.py": text})
    assert code == 1, out
    assert "gone.bundle' is missing" in out
    assert "build it first" in out
    assert "sides.py" not in out
    assert "pytest_plugin.py" not in out


def test_a_marker_without_limits_says_how_to_write_it(bundles, project, tmp_path):
    text = "import pytest\n@pytest.mark.deploykit_budget\ndef test_a(deploykit_gate):\n    pass\n"
    (tmp_path / "test_wrong.py").write_text(text)
    code, out = project(bundles("careful", noise=0.02), tests="test_wrong.py")
    assert code != 0
    assert "deploykit_budget takes one text" in out


def test_the_plugin_loads_nothing_but_pytest():
    script = (
        "import sys, pytest; before = set(sys.modules); import deploykit.pytest_plugin;"
        "print(sorted(m for m in set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['deploykit', 'deploykit.pytest_plugin']"
