import dataclasses
import importlib.util
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deploykit.errors import BundleError, UnknownNameError
from deploykit.measure import baselines
from deploykit.runtime.bundle import Bundle
from tests import tiny
from tests.runtime import hostile_models, made


@pytest.fixture
def bundle(tmp_path):
    return made.bundle(tmp_path)


def saying(bundle, **source):
    """The bundle with another origin in its manifest."""
    manifest = dataclasses.replace(bundle.manifest, provenance={"source": source})
    return Bundle(bundle.root, manifest, bundle.digest)


def reasons(bundle, *names):
    found, missing = baselines.find(bundle, names or ("torch",))
    assert not found
    return " ".join(item.reason for item in missing)


def test_groups_mean_their_members():
    assert baselines.wanted(["plain"]) == ("plain-onnxruntime", "plain-openvino")
    assert baselines.wanted(["torch", "all"])[0] == "torch"
    assert set(baselines.wanted(["all"])) == set(baselines.NAMES)
    assert baselines.wanted(["none"]) == ()


@pytest.mark.parametrize(("names", "says"), [(["torhc"], "'torch'"), (["none", "torch"], "alone")])
def test_what_is_no_baseline_is_refused(names, says):
    with pytest.raises(UnknownNameError) as found:
        baselines.wanted(names)
    assert says in str(found.value)


def test_a_bundle_that_names_no_source_has_no_torch_baseline(bundle):
    assert "does not say what it was exported from" in reasons(bundle)


def test_code_named_by_a_bundle_is_never_run(bundle):
    evil = saying(bundle, model="py:os:getcwd", kind="module", digest="ab" * 32)
    assert "of the kind 'module'" in reasons(evil, *baselines.TORCH)


def test_a_source_that_is_gone_or_changed_is_named(bundle, tmp_path):
    pytest.importorskip("torch")
    gone = saying(bundle, model=str(tmp_path / "gone"), kind="transformers", digest="ab" * 32)
    assert "gone" in reasons(gone)
    folder = tiny.tiny_bert(tmp_path / "bert")
    changed = saying(bundle, model=str(folder), kind="transformers", digest="ab" * 32)
    assert "digest differs" in reasons(changed)


