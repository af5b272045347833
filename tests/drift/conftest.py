import numpy as np
import pytest


@pytest.fixture
def vectors():
    """600 vectors of 4 classes, float32 [600, 24], and their classes."""
    rng = np.random.default_rng(5)
    classes = np.arange(600) % 4
    centres = rng.normal(size=(4, 24))
    return (0.8 * centres[classes] + rng.normal(size=(600, 24))).astype(np.float32), [f"c{c}" for c in classes]


@pytest.fixture
def noisy(vectors):
    """The same vectors with so much noise added, relative to their size."""

    def add(amount):
        noise = np.random.default_rng(6).normal(size=vectors[0].shape)
        return (vectors[0] + amount * noise).astype(np.float32)

    return add
