"""What every registered target, precision, source and objective must offer; a new one is covered by being there."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from deploykit import registry
from deploykit.errors import UnknownNameError
from deploykit.graph.prove import Tolerance
from deploykit.runtime import engines


def every(kind):
    return pytest.mark.parametrize("name", registry.names(kind))


def parameters(function):
    return list(inspect.signature(function).parameters)


def assert_options(module):
    assert dataclasses.is_dataclass(module.Options)
    assert module.Options.__dataclass_params__.frozen
    assert module.Options() == module.Options()  # every option has a default
    assert module.Options.__doc__


@every("targets")
def test_a_target_compiles_audits_and_has_an_engine(name):
    module = registry.module("targets", name)
    assert_options(module)
    assert parameters(module.compile) == ["model", "card", "precision", "options", "out"]
    assert parameters(module.audit) == ["artifact", "card", "settings"]
    assert set(module.PRECISIONS) <= set(registry.names("precisions"))
    assert name in engines.names()


@every("precisions")
def test_a_precision_lowers_and_says_how_far_it_may_be_off(name):
    module = registry.module("precisions", name)
    assert_options(module)
    assert parameters(module.lower) == ["task", "options", "out"]
    assert isinstance(module.TOLERANCE, Tolerance)
    assert 0.9 <= module.TOLERANCE.cosine < 1
    assert isinstance(module.CALIBRATED, bool)
    assert set(module.FORMS) <= {*registry.names("targets"), "tensorrt"}
    if hasattr(module, "resolve"):
        resolved = module.resolve(module.Options())
        assert isinstance(resolved, module.Options)
        assert module.resolve(resolved) == resolved


@every("precisions")
def test_a_precision_is_offered_by_some_target(name):
    offers = [registry.module("targets", target).PRECISIONS for target in registry.names("targets")]
    # The graphs that TensorRT takes are made and checked before there is an engine to run them.
    assert any(name in offer for offer in offers) or "tensorrt" in registry.module("precisions", name).FORMS


@every("sources")
def test_a_source_matches_identifies_and_opens(name):
    module = registry.module("sources", name)
    assert parameters(module.matches) == ["spec"]
    assert parameters(module.identify) == ["spec", "options"]
    assert parameters(module.open) == ["spec", "options"]
    assert module.__doc__


@every("objectives")
def test_an_objective_asks_for_views_and_is_built_around_an_encoder(name):
    module = registry.module("objectives", name)
    assert_options(module)
    assert parameters(module.views) == ["options"]
    assert parameters(module.build) == ["space", "encoder", "options"]
    assert module.views(module.Options()) == 0 or module.views(module.Options()) >= 2


@pytest.mark.parametrize("kind", registry.KINDS)
def test_an_unknown_name_gives_the_nearest(kind):
    known = registry.names(kind)[0]
    with pytest.raises(UnknownNameError) as caught:
        registry.module(kind, known + "x")
    assert known in caught.value.hint
