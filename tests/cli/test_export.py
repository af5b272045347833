import json
import tomllib
from pathlib import Path

import pytest

from deploykit import api
from deploykit.errors import BusyError
from deploykit.pipeline.run import Event, Outcome
from deploykit.recipe import Recipe

REFUSED = {
    "variant": "openvino-bf16",
    "step": "verify:openvino-bf16",
    "error": "ProofError",
    "reason": "cosine 0.82 at length 32",
    "hint": "take fp32",
    "exit_code": 1,
}


@pytest.fixture
def outcome(monkeypatch):
    """Replaces the pipeline by one that tells of a step and returns the outcome set here; keeps the recipe it got."""

    class Pipeline:
        value = Outcome(Path("m.bundle"), Path("m.report.html"), ({"name": "onnxruntime-fp32"},), seconds=1.5)
        recipe = None

        def run(self, recipe, *, until=None, on_event=lambda event: None):
            self.recipe, self.until = recipe, until
            on_event(Event("export", "started", note="export (opset=20)"))
            on_event(Event("export", "done", 4.2, "the dynamo exporter was given up"))
            if isinstance(self.value, Exception):
                raise self.value
            return self.value

    pipeline = Pipeline()
    monkeypatch.setattr(api, "run", pipeline.run)
    return pipeline


def test_the_recipe_of_a_command_line_is_shown(command):
    code, out, err = command("export", "org/m", "-o", "x.bundle", "-p", "fp32", "--no-normalize", "--show-recipe")
    assert (code, err) == (0, "")
    data = tomllib.loads(out)
    assert data["source"] == {"model": "org/m", "normalize": False, "trust_remote_code": False}
    assert data["bundle"] == {"output": "x.bundle"}
    assert Recipe.from_text(out).to_data() == data


def test_a_shown_recipe_runs_as_the_command_line_would(command, outcome, tmp_path):
    options = ("org/m", "--max-length", "64", "--pooling", "cls", "--opset", "18", "--revision", "v1")
    (tmp_path / "r.toml").write_text(command("export", *options, "--show-recipe")[1])
    command("export", *options)
    direct = outcome.recipe
    command("run", "r.toml")
    assert outcome.recipe.source == direct.source
    assert outcome.recipe.export == direct.export
    assert outcome.recipe.bundle.output == tmp_path / direct.bundle.output


def test_several_names_may_be_repeated_or_separated(command):
    one = command("export", "org/m", "-t", "onnxruntime,openvino", "--show-recipe")[1]
    two = command("export", "org/m", "-t", "onnxruntime", "-t", "openvino", "--show-recipe")[1]
    assert one == two
    assert tomllib.loads(one)["variants"]["targets"] == ["onnxruntime", "openvino"]


def test_settings_steps_and_outcome_are_told(command, outcome):
    code, out, err = command("export", "org/m")
    assert code == 0
    assert out.splitlines() == ["bundle: m.bundle (onnxruntime-fp32)", "report: m.report.html"]
    assert "variants.precisions" in err
    assert "done       4.2 s  export: the dynamo exporter was given up" in err
    assert "\x1b" not in out + err


def test_one_json_document(command, outcome):
    code, out, _ = command("export", "org/m", "--json")
    data = json.loads(out)
    assert (code, data["bundle"], data["unchanged"]) == (0, "m.bundle", False)
    assert data["recipe"]["source"]["model"] == "org/m"


def test_a_run_with_nothing_to_do_says_so(command, outcome):
    outcome.value = Outcome(Path("m.bundle"), None, (), unchanged=True)
    assert "nothing to do" in command("export", "org/m")[1]


def test_a_refused_variant_ends_with_its_code_and_reason(command, outcome):
    outcome.value = Outcome(Path("m.bundle"), None, (), (REFUSED,))
    code, out, err = command("export", "org/m")
    assert code == 1
    assert "refused: openvino-bf16: cosine 0.82 at length 32" in err
    assert "bundle: m.bundle" in out
    outcome.value = Outcome(Path("m.bundle"), None, (), (REFUSED | {"exit_code": 4},))
    assert command("export", "org/m", "--json")[0] == 4


def test_a_run_that_stops_early_has_no_bundle(command, outcome, tmp_path):
    (tmp_path / "r.toml").write_text('[source]\nmodel = "org/m"\n')
    outcome.value = Outcome()
    code, out, _ = command("run", "r.toml", "--until", "compile")
    assert (code, outcome.until) == (0, "compile")
    assert "stopped as asked" in out


