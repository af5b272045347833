import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deploykit import settings
from deploykit.errors import BusyError, CheckError, InputError, RecipeError, SourceError, UnknownNameError
from deploykit.pretrain import checkpoint, inputs, judge, run, trainer
from deploykit.pretrain.modalities import image
from deploykit.pretrain.recipe import PretrainRecipe
from tests.pretrain import made

ROOT = Path(__file__).parents[2]


@pytest.fixture
def squares(tmp_path):
    return made.pictures(tmp_path / "squares")


@pytest.mark.parametrize("modality", ["image", "text", "audio"])
@pytest.mark.parametrize("objective", ["match", "predict", "adversarial"])
def test_every_objective_trains_on_every_modality(tmp_path, modality, objective):
    data = made.data_for(modality, tmp_path)
    kinds = {"modality": modality, "objective": objective, "encoder": "transformer"}
    outcome = run.pretrain(made.recipe(tmp_path / "run", data, **kinds, training={"lr": 0.01}))
    found = made.losses(outcome.folder)
    assert sorted(found) == [1, 2, 3, 4]
    probes = outcome.card["probes"]
    assert list(probes) == ["trained", "random initialisation", "raw input"]
    assert all(0 <= row["held_out"]["linear"] <= 100 for row in probes.values())
    assert probes["trained"] != probes["random initialisation"]


@pytest.mark.parametrize("encoder", ["cnn", "resnet"])
def test_matching_lowers_the_loss(tmp_path, squares, encoder):
    sections = {"training": {"steps": 30, "lr": 0.01}}
    recipe = made.recipe(tmp_path / "run", squares, encoder=encoder, **sections)
    found = made.losses(run.pretrain(recipe).folder)
    assert found[30] < 0.8 * found[1]


def test_a_next_token_can_be_predicted(tmp_path):
    data = made.data_for("text", tmp_path)
    recipe = made.recipe(tmp_path / "run", data, modality="text", objective="predict", encoder="transformer")
    table = recipe.to_data()
    table["encoder"]["causal"] = table["objective"]["next"] = True
    assert len(made.losses(run.pretrain(PretrainRecipe.from_data(table)).folder)) == 4


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the child: two threads add up in another order
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("encoder", ["transformer", "resnet", "cnn"])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, squares, encoder):
    unbroken = run.pretrain(made.resumable(tmp_path / "unbroken", squares, encoder))
    command = [sys.executable, "-m", "tests.pretrain.killed", str(tmp_path / "killed"), str(squares), encoder]
    child = subprocess.run(command, cwd=ROOT, env=made.one_thread(), capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert not (tmp_path / "killed" / run.CARD).exists()
    before = checkpoint.load(tmp_path / "killed" / checkpoint.NAME).seconds[0]
    resumed = run.pretrain(made.resumable(tmp_path / "killed", squares, encoder), resume=True)
    assert resumed.card["training"]["seconds"] > before > 0
    assert resumed.card["training"]["resumed_at"] == 6
    assert made.losses(resumed.folder) == made.losses(unbroken.folder)
    assert (resumed.folder / run.WEIGHTS).read_bytes() == (unbroken.folder / run.WEIGHTS).read_bytes()
    assert resumed.card["probes"] == unbroken.card["probes"]


def test_a_finished_run_is_not_done_again(tmp_path, squares):
    recipe = made.recipe(tmp_path / "run", squares)
    first = run.pretrain(recipe)
    again = run.pretrain(recipe)
    assert again.unchanged
    assert again.card == json.loads(json.dumps(first.card))
    with pytest.raises(BusyError, match="another recipe"):
        run.pretrain(made.recipe(tmp_path / "run", squares, training={"lr": 0.5}))


def test_an_unfinished_run_is_not_overwritten(tmp_path, squares):
    recipe = made.recipe(tmp_path / "run", squares)
    run.pretrain(recipe)
    (tmp_path / "run" / run.CARD).unlink()
    with pytest.raises(BusyError) as caught:
        run.pretrain(recipe)
    assert "--resume" in caught.value.hint


def test_a_loss_that_is_no_number_names_the_step_and_the_checkpoint(tmp_path, squares):
    recipe = made.recipe(tmp_path / "run", squares, training={"lr": 1e30, "steps": 40, "clip": 0.0, "save_every": 1})
    with pytest.raises(CheckError, match=r"at step \d+; the last good checkpoint is .*last.safetensors"):
        run.pretrain(recipe)
    assert not (tmp_path / "run" / run.CARD).exists()
    state = checkpoint.load(tmp_path / "run" / checkpoint.NAME)
    assert all(bool(value.isfinite().all()) for value in state.model.values())


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, squares):
    run.pretrain(made.recipe(tmp_path / "run", squares))
    (tmp_path / "run" / run.CARD).unlink()
    with pytest.raises(SourceError, match="another architecture"):
        run.pretrain(made.recipe(tmp_path / "run", squares, encoder="resnet"), resume=True)


