"""Triton's repository, parsed with the message that the server itself reads: ``inference.ModelConfig``."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from deploykit.bundle.layouts import write
from deploykit.bundle.layouts.triton import caveat
from deploykit.errors import RecipeError
from deploykit.runtime.manifest import Limits, TensorSpec, Variant
from tests.runtime import made

pytest.importorskip("onnx")
pytest.importorskip("tokenizers")
text_format = pytest.importorskip("google.protobuf.text_format")


@pytest.fixture(scope="module")
def model_config():
    """The message class, without the client around it, which needs gRPC."""
    package = importlib.util.find_spec("tritonclient")
    if package is None:
        pytest.skip("tritonclient is not installed")
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(model_config, folder, name="tiny"):
    return text_format.Parse((folder / name / "config.pbtxt").read_text(), model_config.ModelConfig())


def tensors(specs):
    return [(spec.name, spec.data_type, list(spec.dims)) for spec in specs]


def bf16_variant(work):
    files = {}
    for suffix in (".xml", ".bin"):
        (work / f"v{suffix}").write_bytes(suffix.encode())
        files[f"models/v{suffix}"] = work / f"v{suffix}"
    settings = {"INFERENCE_PRECISION_HINT": "bf16"}
    return Variant("v", "openvino", "bf16", "models/v.xml", settings, requires={"architecture": ["x86_64"]}), files


def test_onnxruntime_gets_a_batch_that_the_server_makes(model_config, tmp_path):
    bundle = made.bundle(tmp_path)
    written = write(bundle.root, "triton", tmp_path / "models")
    config = parsed(model_config, tmp_path / "models")
    assert written.files == (
        "README.md",
        "tiny/1/model.onnx",
        "tiny/config.pbtxt",
        "tiny/preprocess/tokenizer.json",
    )
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 32)
    int64, fp32 = model_config.TYPE_INT64, model_config.TYPE_FP32
    assert tensors(config.input) == [("input_ids", int64, [-1]), ("attention_mask", int64, [-1])]
    assert tensors(config.output) == [("sentence_embedding", fp32, [6])]
    assert config.HasField("dynamic_batching")
    assert [group.kind for group in config.instance_group] == [model_config.ModelInstanceGroup.KIND_CPU]


def test_the_bound_of_the_batch_is_the_bundles(model_config, tmp_path):
    card = replace(made.card(), limits=Limits({"length": (1, 96), "batch": (1, 4)}))
    bundle = made.bundle(tmp_path, card=card)
    write(bundle.root, "triton", tmp_path / "models", name="other")
    assert parsed(model_config, tmp_path / "models", "other").max_batch_size == 4


def test_a_graph_of_one_shape_is_not_batched(model_config, tmp_path):
    card = made.card()
    inputs = tuple(TensorSpec(spec.name, spec.dtype, (1, 16)) for spec in card.inputs)
    outputs = (TensorSpec("sentence_embedding", "float32", (1, 6)),)
    bundle = made.bundle(tmp_path, card=replace(card, inputs=inputs, outputs=outputs))
    write(bundle.root, "triton", tmp_path / "models")
    config = parsed(model_config, tmp_path / "models")
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (0, False)
    assert [list(spec.dims) for spec in (*config.input, *config.output)] == [[1, 16], [1, 16], [1, 6]]


def test_openvino_gets_its_precision_and_an_axis_for_the_batch(model_config, tmp_path):
    bundle = made.bundle(tmp_path, variants=[bf16_variant(tmp_path)], default="v")
    written = write(bundle.root, "triton", tmp_path / "models")
    config = parsed(model_config, tmp_path / "models")
    assert {"tiny/1/model.xml", "tiny/1/model.bin"} <= set(written.files)
    assert (config.backend, config.max_batch_size) == ("openvino", 0)
    assert [list(spec.dims) for spec in config.input] == [[-1, -1], [-1, -1]]
    assert config.parameters["HINT_BF16"].string_value == "YES"
    assert "x86_64" in (tmp_path / "models" / "README.md").read_text()


def test_what_it_would_run_in_another_precision_is_taken_only_by_name(tmp_path):
    variants = made.contents(tmp_path / "work").variants
    bundle = made.bundle(tmp_path, variants=variants, default="openvino-fp32")
    assert write(bundle.root, "triton", tmp_path / "a").variant == "onnxruntime-fp32"
    named = write(bundle.root, "triton", tmp_path / "b", "openvino-fp32")
    assert "cannot be told to compute in fp32" in named.caveat
    assert named.caveat in (tmp_path / "b" / "README.md").read_text()
    assert not caveat(bf16_variant(tmp_path)[0])


def test_a_graphics_card_is_asked_for_by_a_variant_that_needs_one(model_config, tmp_path):
    variant = Variant("cuda", "onnxruntime-cuda", "fp32", "models/fp32.onnx", requires={"compute_capability": "7.0"})
    bundle = made.bundle(tmp_path, variants=[(variant, {})], default="cuda")
    write(bundle.root, "triton", tmp_path / "models", "cuda")
    config = parsed(model_config, tmp_path / "models")
    assert config.backend == "onnxruntime"
    assert [group.kind for group in config.instance_group] == [model_config.ModelInstanceGroup.KIND_GPU]


def test_a_type_that_triton_lacks_is_refused(tmp_path):
    card = made.card()
    inputs = (TensorSpec("input_ids", "complex64", ("batch",)), *card.inputs[1:])
    bundle = made.bundle(tmp_path, card=replace(card, inputs=inputs))
    with pytest.raises(RecipeError, match="no type 'complex64'"):
        write(bundle.root, "triton", tmp_path / "models")


@pytest.mark.parametrize("name", ['quote"d', "späte\\r"])
def test_tensor_names_are_quoted(model_config, tmp_path, name):
    outputs = (TensorSpec(name, "float32", ("batch", 6)),)
    bundle = made.bundle(tmp_path, card=replace(made.card(), outputs=outputs))
    write(bundle.root, "triton", tmp_path / "models")
    assert [spec.name for spec in parsed(model_config, tmp_path / "models").output] == [name]
