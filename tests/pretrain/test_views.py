import numpy as np
import pytest
import torch

from deploykit.pretrain.draws import Draws, step_seed
from deploykit.pretrain.modalities import _augment, text
from tests.pretrain import made

WHOLE = {"scale": (1.0, 1.0), "ratio": 1.0, "degrees": 0.0}


def draws(count, seed=0):
    return Draws(seed, count, 0, count)


AUGMENTATIONS = {
    "crop": lambda p, d: _augment.crop(p, d, scale=(0.2, 0.6), ratio=1.3, flip=True, degrees=20),
    "colour": lambda p, d: _augment.colour(p, d, 0.5, 1.0),
    "blur": lambda p, d: _augment.blur(p, d, 1.5, 1.0),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_sample_has_a_draw_of_its_own(name):
    picture = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    out = AUGMENTATIONS[name](picture.expand(6, -1, -1, -1), draws(6))
    assert out.shape == (6, 3, 12, 12)
    assert len({tuple(o.flatten().tolist()) for o in out}) == 6


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_process_augments_its_rows_as_one_process_would(name):
    pictures = torch.rand(6, 3, 12, 12)
    whole = AUGMENTATIONS[name](pictures, draws(6))
    part = AUGMENTATIONS[name](pictures[2:5], Draws(0, 6, 2, 5))
    assert torch.allclose(whole[2:5], part, atol=1e-6)


def test_the_whole_picture_comes_back_whole_or_mirrored():
    pictures = torch.rand(8, 1, 6, 6)
    plain = _augment.crop(pictures, draws(8), flip=False, **WHOLE)
    assert torch.allclose(plain, pictures, atol=1e-5)
    mirrored = _augment.crop(pictures, draws(8), flip=True, **WHOLE)
    same = [torch.allclose(m, p, atol=1e-5) for m, p in zip(mirrored, pictures, strict=True)]
    turned = [torch.allclose(m, p.flip(-1), atol=1e-5) for m, p in zip(mirrored, pictures, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert any(same)
    assert any(turned)


def test_turning_the_hue_keeps_greys_and_comes_round():
    pictures = torch.rand(2, 3, 4, 4)
    assert torch.allclose(_augment._turn_hue(pictures, torch.tensor([1.0, -1.0])), pictures, atol=1e-4)
    grey = torch.rand(2, 1, 4, 4).expand(-1, 3, -1, -1)
    assert torch.allclose(_augment._turn_hue(grey, torch.tensor([0.3, 0.1])), grey, atol=1e-3)


def test_seeds_of_neighbouring_steps_differ():
    assert len({step_seed(0, step, micro) for step in range(50) for micro in range(4)}) == 200


def test_spans_of_a_text_keep_its_ends_and_order(tmp_path):
    lines = (made.texts(tmp_path / "t.csv").read_text().splitlines())[1:]
    adapter = text.Adapter.fit(text.Options(length=12, vocabulary=300, span=0.3), lines, 0)
    arrays = [adapter.read(line) for line in lines]
    held = tuple(torch.from_numpy(np.stack(column)) for column in zip(*arrays, strict=True))
    views = adapter.views(held, 2, draws(len(lines)))
    assert not torch.equal(views[0].values, views[1].values)
    for ids, valid, own in zip(views[0].values.tolist(), views[0].valid.tolist(), held[0].tolist(), strict=True):
        count = sum(valid)
        assert ids[0] == 2
        assert ids[count - 1] == 3
        assert set(ids[count:]) <= {0}
        inner = ids[1 : count - 1]
        assert any(own[i : i + len(inner)] == inner for i in range(len(own)))
