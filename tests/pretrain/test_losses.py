"""The losses against the papers' formulas, written out plainly."""

import math

import numpy as np
import pytest
import torch

from deploykit.errors import RecipeError
from deploykit.pretrain import trainer
from deploykit.pretrain.draws import Draws
from deploykit.pretrain.elements import Input, Patches, Tokens, choose_hidden
from deploykit.pretrain.encoders import transformer
from deploykit.pretrain.objectives import adversarial, match, predict


@pytest.fixture
def z():
    return torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_invariance_is_the_mean_over_pairs_of_views(z):
    pairs = [(0, 1), (0, 2), (1, 2)]
    plain = np.mean([((z[a] - z[b]).numpy() ** 2).mean() for a, b in pairs])
    assert float(match.invariance(z)) == pytest.approx(plain, abs=1e-12)


def test_variance_is_the_hinge_of_vicreg(z):
    view = 0.5 * z[0].numpy()
    plain = np.mean([max(0.0, 1 - math.sqrt(view[:, j].var(ddof=1) + 1e-4)) for j in range(5)])
    assert float(match.variance(torch.from_numpy(view))) == pytest.approx(plain, abs=1e-12)


def test_covariance_sums_the_squares_off_the_diagonal(z):
    matrix = np.cov(z[0].numpy(), rowvar=False)
    plain = sum(matrix[i, j] ** 2 for i in range(5) for j in range(5) if i != j) / 5
    assert float(match.covariance(z[0])) == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("count", [2, 3])
def test_info_nce_is_nt_xent_over_all_views(z, count):
    views = z[:count].numpy()
    rows = [(v, i, views[v, i] / np.linalg.norm(views[v, i])) for v in range(count) for i in range(6)]
    found = []
    for v, i, anchor in rows:
        negatives = sum(math.exp(anchor @ other / 0.2) for _, j, other in rows if j != i)
        for u, j, other in rows:
            if j == i and u != v:
                positive = math.exp(anchor @ other / 0.2)
                found.append(-math.log(positive / (positive + negatives)))
    assert float(match.info_nce(z[:count], 0.2)) == pytest.approx(np.mean(found), abs=1e-10)


def test_sigreg_is_epps_and_pulleys_statistic(z):
    directions = torch.nn.functional.normalize(torch.randn(5, 4, dtype=torch.float64), dim=0)
    t = np.linspace(-5, 5, 17)
    found = []
    for k in range(4):
        projected = z[0].numpy() @ directions[:, k].numpy()
        empirical = np.exp(1j * np.outer(t, projected)).mean(axis=1)
        integrand = np.abs(empirical - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)
        found.append(6 * np.trapezoid(integrand, t))
    assert float(match.sigreg(z[0], directions)) == pytest.approx(np.mean(found), rel=1e-5)


def test_sigreg_prefers_the_standard_normal():
    directions = torch.nn.functional.normalize(torch.randn(4, 32), dim=0)
    normal = torch.randn(2000, 4)
    assert match.sigreg(normal, directions) < 0.2 * match.sigreg(2 * normal, directions)
    assert match.sigreg(normal, directions) < 0.01 * match.sigreg(torch.zeros(2000, 4), directions)


def test_a_collapse_costs_vicreg_its_whole_variance_term():
    assert float(match.variance(torch.ones(8, 5))) == pytest.approx(0.99, abs=1e-6)


def test_patches_come_apart_in_reading_order():
    space = Patches((2, 4, 4), (2, 2))
    picture = torch.arange(32.0).reshape(1, 2, 4, 4)
    elements = space.split(Input(picture))
    assert elements.shape == (1, 4, 8)
    assert elements[0, 1].tolist() == [*picture[0, 0, :2, 2:].flatten().tolist(), *picture[0, 1, :2, 2:].flatten()]


def test_the_score_of_patches_is_that_of_mae():
    space = Patches((1, 4, 4), (2, 2))
    elements, prediction = torch.randn(2, 4, 4), torch.randn(2, 4, 4)
    target = elements.numpy()
    target = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
    plain = ((prediction.numpy() - target) ** 2).mean(-1)
    np.testing.assert_allclose(space.score(prediction, elements).numpy(), plain, rtol=1e-5)