def test_a_hub_model_is_taken_from_the_cache_or_not_at_all(bundle, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub = saying(bundle, model="nobody/nothing-of-that-name", kind="transformers", digest="ab" * 32)
    assert "not in the hub's cache" in reasons(hub)


def test_the_revision_of_the_export_is_the_one_that_is_looked_for(bundle, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def nothing(name, **options):
        asked.append((name, options))
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr(hub, "snapshot_download", nothing)
    told = {"model": "some/model", "kind": "transformers", "digest": "ab" * 32, "options": {"revision": "v2"}}
    _, (missing,) = baselines.find(saying(bundle, **told), ["torch"])
    assert asked == [("some/model", {"revision": "v2", "local_files_only": True})]
    assert missing.hint.endswith("hf download some/model --revision v2")


@pytest.mark.parametrize("name", ["some/model--of-no-hub", "m" * 5000])
def test_a_name_that_nothing_can_have_is_a_reason_and_no_crash(bundle, name):
    pytest.importorskip("huggingface_hub")
    assert reasons(saying(bundle, model=name, kind="transformers", digest="ab" * 32))


def test_a_package_that_the_source_lacks_is_a_reason_and_no_crash(bundle, monkeypatch):
    def lacking(*_):
        raise ModuleNotFoundError("No module named 'huggingface_hub'", name="huggingface_hub")

    monkeypatch.setattr(baselines, "_local", lacking)
    lost = saying(bundle, model="some/model", kind="transformers", digest="ab" * 32)
    assert "huggingface_hub cannot be imported" in reasons(lost, *baselines.TORCH)


def test_without_torch_the_source_is_not_looked_for(bundle, monkeypatch):
    def looked(_):
        raise AssertionError("the source was looked for")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(baselines, "_source", looked)
    assert "torch and transformers are not both installed" in reasons(bundle)


def test_what_is_not_installed_is_said(bundle, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = reasons(bundle, "torch", "plain-openvino")
    assert "torch and transformers" in said
    assert "openvino is not installed" in said


def test_the_options_of_the_export_are_part_of_the_source(bundle, tmp_path):
    pytest.importorskip("torch")
    from deploykit.sources import Options, resolve

    folder = tiny.tiny_bert(tmp_path / "bert")
    digest = resolve(str(folder), Options(pooling="cls", max_length=32)).digest
    told = {"model": str(folder), "kind": "transformers", "digest": digest}
    assert "digest differs" in reasons(saying(bundle, **told))
    (found,), _ = baselines.find(saying(bundle, **told, options={"pooling": "cls", "max_length": 32}), ["torch"])
    assert found.options["source"].items() >= {"kind": "transformers", "pooling": "cls", "max_length": 32}.items()
    assert baselines.torch_subject(1, **{**found.options, "bundle": str(bundle.root)})


def test_a_bundle_cannot_ask_for_code_of_the_source_to_be_run(bundle, tmp_path):
    folder = tiny.tiny_bert(tmp_path / "bert")
    evil = saying(bundle, model=str(folder), kind="transformers", digest="ab", options={"trust_remote_code": True})
    assert "code of its own" in reasons(evil)


@pytest.mark.parametrize("options", [{"no_such": 1}, {"max_length": "long"}, 7])
def test_damaged_options_are_a_reason_and_no_crash(bundle, options):
    assert reasons(saying(bundle, model="m", kind="transformers", digest="ab", options=options))


def test_compiling_needs_a_compiler(bundle, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from deploykit.sources import resolve

    folder = tiny.tiny_bert(tmp_path / "bert")
    here = saying(bundle, model=str(folder), kind="transformers", digest=resolve(str(folder)).digest)
    monkeypatch.setenv("CXX", "no-such-compiler")
    found, missing = baselines.find(here, baselines.TORCH)
    assert [b.name for b in found] == ["torch", "torch-bf16"]
    assert "no-such-compiler" in missing[0].reason
    assert found[0].bytes == sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def test_torch_gives_the_vectors_of_the_source_in_the_callers_order(bundle, tmp_path):
    torch = pytest.importorskip("torch")
    from deploykit.sources import Options, open_source

    folder = tiny.tiny_bert(
        tmp_path / "bert", vocab_size=len(made.WORDS) + 80, max_position_embeddings=96, hidden_size=6
    )
    kind = {"kind": "transformers"}
    opened = baselines.torch_subject(threads=1, bundle=str(bundle.root), model=str(folder), source=kind)
    texts = ["w1", "w1 w2 w3 w4", "w9 w9"]
    module = open_source(str(folder), Options(kind="transformers")).module
    expected = []
    for text in texts:
        ids = torch.tensor([[2, *(made.WORDS.index(w) for w in text.split()), 3]])
        with torch.inference_mode():
            expected.append(module(input_ids=ids, attention_mask=torch.ones_like(ids)).numpy()[0])
    np.testing.assert_allclose(opened.encode(texts), np.stack(expected), atol=1e-5)
    half = baselines.torch_subject(1, str(bundle.root), str(folder), kind, bfloat16=True)
    assert half.effective["precision"] == "bf16"
    assert half.encode(texts).dtype == np.float32
    assert not np.allclose(half.encode(texts), np.stack(expected), atol=1e-6)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_the_plain_engines_give_the_right_vectors_and_count_padding(bundle, target):
    pytest.importorskip(target)
    opened = getattr(baselines, f"{target}_subject")(threads=1, bundle=str(bundle.root))
    texts = ["w1", "w2 w3 w4", "w5 " * 40] * 15
    np.testing.assert_allclose(opened.encode(texts), np.stack([made.expected(t) for t in texts]), atol=1e-5)
    useful, padded = opened.tokens(texts)
    assert useful == 15 * (3 + 5 + 42)
    assert padded > useful
    assert opened.effective["selftest"]["mean"] == pytest.approx(1, abs=1e-6)
    assert opened.effective["selftest"]["n"] == len(made.TEXTS)
    assert opened.effective["threads"] == 1


@pytest.mark.parametrize(("target", "opens"), [("onnxruntime", "InferenceSession"), ("openvino", "Core")])
@pytest.mark.parametrize("maker", [hostile_models.unknown_domain, hostile_models.compiled_blob])
def test_no_engine_sees_a_portable_model_that_is_no_encoder(bundle, monkeypatch, target, opens, maker):
    engine = pytest.importorskip(target)

    def opened(*_, **__):
        raise AssertionError("an engine was opened")

    monkeypatch.setattr(engine, opens, opened)
    with pytest.raises(AssertionError, match="was opened"):
        getattr(baselines, f"{target}_subject")(threads=1, bundle=str(bundle.root))
    maker(bundle.root)
    with pytest.raises(BundleError, match=r"fp32\.onnx"):
        getattr(baselines, f"{target}_subject")(threads=1, bundle=str(bundle.root))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_several_threads_may_call_at_once(bundle, target):
    pytest.importorskip(target)
    opened = getattr(baselines, f"{target}_subject")(threads=1, bundle=str(bundle.root))
    texts = [[f"w{i} w{i + 1}"] * 8 for i in range(30)]
    with ThreadPoolExecutor(4) as pool:
        for text, vectors in zip(texts, pool.map(opened.encode, texts), strict=True):
            np.testing.assert_allclose(vectors, np.stack([made.expected(text[0])] * 8), atol=1e-5)


def test_preprocessing_alone_needs_no_engine(bundle):
    opened = baselines.preprocess_subject(None, str(bundle.root))
    assert opened.encode(["w1", "w2"]).shape == (2, 6)


def test_the_worker_finds_its_subjects_by_name_and_no_others(bundle):
    found, _ = baselines.find(bundle, baselines.PLAIN)
    for baseline in found:
        module, _, function = baseline.subject()["kind"].removeprefix("python:").partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    with pytest.raises(AttributeError):
        baselines.tensorflow_subject  # noqa: B018