@pytest.mark.parametrize(
    ("key", "fact"),
    [({"holdout": 0.5}, r"data.holdout was 0.25 and is 0.5"), ({"limit": 30}, "data.limit was 0 and is 30")],
)
def test_a_run_does_not_go_on_with_what_it_had_held_out(tmp_path, squares, key, fact):
    run.pretrain(made.recipe(tmp_path / "run", squares))
    (tmp_path / "run" / run.CARD).unlink()
    with pytest.raises(BusyError, match=fact):
        run.pretrain(made.recipe(tmp_path / "run", squares, data=key), resume=True)
    made.pictures(squares / "more", 2)
    with pytest.raises(BusyError, match="its data have changed since"):
        run.pretrain(made.recipe(tmp_path / "run", squares), resume=True)


def test_a_probe_that_was_told_behind_the_last_checkpoint_is_told_again(tmp_path, squares):
    recipe = made.recipe(tmp_path / "run", squares, probe={"every": 2})

    def stop(line):
        if "probe" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.pretrain(
            made.recipe(tmp_path / "run", squares, probe={"every": 2}, training={"save_every": 1}), on_line=stop
        )
    run.pretrain(recipe, resume=True)
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [(line["step"], "probe" in line) for line in lines] == [
        (1, False),
        (2, False),
        (2, True),
        (3, False),
        (4, False),
    ]


def test_nothing_to_resume_is_said(tmp_path, squares):
    with pytest.raises(SourceError, match="no checkpoint"):
        run.pretrain(made.recipe(tmp_path / "run", squares), resume=True)


def test_unreadable_pictures_are_skipped_up_to_a_limit(tmp_path, squares):
    (squares / "left" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1 of 49 inputs cannot be read; the first: .*broken.png"):
        run.pretrain(made.recipe(tmp_path / "run", squares))
    outcome = run.pretrain(made.recipe(tmp_path / "run", squares, skip=0.1))
    assert len(outcome.card["data"]["skipped"]) == 1
    assert "broken.png" in outcome.card["data"]["skipped"][0]


def test_an_input_without_a_file_of_its_own_is_named_by_its_place(tmp_path, squares):
    good = next(squares.rglob("*.png")).read_bytes()
    table = made.recipe(tmp_path / "run", squares)
    adapter = image.Adapter.fit(table.options["modality"], [good], 0)
    given = inputs.Read([good, good, b"broken"], None, (), "")
    assert "image 2" in inputs.hold(adapter, given, replace(table.data, unreadable=0.5), tmp_path).skipped[0]


def test_texts_are_cut_though_as_many_parts_come_out_as_there_were_texts():
    given = inputs.Read(["one two", "", "three"], None, (), "")
    cut = inputs.in_parts(given, lambda texts: [word for text in texts for word in text.split()])
    assert cut.inputs == ["one", "two", "three"]


def test_one_class_alone_cannot_be_probed(tmp_path, squares):
    for path in (squares / "right").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="all labels are 'left'"):
        run.pretrain(made.recipe(tmp_path / "run", squares))


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        run.pretrain(made.recipe(tmp_path / "run", tmp_path / "empty"))


def test_a_text_in_another_encoding_is_refused_with_its_line(tmp_path):
    (tmp_path / "old.txt").write_bytes("fine\ncaf\xe9\n".encode("latin1"))
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        run.pretrain(made.recipe(tmp_path / "run", tmp_path / "old.txt", modality="text", encoder="transformer"))


