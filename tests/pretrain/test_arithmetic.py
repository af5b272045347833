"""What a training computes in: its precision on this device, and the layout of its convolutions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deploykit.pretrain import arithmetic, run
from deploykit.pretrain.elements import Patches
from deploykit.pretrain.encoders import cnn, resnet
from tests import cpus
from tests.pretrain import made

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
PICTURES = Patches((3, 16, 16), 2)


@pytest.fixture
def on_cpu(monkeypatch):
    def put(*features):
        cpus.put(monkeypatch, features)

    return put


@pytest.mark.parametrize("feature", ["amx_bf16", "avx512_bf16"])
def test_auto_is_bf16_on_a_cpu_that_computes_in_it(on_cpu, feature):
    on_cpu("avx2", feature)
    assert arithmetic.uses_bf16("auto", CPU)
    assert not arithmetic.uses_bf16("fp32", CPU)
    assert arithmetic.precision_sentence("auto", CPU) == "bf16 on cpu"


@pytest.mark.parametrize("features", [("avx2", "fma"), ("avx2", "avx512f", "avx512_vnni")])
def test_auto_is_fp32_elsewhere_and_bf16_asked_for_by_name_is_warned_of(on_cpu, features):
    on_cpu(*features)
    assert not arithmetic.uses_bf16("auto", CPU)
    assert arithmetic.precision_sentence("auto", CPU) == "fp32 on cpu"
    assert arithmetic.uses_bf16("bf16", CPU)
    assert "emulates it" in arithmetic.precision_sentence("bf16", CPU)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (lambda: resnet.build(PICTURES, resnet.Options(width=4, blocks=(1, 1))), torch.contiguous_format),
        (lambda: resnet.build(PICTURES, resnet.Options(width=8, blocks=(1, 1))), torch.channels_last),
        (lambda: cnn.build(PICTURES, cnn.Options(width=4, stages=2)), torch.channels_last),
        (lambda: torch.nn.Conv2d(6, 12, 1, stride=2), torch.contiguous_format),
        (lambda: torch.nn.Conv2d(6, 12, 1), torch.channels_last),
        (lambda: torch.nn.Conv2d(6, 12, 3, stride=2), torch.channels_last),
        (lambda: torch.nn.Linear(4, 4), torch.channels_last),
    ],
)
def test_narrow_strided_projections_are_trained_in_torchs_own_layout(network, expected):
    assert arithmetic.memory_format(network()) == expected


def test_inputs_take_the_layout_of_their_network():
    pictures, narrow, wide = torch.zeros(2, 4, 6, 6), torch.nn.Conv2d(4, 8, 1, 2), torch.nn.Conv2d(8, 8, 1, 2)
    assert arithmetic.laid_out(pictures, narrow).is_contiguous()
    assert arithmetic.laid_out(pictures, wide).is_contiguous(memory_format=torch.channels_last)
    tokens = torch.zeros(2, 5)
    assert arithmetic.laid_out(tokens, wide) is tokens


def test_a_narrow_network_trains_and_is_fine_tuned_on_a_cpu_with_avx2_alone(tmp_path):
    squares = made.pictures(tmp_path / "squares")
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "1"}
    code = (
        "from deploykit.pretrain import run; from tests.pretrain import made; import sys\n"
        "encoder = {'width': 4, 'blocks': [1, 1]}; tuned = {'epochs': 2, 'batch': 8}\n"
        "recipe = made.recipe(sys.argv[1], sys.argv[2], encoder='resnet', training={'steps': 10}).to_data()\n"
        "recipe['encoder'] |= encoder; recipe['finetune'] |= tuned\n"
        "from deploykit.pretrain.recipe import PretrainRecipe\n"
        "run.pretrain(PretrainRecipe.from_data(recipe))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run"), str(squares)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **limits}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "card.json").exists()


def test_what_is_done_between_the_lines_is_told(tmp_path, on_cpu):
    on_cpu("avx2")
    squares, stages = made.pictures(tmp_path / "squares"), []
    recipe = made.recipe(tmp_path / "run", squares, training={"precision": "auto"})
    run.pretrain(recipe, on_stage=stages.append)
    assert stages[0] == "reading the data"
    assert stages[1] == "training: step 1 of 4, 16 of 36 samples each, fp32 on cpu"
    assert stages[2].startswith("training: the first step took ")
    assert stages[3] == "judging"
