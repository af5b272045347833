import numpy as np
import pytest
import torch

from deploykit.errors import RecipeError
from deploykit.pretrain.draws import Draws, step_seed
from deploykit.pretrain.modalities import _augment, audio, image, text
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


def test_a_dropped_token_leaves_no_gap_and_one_always_stays(tmp_path):
    lines = (made.texts(tmp_path / "t.csv").read_text().splitlines())[1:]
    adapter = text.Adapter.fit(text.Options(length=12, vocabulary=300, drop=0.8), lines, 0)
    held = tuple(torch.from_numpy(np.stack(column)) for column in zip(*map(adapter.read, lines), strict=True))
    views = adapter.views(held, 2, draws(len(lines)))
    assert not torch.equal(views[0].values, views[1].values)
    kept = []
    for ids, valid, own in zip(views[0].values.tolist(), views[0].valid.tolist(), held[0].tolist(), strict=True):
        count = sum(valid)
        inner, rest = ids[1 : count - 1], iter(own)
        assert valid == [1] * count + [0] * (len(valid) - count)
        assert (ids[0], ids[count - 1], set(ids[count:]) <= {0}) == (2, 3, True)
        assert all(any(token == other for other in rest) for token in inner)  # in the order of the text
        kept.append(len(inner) / (own.index(3) - 1))
    assert min(kept) > 0
    assert 0.15 < np.mean(kept) < 0.45


def test_half_a_batch_drops_the_tokens_that_the_whole_would(tmp_path):
    lines = (made.texts(tmp_path / "t.csv").read_text().splitlines())[1:]
    adapter = text.Adapter.fit(text.Options(length=16, vocabulary=300, drop=0.5), lines, 0)
    held = tuple(torch.from_numpy(np.stack(column)) for column in zip(*map(adapter.read, lines), strict=True))
    whole = adapter.views(held, 1, draws(len(lines)))[0].values
    half = adapter.views(tuple(t[3:7] for t in held), 1, Draws(0, len(lines), 3, 7))[0].values
    shared = min(whole.shape[1], half.shape[1])
    assert torch.equal(whole[3:7, :shared], half[:, :shared])


def test_a_long_text_becomes_parts_that_lose_nothing():
    lines = ["One two three. Four five six seven eight, nine ten! Eleven", "short", " "]
    adapter = text.Adapter.fit(text.Options(length=10, vocabulary=300, pieces=True), lines, 0)
    parts = adapter.parts(lines)
    assert parts[-1] == "short"
    assert " ".join(parts[:-1]) == lines[0]
    assert len(parts) == 3
    whole = adapter._whole.encode(lines[0], add_special_tokens=False).ids
    read = [adapter.read(part) for part in parts[:-1]]
    assert [i for ids, count in read for i in ids[1 : count - 1]] == whole
    assert adapter.read(parts[0])[1] <= 10
    plain = text.Adapter(text.Options(length=10, vocabulary=300), adapter.facts)
    assert plain.parts(lines) == lines


def test_the_same_texts_give_the_same_word_pieces_in_any_order(tmp_path):
    lines = [line.split(",")[0] for line in made.texts(tmp_path / "t.csv").read_text().splitlines()[1:]]
    options = text.Options(length=12, vocabulary=300)
    adapter = text.Adapter.fit(options, lines, 0)
    assert text.Adapter.fit(options, lines[::-1], 0).facts == adapter.facts
    pieces = adapter._tokenizer.get_vocab()
    assert {"[PAD]": 0, "[MASK]": 4}.items() <= pieces.items()
    assert "##h" in pieces
    assert adapter._tokenizer.encode("The harbour").tokens == ["[CLS]", "the", "harbour", "[SEP]"]
    assert adapter._tokenizer.decode(adapter._tokenizer.encode("the shipping wave").ids) == "the shipping wave"
    places = [adapter._tokenizer.encode(line, add_special_tokens=False).ids for line in lines]
    counted = np.bincount(np.concatenate([np.array(ids) for ids in places]), minlength=len(pieces))
    assert adapter.space.counts == tuple(counted.tolist())