def test_the_score_of_tokens_is_the_likelihood():
    space = Tokens(5, 9, 4, 5)
    prediction, ids = torch.randn(2, 5, 9), torch.randint(0, 9, (2, 5))
    shares = np.exp(prediction.numpy()) / np.exp(prediction.numpy()).sum(-1, keepdims=True)
    plain = -np.log(np.take_along_axis(shares, ids.numpy()[..., None], -1))[..., 0]
    np.testing.assert_allclose(space.score(prediction, ids).numpy(), plain, rtol=1e-5)


def test_words_alone_are_hidden_and_a_share_of_them():
    space = Tokens(20, 50, 4, 5)
    ids = torch.randint(5, 50, (64, 20))
    ids[:, 0], ids[:, 15:] = 2, 0
    hidden = choose_hidden(space, ids, None, 0.5, Draws(0, 64, 0, 64))
    assert hidden.sum(1).tolist() == [7] * 64
    assert not hidden[:, 0].any()
    assert not hidden[:, 15:].any()


def test_hidden_tokens_are_mostly_blank():
    space = Tokens(50, 90, 4, 5)
    ids = torch.full((400, 50), 7)
    changed = space.hide(ids, torch.ones_like(ids, dtype=torch.bool), Draws(0, 400, 0, 400))
    assert float((changed == 4).float().mean()) == pytest.approx(0.8, abs=0.01)
    assert float((changed == 7).float().mean()) == pytest.approx(0.1, abs=0.01)


def test_a_generated_token_is_drawn_from_its_distribution():
    space = Tokens(1, 3, 0, 0)
    logits = torch.tensor([0.6, 0.3, 0.1]).log().expand(20_000, 1, 3)
    drawn = space.fill(logits, Draws(0, 20_000, 0, 20_000)).flatten()
    np.testing.assert_allclose(torch.bincount(drawn, minlength=3) / 20_000, [0.6, 0.3, 0.1], atol=0.015)


def small(space, **options):
    torch.manual_seed(0)
    return transformer.build(space, transformer.Options(width=16, depth=1, heads=2, **options))


def test_the_masked_autoencoder_learns_from_hidden_patches_alone():
    space = Patches((1, 8, 8), (2, 2))
    task = predict.build(space, small(space), predict.Options(width=16, depth=1))
    pictures = torch.randn(2, 1, 8, 8)
    task([Input(pictures)], Draws(1, 2, 0, 2))[0].backward()
    order = Draws(1, 2, 0, 2).uniform(16).argsort(dim=1)
    elements = space.split(Input(pictures))
    seen = task.encoder.tokens(elements, None, order[:, :4])
    changed = elements.clone().scatter_(1, order[:, 4:, None].expand(-1, -1, 4), 9.0)
    assert torch.equal(seen, task.encoder.tokens(changed, None, order[:, :4]))


def test_a_causal_encoder_does_not_see_what_it_predicts():
    space = Tokens(6, 30, 4, 5)
    encoder = small(space, causal=True).eval()
    ids = torch.randint(5, 30, (1, 6))
    other = ids.clone()
    other[0, 4:] = 5
    assert torch.allclose(encoder.tokens(ids, None)[:, :4], encoder.tokens(other, None)[:, :4], atol=1e-6)


def test_padding_does_not_change_an_embedding():
    encoder = small(Tokens(8, 30, 4, 5)).eval()
    ids = torch.randint(5, 30, (1, 8))
    padded = encoder(Input(ids, torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])))
    assert torch.allclose(padded, encoder(Input(ids[:, :5], torch.ones(1, 5))), atol=1e-6)


def adversary(space, **options):
    return adversarial.build(space, small(space), adversarial.Options(width=16, depth=1, **options))


def test_deceiving_trains_the_generator_and_not_the_encoder():
    task = adversary(Patches((1, 8, 8), (4, 4)), margin=-9.0)
    mixed = torch.randn(2, 4, 16, requires_grad=True)
    task._deceive(mixed, torch.ones(2, 4, dtype=torch.bool), None).backward()
    assert mixed.grad.abs().sum() > 0
    assert all(p.grad is None for p in task.encoder.parameters())


