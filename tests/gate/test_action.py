"""The GitHub action's script, with a deploykit that only says what it was asked."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.gate import xsd

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
SCHEMA = (Path(__file__).parent / "junit.xsd").read_text()


@pytest.fixture
def action(tmp_path):
    described = yaml.safe_load((ROOT / ".github" / "actions" / "gate" / "action.yml").read_text())
    step = next(step for step in described["runs"]["steps"] if step["id"] == "gate")

    def run(code, **inputs):
        fake = tmp_path / "deploykit"
        fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/asked"\nexit {code}\n')
        fake.chmod(0o755)
        (tmp_path / "out").unlink(missing_ok=True)
        values = {name: entry.get("default", "") for name, entry in described["inputs"].items()}
        values |= {"candidate": "new.bundle", "baseline": "old.bundle", "command": str(fake)}
        values |= {name.replace("_", "-"): value for name, value in inputs.items()}
        wanted = {key: text.rsplit(".")[-1].rstrip(" }") for key, text in step["env"].items()}
        env = {key: values[name] for key, name in wanted.items()}
        env |= {"PATH": "/usr/bin:/bin", "GITHUB_OUTPUT": str(tmp_path / "out")}
        env |= {"GITHUB_STEP_SUMMARY": str(tmp_path / "step.md")}
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


def test_every_choice_of_a_gate_can_be_given(action):
    given = {
        "workload": "batch",
        "threads": "2",
        "python": "new/bin/python",
        "calibration": "aa.json",
        "max_minutes": "9",
    }
    _, _, asked = action(0, **given)
    for name, value in given.items():
        assert asked[asked.index("--" + name.replace("_", "-")) + 1] == value
    assert not {f"--{name}" for name in given} & set(action(0)[2])
    assert {option for option in asked if option.startswith("--") and option != "--"} <= set(options_of_the_gate())


def options_of_the_gate():
    from typer.main import get_command

    from deploykit.cli.app import app

    return [name for parameter in get_command(app).commands["gate"].params for name in parameter.opts]


def test_a_gate_that_did_not_start_leaves_a_report_an_annotation_and_a_summary(action, tmp_path, capfd):
    (tmp_path / "gate-results").mkdir()
    (tmp_path / "gate-results" / "junit.xml").write_text("of an earlier run")
    assert action(2)[0] == 2
    junit = (tmp_path / "gate-results" / "junit.xml").read_text()
    assert xsd.faults(junit, SCHEMA) == []
    assert "exit code 2" in junit
    assert json.loads((tmp_path / "gate-results" / "result.json").read_text())["kind"] == "error"
    assert "exit code 2" in (tmp_path / "step.md").read_text()
    assert "::error title=deploykit gate%3A ERROR::" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("install", "here", "command", "asked"),
    [
        ("action", False, "/deploykit-gate/bin/deploykit", "[gate,ort]"),
        ("deploykit[gate]==0.1.0", False, "/deploykit-gate/bin/deploykit", "deploykit[gate]==0.1.0"),
        ("action", True, "deploykit", None),
        ("", False, "deploykit", None),
    ],
)
def test_deploykit_is_installed_where_it_is_not_there(tmp_path, install, here, command, asked):
    described = yaml.safe_load((ROOT / ".github" / "actions" / "gate" / "action.yml").read_text())
    step = next(step for step in described["runs"]["steps"] if step["id"] == "install")
    (tmp_path / "bin").mkdir()
    # `python3 -m venv PLACE` makes a python there that writes down what pip was asked for.
    pip = 'echo "$5" > asked'
    script = f"#!/bin/sh\nmkdir -p $3/bin\nprintf '#!/bin/sh\\n{pip}\\n' > $3/bin/python\nchmod +x $3/bin/python\n"
    (tmp_path / "bin" / "python3").write_text(script)
    (tmp_path / "bin" / "python3").chmod(0o755)
    if here:
        (tmp_path / "bin" / "deploykit").write_text("#!/bin/sh\n")
        (tmp_path / "bin" / "deploykit").chmod(0o755)
    env = {"COMMAND": "deploykit", "INSTALL": install, "EXTRAS": "gate,ort", "PLACE": str(tmp_path / "deploykit-gate")}
    env |= {"ACTION": str(ROOT / ".github" / "actions" / "gate"), "GITHUB_OUTPUT": str(tmp_path / "out")}
    env |= {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    assert set(step["env"]) <= set(env)
    subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], env=env, cwd=tmp_path, check=True)
    assert (tmp_path / "out").read_text().strip().endswith(command)
    told = tmp_path / "asked"
    if asked is None:
        assert not told.exists()
    else:
        assert told.read_text().strip() == (str(ROOT) + asked if install == "action" else asked)


def test_no_input_is_pasted_into_the_script():
    described = yaml.safe_load((ROOT / ".github" / "actions" / "gate" / "action.yml").read_text())
    assert not any("${{" in step["run"] for step in described["runs"]["steps"])


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
