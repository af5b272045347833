"""A result of a bench, made up: two variants, two baselines, two lengths, one baseline out of reach."""

import random

from deploykit.measure import result

POINTS = [(1, 16, 1), (8, 16, 1), (1, 128, 1), (8, 128, 1)]
SPEEDS = {"openvino-bf16": 1.0, "openvino-int8": 0.8, "torch": 4.0, "plain-onnxruntime": 2.2}
DRIFTS = {"openvino-bf16": 4.2e-5, "openvino-int8": 4.1e-3, "torch": 0.0, "plain-onnxruntime": 2e-13}


def name_of(batch, length, concurrency):
    return f"b{batch}-l{length or 'real'}-c{concurrency}"


def measured(rng, speed, batch, length, concurrency, calls):
    base = speed * (0.5 + 0.01 * batch * (length or 40))
    rounds = []
    for number in range(1, 4):
        times = [base * rng.uniform(0.97, 1.05) for _ in range(calls)]
        answer = {"times_ms": times, "wall_s": sum(times) / 1000, "items": batch, "round": number}
        rounds.append(answer | {"tokens": float(batch * (length or 30)), "padded": float(batch * (length or 40))})
    return result.measurement(name_of(batch, length, concurrency), rounds, 0.05 * batch)


def subject(name, calls=40, points=POINTS, speed=None, drift=None):
    rng = random.Random(name)
    baseline = name in ("torch", "torch-bf16", "torch-compile") or name.startswith("plain")
    buckets = [
        {"size": "1 to 16", "n": 200, "mean": 1 - 2 * DRIFTS.get(name, 0), "min": 1 - 20 * DRIFTS.get(name, 0)},
        {"size": "17 to 32", "n": 90, "mean": 1 - DRIFTS.get(name, 0), "min": 1 - 5 * DRIFTS.get(name, 0)},
    ]
    process = {"round": 1, "start": {}, "peak_rss_bytes": 3e8, "noise": {"steal": 0.0, "load": 0.1}}
    basis = {"basis": "self-test", "n": 12, "data": "the self-test"}
    if not baseline:
        basis = {"basis": "drift", "n": 290, "data": "valid.txt"}
    return {
        "name": name,
        "kind": "baseline" if baseline else "variant",
        "bundle": "minilm",
        "what": "the source in torch, eager, float32" if name == "torch" else "",
        "target": name.partition("-")[0],
        "precision": "fp32",
        "bytes": 90_400_000,
        "accuracy": {"drift": DRIFTS.get(name, 0.0) if drift is None else drift, **basis},
        "drift_by_size": [] if baseline else buckets,
        "audit": [] if baseline else ["37 FullyConnected in bf16; 6 of 6 attentions are fused."],
        "effective": {"engine": "openvino", "threads": 2},
        "start": {key: result.span([100.0, 120.0, 1510.0]) for key in ("import_ms", "load_ms", "first_call_ms")},
        "peak_rss_bytes": result.span([3.0e8, 3.1e8, 3.2e8]),
        "processes": [process],
        "measurements": [measured(rng, speed or SPEEDS.get(name, 1.5), *point, calls) for point in points],
    }


def made(subjects=tuple(SPEEDS), points=POINTS, **changes):
    data = {
        "schema": result.SCHEMA,
        "created": "2026-11-23T20:00:00+00:00",
        "command": "deploykit bench minilm.bundle",
        "options": {
            "batch": sorted({p[0] for p in points}),
            "length": [16, 128],
            "concurrency": [1],
            "seconds": 1.0,
            "rounds": 3,
            "threads": 2,
            "seed": 0,
        },
        "data": {"name": "valid.txt", "builtin": False, "modality": "text", "inputs": 300},
        "hardware": {"id": "3f9c21ab", "cpu": "Some CPU", "cores": 2},
        "software": {"python": "3.11.7", "openvino": "2026.4.1"},
        "noise": {"load_before": 0.1, "steal_max": 0.001, "warnings": []},
        "bundles": [{"label": "minilm", "path": "minilm.bundle", "digest": "ab" * 32}],
        "points": [
            {"name": name_of(*point), "batch": point[0], "length": point[1], "concurrency": point[2]}
            for point in points
        ],
        "subjects": [subject(name, points=points) for name in subjects],
        "unavailable": [
            {"name": "torch-compile", "kind": "baseline", "reason": "there is no g++", "hint": "install g++"}
        ],
        "notes": [],
        "seconds": 61.0,
    }
    return data | changes
