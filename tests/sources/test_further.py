"""Further outputs of a source: they are the model's own, zero at padding, and named by the layer they come from."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from deploykit.errors import SourceError  # noqa: E402
from deploykit.sources import Options, open_source  # noqa: E402
from tests import tiny  # noqa: E402


def opened(models, name, *outputs, **options):
    return open_source(str(models(name)), Options(outputs=outputs, **options))


def answers(source, batch=3, place=-2):
    """What the module gives by name, and its inputs."""
    inputs = source.make_inputs(batch, {axis: sizes[place] for axis, sizes in source.sizes.items()}, 0)
    given = source.module(**inputs)
    return dict(zip([spec.name for spec in source.card.outputs], given, strict=True)), inputs


def test_the_outputs_of_a_text_encoder_are_its_own(models):
    source = opened(models, "bert", "token_embeddings", "hidden:0", "hidden:-2", "pooled:-2", "pooler")
    assert [(spec.name, spec.shape) for spec in source.card.outputs] == [
        ("sentence_embedding", ("batch", 24)),
        ("token_embeddings", ("batch", "length", 24)),
        ("hidden_0", ("batch", "length", 24)),
        ("hidden_1", ("batch", "length", 24)),
        ("pooled_1", ("batch", 24)),
        ("pooler", ("batch", 24)),
    ]
    got, inputs = answers(source)
    model = transformers.AutoModel.from_pretrained(models("bert")).eval()
    with torch.no_grad():
        want = model(**inputs, output_hidden_states=True)
    mask = inputs["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close(got["token_embeddings"], want.last_hidden_state * mask, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got["hidden_0"], want.hidden_states[0] * mask, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got["hidden_1"], want.hidden_states[1] * mask, atol=1e-5, rtol=1e-5)
    mean = (want.hidden_states[1] * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(got["pooled_1"], mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got["pooler"], want.pooler_output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("vit", {"token_embeddings": ("batch", 36, 36), "hidden_1": ("batch", 36, 36)}),
        ("resnet", {"token_embeddings": ("batch", 4, 34), "hidden_3": ("batch", 16, 26)}),
        ("wav2vec2", {"token_embeddings": ("batch", "frames", 28), "hidden_1": ("batch", "frames", 28)}),
        ("whisper", {"token_embeddings": ("batch", 50, 24), "hidden_1": ("batch", 50, 24)}),
    ],
)
def test_every_modality_has_further_outputs(models, name, shapes):
    source = opened(models, name, "token_embeddings", "hidden:-2")
    assert {spec.name: spec.shape for spec in source.card.outputs[1:]} == shapes
    got, _ = answers(source, place=0)
    for output, shape in shapes.items():
        assert got[output].dtype == torch.float32
        assert got[output].shape[2] == shape[2]


def test_frames_at_padding_are_zero(models):
    got, _ = answers(opened(models, "wav2vec2", "token_embeddings"))
    empty = (got["token_embeddings"] == 0).all(dim=-1)
    assert not empty[0].any()
    assert empty[1].any()
    assert bool((empty[1].int().diff() >= 0).all())  # at the end alone


def test_a_sentence_transformer_has_them_too(tmp_path):
    folder = tiny.tiny_sentence_transformer(tmp_path / "m", {"pooling_mode_cls_token": True}, (("Normalize", {}),))
    source = open_source(str(folder), Options(outputs=("pooled:0", "token_embeddings"), dim=5))
    assert [spec.shape for spec in source.card.outputs] == [("batch", 5), ("batch", 24), ("batch", "length", 24)]
    got, _ = answers(source)
    torch.testing.assert_close(got["sentence_embedding"].norm(dim=1), torch.ones(3))


def test_one_length_and_one_output_asked_for_twice(models):
    source = opened(models, "bert", "hidden:1", "hidden:-2", "hidden:1", fixed_length=16)
    assert [spec.shape for spec in source.card.outputs] == [("batch", 24), ("batch", 16, 24)]


@pytest.mark.parametrize(
    ("name", "output", "says", "hint"),
    [
        ("bert", "hidden:3", "has 3 hidden states", "0 to 2, or -3 to -1"),
        ("bert", "hidden:-4", "has 3 hidden states", "0 to 2"),
        ("bert", "token_embedding", "no further output 'token_embedding'", "'token_embeddings'"),
        ("bert", "hidden:last", "no further output 'hidden:last'", "hidden:-2"),
        ("whisper", "pooler", "no pooled output of its own", "pooling"),
        ("vit", "pooler", "'pooler' of vit is the same as the embedding", "leave 'pooler' out"),
    ],
)
def test_an_output_that_is_not_there_is_refused(models, name, output, says, hint):
    with pytest.raises(SourceError) as caught:
        opened(models, name, output)
    assert says in caught.value.message
    assert hint in caught.value.hint


def test_one_vector_under_two_names_is_refused(models):
    with pytest.raises(SourceError, match="'hidden_2' of bert is the same as 'token_embeddings'"):
        opened(models, "bert", "token_embeddings", "hidden:-1")


def test_a_model_that_pools_by_itself_has_no_pooled_layers(models):
    with pytest.raises(SourceError, match="pools by itself"):
        opened(models, "resnet", "pooled:0", pooling="pooler")


def test_other_sources_give_the_embedding_alone(tmp_path):
    (tmp_path / "made.py").write_text("import torch\ndef made():\n    return torch.nn.Linear(3, 2), torch.ones(2, 3)\n")
    with pytest.raises(SourceError, match="'outputs' was asked for"):
        open_source(f"py:{tmp_path / 'made.py'}:made", Options(outputs=("token_embeddings",)))
