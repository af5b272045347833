import sys

import pytest

from deploykit.errors import MissingError
from deploykit.pretrain import board, run
from tests.pretrain import made


def test_metrics_are_written_as_events_and_those_behind_a_resume_are_cut(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = made.pictures(tmp_path / "squares")
    recipe = made.recipe(tmp_path / "run", data, training={"tensorboard": True}, probe={"every": 2})

    def stop(line):
        if line["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.pretrain(recipe, on_line=stop)
    run.pretrain(recipe, resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = {event.step: event.value for event in events.Scalars("train/loss")}
    assert found == pytest.approx(made.losses(tmp_path / "run"))
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert "probe/effective_rank" in events.Tags()["scalars"]


def test_without_the_package_nothing_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    recipe = made.recipe(tmp_path / "run", made.pictures(tmp_path / "squares"), training={"tensorboard": True})
    with pytest.raises(MissingError, match="tensorboard"):
        run.pretrain(recipe)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_unasked_nothing_is_written(tmp_path):
    with board.writing(tmp_path / "tensorboard", wanted=False) as write:
        write({"step": 1})
    assert not (tmp_path / "tensorboard").exists()