def test_what_is_called_generated_by_less_than_the_margin_deceives_well_enough():
    task = adversary(Patches((1, 8, 8), (4, 4)), margin=99.0)
    assert float(task._deceive(torch.randn(2, 4, 16), torch.ones(2, 4, dtype=torch.bool), None)) == 0


def test_the_generator_fills_hidden_places_alone_and_the_encoder_sees_the_others_as_they_are():
    space = Tokens(12, 40, 4, 5)
    ids = torch.randint(5, 40, (8, 12))
    ids[:, 0], ids[4:, 9:] = 2, 0
    valid = (ids != 0).long()
    task, seen = adversary(space, share=0.5, correct=1.0), []
    task.encoder.stem.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    loss, parts = task([Input(ids, valid)], Draws(3, 8, 0, 8))
    loss.backward()
    hidden = choose_hidden(space, ids, valid, 0.5, Draws(3, 8, 0, 8))
    assert torch.equal(seen[0][~hidden], ids[~hidden])
    assert (seen[0][hidden] != ids[hidden]).float().mean() > 0.5
    assert float(parts["generating"].detach()) == pytest.approx(math.log(40), rel=0.2)
    assert all(p.grad is not None for p in task.parameters())


@pytest.mark.parametrize("space", [Patches((1, 8, 8), (2, 2)), Tokens(12, 40, 4, 5)])
def test_a_tied_generator_is_the_encoder_and_does_not_see_what_it_fills(space):
    task = adversary(space, tied=True, share=0.5).eval()
    patches = isinstance(space, Patches)
    elements = torch.randn(3, 16, 4) if patches else torch.randint(5, 40, (3, 12))
    hidden = choose_hidden(space, elements, None, 0.5, Draws(2, 3, 0, 3))
    places = hidden.float().argsort(dim=1, descending=True)[:, : int(hidden[0].sum())]
    made = task._generated(elements, hidden, places, None, Draws(0, 3, 0, 3))
    assert made.shape == (3, space.length, 16)
    if patches:
        other = torch.where(hidden.unsqueeze(-1), torch.randn_like(elements), elements)
        torch.testing.assert_close(task._generated(other, hidden, places, None, Draws(0, 3, 0, 3)), made)
    made.sum().backward()
    assert all(p.grad is not None for p in task.encoder.blocks.parameters())


def test_the_places_that_are_left_are_the_others_in_their_order():
    assert adversarial._others(torch.tensor([[4, 0], [1, 2]]), 5).tolist() == [[1, 2, 3], [0, 3, 4]]


def test_correcting_scores_the_real_elements_at_hidden_places():
    space = Patches((1, 4, 4), (2, 2))
    task = adversary(space, share=0.5, correct=1.0)
    torch.nn.init.zeros_(task.correct.linear.weight)
    pictures = torch.randn(3, 1, 4, 4)
    elements = space.split(Input(pictures))
    hidden = choose_hidden(space, elements, None, 0.5, Draws(2, 3, 0, 3))
    parts = task([Input(pictures)], Draws(2, 3, 0, 3))[1]
    assert float(parts["correcting"].detach()) == pytest.approx(float((elements[hidden] ** 2).mean()), rel=1e-5)


def test_tokens_are_predicted_by_their_own_embeddings():
    space = Tokens(6, 30, 4, 5)
    task = predict.build(space, small(space), predict.Options())
    inner = torch.randn(2, 16)
    plain = task.inner(inner) @ task.encoder.stem.weight.T
    assert torch.allclose(task.head(inner), plain, atol=1e-6)
    task([Input(torch.randint(5, 30, (4, 6)))], Draws(0, 4, 0, 4))[0].backward()
    assert (task.encoder.stem.weight.grad.abs().sum(1) > 0).all()


def test_a_fresh_encoder_hears_both_elements_and_places():
    for space in (Patches((1, 8, 8), (2, 2)), Tokens(16, 50, 4, 5)):
        encoder = small(space)
        stem = encoder.stem(torch.randint(5, 50, (64, 16)) if isinstance(space, Tokens) else torch.randn(64, 16, 4))
        assert 0.3 < float((encoder.positions.std() / stem.std()).detach()) < 3


