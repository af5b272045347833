"""Two processes equal one on the global batch."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

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