def test_views_that_are_all_the_same_are_refused_before_the_training(tmp_path):
    data = made.data_for("text", tmp_path)
    kinds = {"modality": "text", "encoder": "transformer"}
    same = made.recipe(tmp_path / "run", data, **kinds).to_data()
    same["encoder"]["dropout"], same["modality"]["span"] = 0.0, 1.0
    with pytest.raises(RecipeError, match="views of a sample are all the same"):
        run.pretrain(PretrainRecipe.from_data(same))
    same["encoder"]["dropout"] = 0.1
    same["output"] = str(tmp_path / "other")
    assert run.pretrain(PretrainRecipe.from_data(same)).card["probes"]


def test_test_data_without_labels_are_refused_before_the_training(tmp_path, squares):
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in list(squares.rglob("*.png"))[:4]:
        (plain / path.name).write_bytes(path.read_bytes())
    with pytest.raises(RecipeError, match="the test data have no labels"):
        run.pretrain(made.recipe(tmp_path / "run", squares, data={"test": str(plain)}))
    with pytest.raises(RecipeError, match="the data that the probe learns from have no labels"):
        run.pretrain(made.recipe(tmp_path / "other", plain, data={"test": str(squares)}, training={"batch": 2}))


def test_other_test_data_are_no_reason_to_say_that_nothing_is_to_do(tmp_path, squares):
    test = made.pictures(tmp_path / "test", 10)
    recipe = made.recipe(tmp_path / "run", squares, data={"test": str(test)})
    run.pretrain(recipe)
    assert run.pretrain(recipe).unchanged
    next(test.rglob("*.png")).unlink()
    with pytest.raises(BusyError, match="over other data"):
        run.pretrain(recipe)


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ("training", {"steps": -5}),
        ("training", {"warmup": 500.0}),
        ("training", {"lr": 0.0}),
        ("probe", {"neighbours": 0}),
        ("probe", {"samples": 1}),
        ("probe", {"every": -1}),
        ("data", {"limit": -1}),
        ("data", {"unreadable": 2.0}),
    ],
)
def test_numbers_that_mean_nothing_are_refused(tmp_path, section, keys):
    with pytest.raises(RecipeError, match=f"{section}.{next(iter(keys))} is"):
        made.recipe(tmp_path / "run", "x", **{section: keys})


def test_a_batch_larger_than_the_data_is_refused(tmp_path, squares):
    with pytest.raises(RecipeError, match="batch is 64, and there are 36 samples"):
        run.pretrain(made.recipe(tmp_path / "run", squares, training={"batch": 64}))


def test_data_of_another_modality_is_refused(tmp_path, squares):
    with pytest.raises(InputError, match="holds image data"):
        run.pretrain(made.recipe(tmp_path / "run", squares, modality="audio"))


@pytest.mark.parametrize("objective", ["predict", "adversarial"])
def test_an_encoder_without_elements_is_refused(tmp_path, squares, objective):
    with pytest.raises(RecipeError, match="needs an encoder of elements"):
        run.pretrain(made.recipe(tmp_path / "run", squares, objective=objective))


def test_unknown_keys_and_names_give_the_nearest(tmp_path):
    with pytest.raises(RecipeError) as caught:
        made.recipe(tmp_path, "x", training={"bacth": 3})
    assert "batch" in caught.value.hint
    table = made.recipe(tmp_path, "x").to_data()
    table["encoder"] = {"name": "resnt"}
    with pytest.raises(UnknownNameError) as unknown:
        PretrainRecipe.from_data(table)
    assert "resnet" in unknown.value.hint


def test_a_recipe_survives_toml_and_overrides_replace_keys(tmp_path):
    recipe = made.recipe(tmp_path / "run", tmp_path / "data")
    path = tmp_path / "recipe.toml"
    path.write_text(settings.dumps({"pretrain": recipe.to_data()}))
    assert PretrainRecipe.from_toml(path) == recipe
    changed = PretrainRecipe.from_toml(path, ["training.lr=0.5", "encoder.name=cnn", "data.train=['a.txt']"])
    assert changed.training.lr == 0.5
    assert changed.data.train == (str(tmp_path / "a.txt"),)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("pretrain-*.toml")), ids=lambda p: p.stem)
