"""Experts written out give what transformers' own forms give, only while a model is traced."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from deploykit.graph.plain_experts import plain_experts  # noqa: E402

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
CONFIGS = {
    "mixtral": ("MixtralConfig", {"intermediate_size": 40, "num_local_experts": 5, "num_experts_per_tok": 2}),
    "gpt-oss": ("GptOssConfig", {"intermediate_size": 40, "num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen3-moe": ("Qwen3MoeConfig", {"moe_intermediate_size": 20, "num_experts": 5, "num_experts_per_tok": 3}),
}


def model(name):
    config, settings = CONFIGS[name]
    torch.manual_seed(0)
    made = transformers.AutoModel.from_config(getattr(transformers, config)(**SIZES, **settings)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return made


def vectors(module, ids):
    with torch.inference_mode():
        return module(input_ids=ids).last_hidden_state


@pytest.mark.parametrize("name", CONFIGS)
def test_all_experts_weighed_are_the_chosen_ones_summed(name):
    module = model(name)
    ids = torch.randint(0, 61, (3, 7), generator=torch.Generator().manual_seed(1))
    expected = vectors(module, ids)
    with plain_experts(module):
        written_out = vectors(module, ids)
    torch.testing.assert_close(written_out, expected, rtol=1e-4, atol=1e-5)


def test_afterwards_the_model_is_as_before():
    module = model("mixtral")
    before, names = module.config._experts_implementation, [name for name, _ in module.named_buffers()]
    with plain_experts(module):
        assert module.config._experts_implementation != before
    assert module.config._experts_implementation == before
    assert [name for name, _ in module.named_buffers()] == names
    with pytest.raises(ZeroDivisionError), plain_experts(module):
        raise ZeroDivisionError
    assert module.config._experts_implementation == before


def test_a_trace_keeps_every_size_dynamic():
    module = model("mixtral")
    ids = torch.randint(0, 61, (3, 7))
    axes = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}
    with plain_experts(module), torch.no_grad():
        program = torch.export.export(
            module, (), {"input_ids": ids, "use_cache": False}, dynamic_shapes={**axes, "use_cache": None}, strict=False
        )
    other = torch.randint(0, 61, (2, 11))
    traced = program.module()(input_ids=other, use_cache=False).last_hidden_state
    torch.testing.assert_close(traced, vectors(module, other), rtol=1e-4, atol=1e-5)


def test_a_module_without_experts_is_left_alone():
    module = torch.nn.Linear(3, 2)
    with plain_experts(module):
        assert module(torch.ones(1, 3)).shape == (1, 2)
