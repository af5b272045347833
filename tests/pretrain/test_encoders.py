import numpy as np
import pytest
import torch

from deploykit import sources
from deploykit.errors import RecipeError
from deploykit.graph.export import ExportOptions, export, onnxruntime_runner
from deploykit.pretrain import run
from deploykit.pretrain.draws import Draws
from deploykit.pretrain.elements import Input, Patches, Tokens
from deploykit.pretrain.encoders import cnn, resnet, transformer
from deploykit.pretrain.encoders._pooling import Pooled
from deploykit.pretrain.objectives import adversarial, match, predict
from tests.pretrain import made

SPACE = Patches((1, 16, 12), (4, 4))
BUILT = {
    "cnn": lambda pool: cnn.build(SPACE, cnn.Options(width=4, stages=3, pool=pool)),
    "resnet": lambda pool: resnet.build(SPACE, resnet.Options(width=8, blocks=(1, 1), stem_stride=2, pool=pool)),
    "transformer": lambda pool: transformer.build(SPACE, transformer.Options(width=8, depth=1, heads=2, pool=pool)),
}


@pytest.mark.parametrize("name", BUILT)
def test_pooling_over_time_keeps_the_bands(name):
    torch.manual_seed(0)
    encoder, mean = BUILT[name]("time").eval(), BUILT[name]("mean").eval()
    mean.load_state_dict(encoder.state_dict())
    given = Input(torch.randn(2, 1, 16, 12))
    vectors, short = encoder(given), mean(given)
    width = mean.dim
    assert vectors.shape == (2, encoder.dim)
    assert encoder.dim == 3 * width * (1 if name == "transformer" else 2)
    # The mean over the bands of what is kept of them is the mean over all places.
    parts = vectors.reshape(2, 3, width) if name == "transformer" else vectors.reshape(2, 2, width, 3)[:, 0]
    kept = parts.mean(dim=1 if name == "transformer" else 2)
    torch.testing.assert_close(kept, short)
    assert encoder.pooling != mean.pooling


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_half_of_the_vector_is_the_maximum_over_time(name):
    torch.manual_seed(0)
    encoder = BUILT[name]("time").eval()
    given = Input(torch.randn(2, 1, 16, 12))
    maps = encoder.body(given.values)
    assert torch.equal(encoder(given)[:, encoder.dim // 2 :], maps.amax(dim=2).flatten(1))


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_quarters_are_means_of_their_own_parts_of_the_maps(name):
    torch.manual_seed(0)
    encoder = BUILT[name]("quarters").eval()
    given = Input(torch.randn(2, 1, 16, 16))
    maps = encoder.body(given.values)
    quarters = encoder(given).reshape(2, -1, 2, 2)
    assert encoder.dim == 4 * maps.shape[1]
    torch.testing.assert_close(quarters[:, :, 0, 1], maps[:, :, :2, 2:].mean(dim=(2, 3)))
    torch.testing.assert_close(quarters.mean(dim=(2, 3)), maps.mean(dim=(2, 3)))


def test_quarters_of_an_odd_number_share_the_middle():
    maps = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert Pooled("quarters", 1, 3)(maps).tolist() == [[2.0, 3.0, 5.0, 6.0]]
    with pytest.raises(RecipeError, match="1 x 3 have no quarters"):
        Pooled("quarters", 1, 3)(maps[:, :, :1])


@pytest.mark.parametrize("objective", [match, predict, adversarial])
def test_every_objective_trains_an_encoder_that_keeps_bands(objective):
    task = objective.build(SPACE, BUILT["transformer"]("time"), objective.Options())
    views = [Input(torch.randn(4, 1, 16, 12)) for _ in range(2)]
    loss, _ = task(views, Draws(0, 4, 0, 4))
    loss.backward()
    assert torch.isfinite(loss)


def test_texts_cannot_be_pooled_over_time():
    with pytest.raises(RecipeError, match="no columns"):
        transformer.build(Tokens(6, 30, 4, 5), transformer.Options(width=8, depth=1, heads=2, pool="time"))


def test_a_transformer_refuses_views_of_another_size():
    with pytest.raises(RecipeError, match="8 x 12 have other patches"):
        BUILT["transformer"]("mean")(Input(torch.randn(2, 1, 8, 12)))


@pytest.mark.parametrize(
    ("encoder", "pool", "words"),
    [
        ("resnet", "time", "mean and max over time"),
        ("transformer", "time", "mean over time"),
        ("resnet", "quarters", "mean of each quarter"),
    ],
)
def test_an_encoder_that_keeps_places_exports_and_says_how_it_pools(tmp_path, encoder, pool, words):
    data = made.sounds(tmp_path / "sounds")
    recipe = made.recipe(tmp_path / "run", data, modality="audio", encoder=encoder)
    table = recipe.to_data()
    table["encoder"]["pool"] = pool
    outcome = run.pretrain(run.PretrainRecipe.from_data(table))
    assert outcome.card["pooling"] == words
    source = sources.open_source(str(outcome.folder))
    assert source.card.embedding.pooling == outcome.card["pooling"]
    assert source.card.embedding.dim == outcome.card["probes"]["trained"]["held_out"]["dim"]
    exported, _ = export(source, ExportOptions(exporter="dynamo"), tmp_path)
    given = source.make_inputs(3, {}, 0)
    with onnxruntime_runner(exported.model, source.card) as encode:
        found = encode({name: value.numpy() for name, value in given.items()})
    np.testing.assert_allclose(found, source.module(**given).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bfloat16_is_that_of_torch(masked):
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(2, 3, 7, 8, generator=generator, requires_grad=True) for _ in range(3)]
    short = [t.detach().bfloat16().requires_grad_() for t in exact]
    bias = torch.zeros(2, 1, 1, 7)
    if masked:
        bias[0, ..., 4:] = -1e4
    wanted = torch.nn.functional.scaled_dot_product_attention(*exact, attn_mask=bias)
    found = transformer.attention(*short, bias.bfloat16() if masked else None)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.03)
    weights = torch.randn(wanted.shape, generator=generator)
    (wanted * weights).sum().backward()
    (found.float() * weights).sum().backward()
    for own, reference in zip(short, exact, strict=True):
        torch.testing.assert_close(own.grad.float(), reference.grad, atol=0.06, rtol=0.06)
