import errno
import io
import subprocess
import sys
import time

import pytest
import typer

from deploykit.cli import console, main
from deploykit.errors import MissingError, RecipeError

COMMANDS = ["export", "run", "pretrain", "embed", "drift", "bench", "gate", "report", "inspect", "doctor", "list"]
BUNDLE_COMMANDS = ["verify", "sign", "selftest", "warm", "record", "slim", "layout", "pack", "unpack"]


def failing(error):
    app = typer.Typer()

    @app.command()
    def fail():
        raise error

    return app


def full_disk():
    return OSError(errno.ENOSPC, "No space left on device", "/data/v.npy")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RecipeError("no such thing", hint="try another"), 2, "error: no such thing\n  → try another\n"),
        (MissingError("no engine", hint="install one"), 4, "error: no engine"),
        (full_disk(), 4, "no space left on the disk: /data/v.npy"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 4, "Permission denied: /root/x"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 4, "torch is not installed"),
        (ModuleNotFoundError("No module named 'filelock'", name="filelock"), 4, '"filelock>=3.13"'),
        (
            ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere"),
            4,
            "install the package that brings elsewhere",
        ),
        (KeyError("oops"), 70, "error: KeyError: 'oops'\n  → this is a bug in deploykit; run again with --debug\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_failure_has_a_message_and_an_exit_code(capsys, error, code, says):
    assert console.run(failing(error), []) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_debug_shows_the_traceback(capsys):
    assert console.run(failing(KeyError("oops")), ["--debug"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_debug_may_stand_anywhere(command):
    code, _, err = command("list", "tragets", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert "'targets'" in err


def test_debug_after_two_dashes_is_an_argument(command):
    code, _, err = command("inspect", "--", "--debug")
    assert code == 2
    assert "no bundle at '--debug'" in err


def test_the_version(command):
    code, out, _ = command("--version")
    assert code == 0
    assert out.startswith("deploykit ")


def test_without_a_command_the_help_is_shown(command):
    code, out, err = command()
    assert code == 2
    assert "Commands:" in out + err


def test_the_commands_are_these(command):
    _, out, _ = command("--help")
    listed = [
        line.split()[0]
        for line in out.partition("Commands:")[2].splitlines()
        if line.startswith("  ") and line[2] != " "
    ]
    assert listed[: len(COMMANDS) + 1] == [*COMMANDS, "bundle"]


@pytest.mark.parametrize("words", [[c] for c in COMMANDS] + [["bundle", c] for c in BUNDLE_COMMANDS], ids=" ".join)
def test_every_command_has_help_without_gaps_and_takes_json(command, words):
    code, out, _ = command(*words, "--help")
    assert code == 0
    assert "--json" in out
    options = out.partition("Options:")[2].splitlines()
    for line, following in zip(options, [*options[1:], ""], strict=True):
        if line.startswith("  -"):
            assert "  " in line.strip() or following.startswith("   "), f"no help: {line}"


def test_the_summaries_are_not_cut_off(command):
    for words in ([], ["bundle"]):
        assert "..." not in command(*words, "--help")[1].replace("[ARGS]...", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["exprot"], "export"),
        (["export"], "SOURCE"),
        (["export", "m", "--traget", "x"], "--target"),
        (["export", "m", "--opset", "7"], "18"),
        (["export", "m", "--max-length", "long"], "--max-length"),
        (["run"], "RECIPE"),
        (["embed", "b.bundle"], "INPUT"),
        (["embed", "b", "t.txt", "--threads", "0"], "threads"),
        (["list"], "KIND"),
        (["bundle", "verfiy", "b"], "verify"),
    ],
)
def test_wrong_usage_ends_with_2_and_names_what_was_meant(command, words, says):
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert says in err


def test_a_reader_that_goes_away_is_no_error():
    script = "from deploykit.cli import console, main; import sys; sys.exit(main(['export', '--help']))"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait() == console.EXIT_BROKEN_PIPE


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_silent_where_nobody_looks(monkeypatch):
    monkeypatch.setattr(console, "_PATIENCE_S", 0.0)
    stream = io.StringIO()
    with console.Progress(stream) as progress:
        progress.begin("working")
        time.sleep(0.6)
    assert stream.getvalue() == ""


def test_progress_on_a_terminal_is_taken_away_at_the_end(monkeypatch):
    monkeypatch.setattr(console, "_PATIENCE_S", 0.0)
    stream = Terminal()
    with console.Progress(stream) as progress:
        progress.begin("working")
        time.sleep(0.6)
    assert "working …" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_long_work_may_leave_a_line_of_where_it_is_now_and_then():
    stream = io.StringIO()
    with console.Progress(stream, every_s=0.05) as progress:
        progress.begin("opening")
        progress.note("it takes 2 to 9 minutes")
        progress.update("pair 3 of 10")
        time.sleep(0.3)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "it takes 2 to 9 minutes"
    assert lines[-1].endswith("min: pair 3 of 10")


def test_short_work_shows_no_progress():
    stream = Terminal()
    with console.Progress(stream) as progress:
        progress.begin("working")
        time.sleep(0.3)
    assert stream.getvalue() == ""


def test_the_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "deploykit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("deploykit ")
    assert main(["--version"]) == 0
