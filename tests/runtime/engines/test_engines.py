import threading

import numpy as np
import pytest

from deploykit.runtime import engines
from deploykit.runtime.engines import EngineOptions, open_engine
from deploykit.runtime.errors import BundleError, InputError, MissingError, UnknownNameError
from tests.runtime import made

ENGINES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("onnx")
    return made.save_model(tmp_path_factory.mktemp("engines") / "model.onnx")


@pytest.fixture(params=ENGINES)
def engine(request, model):
    pytest.importorskip(request.param)
    opened = open_engine(request.param, model, made.card(), {}, EngineOptions(threads=2))
    yield opened
    opened.close()


def feeds(rows, length, seed=0):
    ids = np.random.default_rng(seed).integers(0, len(made.WORDS), (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def expected(batch):
    return made.TABLE[batch["input_ids"]].mean(axis=1)


def vectors(outputs):
    return outputs["sentence_embedding"]


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 7), (5, 3)])
def test_one_batch_runs(engine, rows, length):
    batch = feeds(rows, length)
    np.testing.assert_allclose(vectors(engine.run(batch)), expected(batch), rtol=1e-5, atol=1e-6)


def test_many_batches_keep_their_order(engine):
    batches = [feeds(1 + i % 4, 1 + i % 9, seed=i) for i in range(30)]
    results = engine.run_many(iter(batches))
    for batch, result in zip(batches, results, strict=True):
        np.testing.assert_allclose(vectors(result), expected(batch), rtol=1e-5, atol=1e-6)


def test_no_batches_give_no_results(engine):
    assert engine.run_many([]) == []


def test_outputs_belong_to_the_caller(engine):
    first = vectors(engine.run(feeds(2, 4)))
    kept = first.copy()
    engine.run(feeds(2, 4, seed=1))
    assert np.array_equal(first, kept)
    assert first.dtype == np.float32
    results = [vectors(r) for r in engine.run_many([feeds(2, 4, seed=i) for i in range(6)])]
    assert len({r.tobytes() for r in results}) == 6


def test_arrays_that_are_views_or_read_only_are_taken(engine):
    batch = feeds(4, 6)
    odd = {name: np.asfortranarray(array) for name, array in batch.items()}
    odd["attention_mask"] = np.broadcast_to(np.int64(1), (4, 6))
    np.testing.assert_allclose(vectors(engine.run(odd)), expected(batch), rtol=1e-5, atol=1e-6)


def test_both_verbs_may_be_called_from_several_threads(engine):
    failures = []

    def work(seed):
        for i in range(5):
            batch = feeds(1 + seed, 3 + i, seed=seed)
            for result in (engine.run(batch), *engine.run_many([batch, batch])):
                if not np.allclose(vectors(result), expected(batch), rtol=1e-4, atol=1e-6):
                    failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_it_states_what_runs(engine):
    assert engine.effective["engine"] in ENGINES
    assert engine.effective["threads"] == 2
    assert engine.effective["streams"] == 1
    assert engine.effective["streams_many"] == 2
    assert engine.effective["version"]
    assert "CPU" in engine.effective["device"]


def test_a_failing_batch_names_the_file_and_the_shapes(engine):
    batch = feeds(2, 3)
    batch["attention_mask"] = np.ones((3, 5), np.int64)
    for call in (engine.run, lambda b: engine.run_many([b])):
        with pytest.raises(InputError, match=r"(?s)failed in 'model.onnx' on input_ids \[2, 3\].*\[3, 5\]"):
            call(batch)
    assert vectors(engine.run(feeds(1, 2))).shape == (1, 6)


@pytest.mark.parametrize("name", ENGINES)
def test_a_file_that_is_no_model_is_refused(name, tmp_path):
    pytest.importorskip(name)
    (tmp_path / "model.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(BundleError, match=r"cannot load 'model\.onnx'"):
        open_engine(name, tmp_path / "model.onnx", made.card(), {}, EngineOptions())


def test_openvino_runs_f32_unless_told_otherwise(model):
    pytest.importorskip("openvino")
    engine = open_engine("openvino", model, made.card(), {}, EngineOptions(threads=1))
    assert engine.effective["precision"] == "f32"
    engine.close()


def test_openvino_refuses_a_precision_that_it_would_not_run(model):
    openvino = pytest.importorskip("openvino")
    engine = open_engine("openvino", model, made.card(), {}, EngineOptions(threads=1))

    class InBf16:
        def get_property(self, name):
            return openvino.Type.bf16

    with pytest.raises(MissingError, match="is to run in f32, and OpenVINO runs it in bf16"):
        engine._check_precision(InBf16())
    engine.close()


def test_openvino_reads_its_own_format(model, tmp_path):
    openvino = pytest.importorskip("openvino")
    openvino.save_model(openvino.Core().read_model(model), tmp_path / "model.xml", compress_to_fp16=False)
    engine = open_engine("openvino", tmp_path / "model.xml", made.card(), {}, EngineOptions())
    np.testing.assert_allclose(vectors(engine.run(feeds(2, 3))), expected(feeds(2, 3)), rtol=1e-5, atol=1e-6)
    engine.close()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"graph_optimisation": "all"}, "did you mean 'graph_optimization'"),
        ({"graph_optimization": "most"}, "known: all"),
    ],
)
def test_onnxruntime_refuses_settings_that_it_does_not_have(model, settings, reason):
    pytest.importorskip("onnxruntime")
    with pytest.raises(BundleError, match=reason):
        open_engine("onnxruntime", model, made.card(), settings, EngineOptions())


def test_onnxruntime_takes_its_own_settings(model):
    pytest.importorskip("onnxruntime")
    settings = {"graph_optimization": "off", "config": {"session.intra_op.allow_spinning": "0"}}
    engine = open_engine("onnxruntime", model, made.card(), settings, EngineOptions(threads=1))
    assert vectors(engine.run(feeds(1, 2))).shape == (1, 6)
    engine.close()


def test_external_data_outside_the_folder_is_not_read(model, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    loaded = onnx.load(model)
    weights = loaded.graph.initializer[0]
    (tmp_path / "secret").write_bytes(weights.raw_data)
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../secret")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.onnx").write_bytes(loaded.SerializeToString())
    with pytest.raises(BundleError, match=r"cannot load 'model\.onnx'"):
        open_engine("onnxruntime", tmp_path / "models" / "model.onnx", made.card(), {}, EngineOptions())


def test_an_unknown_engine_names_the_nearest(model):
    with pytest.raises(UnknownNameError, match="did you mean 'openvino'"):
        open_engine("openvno", model, made.card(), {}, EngineOptions())
    assert {"onnxruntime", "openvino"} <= set(engines.names())


def test_an_engine_that_is_not_installed_gives_the_pip_command(model, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingError, match=r'pip install "onnxruntime>='):
        open_engine("onnxruntime", model, made.card(), {}, EngineOptions())
