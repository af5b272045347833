"""A manifest to report on: three variants that passed, one that was refused, and hostile text."""

from deploykit.runtime.manifest import (
    SCHEMA,
    Card,
    Embedding,
    FileEntry,
    Limits,
    Manifest,
    SelfTest,
    TensorSpec,
    Variant,
)


def latency(single, batch, hardware="3f9c21ab"):
    def row(p50, shape, calls):
        return {
            "p50_ms": p50,
            "low_ms": p50 * 0.98,
            "high_ms": p50 * 1.04,
            "blocks": 12,
            "calls": calls,
            "shape": shape,
        }

    return {"hardware": hardware, "single": row(single, [1, 16], 640), "batch": row(batch, [32, 128], 36)}


def proof(cosine, error=0.0004):
    return {
        "cases": 42,
        "cosine_min": cosine,
        "relative_error_max": error,
        "worst_at": {"batch": 5, "length": 32},
        "tolerance": {"cosine": 0.995, "relative_error": 0.15},
    }


def variant(name, path, cosine, times, audit="every operation runs in float32"):
    target, _, precision = name.rpartition("-")
    settings = {"INFERENCE_PRECISION_HINT": "bf16"} if target == "openvino" else {}
    return Variant(
        name,
        target,
        precision,
        path,
        settings,
        {},
        proof(cosine),
        {"sentence": audit, "notes": ["weights are stored in fp16"], "effective": {"threads": 2}},
        latency(*times),
    )


def manifest(name="all-MiniLM-L6-v2", refused=True):
    reason = {
        "variant": "openvino-int8",
        "step": "verify:openvino-int8",
        "reason": "openvino-int8 disagrees with the original model in 3 of 42; the worst is length 32: cosine 0.82000",
        "hint": "axis 'length' decides: wrong at 32, right at every other size",
    }
    card = Card(
        name=name,
        modality="text",
        inputs=(
            TensorSpec("input_ids", "int64", ("batch", "length")),
            TensorSpec("attention_mask", "int64", ("batch", "length")),
        ),
        outputs=(TensorSpec("sentence_embedding", "float32", ("batch", 384)),),
        embedding=Embedding("sentence_embedding", 384, "mean", True),
        preprocess={"kind": "text", "max_length": 256},
        limits=Limits({"length": (1, 256)}),
        provenance={"source": "all-MiniLM-L6-v2/", "sha256": "5e1f" * 16, "license": "apache-2.0"},
    )
    return Manifest(
        schema=SCHEMA,
        card=card,
        variants=(
            variant("onnxruntime-fp32", "models/fp32.onnx", 0.9999998, (4.9, 310.0)),
            variant("openvino-fp32", "models/openvino-fp32.xml", 0.9999996, (2.31, 375.2)),
            variant(
                "openvino-bf16", "models/openvino-bf16.xml", 0.99981, (1.72, 122.4), "98 of 104 operations run in bf16"
            ),
        ),
        selftest=SelfTest("selftest/inputs.json", "selftest/reference.npy", {"onnxruntime-fp32": 0.9999}),
        files={
            "models/fp32.onnx": FileEntry("0" * 64, 90_400_000),
            "models/openvino-fp32.xml": FileEntry("1" * 64, 400_000),
            "models/openvino-fp32.bin": FileEntry("2" * 64, 90_000_000),
            "models/openvino-bf16.xml": FileEntry("3" * 64, 400_000),
            "models/openvino-bf16.bin": FileEntry("4" * 64, 45_000_000),
        },
        default="openvino-bf16",
        refused=(reason,) if refused else (),
        provenance={"deploykit": "0.1.0", "versions": {"onnxruntime": "1.32.0", "openvino": "2026.4.1"}},
    )
