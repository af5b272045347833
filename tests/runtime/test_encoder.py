import os
import random
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploykit.bundle.pack import pack
from deploykit.runtime import load, selection
from deploykit.runtime.encoder import Encoder, _as_list
from deploykit.runtime.engines import EngineOptions
from deploykit.runtime.errors import BundleError, CheckError, InputError, MissingError, UnknownNameError
from deploykit.runtime.manifest import Embedding, Limits, SelfTest, TensorSpec, Variant
from deploykit.runtime.selection import Report
from tests.runtime import made

pytest.importorskip("onnxruntime")

STATM = Path("/proc/self/statm")


@pytest.fixture(scope="module")
def encoder(shared):
    with load(f"{shared.root}@onnxruntime-fp32", threads=2) as opened:
        yield opened


def texts(count, seed=0):
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(40)}" for _ in range(draw.randrange(90))) for _ in range(count)]


def assert_matches(vectors, inputs):
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(inputs), 6)
    np.testing.assert_allclose(vectors, np.stack([made.expected(text) for text in inputs]), rtol=1e-4, atol=1e-6)


def test_one_text_gives_one_row(encoder):
    assert_matches(encoder.encode("w1 w2"), ["w1 w2"])


def test_an_empty_list_gives_no_rows(encoder):
    assert encoder.encode([]).shape == (0, 6)
    assert encoder.encode(()).dtype == np.float32


def test_an_empty_text_is_its_special_tokens(encoder):
    assert_matches(encoder.encode(["", "w1", ""]), ["", "w1", ""])


@pytest.mark.parametrize("count", [2, 3, 40, 2500])
def test_the_order_is_that_of_the_inputs(encoder, count):
    assert_matches(encoder.encode(texts(count)), texts(count))


def test_a_text_of_more_characters_than_can_be_tokenised_is_refused(encoder):
    with pytest.raises(InputError, match=r"number 1 fails.*1,048,577 characters"):
        encoder.encode(["w1", "x" * (2**20 + 1)])


@pytest.mark.parametrize("bounds", [{"batch_tokens": 100}, {"batch_size": 1}, {"batch_size": 7, "batch_tokens": 300}])
def test_the_callers_batches_change_nothing(encoder, bounds):
    assert_matches(encoder.encode(texts(60), **bounds), texts(60))


def test_any_iterable_will_do(encoder):
    assert_matches(encoder.encode(text for text in ["w1", "w2"]), ["w1", "w2"])
    assert_matches(encoder.encode(np.array(["w1", "w2"])), ["w1", "w2"])


def test_a_text_of_ten_thousand_words_is_cut_at_the_maximum(encoder):
    long = "w3 " * 10_000
    assert_matches(encoder.encode([long, "w1"]), [long, "w1"])


def test_the_caller_owns_the_vectors(encoder):
    first = encoder.encode("w1")
    kept = first.copy()
    encoder.encode("w2")
    assert np.array_equal(first, kept)
    assert first.flags.writeable


def test_an_unknown_kind_is_not_blamed_on_an_input(encoder):
    with pytest.raises(InputError, match=r"^there is no prompt for kind 'query'"):
        encoder.encode(["w1", "w2"], kind="query")


@pytest.mark.parametrize("bad", [None, 3, b"w1", ["w1"]])
def test_what_is_no_text_is_named_by_its_place(encoder, bad):
    with pytest.raises(InputError, match=f"input 2 is a {type(bad).__name__}"):
        encoder.encode(["w1", "w2 w3", bad])


def test_half_a_surrogate_is_named_by_its_place(encoder):
    with pytest.raises(InputError, match=r"number 1 fails.*no Unicode text"):
        encoder.encode(["w1", "w2 \ud800", "w3 w4 w5 w6 w7"])


def test_bounds_below_one_are_refused(encoder):
    with pytest.raises(InputError, match="batch_size is 0"):
        encoder.encode(["w1"], batch_size=0)


def test_ready_tensors_go_to_the_graph(encoder):
    ids = np.array([[2, 5, 3], [2, 6, 3]])
    vectors = encoder.encode({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    np.testing.assert_allclose(vectors, made.TABLE[ids].mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"input_ids": np.ones((1, 2), np.int64)}, "attention_mask"),
        ({"input_ids": np.ones((1, 97), np.int64), "attention_mask": np.ones((1, 97), np.int64)}, "96"),
        ({"input_ids": np.ones((1, 2)), "attention_mask": np.ones((1, 2), np.int64)}, "float64"),
    ],
)
def test_wrong_ready_tensors_are_refused_before_the_engine(encoder, tensors, reason):
    with pytest.raises(InputError, match=reason):
        encoder.encode(tensors)


