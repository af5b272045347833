import numpy as np
import pytest
import torch

from deploykit import data, sources
from deploykit.errors import SourceError
from deploykit.graph.export import ExportOptions, export, onnxruntime_runner
from deploykit.pretrain import run
from deploykit.runtime.preprocess import open_preprocessor
from tests.pretrain import made


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run for each modality."""
    folders = {}
    for modality, encoder in (("image", "resnet"), ("text", "transformer"), ("audio", "transformer")):
        root = tmp_path_factory.mktemp(modality)
        recipe = made.recipe(root / "run", made.data_for(modality, root), modality=modality, encoder=encoder)
        folders[modality] = run.pretrain(recipe).folder
    return folders


@pytest.mark.parametrize("modality", ["image", "text", "audio"])
def test_a_run_is_a_source(trained, modality):
    spec = str(trained[modality])
    identity = sources.resolve(spec)
    assert identity.kind == "checkpoint"
    assert identity.digest == sources.resolve(spec).digest
    source = sources.open_source(spec)
    assert source.card.modality == modality
    assert source.card.provenance["probes"]["trained"]["held_out"]["n"] > 0
    inputs = source.make_inputs(3, {axis: max(sizes) for axis, sizes in source.sizes.items()}, 0)
    assert source.module(**inputs).shape == (3, source.card.embedding.dim)


@pytest.mark.parametrize("modality", ["image", "text", "audio"])
def test_a_run_exports_and_both_engines_encode_as_it_was_judged(trained, modality, tmp_path):
    import shutil

    import openvino

    source = sources.open_source(str(trained[modality]))
    exported, _ = export(source, ExportOptions(exporter="dynamo"), tmp_path)
    for inside, path in source.files.items():
        (tmp_path / inside).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / inside)
    given = data.read(made.data_for(modality, tmp_path)).inputs[:5]
    preprocessor = open_preprocessor(source.card, tmp_path)
    feeds = preprocessor.collate(preprocessor.items(given))
    expected = judged(trained[modality], given)
    with onnxruntime_runner(exported.model, source.card) as encode:
        np.testing.assert_allclose(encode(feeds), expected, rtol=1e-3, atol=1e-4)
    compiled = openvino.Core().compile_model(exported.model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled(feeds)[0], expected, rtol=1e-3, atol=1e-4)


def judged(folder, given):
    """Embeddings as the probes see them: held in memory, through the encoder itself."""
    import json

    from safetensors.torch import load_file

    from deploykit.pretrain.recipe import PretrainRecipe, piece

    card = json.loads((folder / "card.json").read_text())
    recipe = PretrainRecipe.from_data(card["recipe"])
    adapter = piece("modality", recipe.modality).Adapter(recipe.options["modality"], card["modality"]["facts"])
    encoder = piece("encoder", recipe.encoder).build(adapter.space, recipe.options["encoder"]).eval()
    encoder.load_state_dict(load_file(folder / "encoder.safetensors"))
    arrays = [adapter.read(item) for item in given]
    held = tuple(torch.from_numpy(np.stack(column)) for column in zip(*arrays, strict=True))
    with torch.no_grad():
        return encoder(adapter.clean(held)).numpy()


def test_other_weights_are_refused(trained, tmp_path):
    import shutil

    shutil.copytree(trained["image"], tmp_path / "copy")
    shutil.copy(trained["text"] / "encoder.safetensors", tmp_path / "copy" / "encoder.safetensors")
    with pytest.raises(SourceError, match="another architecture"):
        sources.open_source(str(tmp_path / "copy"))


def test_a_truncated_file_is_refused(trained, tmp_path):
    import shutil

    shutil.copytree(trained["image"], tmp_path / "copy")
    path = tmp_path / "copy" / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SourceError, match="bytes and needs"):
        sources.resolve(str(tmp_path / "copy"))


def test_another_pooling_is_refused(trained):
    with pytest.raises(SourceError, match="pools by mean"):
        sources.open_source(str(trained["text"]), sources.Options(pooling="cls"))
