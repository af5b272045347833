"""Weights that are computed at every call become values, and the module gives what it gave."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch")

from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm  # noqa: E402

from deploykit.graph.plain_weights import plain_weights  # noqa: E402


def normed(how):
    torch.manual_seed(0)
    convolution = torch.nn.Conv1d(4, 6, 3, padding=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older form is deprecated, and in checkpoints
        return torch.nn.Sequential(torch.nn.Linear(5, 5), how(convolution)).eval().requires_grad_(False)


@pytest.mark.parametrize(
    "how", [parametrizations.weight_norm, weight_norm, parametrizations.spectral_norm], ids=["new", "old", "spectral"]
)
def test_the_value_takes_the_place_of_what_computes_it(how):
    module = normed(how)
    x = torch.randn(2, 4, 5)
    before = module(x)
    assert plain_weights(module) == 1
    torch.testing.assert_close(module(x), before)
    assert not parametrize.is_parametrized(module[1])
    assert set(module.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert plain_weights(module) == 0


def test_a_plain_module_and_other_hooks_are_left_alone():
    module = normed(spectral_norm)  # a hook that this knows nothing of
    names = set(module.state_dict())
    assert plain_weights(module) == 0
    assert set(module.state_dict()) == names
