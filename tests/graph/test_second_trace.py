"""A trace follows one branch of what a model decides by its sizes: where it is the wrong one, another is tried."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from deploykit.errors import ProofError  # noqa: E402
from deploykit.graph import export as module  # noqa: E402
from deploykit.graph.prove import Case, Tolerance, prove  # noqa: E402
from deploykit.runtime.manifest import Card, Embedding, Limits, TensorSpec  # noqa: E402
from deploykit.sources import Source  # noqa: E402


class Pairs(torch.nn.Module):
    """Sums pairs, spreads them again, and fills up with zeros where one was left over: a branch on the length."""

    def forward(self, x):
        count = x.shape[1]
        half = count // 2
        pairs = x[:, : 2 * half].reshape(x.shape[0], half, 2, 3).sum(dim=2)
        spread = torch.stack([pairs, pairs], dim=2).reshape(x.shape[0], 2 * half, 3)
        if spread.shape[1] < count:
            spread = torch.nn.functional.pad(spread, (0, 0, 0, count - spread.shape[1]))
        return spread.mean(dim=1)


def a_source(sizes):
    card = Card(
        name="pairs",
        modality="tensor",
        inputs=(TensorSpec("x", "float32", ("batch", "length", 3)),),
        outputs=(TensorSpec("tensor_embedding", "float32", ("batch", 3)),),
        embedding=Embedding("tensor_embedding", 3, "none", False),
        preprocess={"kind": "none"},
        limits=Limits({"length": (min(sizes), max(sizes))}),
        provenance={},
    )

    def make(batch, at, seed):
        return {"x": torch.randn(batch, at["length"], 3, generator=torch.Generator().manual_seed(seed))}

    return Source(card, Pairs().eval(), make, {"length": sizes})


def test_a_branch_that_is_right_for_every_size_is_found_by_a_second_trace(tmp_path):
    exported, cases = module.export(a_source((6, 8, 11, 20)), module.ExportOptions(exporter="dynamo"), tmp_path)
    assert {case.at["length"] for case in cases} == {6, 8, 11, 20}
    assert exported.proof["cases"] == 12
    assert exported.notes in ((), ("traced at length 11: a trace at length 8 was wrong at other sizes",))


def test_the_proof_says_where_it_is_wrong():
    cases = [Case({"length": n}, {}, np.ones((1, 2), np.float32)) for n in (4, 5)]
    answers = iter([np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32)])
    with pytest.raises(ProofError) as caught:
        prove(cases, lambda feeds: next(answers), Tolerance(0.999, 0.01), "it")
    assert caught.value.wrong_at == [{"length": 5}]


@pytest.mark.parametrize(
    ("sizes", "wrong", "others"),
    [
        ({"length": 8}, [{"batch": 1, "length": 11}, {"batch": 2, "length": 20}], {"length": 11}),
        ({"length": 8}, [{"batch": 1, "length": 8}, {"batch": 1, "length": 11}], None),
        ({"length": 8}, [{"batch": 1, "length": 1}], None),
        ({}, [{"batch": 1}], None),
        ({"length": 8}, [], None),
    ],
    ids=["the smallest wrong one", "wrong where traced", "too small to trace", "no axis", "not known"],
)
def test_what_a_second_trace_is_tried_at(sizes, wrong, others):
    assert module._sizes_to_try(sizes, wrong) == others
