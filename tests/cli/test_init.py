"""``deploykit init ci``: what it writes is read back as the two systems read it, and its script is run."""

import json
import subprocess

import pytest

yaml = pytest.importorskip("yaml")
GITHUB, GITLAB = ".github/workflows/deploykit-gate.yml", ".gitlab/deploykit-gate.yml"
HOSTILE = "it's $(touch owned) `x`: #.txt"


def options_of_the_gate():
    from typer.main import get_command

    from deploykit.cli.app import app

    return {name for parameter in get_command(app).commands["gate"].params for name in parameter.opts}


def script_of(path):
    """The variables and the script of either system's gate."""
    data = yaml.safe_load(path.read_text())
    if "jobs" in data:
        job = data["jobs"]["gate"]
        return job["env"], next(step["run"] for step in job["steps"] if step.get("name") == "Gate")
    job = data["deploykit-gate"]
    return job["variables"], "\n".join(job["script"][-2:])


@pytest.mark.parametrize("place", [GITHUB, GITLAB])
@pytest.mark.parametrize(("code", "ends"), [(0, 0), (1, 1), (3, 3)])
def test_the_pipeline_calls_the_gate_with_what_was_given(command, tmp_path, place, code, ends):
    words = ["--candidate", "new dir/n.bundle@x", "--baseline", "o.bundle", "--data", HOSTILE, "--budget", "p50<=+3%"]
    assert command("init", "ci", *words)[0] == 0
    variables, script = script_of(tmp_path / place)
    fake = tmp_path / "bin" / "deploykit"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > asked\nexit {code}\n')
    fake.chmod(0o755)
    env = {**variables, "PATH": f"{fake.parent}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=env)
    assert done.returncode == (0 if place == GITHUB and code == 3 else ends)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert (asked[0], asked[-2:]) == ("gate", ["--", "new dir/n.bundle@x"])
    assert asked[asked.index("--data") + 1] == HOSTILE
    assert asked[asked.index("--budget") + 1] == "p50<=+3%"
    assert {word for word in asked if word.startswith("-") and word != "--"} <= options_of_the_gate()
    assert not (tmp_path / "owned").exists()


def test_one_system_may_be_asked_for_and_json_names_the_files(command, tmp_path):
    code, out, _ = command("init", "ci", "--for", "gitlab", "--json")
    assert (code, json.loads(out)["written"]) == (0, [GITLAB])
    assert not (tmp_path / ".github").exists()
    job = yaml.safe_load((tmp_path / GITLAB).read_text())["deploykit-gate"]
    assert job["allow_failure"] == {"exit_codes": [3]}
    assert "--data" not in job["script"][-1]


def test_a_file_that_is_there_is_never_written_over(command, tmp_path):
    (tmp_path / ".gitlab").mkdir()
    (tmp_path / GITLAB).write_text("mine\n")
    code, _, err = command("init", "ci")
    assert code == 2
    assert "is there already" in err
    assert (tmp_path / GITLAB).read_text() == "mine\n"
    assert not (tmp_path / GITHUB).exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--for", "gitlib"], "did you mean 'gitlab'"),
        (["--folder", "nowhere"], "there is no folder 'nowhere'"),
        (["--data", "a\nb"], "fit on no line"),
    ],
)
def test_what_cannot_be_written_is_refused(command, words, says):
    code, _, err = command("init", "ci", *words)
    assert code == 2
    assert says in err