def test_a_window_zooms_in_time_and_leaves_the_bands():
    picture = torch.zeros(1, 1, 16, 8)
    picture[:, :, :, 3] = 1.0
    out = _augment.window(picture.expand(5, -1, -1, -1), draws(5), (0.5, 1.5), (1.0, 1.0))
    torch.testing.assert_close(out, picture.expand(5, -1, -1, -1))


def test_beyond_its_edges_a_picture_goes_on_with_its_outermost_values():
    ramp = torch.arange(1.0, 9.0).view(1, 1, 8, 1).expand(20, 1, 8, 4)
    out = _augment.window(ramp, draws(20), (2.0, 2.0), (1.0, 1.0))[:, 0, :, 0]
    assert float(out.min()) == 1.0
    assert float(out.max()) == 8.0
    assert (out.diff(dim=1) >= -1e-5).all()  # nothing is mirrored
    assert ((out == 1).sum(1) + (out == 8).sum(1) >= 3).all()


def test_small_views_are_whole_pictures_at_another_size():
    pictures = torch.rand(3, 3, 12, 12)
    out = _augment.crop(pictures, draws(3), flip=False, size=6, **WHOLE)
    torch.testing.assert_close(out, torch.nn.functional.avg_pool2d(pictures, 2), atol=1e-5, rtol=1e-5)


def hear(tmp_path, **options):
    """An adapter of tones that are shorter than its inputs, and some of them held."""
    paths = sorted(made.sounds(tmp_path / "sounds", 12).rglob("*.wav"))
    adapter = audio.Adapter.fit(audio.Options(seconds=0.6, **options, **SMALL), paths, 0)
    return adapter, (torch.from_numpy(np.stack([adapter.read(path)[0] for path in paths])),)


SMALL = {"rate": 8000, "bins": 16, "hop": 128, "window": 256, "patch": 4}


def test_the_range_lifts_silence_and_is_deployed(tmp_path):
    near, held = hear(tmp_path, range=5.0)
    far, _ = hear(tmp_path, range=0.0)
    spread = (held[0].amax(dim=(1, 2, 3)) - held[0].amin(dim=(1, 2, 3))) * near.facts["std"]
    torch.testing.assert_close(spread, torch.full_like(spread, 5.0), rtol=1e-3, atol=1e-3)
    assert near.facts["std"] < far.facts["std"]
    assert near.card(tmp_path)["preprocess"]["mel"]["dynamic_range"] == 5.0
    assert far.card(tmp_path)["preprocess"]["mel"]["dynamic_range"] is None


def test_gain_and_tilt_move_the_bands_by_as_much_as_they_may(tmp_path):
    still = {"time": (1.0, 1.0), "bands": (1.0, 1.0), "mix": 0.0}
    adapter, held = hear(tmp_path, gain=0.0, tilt=2.0, **still)
    moved = (adapter.views(held, 1, draws(len(held[0])))[0].values - held[0]) * adapter.facts["std"]
    ends = moved[:, 0, 0, [0, -1]]
    torch.testing.assert_close(ends[:, 0], -ends[:, 1], atol=1e-3, rtol=1e-3)
    assert 1.0 < float(ends.abs().max()) <= 2.0
    assert float(moved[..., 7:9].abs().max()) < 0.3


def test_sounds_are_mixed_at_one_energy(tmp_path):
    adapter, held = hear(tmp_path, mix=1.0)
    loud = held[0].clone()
    loud[6:] += 8.0  # as many deviations louder: the quiet ones are not drowned
    power = (adapter._mixed(loud, torch.rand(12), torch.full((12,), 0.5)) * adapter.facts["std"]).exp().mean((1, 2, 3))
    torch.testing.assert_close(power, (loud * adapter.facts["std"]).exp().mean((1, 2, 3)), rtol=1e-3, atol=0)


def test_a_range_of_windows_has_two_ends():
    with pytest.raises(RecipeError, match=r"modality.time is \[0.7\]"):
        audio.Adapter(audio.Options(time=(0.7,)), {"mean": 0.0, "std": 1.0})


def test_views_are_no_larger_than_the_picture():
    with pytest.raises(RecipeError, match="views have size 33"):
        image.Adapter(image.Options(size=32, view_size=33), {"mean": [0.0] * 3, "std": [1.0] * 3})
