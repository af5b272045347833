"""What may be asked for where a model does not take every size, and what is decided without asking."""

from __future__ import annotations

import dataclasses
import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from deploykit.errors import SourceError  # noqa: E402
from deploykit.sources import Options, open_source  # noqa: E402
from deploykit.sources._assemble import _without_padding  # noqa: E402
from deploykit.sources._text import is_causal  # noqa: E402
from deploykit.sources._text_encoder import _working_lengths  # noqa: E402


def test_one_length_is_in_the_inputs_the_limits_and_the_notes(models):
    source = open_source(str(models("bert")), Options(fixed_length=24))
    assert [spec.shape for spec in source.card.inputs] == [("batch", 24), ("batch", 24)]
    assert source.card.limits.axes == {"length": (24, 24)}
    assert source.sizes == {"length": (24,)}
    assert any("padded or cut to 24 tokens" in note for note in source.card.provenance["notes"])
    feeds = source.make_inputs(3, {"length": 24}, 0)
    assert feeds["attention_mask"].sum(dim=1).tolist() != [24, 24, 24]


@pytest.mark.parametrize("options", [Options(fixed_length=65), Options(fixed_length=24, max_length=32)])
def test_an_impossible_length_is_refused(models, options):
    with pytest.raises(SourceError, match="fixed_length"):
        open_source(str(models("bert")), options)


def test_ready_tensors_need_no_processor(models, tmp_path):
    folder = tmp_path / "vit"
    folder.mkdir()
    for path in models("vit").iterdir():
        if path.name != "preprocessor_config.json":
            (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(SourceError, match="preprocessor_config"):
        open_source(str(folder))
    source = open_source(str(folder), Options(preprocess="none"))
    assert source.card.modality == "tensor"
    assert source.card.inputs[0].shape == ("batch", 3, 30, 42)
    assert any("left to the caller" in note for note in source.card.provenance["notes"])
    assert source.module(**source.make_inputs(2, {}, 0)).shape == (2, source.card.embedding.dim)


def test_an_unknown_preprocessing_is_refused(models):
    with pytest.raises(SourceError, match="no preprocessing 'raw'"):
        open_source(str(models("vit")), Options(preprocess="raw"))


def test_masking_of_the_pretraining_is_switched_off(tmp_path):
    config = transformers.ViTMAEConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=24,
        patch_size=8,
        mask_ratio=0.5,
    )
    transformers.ViTMAEModel(config).eval().save_pretrained(tmp_path)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 24}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    source = open_source(str(tmp_path))
    assert any("mask_ratio was 0.5" in note for note in source.card.provenance["notes"])
    pixels = source.make_inputs(2, {}, 0)
    assert torch.equal(source.module(**pixels), source.module(**pixels))


def test_an_encoder_saved_by_its_own_class_is_found(tmp_path):
    from tests.tiny import wordpiece

    config = transformers.T5Config(
        vocab_size=113, d_model=24, d_kv=6, d_ff=40, num_layers=1, num_heads=3, pad_token_id=0
    )
    transformers.T5EncoderModel(config).eval().save_pretrained(tmp_path)
    source = open_source(str(wordpiece(tmp_path)))
    assert source.card.embedding.dim == 24


class _Text:
    max_length, vocabulary, special = 8, 20, frozenset({0})


@pytest.mark.parametrize(
    ("mix", "causal"),
    [(lambda x: x.cumsum(1), True), (lambda x: x + x.sum(1, keepdim=True), False)],
    ids=["decoder", "encoder"],
)
def test_a_decoder_is_told_by_what_its_tokens_see(mix, causal):
    assert is_causal("it", lambda ids, mask: mix(ids.float().unsqueeze(-1)), _Text()) is causal


def test_attention_that_does_not_run_is_refused():
    with pytest.raises(SourceError, match="no token of it sees another"):
        is_causal("it", lambda ids, mask: ids.float().unsqueeze(-1), _Text())


class _NeedsFour(torch.nn.Module):
    def forward(self, input_ids, attention_mask):
        if input_ids.shape[1] < 4:
            raise RuntimeError("too short to pool")
        return input_ids.float()


class _Fails(torch.nn.Module):
    def forward(self, input_ids, attention_mask):
        raise RuntimeError("never")


class _Given:
    def make(self, batch, sizes, seed):
        ids = torch.ones(batch, sizes["length"], dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": ids}


def test_lengths_on_which_the_model_fails_are_left_out():
    sizes = {"length": (1, 2, 7, 8)}
    assert _working_lengths(_NeedsFour(), _Given(), sizes) == ({"length": (4, 7, 8)}, "too short to pool")
    assert _working_lengths(_Fails(), _Given(), sizes) == (sizes, "")


def test_a_model_that_padding_changes_gets_no_mask(tmp_path):
    from tests.tiny import wordpiece

    config = transformers.FNetConfig(vocab_size=113, hidden_size=24, num_hidden_layers=2, intermediate_size=40)
    transformers.FNetModel(config).eval().save_pretrained(tmp_path)
    source = open_source(str(wordpiece(tmp_path)))
    assert [spec.name for spec in source.card.inputs] == ["input_ids"]
    assert any("nothing is padded" in note for note in source.card.provenance["notes"])
    feeds = source.make_inputs(3, {"length": 7}, 0)
    assert set(feeds) == {"input_ids"}
    alone = source.module(input_ids=feeds["input_ids"][2:])
    assert torch.allclose(source.module(**feeds)[2:], alone, atol=1e-6)


class _Averages(torch.nn.Module):
    """Sees the padding: what a convolution or a Fourier transform over the length does."""

    def forward(self, input_ids, attention_mask=None):
        return torch.stack([input_ids.float().mean(dim=1), input_ids.float().amax(dim=1)], dim=1)


class _Masks(torch.nn.Module):
    def forward(self, input_ids, attention_mask):
        summed = (input_ids * attention_mask).sum(dim=1, keepdim=True).float()
        return torch.cat([summed, attention_mask.sum(dim=1, keepdim=True).float()], dim=1)


def _parts(module, sizes, prefix=(1,), suffix=(2,)):
    from deploykit.sources._assemble import Parts
    from deploykit.sources._text import TextInput
    from deploykit.sources._text_encoder import _unpadded

    given = TextInput(None, 64, 0, "right", "right", prefix, suffix, frozenset({0, 1, 2}), 40, False)
    shared = {"preprocess": {}, "pooling": "mean", "normalized": False, "provenance": {}}
    parts = Parts("it", "text", module, given.specs, given.make, {"length": sizes}, **shared)
    return dataclasses.replace(parts, unpadded=lambda: _unpadded(parts, given))


def test_padding_that_changes_nothing_stays():
    parts = _parts(_Masks(), (1, 2, 7, 8, 16))
    assert _without_padding(parts) == (parts, [])


def test_one_size_alone_needs_no_judgement():
    parts = _parts(_Averages(), (24,))
    assert _without_padding(parts) == (parts, [])


def test_padding_that_is_seen_is_done_without():
    plain, notes = _without_padding(_parts(_Averages(), (1, 2, 7, 8, 16)))
    assert [spec.name for spec in plain.inputs] == ["input_ids"]
    assert "only inputs of equal length share a batch" in notes[0]


def test_where_short_texts_need_much_padding_one_length_is_asked_for():
    with pytest.raises(SourceError, match="fails on texts below 9 tokens") as caught:
        _without_padding(_parts(_Averages(), (9, 16, 32)))
    assert "fixed_length = 64" in caught.value.hint
