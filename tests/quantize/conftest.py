"""Portable models to quantize: the targets' BERT, ViT and ResNet, and inputs at several lengths to calibrate on."""

from __future__ import annotations

import numpy as np
import pytest

from tests.targets.conftest import export, resnet, vit  # noqa: F401


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """The targets' BERT with random biases: exporters make one constant of equal ones, and trained ones are not."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=113,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return export(model, tmp_path_factory.mktemp("bert"), "text", 2)


def as_arrays(feeds):
    return {name: np.asarray(tensor) for name, tensor in feeds.items()}


@pytest.fixture(scope="session")
def calibration():
    """``calibration(portable)``: 12 batches of two inputs, padded where they are texts."""

    def make(portable):
        return [as_arrays(portable.feeds(2, 5 + i)) for i in range(12)]

    return make


@pytest.fixture(scope="session")
def cosine():
    """The worst row's cosine between a model on onnxruntime and torch, over several shapes."""
    import onnxruntime

    def worst(path, portable):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        taken = {value.name for value in session.get_inputs()}
        scores = []
        for batch, length in ((1, 3), (2, 8), (5, 17), (3, 33)):
            feeds = portable.feeds(batch, length)
            want = portable.reference(feeds)
            got = session.run(None, {name: array for name, array in as_arrays(feeds).items() if name in taken})[0]
            norms = np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1)
            scores.append(((want * got).sum(1) / norms).min())
        return min(scores)

    return worst