@pytest.mark.parametrize("variant", ["onnxruntime-fp32", "openvino-fp32"])
def test_many_threads_may_encode_at_once(shared, variant):
    pytest.importorskip(variant.partition("-")[0])
    failures = []

    def work(encoder, seed):
        try:
            assert_matches(encoder.encode(texts(30, seed)), texts(30, seed))
            assert_matches(encoder.encode(f"w{seed}"), [f"w{seed}"])
        except AssertionError as error:
            failures.append(error)

    with load(shared.root, variant, threads=2) as encoder:
        threads = [threading.Thread(target=work, args=(encoder, seed)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not failures


def _resident_bytes():
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not STATM.exists(), reason="reads the memory from /proc")
@pytest.mark.parametrize("variant", ["onnxruntime-fp32", "openvino-fp32"])
def test_a_long_run_does_not_grow(shared, variant):
    pytest.importorskip(variant.partition("-")[0])
    with load(shared.root, variant, threads=1) as encoder:

        def run(calls):
            for seed in range(calls):
                encoder.encode(texts(1 + seed % 3, seed))

        run(150)
        tracemalloc.start()
        held, resident = tracemalloc.get_traced_memory()[0], _resident_bytes()
        run(400)
        grown, resident_grown = tracemalloc.get_traced_memory()[0] - held, _resident_bytes() - resident
        tracemalloc.stop()
    # One vector, token array or future kept per call would be 400 times some hundred bytes, and more outside Python.
    assert grown < 40_000
    assert resident_grown < 8 << 20


@pytest.mark.parametrize("arena", [True, False])
def test_the_memory_arena_can_be_switched_off(shared, arena):
    with load(f"{shared.root}@onnxruntime-fp32", arena=arena) as encoder:
        assert_matches(encoder.encode(texts(40)), texts(40))
        assert encoder.effective.get("arena", True) is arena


def test_it_says_what_it_is(encoder):
    assert (encoder.dim, encoder.modality, encoder.variant.name) == (6, "text", "onnxruntime-fp32")
    assert encoder.effective["device"] == "CPUExecutionProvider"
    assert encoder.effective["threads"] == 2
    assert "tiny@onnxruntime-fp32" in repr(encoder)


def test_the_report_says_what_was_chosen_and_why(encoder):
    pytest.importorskip("openvino")
    with load(encoder.bundle.root, select="manifest") as opened:
        report = opened.report()
    assert (report.variant, report.why, report.passed_over) == ("onnxruntime-fp32", "the bundle's default", {})
    assert report.behind == {"openvino-fp32": "can run (not measured)"}
    assert "onnxruntime-fp32: the bundle's default" in str(report)
    assert "usable  openvino-fp32     can run (not measured)" in str(report)


def test_a_closed_encoder_says_so(shared):
    encoder = load(shared.root, "portable")
    encoder.close()
    encoder.close()
    with pytest.raises(InputError, match="closed"):
        encoder.encode("w1")
    with pytest.raises(InputError, match="closed"):
        encoder.encode(texts(50))


def test_a_packed_bundle_loads(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    packed = pack(shared.root, tmp_path / "tiny.dkb")
    with load(f"{packed}@onnxruntime-fp32") as encoder:
        assert_matches(encoder.encode("w1"), ["w1"])


def test_a_variant_may_be_named_in_the_path(shared):
    with load(f"{shared.root}@portable") as encoder:
        assert encoder.report().why == "asked for by name"


def test_two_different_names_are_refused(shared):
    with pytest.raises(InputError, match="names a variant"):
        load(f"{shared.root}@portable", variant="onnxruntime-fp32")


def test_an_unknown_variant_is_refused_with_what_there_is(shared):
    with pytest.raises(BundleError, match=r"(?s)no variant 'tensorrt'.*onnxruntime-fp32"):
        load(shared.root, variant="tensorrt")


def test_an_unknown_preference_is_refused(shared):
    with pytest.raises(UnknownNameError, match="prefer"):
        load(shared.root, prefer="colour")


def test_no_threads_are_refused(shared):
    with pytest.raises(InputError, match="threads is 0"):
        load(shared.root, threads=0)


def test_an_altered_bundle_is_not_loaded(tiny):
    with (tiny.root / "models" / "fp32.onnx").open("r+b") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match="was altered"):
        load(tiny.root)


NEEDS = Variant("fast", "onnxruntime", "bf16", "models/fp32.onnx", requires={"cpu_features": ["no_such_feature"]})


def test_a_default_that_cannot_run_is_passed_over_and_said(tmp_path, caplog):
    bundle = made.bundle(tmp_path, variants=[(NEEDS, {})], default="fast", selftest=made_selftest())
    with load(bundle.root) as encoder:
        assert encoder.report().why == "the portable fp32 model"
        assert encoder.report().passed_over == {"fast": "the CPU lacks no_such_feature"}
    assert "the CPU lacks no_such_feature" in caplog.text


def test_a_named_variant_that_cannot_run_is_an_error(tmp_path):
    bundle = made.bundle(tmp_path, variants=[(NEEDS, {})], default="", selftest=made_selftest())
    with pytest.raises(MissingError, match="no_such_feature"):
        load(bundle.root, variant="fast")


def test_no_engine_at_all_gives_the_pip_command(shared, monkeypatch):
    monkeypatch.setattr(selection.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError) as caught:
        load(shared.root)
    assert "pip install" in caught.value.hint
    with pytest.raises(MissingError, match=r'pip install "onnxruntime>='):
        load(shared.root, variant="onnxruntime-fp32")


def test_a_file_that_the_engine_cannot_load_is_a_reason(tmp_path):
    from onnx import load as read
    from onnx import save

    model = read(made.save_model(tmp_path / "broken.onnx"))
    model.graph.node[0].op_type = "NoSuchOperator"  # a plain model, which no engine knows
    save(model, tmp_path / "broken.onnx")
    broken = Variant("broken", "onnxruntime", "int8", "models/broken.onnx")
    bundle = made.bundle(
        tmp_path, variants=[(broken, {"models/broken.onnx": tmp_path / "broken.onnx"})], default="broken"
    )
    with load(bundle.root) as encoder:
        assert "cannot load 'broken.onnx'" in encoder.report().passed_over["broken"]
    with pytest.raises(BundleError, match=r"cannot load 'broken\.onnx'"):
        load(bundle.root, variant="broken")


def made_selftest():
    return SelfTest("selftest/inputs.json", "selftest/reference.npy", {})


class Fixed:
    """An engine that returns what it was told to."""

    def __init__(self, vectors):
        self.vectors, self.effective = vectors, {}

    def run(self, feeds):
        return {"sentence_embedding": self.vectors}

    def run_many(self, batches):
        return [self.run(feeds) for feeds in batches]

    def close(self):
        pass


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        (np.full((1, 6), np.nan, np.float32), "not finite"),
        (np.zeros((2, 6), np.float32), r"\[2, 6\] instead of \[1, 6\]"),
    ],
)
def test_vectors_that_are_wrong_never_leave(encoder, vectors, reason):
    broken = Encoder(
        encoder.bundle, encoder.variant, Fixed(vectors), encoder._preprocessor, Report("x", "", (), {}), lanes=1
    )
    with pytest.raises(CheckError, match=reason):
        broken.encode("w1")


