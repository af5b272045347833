"""A recipe that trains its encoder first."""

import dataclasses
import json

import pytest

from deploykit import data, settings
from deploykit.errors import BusyError, InputError, RecipeError
from deploykit.pipeline import samples, training
from deploykit.pipeline.plan import plan
from deploykit.pipeline.run import run, status
from deploykit.pipeline.store import Store
from deploykit.pretrain import run as pretraining
from deploykit.recipe import Recipe
from deploykit.runtime.preprocess import open_preprocessor
from deploykit.sources import Identity, Options, open_source
from deploykit.sources import resolve as resolve_source
from tests.pretrain import made


def sections(output, spec, /, **pretrain):
    return {"pretrain": made.recipe(output, spec, **pretrain).to_data(), "variants": {"precisions": ["fp32", "int8"]}}


@pytest.fixture
def squares(tmp_path):
    return made.pictures(tmp_path / "squares")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_digits_are_trained_exported_and_judged_in_one_recipe_and_once(tmp_path, store):
    pytest.importorskip("sklearn")
    sets = {"data": {"limit": 200}, "probe": {"rank_alarm": 0.0}}
    recipe = Recipe.from_data(sections(tmp_path / "run", "builtin:digits-train", **sets))
    assert recipe.source.model == str(tmp_path / "run")
    assert recipe.bundle.output == tmp_path / "run.bundle"
    assert [(step.name, there) for step, there in status(plan(recipe), store)] == [("pretrain", False)]
    events = []
    first = run(plan(recipe), on_event=events.append, store=store)
    told = [e.note for e in events if e.step == "pretrain" and e.state == "running"]
    assert told[0] == "reading the data"
    lines = [t for t in told if t.startswith("epoch")]
    assert [t.split(",")[1] for t in lines] == [f" step {n} of 4" for n in (1, 2, 3, 4)]
    assert [v["name"] for v in first.variants] == ["onnxruntime-fp32", "onnxruntime-int8"]
    assert not first.unchanged
    manifest = json.loads((tmp_path / "run.bundle" / "manifest.json").read_text())
    used = manifest["provenance"]["samples"]
    assert used["calibration"]["data"] == used["evaluation"]["data"] == "builtin:digits-train"
    assert used["calibration"]["digest"] != used["evaluation"]["digest"]
    events.clear()
    again = run(plan(recipe), on_event=events.append, store=store)
    assert again.unchanged
    assert {e.state for e in events} == {"reused"}
    assert all(there for _, there in status(plan(recipe), store))


def test_a_run_may_stop_behind_the_training(tmp_path, squares, store):
    recipe = Recipe.from_data(sections(tmp_path / "run", squares))
    outcome = run(plan(recipe), until="pretrain", store=store)
    assert outcome.bundle is None
    assert (tmp_path / "run" / pretraining.CARD).exists()
    assert not (tmp_path / "run.bundle").exists()


