"""Weights that are spread over two processes (FSDP2) train the encoder that one process does."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from deploykit.pretrain import run
from tests.pretrain import made

ROOT = Path(__file__).parents[2]


def train(output, data, *, stop=0, resume=False, encoder="transformer"):
    """Exit code and errors of the first of two processes; the other one ends with it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "tests.pretrain.sharded", str(output), str(data), str(stop)]
    command += [str(int(resume)), encoder]
    children = []
    for rank in ("0", "1"):
        environment = {**made.one_thread(), **common, "RANK": rank, "LOCAL_RANK": rank}
        children.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    _, errors = children[0].communicate(timeout=120)
    if stop:
        children[1].kill()
    children[1].communicate(timeout=120)
    return children[0].returncode, errors[-3000:]


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return made.pictures(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture(scope="module", params=["transformer", "resnet"])
def encoder(request):
    return request.param


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, squares, encoder):
    output = tmp_path_factory.mktemp("spread") / "run"
    code, errors = train(output, squares, encoder=encoder)
    assert code == 0, errors
    return output


def test_two_processes_with_half_of_the_weights_each_equal_one(tmp_path, squares, unbroken, encoder):
    one = run.pretrain(made.spread(tmp_path / "one", squares, encoder))
    assert json.loads((unbroken / run.CARD).read_text())["training"]["processes"] == 2
    assert made.losses(unbroken) == pytest.approx(made.losses(one.folder), rel=1e-4)
    expected, found = load_file(one.folder / run.WEIGHTS), load_file(unbroken / run.WEIGHTS)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}
    matrices = {k: v for k, v in expected.items() if v.ndim > 1}
    for name, value in matrices.items():  # some biases have no gradient but rounding, which AdamW scales up to its step
        np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)


def test_a_killed_run_with_spread_weights_goes_on_as_if_it_had_not_been(tmp_path, squares, unbroken, encoder):
    assert train(tmp_path / "run", squares, stop=5, encoder=encoder)[0] == -signal.SIGKILL
    assert not (tmp_path / "run" / run.CARD).exists()
    code, errors = train(tmp_path / "run", squares, resume=True, encoder=encoder)
    assert code == 0, errors
    assert made.losses(tmp_path / "run") == made.losses(unbroken)
    assert (tmp_path / "run" / run.WEIGHTS).read_bytes() == (unbroken / run.WEIGHTS).read_bytes()