def test_a_busy_output_is_one_message(command, outcome):
    outcome.value = BusyError("another deploykit run is busy", hint="wait")
    code, out, err = command("export", "org/m")
    assert (code, out) == (2, "")
    assert "error: another deploykit run is busy\n  → wait" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["export", "org/m", "-t", "onnx"], "there is no target 'onnx'\n  → did you mean 'onnxruntime'"),
        (["export", "org/m", "-p", "int4"], "there is no precision 'int4'"),
        (["export", "missing-folder"], "missing-folder"),
        (["export", "./model"], "model"),
        (["run", "missing.toml"], "there is no recipe 'missing.toml'"),
        (["run", "."], "is a folder"),
    ],
)
def test_likely_mistakes_are_explained(command, words, says):
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert says in err
    assert "→" in err


def test_refused_variants_are_warned_of_in_python(outcome, bundle):
    outcome.value = Outcome(bundle, None, (), (REFUSED,))
    with pytest.warns(UserWarning, match="openvino-bf16 is not in the bundle: cosine"):
        made = api.export("org/m")
    assert made.root == bundle


def test_sm_is_an_option_of_the_targets_that_build_ahead(command):
    code, out, _ = command("export", "org/m", "-t", "tensorrt-rtx,onnxruntime", "--sm", "8.6,8.9", "--show-recipe")
    assert code == 0
    assert tomllib.loads(out)["targets"]["tensorrt-rtx"]["sm"] == ["8.6", "8.9"]
    assert Recipe.from_text(out).targets["tensorrt-rtx"].sm == ("8.6", "8.9")


def test_sm_without_such_a_target_is_refused(command):
    code, _, err = command("export", "org/m", "--sm", "8.9", "--show-recipe")
    assert code == 2
    assert "add the target tensorrt-rtx" in err


def test_what_is_asked_of_the_source_reaches_the_recipe(command):
    words = ("--dim", "256", "--tower", "text", "--fixed-length", "64", "--preprocess", "none", "--route", "query")
    prompts = ("--prompt", "query=query: ", "--prompt", "passage= a=b")
    code, out, _ = command("export", "org/m", *words, *prompts, "--show-recipe")
    assert code == 0
    source = tomllib.loads(out)["source"]
    asked = {"dim": 256, "tower": "text", "fixed_length": 64, "preprocess": "none", "route": "query"}
    assert {key: source[key] for key in asked} == asked
    assert source["prompts"] == {"query": "query: ", "passage": " a=b"}
    assert Recipe.from_text(out).source.options.prompts == source["prompts"]


def test_python_asks_the_same(outcome, bundle):
    outcome.value = Outcome(bundle, None, ())
    asked = {"dim": 8, "tower": "vision", "fixed_length": 9, "preprocess": "none", "prompts": {"query": "q: "}}
    asked |= {"route": "document"}
    api.export("org/m", **asked)
    assert {key: getattr(outcome.recipe.source.options, key) for key in asked} == asked


@pytest.mark.parametrize(
    ("words", "says", "fix"),
    [
        (["--tower", "image"], "tower cannot be 'image'", "text, vision, audio"),
        (["--preprocess", "off"], "preprocess cannot be 'off'", "none"),
        (["--prompt", "query"], "--prompt is 'query', not NAME=TEXT", "--prompt 'query=query: '"),
        (["--prompt", "a=b", "--prompt", "a=c"], "--prompt names 'a' twice", "one text"),
    ],
)
def test_likely_mistakes_in_what_is_asked_are_explained(command, words, says, fix):
    code, _, err = command("export", "org/m", *words, "--show-recipe")
    assert code == 2
    assert says in err
    assert fix in err


@pytest.mark.parametrize("option", ["--dim", "--fixed-length"])
def test_counts_begin_with_one(command, option):
    assert command("export", "org/m", option, "0")[0] == 2


def test_further_outputs_reach_the_recipe(command):
    code, out, _ = command(
        "export", "org/m", "--also", "token_embeddings,hidden:-2", "--also", "pooler", "--show-recipe"
    )
    assert code == 0
    assert tomllib.loads(out)["source"]["outputs"] == ["token_embeddings", "hidden:-2", "pooler"]
    assert Recipe.from_text(out).source.options.outputs == ("token_embeddings", "hidden:-2", "pooler")
