"""The CUDA provider's graphs: what they compute in, what a device must have, and that a CPU gets the same numbers."""

from __future__ import annotations

import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from deploykit import registry  # noqa: E402
from deploykit.errors import RecipeError  # noqa: E402
from deploykit.graph import prove  # noqa: E402
from deploykit.precisions import Task  # noqa: E402
from deploykit.targets import onnxruntime_cuda  # noqa: E402
from tests.quantize.conftest import as_arrays, bert, resnet, vit  # noqa: F401, E402


@pytest.fixture
def compiled(request, tmp_path):
    """``compiled(model, precision)``: (the portable model, what `compile` gave, the artefact)."""

    def make(model, precision, **options):
        portable = request.getfixturevalue(model)
        module = registry.module("precisions", precision)
        task = Task(portable.path, portable.card, module.FORMS.get("onnxruntime-cuda", ""))
        facts = module.lower(task, module.Options(), tmp_path)
        source = portable.path if facts.get("unchanged") else tmp_path / "model.onnx"
        out = tmp_path / "out"
        out.mkdir()
        found = onnxruntime_cuda.compile(source, portable.card, precision, onnxruntime_cuda.Options(**options), out)
        return portable, found, out / found.path if found.path else portable.path

    return make


@pytest.mark.parametrize("model", ["bert", "vit", "resnet"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_cpu_computes_the_numbers_of_the_graph(compiled, model, precision):
    portable, found, artifact = compiled(model, precision)
    engine = onnxruntime_cuda.check_engine(artifact, portable.card, found.settings)
    feeds = portable.feeds(3, 13)
    case = prove.Case({"batch": 3, "length": 13}, as_arrays(feeds), portable.reference(feeds))
    tolerance = registry.module("precisions", precision).TOLERANCE
    output = portable.card.embedding.output
    proof = prove.prove([case], lambda given: engine.run(given)[output], tolerance, model)
    assert proof["cosine_min"] > 0.9999
    engine.close()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_audit_counts_products_and_attention(compiled, precision):
    portable, found, artifact = compiled("bert", precision)
    facts = onnxruntime_cuda.audit(artifact, portable.card, found.settings)
    assert (facts["asked"], facts["effective"]) == (precision, precision)
    assert facts["products"] == {precision: 12}
    assert facts["attention"] == {"found": 2, "fused": 2}
    assert found.requires["packages"] == {"onnxruntime-gpu": ">=1.24.1"}
    assert found.requires["compute_capability"] == "7.5"


def test_attention_that_is_left_written_out_is_counted_so(compiled):
    portable, found, artifact = compiled("bert", "fp16", fuse_attention=False)
    facts = onnxruntime_cuda.audit(artifact, portable.card, found.settings)
    assert facts["attention"] == {"found": 2, "fused": 0}
    assert facts["products"] == {"fp16": 16}


@pytest.mark.parametrize(
    ("precision", "said"), [("int8", "does not run 'int8'"), ("fp16", "no product of it is computed so")]
)
def test_what_would_compute_in_something_else_is_refused(bert, tmp_path, precision, said):  # noqa: F811
    with pytest.raises(RecipeError, match=said):
        onnxruntime_cuda.compile(bert.path, bert.card, precision, onnxruntime_cuda.Options(), tmp_path)
