"""LoRA adapters merged into their base. Where peft is installed it is the judge; else its formula, written out."""

from __future__ import annotations

import json
import math

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from deploykit.errors import SourceError  # noqa: E402
from deploykit.sources import Options, open_source, resolve  # noqa: E402
from tests import tiny  # noqa: E402


@pytest.fixture
def adapter(models, tmp_path):
    """``adapter(**settings)``: a folder with LoRA on the queries of the first layer of the tiny BERT."""

    def made(prefix="", **changes):
        from safetensors.torch import save_file

        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": str(models("bert"))}
        generator = torch.Generator().manual_seed(0)
        name = f"base_model.model.{prefix}encoder.layer.0.attention.self.query"
        factors = {f"{name}.lora_A.weight": torch.randn(2, 24, generator=generator)}
        factors[f"{name}.lora_B.weight"] = torch.randn(24, 2, generator=generator)
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        save_file(factors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(settings | changes))
        return folder, list(factors.values())

    return made


def merged_by_hand(models, a, b, scaling):
    model = transformers.AutoModel.from_pretrained(models("bert"), dtype=torch.float32).eval()
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query.weight += scaling * (b @ a)
    return model


@pytest.mark.parametrize(
    ("changes", "scaling"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / math.sqrt(2)),
        ({"alpha_pattern": {"query": 1}}, 0.5),
        ({"prefix": "bert."}, 3.0),
    ],
)
def test_an_adapter_is_merged_into_its_base(models, adapter, changes, scaling):
    folder, (a, b) = adapter(**changes)
    assert resolve(str(folder)).kind == "peft"
    source = open_source(str(folder), Options(pooling="mean"))
    inputs = source.make_inputs(1, {"length": 9}, 0)
    model = merged_by_hand(models, a, b, scaling)
    with torch.inference_mode():
        want = model(**inputs).last_hidden_state.mean(1)
        plain = open_source(str(models("bert")), Options(pooling="mean")).module(**inputs)
        got = source.module(**inputs)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert torch.nn.functional.cosine_similarity(got, plain).item() < 0.9999
    assert any("merged into" in note for note in source.card.provenance["notes"])


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_itself_gives_the_same_vectors(tmp_path, rslora):
    peft = pytest.importorskip("peft")
    base = tiny.tiny_bert(tmp_path / "base")
    model = transformers.AutoModel.from_pretrained(base)
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["query", "dense", "word_embeddings"], use_rslora=rslora,
        rank_pattern={"query": 2}, init_lora_weights=False, bias="all",
    )  # fmt: skip
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if name.endswith("bias"):
                weight.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    source = open_source(str(tmp_path / "adapter"), Options(pooling="mean"))
    inputs = source.make_inputs(1, {"length": 9}, 0)
    with torch.inference_mode():
        want = adapted.eval()(**inputs).last_hidden_state.mean(1)
    torch.testing.assert_close(source.module(**inputs), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"base_model_name_or_path": "no-such-folder"}, "is not here"),
        ({"prefix": "other.path."}, "0 weights of that name"),
    ],
)
def test_what_cannot_be_merged_is_refused(adapter, changes, said):
    if "prefix" in changes:
        changes = {"prefix": "layers.of.another."}
        folder, _ = adapter(**changes)
        from safetensors.torch import load_file, save_file

        path = folder / "adapter_model.safetensors"
        save_file({key.replace("encoder.", "decoder."): t for key, t in load_file(path).items()}, path)
    else:
        folder, _ = adapter(**changes)
    with pytest.raises(SourceError, match=said):
        open_source(str(folder), Options(pooling="mean"))


def test_an_adapter_beside_its_whole_base_is_never_dropped_without_a_word(models, adapter):
    import shutil

    folder, (a, b) = adapter()
    shutil.copytree(models("bert"), folder, dirs_exist_ok=True)
    with pytest.raises(SourceError, match="a whole model and an adapter") as caught:
        open_source(str(folder), Options(pooling="mean"))
    assert "kind = 'peft'" in caught.value.hint
    source = open_source(str(folder), Options(kind="peft", pooling="mean"))
    inputs = source.make_inputs(1, {"length": 9}, 0)
    with torch.inference_mode():
        want = merged_by_hand(models, a, b, 3.0)(**inputs).last_hidden_state.mean(1)
        torch.testing.assert_close(source.module(**inputs), want, rtol=1e-5, atol=1e-5)