def test_every_pretraining_recipe_is_valid(path):
    assert PretrainRecipe.from_toml(path).data.train


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_a_schedule_rises_and_ends_where_it_should(schedule):
    options = made.recipe("o", "d", training={"schedule": schedule, "lr": 1.0, "warmup": 0.1}).training
    rates = [trainer.rate(options, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[50] == pytest.approx({"cosine": 0.5868, "wsd": 1.0, "constant": 1.0}[schedule], abs=1e-3)
    assert (rates[-1] == 1.0) == (schedule == "constant")
    assert rates[-1] in (1.0, pytest.approx(0.0, abs=0.06))


def test_accumulation_divides_the_batch(tmp_path, squares):
    with pytest.raises(RecipeError, match="does not divide into 3"):
        run.pretrain(made.recipe(tmp_path / "run", squares, training={"accumulate": 3}))


def test_bfloat16_and_probes_during_training(tmp_path, squares):
    recipe = made.recipe(tmp_path / "run", squares, training={"precision": "bf16"}, probe={"every": 2})
    lines = []
    run.pretrain(recipe, on_line=lines.append)
    assert [line["step"] for line in lines if "probe" in line] == [2]
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines if "loss" in line)


def test_each_set_is_encoded_once(tmp_path, squares, monkeypatch):
    sizes, plain = [], judge.Judge._vectors
    monkeypatch.setattr(judge.Judge, "_vectors", lambda self, e, held: sizes.append(len(held)) or plain(self, e, held))
    made.pictures(tmp_path / "test", 10)
    card = run.pretrain(made.recipe(tmp_path / "run", squares, data={"test": str(tmp_path / "test")})).card
    assert sizes == [36, 12, 10] * 3
    assert {row["test"]["ridge"] for row in card["probes"].values()} <= {1e-4, 1e-3, 1e-2, 1e-1, 1.0}


def test_a_probe_of_some_of_the_data_knows_every_class(tmp_path, squares, monkeypatch):
    known, plain = [], judge.Judge._bank
    monkeypatch.setattr(judge.Judge, "_bank", lambda self, e: known.append(self.bank.labels) or plain(self, e))
    run.pretrain(made.recipe(tmp_path / "run", squares, probe={"samples": 12}))  # a folder is read class by class
    assert all(len(labels) == 12 and len(set(labels.tolist())) == 2 for labels in known)


def test_the_rank_is_that_of_vectors_from_everywhere(squares):
    rows = torch.cat([torch.zeros(3000, 8), torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))])
    held = inputs.Held((rows,), None, (), (), ())  # sorted: the first class looks all the same
    query = held.rows(torch.arange(3000, 3010))
    adapter = SimpleNamespace(raw=lambda tensors: tensors[0])
    judged = judge.Judge(adapter, held, query, None, made.recipe("o", squares).probe)
    assert judged.figures(None)["effective_rank"] > 7


def test_a_collapse_is_told(tmp_path, squares):
    recipe = made.recipe(tmp_path / "run", squares, probe={"rank_alarm": 1000.0})
    assert run.pretrain(recipe).card["probes"]["trained"]["held_out"]["collapsed"]


def takes(folder):
    """Low and high tones in one folder, named {label}_{speaker}_{take}.wav."""
    made.sounds(folder / "parts")
    for path in sorted(folder.rglob("*.wav")):
        take = int(path.stem)
        path.rename(folder / f"{path.parent.name}_{('ann', 'bob')[take // 2 % 2]}_{take // 4}.wav")
    return folder


def test_labels_and_the_test_data_come_from_file_names(tmp_path):
    folder = takes(tmp_path / "takes")
    sets = {"names": "{label}_{speaker}_{take}", "test_names": ["*_[01].wav"]}
    card = run.pretrain(made.recipe(tmp_path / "run", folder, modality="audio", data=sets)).card
    assert card["data"]["samples"] == 24
    assert {row["test"]["n"] for row in card["probes"].values()} == {8}
    assert card["probes"]["raw input"]["test"]["linear"] == 100.0  # two tones


