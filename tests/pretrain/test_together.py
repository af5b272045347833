"""Two processes equal one on the global batch."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit import settings
from deploykit.pretrain import distributed, run, trainer
from deploykit.pretrain.recipe import PretrainRecipe
from tests.pretrain import made

ROOT = Path(__file__).parents[2]


def start(world, path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "tests.pretrain.together", str(path)]
    return [
        subprocess.Popen(
            command, cwd=ROOT, env={**made.one_thread(), **common, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(world)
    ]


def test_two_processes_equal_one_in_loss_and_gradients(tmp_path):
    children = start(1, tmp_path / "one.npz") + start(2, tmp_path / "two.npz")
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as two:
        assert sorted(one.files) == sorted(two.files)
        assert len({name.split("/")[0] for name in one.files}) == 7
        for name in one.files:
            scale = max(1.0, float(np.abs(one[name]).max()))
            np.testing.assert_allclose(two[name], one[name], atol=1e-5 * scale, rtol=0, err_msg=name)


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_two_processes_make_the_views_that_one_makes(tmp_path, monkeypatch, modality):
    data = made.data_for(modality, tmp_path)
    recipe = made.recipe(tmp_path / "run", data, modality=modality, encoder="transformer")
    adapter, held, _ = run._data(recipe, {})
    job = trainer.Job(
        task=torch.nn.Identity(),
        encoder=torch.nn.Identity(),
        held=held.tensors,
        places=torch.arange(len(held)),
        views=lambda rows, draws: adapter.views(rows, 2, draws),
        views_per_sample=2,
        options=recipe.training,
        seed=0,
        folder=tmp_path,
        mixes=getattr(adapter, "mixes", False),
    )

    def first(world, rank):
        monkeypatch.setattr(distributed, "world", lambda: world)
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        batches = trainer._Prefetch(job, torch.device("cpu"), 0, 1)
        made_views = batches.next()[0]
        batches.close()
        return made_views

    whole, halves = first(1, 0), [first(2, 0), first(2, 1)]
    for i, view in enumerate(whole):
        for half, rows in zip(halves, view.values.split(8), strict=True):
            found = half[i].values
            assert len(found) == 8
            torch.testing.assert_close(found, rows[:, : found.shape[1]])
    assert (modality == "audio") == job.mixes


def test_processes_without_a_gpu_train_together_and_the_first_one_speaks(tmp_path):
    data = made.pictures(tmp_path / "squares")
    table = made.spread(tmp_path / "two", data).to_data()
    table["training"] |= {"shard": False, "device": "auto"}
    path = tmp_path / "recipe.toml"
    path.write_text(settings.dumps({"pretrain": table}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "deploykit", "pretrain", str(path), "--json"]
    child = subprocess.run(command, cwd=ROOT, env=made.one_thread(), capture_output=True, text=True, timeout=180)
    assert child.returncode == 0, child.stderr[-3000:]
    assert json.loads(child.stdout)["card"]["training"]["processes"] == 2
    one = run.pretrain(PretrainRecipe.from_data({**table, "output": str(tmp_path / "one")}))
    assert made.losses(tmp_path / "two") == pytest.approx(made.losses(one.folder), rel=1e-4)