def test_a_misspelt_step_is_refused_before_the_training(tmp_path, squares, store):
    with pytest.raises(RecipeError) as caught:
        run(plan(Recipe.from_data(sections(tmp_path / "run", squares))), until="exprot", store=store)
    assert "export" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_an_interrupted_training_goes_on_and_another_recipe_is_refused(tmp_path, squares, store):
    recipe = Recipe.from_data(sections(tmp_path / "run", squares))

    def stop(line):
        if line["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretraining.pretrain(recipe.pretrain, on_line=stop)
    other = Recipe.from_data(sections(tmp_path / "run", squares, training={"lr": 0.5}))
    with pytest.raises(BusyError, match="unfinished run"):
        run(plan(other), until="pretrain", store=store)
    events = []
    run(plan(recipe), until="pretrain", on_event=events.append, store=store)
    assert "(resumed)" in events[-1].note
    assert list(made.losses(tmp_path / "run")) == [1, 2, 3, 4]


def test_data_that_changed_behind_a_finished_run_are_told(tmp_path, squares):
    recipe = made.recipe(tmp_path / "run", squares)
    pretraining.pretrain(recipe)
    (squares / "left" / "0.png").unlink()
    with pytest.raises(BusyError, match="this recipe over other data"):
        pretraining.pretrain(recipe)


def test_the_data_of_a_finished_run_calibrate_its_encoder_unless_others_are_named(tmp_path, squares):
    pretraining.pretrain(made.recipe(tmp_path / "run", squares))
    model = str(tmp_path / "run")
    recipe = Recipe.from_data({"source": {"model": model}, "variants": {"precisions": ["int8"]}})
    planned = plan(recipe)
    assert planned.recipe.calibration.data == str(squares)
    assert any(str(squares) in note for note in planned.notes)
    named = dataclasses.replace(recipe, calibration=dataclasses.replace(recipe.calibration, data="builtin:images"))
    assert plan(named).recipe.calibration.data == "builtin:images"


def test_what_a_run_kept_for_its_test_is_not_calibrated_on(tmp_path):
    folder = made.sounds(tmp_path / "sounds")
    sets = {"test_names": ["[0-9].wav"]}
    pretraining.pretrain(made.recipe(tmp_path / "run", folder, modality="audio", data=sets))
    planned = plan(Recipe.from_data({"source": {"model": str(tmp_path / "run")}, "variants": {"precisions": ["int8"]}}))
    assert planned.recipe.calibration.skip == ("[0-9].wav",)
    assert "without the files for its test" in planned.notes[0]
    options = planned.step("samples").options
    kept = samples._without(data.read(folder), options["skip"])
    assert sorted(path.name for path in kept.inputs) == sorted(f"{i}.wav" for i in range(10, 32))
    with pytest.raises(InputError, match="all files of 'sounds' fit"):
        samples._without(data.read(folder), ["*"])


def test_training_data_that_are_gone_are_told(tmp_path, squares):
    pretraining.pretrain(made.recipe(tmp_path / "run", squares))
    squares.rename(tmp_path / "elsewhere")
    recipe = Recipe.from_data({"source": {"model": str(tmp_path / "run")}})
    identity = resolve_source(recipe.source.model, Options())
    same, notes = training.with_its_data(recipe, identity)
    assert same == recipe
    assert "no longer there" in notes[0]


def test_other_sources_bring_no_data(tmp_path):
    recipe = Recipe.from_data({"source": {"model": "m.onnx"}})
    assert training.with_its_data(recipe, Identity("onnx", "m.onnx", "d")) == (recipe, [])


def test_a_recipe_trains_or_names_a_model(tmp_path, squares):
    table = sections(tmp_path / "run", squares)
    recipe = Recipe.from_data(table)
    assert Recipe.from_text(recipe.to_toml()) == recipe
    assert settings.dumps(recipe.to_data()) == recipe.to_toml()
    with pytest.raises(RecipeError, match="names a model, and"):
        Recipe.from_data({**table, "source": {"model": "other"}})


def test_the_recipe_for_digits_is_valid(pytestconfig):
    recipe = Recipe.from_toml(pytestconfig.rootpath / "recipes" / "quickstart.toml")
    assert recipe.source.model == str(recipe.pretrain.output)
    assert recipe.bundle.output.name == "digits.bundle"


def test_what_could_not_be_read_is_left_out_of_calibration_too(tmp_path, squares, store):
    (squares / "left" / "broken.png").write_bytes(b"no picture")
    recipe = Recipe.from_data(sections(tmp_path / "run", squares, skip=0.05))
    events = []
    run(plan(recipe), until="pretrain", on_event=events.append, store=store)
    assert "1 unreadable inputs skipped" in events[-1].note
    options = dict(plan(recipe).step("samples").options)
    assert options["unreadable"] == 0.05
    preprocessor = open_preprocessor(open_source(recipe.source.model).card, tmp_path / "run")
    notes = []
    kept = samples._readable(data.read(squares), options, preprocessor, notes)
    assert len(kept) == 48
    assert "broken.png" in notes[0]
    with pytest.raises(InputError, match="1 of 49 inputs of 'squares' cannot be read"):
        samples._readable(data.read(squares), options | {"unreadable": 0.01}, preprocessor, notes)