def test_generated_and_real_elements_weigh_the_same():
    values = torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    false = torch.tensor([[True, False, False, False]])
    counted = torch.tensor([[True, True, True, False]])
    assert float(adversarial._balanced(values, false, counted)) == (1.0 + 2.5) / 2


@pytest.mark.parametrize("objective", [predict, adversarial])
def test_elements_are_hidden_in_the_sample_or_in_one_view_of_it(objective):
    assert objective.views(objective.Options()) == 0
    assert objective.views(objective.Options(augmented=True)) == 1


def test_flat_patches_are_not_hidden():
    space = Patches((1, 8, 8), (4, 4))
    pictures = torch.randn(5, 1, 8, 8)
    pictures[:, :, :4] = 0.7
    hidden = choose_hidden(space, space.split(Input(pictures)), None, 0.5, Draws(0, 5, 0, 5))
    assert hidden.sum(1).tolist() == [1] * 5
    assert not hidden[:, :2].any()
    blank = torch.zeros(2, 1, 8, 8)
    assert not choose_hidden(space, space.split(Input(blank)), None, 0.5, Draws(0, 2, 0, 2)).any()


def test_flat_patches_do_not_count_in_the_masked_autoencoder():
    space = Patches((1, 8, 8), (4, 4))
    task = predict.build(space, small(space), predict.Options(width=16, depth=1, normalized=False, share=0.75))
    pictures = torch.randn(3, 1, 8, 8)
    pictures[:, :, :4] = 5.0
    torch.nn.init.zeros_(task.head.weight)
    torch.nn.init.zeros_(task.head.bias)
    loss = float(task([Input(pictures)], Draws(1, 3, 0, 3))[0].detach())
    order = Draws(1, 3, 0, 3).uniform(4).argsort(dim=1)
    elements = space.split(Input(pictures))
    told = [float((elements[i, j] ** 2).mean()) for i in range(3) for j in order[i, 1:].tolist() if j >= 2]
    assert loss == pytest.approx(np.mean(told), rel=1e-5)
    assert math.isfinite(float(task([Input(torch.zeros(3, 1, 8, 8))], Draws(1, 3, 0, 3))[0].detach()))


