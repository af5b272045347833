"""The GitHub action's script, with a deploykit that only says what it was asked."""

import subprocess
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def action(tmp_path):
    described = yaml.safe_load((ROOT / ".github" / "actions" / "gate" / "action.yml").read_text())
    (step,) = described["runs"]["steps"]

    def run(code, **inputs):
        fake = tmp_path / "deploykit"
        fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/asked"\nexit {code}\n')
        fake.chmod(0o755)
        values = {name: entry.get("default", "") for name, entry in described["inputs"].items()}
        values |= {"candidate": "new.bundle", "baseline": "old.bundle", "command": str(fake)}
        values |= {name.replace("_", "-"): value for name, value in inputs.items()}
        wanted = {key: text.split("inputs.")[1].rstrip(" }") for key, text in step["env"].items()}
        env = {key: values[name] for key, name in wanted.items()}
        env |= {"PATH": "/usr/bin:/bin", "GITHUB_OUTPUT": str(tmp_path / "out")}
        done = subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], env=env, cwd=tmp_path)
        return done.returncode, (tmp_path / "out").read_text().strip(), (tmp_path / "asked").read_text().splitlines()

    return run


@pytest.mark.parametrize(
    ("code", "ends", "verdict"),
    [(0, 0, "PASS"), (1, 1, "FAIL"), (2, 2, "ERROR"), (3, 0, "INCONCLUSIVE"), (4, 4, "ERROR")],
)
def test_verdicts_and_exit_codes(action, code, ends, verdict):
    found, out, asked = action(code)
    assert (found, out) == (ends, f"verdict={verdict}")
    assert asked[0] == "gate"
    assert asked[-2:] == ["--", "new.bundle"]
    assert "--budget" not in asked


def test_an_undecided_gate_can_fail_the_job(action):
    assert action(3, inconclusive="fail")[0] == 3


def test_what_is_given_is_handed_on_as_it_is(action):
    _, _, asked = action(0, budget="standard p50<=+3%", data="$(touch owned)", baseline_digest="abcdef01")
    assert asked[asked.index("--budget") + 1] == "standard p50<=+3%"
    assert asked[asked.index("--data") + 1] == "$(touch owned)"
    assert asked[asked.index("--baseline-digest") + 1] == "abcdef01"


def test_the_baseline_may_have_an_interpreter_of_its_own(action):
    assert "--baseline-python" not in action(0)[2]
    _, _, asked = action(0, baseline_python="base/.venv/bin/python")
    assert asked[asked.index("--baseline-python") + 1] == "base/.venv/bin/python"


def test_no_input_is_pasted_into_the_script():
    described = yaml.safe_load((ROOT / ".github" / "actions" / "gate" / "action.yml").read_text())
    assert "${{" not in described["runs"]["steps"][0]["run"]


def test_the_workflow_uses_the_action_as_it_is():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "gate.yml").read_text())
    described = yaml.safe_load((ROOT / ".github" / "actions" / "gate" / "action.yml").read_text())
    steps = workflow["jobs"]["gate"]["steps"]
    (used,) = [step for step in steps if step.get("uses") == "./.github/actions/gate"]
    assert set(used["with"]) <= set(described["inputs"])
    needed = {name for name, entry in described["inputs"].items() if entry.get("required")}
    assert needed <= set(used["with"])
    # What runs a bundle is as much a part of its speed as its files.
    folder = used["with"]["baseline"].split("/")[0]
    assert used["with"]["baseline-python"].startswith(f"{folder}/")
    assert not used["with"]["command"].startswith(f"{folder}/")