def tensor_bundle(tmp_path):
    """The same graph as an encoder of ready tensors."""
    card = replace(made.card(), modality="tensor", preprocess={"kind": "none"})
    ids = np.array([[2, 5, 3]])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    files = made.write_selftest(tmp_path, "tensor", inputs, made.TABLE[ids].mean(axis=1))
    test = SelfTest("selftest/inputs.npz", "selftest/reference.npy", {"onnxruntime-fp32": 0.9999})
    return made.bundle(tmp_path, card=card, files=files, selftest=test)


def test_tensors_of_different_lengths_are_masked_and_batched(tmp_path):
    rows = [np.arange(2, 2 + n) for n in (3, 7, 1, 3)]
    with load(tensor_bundle(tmp_path).root) as encoder:
        vectors = encoder.encode([{"input_ids": r, "attention_mask": np.ones_like(r)} for r in rows])
    np.testing.assert_allclose(vectors, np.stack([made.TABLE[r].mean(axis=0) for r in rows]), rtol=1e-5)


def test_an_encoder_without_a_mask_batches_equal_sizes_alone(tmp_path):
    table = made.TABLE
    card = replace(
        made.card(),
        modality="tensor",
        preprocess={"kind": "none"},
        inputs=(TensorSpec("input_ids", "int64", ("batch", "length")),),
        embedding=Embedding("sentence_embedding", 6, "mean", False),
        limits=Limits(),
    )
    bundle = made.bundle(tmp_path)
    seen = []

    class Look(Fixed):
        def run(self, feeds):
            seen.append(feeds["input_ids"].shape)
            return {"sentence_embedding": table[feeds["input_ids"]].mean(axis=1)}

    from deploykit.runtime.preprocess.tensors import Preprocessor

    opened = replace(bundle, manifest=replace(bundle.manifest, card=card))
    encoder = Encoder(
        opened,
        bundle.manifest.variants[0],
        Look(None),
        Preprocessor.open(card, bundle.root),
        Report("x", "", (), {}),
        1,
    )
    rows = [np.arange(2, 2 + n) for n in (3, 7, 3, 7, 5)]
    np.testing.assert_allclose(encoder.encode(rows), np.stack([table[r].mean(axis=0) for r in rows]), rtol=1e-5)
    assert sorted(seen) == [(1, 5), (2, 3), (2, 7)]


@pytest.mark.parametrize(
    ("modality", "inputs", "count"),
    [
        ("image", np.zeros((4, 5, 3)), 1),
        ("image", np.zeros((4, 5)), 1),
        ("image", np.zeros((2, 4, 5, 3)), 2),
        ("image", "cat.png", 1),
        ("image", [b"1", b"2"], 2),
        ("audio", np.zeros(9), 1),
        ("audio", np.zeros((3, 9)), 3),
        ("audio", (np.zeros(9), 16_000), 1),
        ("audio", (np.zeros(9), np.zeros(8)), 2),
        ("tensor", np.zeros((3, 9)), 3),
        ("text", "w1", 1),
        ("text", 7, 1),
    ],
)
def test_one_input_and_many_are_told_apart(modality, inputs, count):
    assert len(_as_list(inputs, modality)) == count


def test_engine_options_default_to_every_core():
    assert EngineOptions().threads is None