@pytest.mark.parametrize("space", [Tokens(12, 40, 4, 5), Patches((1, 6, 8), (2, 2))])
def test_a_share_of_the_hidden_stays_blank_and_is_corrected_there(space):
    given = torch.randint(5, 40, (16, 12)) if isinstance(space, Tokens) else torch.randn(16, 1, 6, 8)
    elements = space.split(Input(given))
    task, seen = adversary(space, share=0.5, blank=0.5, correct=1.0), []
    if isinstance(space, Tokens):
        torch.nn.init.constant_(task.fill.bias[space.blank], -1e4)  # a drawn blank would look like one that was left
    task.encoder.stem.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    corrected = []
    score = type(space).score
    with pytest.MonkeyPatch.context() as patch:
        spy = lambda s, p, e, **keys: corrected.append(score(s, p, e, **keys)) or corrected[-1]  # noqa: E731
        patch.setattr(type(space), "score", spy)
        loss, parts = task([Input(given)], Draws(3, 16, 0, 16))
    loss.backward()
    assert torch.isfinite(loss)
    draws = Draws(3, 16, 0, 16)
    hidden = choose_hidden(space, elements, None, 0.5, draws)
    blank = space.blanked(elements, torch.ones_like(hidden)) == seen[0]
    blank = (blank if blank.ndim == 2 else blank.all(-1)) & hidden
    assert 0.3 < float(blank.sum() / hidden.sum()) < 0.7
    places = hidden.float().argsort(dim=1, descending=True)[:, :6]
    expected = corrected[1][blank.gather(1, places)].mean()
    assert float(parts["correcting"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_generated_patches_take_what_was_missed_at_another_place():
    space = Patches((1, 6, 8), (2, 2))
    pictures = torch.randn(4, 1, 6, 8)
    seen = {}
    for residual in (0.0, 1.0):
        task = adversary(space, share=0.5, residual=residual)
        task.encoder.stem.register_forward_hook(lambda module, given, out, r=residual: seen.update({r: given[0]}))
        task([Input(pictures)], Draws(3, 4, 0, 4))
    hidden = choose_hidden(space, space.split(Input(pictures)), None, 0.5, Draws(3, 4, 0, 4))
    assert torch.equal(seen[0.0][~hidden], seen[1.0][~hidden])
    real = space.split(Input(pictures))
    missed = [(real - seen[0.0])[i][hidden[i]] for i in range(4)]
    added = [(seen[1.0] - seen[0.0])[i][hidden[i]] for i in range(4)]
    for a, b in zip(missed, added, strict=True):
        torch.testing.assert_close(a.sort(dim=0).values, b.sort(dim=0).values, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(a, b, atol=1e-3)


def test_the_embedding_predicts_the_hidden_tokens_too():
    space = Tokens(6, 30, 4, 5)
    task = predict.build(space, small(space), predict.Options(share=0.4, pooled=2.0))
    ids = torch.randint(5, 30, (3, 6))
    loss, parts = task([Input(ids)], Draws(1, 3, 0, 3))
    draws = Draws(1, 3, 0, 3)
    hidden = choose_hidden(space, ids, None, 0.4, draws)
    embedding = task.encoder(Input(space.hide(ids, hidden, draws)))
    scores = (task.whole(embedding) @ task.encoder.stem.weight.T + task.outer.bias).softmax(-1).detach()
    plain = [-math.log(float(scores[i, ids[i, j]])) for i in range(3) for j in range(6) if hidden[i, j]]
    assert float(parts["pooled"].detach()) == pytest.approx(np.mean(plain), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(float((parts["token"] + 2 * parts["pooled"]).detach()), rel=1e-5)
    pictures = Patches((1, 8, 8), (2, 2))
    with pytest.raises(RecipeError, match="hidden tokens alone"):
        predict.build(pictures, small(pictures), predict.Options(pooled=1.0))


def test_the_text_alone_may_be_asked_and_frequent_tokens_count_less():
    counts = (0,) * 5 + (900, 90) + (1,) * 10
    space = Tokens(6, 17, 4, 5, counts)
    options = predict.Options(share=0.5, pooled=1.0, token=0.0, frequent=0.01)
    task = predict.build(space, small(space), options)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [5, 5, 5, 6, 6, 7]])
    loss, parts = task([Input(ids)], Draws(1, 2, 0, 2))
    draws = Draws(1, 2, 0, 2)
    hidden = choose_hidden(space, ids, None, 0.5, draws)
    embedding = task.encoder(Input(space.hide(ids, hidden, draws)))
    scores = (task.whole(embedding) @ task.encoder.stem.weight.T + task.outer.bias).softmax(-1).detach()
    weigh = {5: 0.01**0.5 / 0.9**0.5, 6: 0.01**0.5 / 0.09**0.5}
    found = [(weigh.get(int(ids[i, j]), 1.0), float(scores[i, ids[i, j]])) for i, j in hidden.nonzero().tolist()]
    plain = sum(-w * math.log(p) for w, p in found) / sum(w for w, _ in found)
    assert float(loss.detach()) == pytest.approx(plain, rel=1e-5)
    assert list(parts) == ["pooled"]
    loss.backward()
    assert all(p.grad is not None for p in task.parameters())
    with pytest.raises(RecipeError, match="weighs tokens by 0"):
        predict.build(space, small(space), predict.Options(token=0.0))


def test_the_first_prediction_is_how_often_tokens_stand_in_the_data():
    counts = (0,) * 5 + (60, 30, 10)
    space = Tokens(6, 8, 4, 5, counts)
    task = predict.build(space, small(space), predict.Options())
    shares = task.outer(torch.zeros(1, 16), task.encoder).softmax(-1)[0]
    torch.testing.assert_close(shares[5:], torch.tensor([0.6, 0.3, 0.1]), atol=5e-3, rtol=0)


def test_averaged_weights_follow_quickly_at_first():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    average = trainer._Average(layer, 0.99)
    torch.nn.init.ones_(layer.weight)
    average.update(layer, 0)
    assert float(average.tensors["weight"]) == pytest.approx(0.9)
    average.update(layer, 10_000)
    assert float(average.tensors["weight"]) == pytest.approx(0.9 + 0.1 * 0.01)
