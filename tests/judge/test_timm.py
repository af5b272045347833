"""timm as judge, with a package of that name that holds one small model."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from deploykit.judge import Choices, Raw, open_library


@pytest.fixture
def timm(monkeypatch):
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def forward(self, pixels):
            return pixels.flatten(2).mean(dim=2)

    fake = ModuleType("timm")
    fake.asked = []
    fake.__version__ = "1.2.3"

    def create_model(name, **options):
        fake.asked.append((name, options))
        return Net()

    def create_transform(size, is_training):
        return lambda image: torch.from_numpy(np.asarray(image.resize(size)) / 255.0).permute(2, 0, 1).float()

    fake.create_model = create_model
    fake.data = SimpleNamespace(
        resolve_data_config=lambda config, model: {"size": (4, 4)}, create_transform=create_transform
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


def test_its_model_and_its_transform_answer(timm, tmp_path):
    from PIL import Image

    path = tmp_path / "red.png"
    Image.new("RGBA", (8, 6), (255, 51, 0, 9)).save(path)
    choices = Choices("image", "max", asked_pooling="max", dim=2, normalize=True)
    library = open_library("timm", "timm:resnet", choices)
    vector = library.encode(Raw("red.png", path))
    np.testing.assert_allclose(vector, np.array([1.0, 0.2]) / np.hypot(1.0, 0.2), atol=1e-6)
    assert timm.asked == [("resnet", {"pretrained": True, "num_classes": 0, "global_pool": "max"})]
    assert library.version == "1.2.3"
    assert library.overridden == ("pooling max", "dim 2", "normalize True")
    assert library.decoded(Raw("red.png", path)).shape == (6, 8, 3)
    assert library.tensors(Raw("red.png", path))["pixel_values"].shape == (1, 3, 4, 4)
