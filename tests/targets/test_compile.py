"""Both CPU targets: what is compiled must be equal to torch at every shape, fused, and say what it runs in."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from deploykit import registry
from deploykit.errors import ExportError, RecipeError
from deploykit.runtime import hardware

HAS_BF16 = bool({"amx_bf16", "avx512_bf16"} & hardware.cpu().features)
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 arithmetic")
VARIANTS = [
    ("onnxruntime", "fp32"),
    ("onnxruntime", "fp16"),
    ("openvino", "fp32"),
    ("openvino", "fp16"),
    pytest.param("openvino", "bf16", marks=needs_bf16),
]
COSINE = {"fp32": 0.999999, "fp16": 0.99999, "bf16": 0.995}
LENGTHS = (1, 2, 7, 8, 32, 64)


def worst_cosine(portable, run, batches, lengths):
    worst = 1.0
    for batch in batches:
        for length in lengths:
            feeds = portable.feeds(batch, length)
            want, got = portable.reference(feeds), run(feeds)
            cosines = (want * got).sum(1) / np.linalg.norm(want, axis=1) / np.linalg.norm(got, axis=1)
            worst = min(worst, float(cosines.min()))
    return worst


@pytest.mark.parametrize("encoder", ["bert", "vit", "resnet"])
@pytest.mark.parametrize(("target", "precision"), VARIANTS)
def test_artefacts_are_equal_to_torch_and_every_attention_is_fused(request, compiled, encoder, target, precision):
    portable = request.getfixturevalue(encoder)
    _, audit, run = compiled(target, precision, portable)
    assert audit["attention"] == {"found": portable.attentions, "fused": portable.attentions}
    lengths = LENGTHS if encoder == "bert" else (1,)
    assert worst_cosine(portable, run, (1, 2, 5), lengths) >= COSINE[precision]


@pytest.mark.parametrize(("target", "precision"), [("onnxruntime", "fp32"), *VARIANTS[4:]])
def test_all_six_attentions_of_minilm_are_fused(compiled, minilm, target, precision):
    _, audit, run = compiled(target, precision, minilm)
    assert audit["attention"] == {"found": 6, "fused": 6}
    assert worst_cosine(minilm, run, (1, 5), (1, 7, 31, 32, 33, 64, 128)) >= {"fp32": 0.99999, "bf16": 0.999}[precision]


def test_openvino_states_the_precision_that_it_computes_in(compiled, bert):
    result, audit, _ = compiled("openvino", "fp32", bert)
    assert result.settings == {"INFERENCE_PRECISION_HINT": "f32"}
    assert (audit["asked"], audit["effective"]) == ("fp32", "fp32")
    assert audit["operations"]["FullyConnected"] == {"fp32": 12}
    assert "bf16" not in json.dumps(audit)


@needs_bf16
def test_openvino_runs_every_matrix_product_in_bf16(compiled, bert):
    result, audit, _ = compiled("openvino", "bf16", bert)
    assert result.settings == {"INFERENCE_PRECISION_HINT": "bf16"}
    assert result.requires == {"architecture": ["x86_64"], "cpu_features": ["amx_bf16|avx512_bf16"]}
    assert audit["operations"]["FullyConnected"] == {"bf16": 13}  # the model's 12 and the one that ends the fp32 tail
    assert audit["operations"]["MVN"] == {"bf16": 5}
    assert audit["effective"] == "bf16"


@needs_bf16
def test_openvino_normalises_in_fp32_when_asked(bert, tmp_path):
    target = registry.module("targets", "openvino")
    result = target.compile(bert.path, bert.card, "bf16", target.Options(bf16_residual=False), tmp_path)
    audit = target.audit(tmp_path / result.path, bert.card, result.settings)
    assert audit["operations"]["FullyConnected"] == {"bf16": 12}
    assert audit["operations"]["MVN"] == {"fp32": 5}


def test_bf16_compiles_wherever_it_may_run_later(bert, tmp_path):
    target = registry.module("targets", "openvino")
    result = target.compile(bert.path, bert.card, "bf16", target.Options(), tmp_path)
    assert (tmp_path / result.path).with_suffix(".bin").exists()


def test_openvino_fp16_says_that_it_computes_in_fp32(compiled, bert):
    result, audit, _ = compiled("openvino", "fp16", bert)
    assert "computes in fp32" in result.notes[0]
    assert (audit["asked"], audit["effective"]) == ("fp16", "fp32")


def test_onnxruntime_folds_the_casts_of_fp16_weights(compiled, bert):
    result, audit, _ = compiled("onnxruntime", "fp16", bert)
    assert audit["casts_folded"]
    assert audit["asked"] == "fp16"
    assert set(audit["operations"]["MatMul"]) == {"fp32"}
    assert "computes in fp32" in result.notes[0]


def test_onnxruntime_loads_the_portable_model_where_there_is_nothing_to_fuse(compiled, resnet):
    result, audit, _ = compiled("onnxruntime", "fp32", resnet)
    assert result.path == ""
    assert audit["attention"] == {"found": 0, "fused": 0}


def test_onnxruntime_artefacts_hold_no_operator_that_its_optimiser_lays_out_for_one_cpu(bert, tmp_path):
    import onnx

    target = registry.module("targets", "onnxruntime")
    target.compile(bert.path, bert.card, "fp32", target.Options(), tmp_path)
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert {(n.domain, n.op_type) for n in nodes if n.domain} == {("com.microsoft", "MultiHeadAttention")}


def test_attention_stays_written_out_when_asked(bert, tmp_path):
    target = registry.module("targets", "onnxruntime")
    options = target.Options(fuse_attention=False)
    result = target.compile(bert.path, bert.card, "fp32", options, tmp_path)
    assert result.path == ""
    assert target.audit(bert.path, bert.card, result.settings)["attention"] == {"found": 2, "fused": 0}


def test_onnxruntime_refuses_bf16_and_names_what_it_has(bert, tmp_path):
    target = registry.module("targets", "onnxruntime")
    with pytest.raises(RecipeError, match="bf16") as error:
        target.compile(bert.path, bert.card, "bf16", target.Options(), tmp_path)
    assert "fp32 and fp16" in error.value.hint


def test_openvino_names_an_operator_that_it_cannot_convert(bert, tmp_path):
    import onnx

    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 20, "com.nobody": 1]>
        g (float[b, 3] x) => (float[b, 3] y) { y = com.nobody.Frobnicate(x) }"""
    )
    onnx.save(model, tmp_path / "strange.onnx")
    target = registry.module("targets", "openvino")
    with pytest.raises(ExportError, match="Frobnicate"):
        target.compile(tmp_path / "strange.onnx", bert.card, "fp32", target.Options(), tmp_path)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_audits_are_plain_data_with_a_sentence(compiled, bert, target):
    _, audit, _ = compiled(target, "fp32", bert)
    assert json.loads(json.dumps(audit)) == audit
    assert audit["sentence"].startswith(audit["engine"])
    assert "2 of 2 attentions" in audit["sentence"]