def test_a_file_name_that_does_not_fit_is_named(tmp_path):
    folder = takes(tmp_path / "takes")
    sets = {"names": "{speaker}-{label}"}
    with pytest.raises(InputError, match=r"'high_ann_0.wav' does not fit data.names"):
        run.pretrain(made.recipe(tmp_path / "run", folder, modality="audio", data=sets))
    with pytest.raises(InputError, match="are no files"):
        run.pretrain(made.recipe(tmp_path / "run", "builtin:digits", data={"names": "{label}"} | {"test_names": ["*"]}))


@pytest.mark.parametrize("sets", [{"names": "{speaker}"}, {"test": "a", "test_names": ["b"]}])
def test_impossible_choices_of_data_are_refused(tmp_path, sets):
    with pytest.raises(RecipeError, match=r"names"):
        made.recipe(tmp_path / "run", "x", data=sets)


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_data_mapped_from_the_disk_train_the_same_encoder(tmp_path, modality):
    data = made.data_for(modality, tmp_path)
    kinds = {"modality": modality, "encoder": "transformer"}
    ram = run.pretrain(made.recipe(tmp_path / "ram", data, **kinds))
    disk = run.pretrain(made.recipe(tmp_path / "disk", data, **kinds, data={"memory": "disk"}))
    assert (ram.folder / run.WEIGHTS).read_bytes() == (disk.folder / run.WEIGHTS).read_bytes()
    assert sorted(p.name for p in ram.folder.iterdir()) == sorted(p.name for p in disk.folder.iterdir())


def test_mapped_data_are_no_copy_in_memory(tmp_path, squares):
    recipe = made.recipe(tmp_path / "run", squares, data={"memory": "disk"})
    _, held, _ = run._data(recipe, {})
    base = held.tensors[0].numpy()
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert held.tensors[0].dtype == torch.uint8
    assert "(deleted)" in mapped_at(base.ctypes.data)


def mapped_at(address):
    """The line of this process's memory map that an address lies in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            return line
    return ""


def test_grouped_batches_hold_texts_of_one_length_and_every_text(tmp_path):
    recipe = made.recipe(tmp_path / "run", "x", training={"grouped": 5, "batch": 4})
    lengths = torch.randint(3, 13, (70,), generator=torch.Generator().manual_seed(0))
    places = torch.arange(3, 63)
    facts = {"task": None, "encoder": None, "views": None, "views_per_sample": 1, "folder": tmp_path, "seed": 3}
    job = trainer.Job(held=(lengths,), places=places, options=recipe.training, lengths=lengths, **facts)
    rows = trainer._orders(job)
    epochs = [[rows(step) for step in range(epoch * 15, epoch * 15 + 15)] for epoch in range(2)]
    for batches in epochs:
        assert torch.cat(batches).sort().values.tolist() == list(range(60))
        spans = [int(lengths[places[b]].max() - lengths[places[b]].min()) for b in batches]
        assert sum(spans) / 15 < 4
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    assert [len(b) for b in epochs[0]] == [4] * 15
    means = torch.stack([lengths[places[b]].float().mean() for b in epochs[0]])
    assert not torch.equal(means, means.sort().values)


def test_long_texts_in_parts_are_learnt_from_whole_and_judged_as_they_are(tmp_path):
    labelled = made.texts(tmp_path / "texts.csv")
    plain = tmp_path / "long.txt"
    plain.write_text("the ship and the wave met a storm. the cow left its barn for a field of harvest\n" * 20)
    sections = {"modality": "text", "encoder": "transformer", "data": {"train": [str(plain)], "probe": str(labelled)}}
    table = made.recipe(tmp_path / "run", labelled, **sections).to_data()
    table["modality"]["pieces"] = True
    card = run.pretrain(PretrainRecipe.from_data(table)).card
    assert card["data"]["samples"] > 20
    assert card["probes"]["trained"]["held_out"]["n"] == 15
    table |= {"output": str(tmp_path / "other"), "data": {**table["data"], "train": [str(labelled)]}}
    table["modality"]["length"] = 6
    with pytest.raises(InputError, match="labelled inputs cannot be cut") as caught:
        run.pretrain(PretrainRecipe.from_data(table))
    assert "data.probe" in caught.value.hint
