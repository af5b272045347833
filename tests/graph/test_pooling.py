"""Pooling against plain numpy, in torch, onnxruntime and OpenVINO."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from deploykit.errors import SourceError  # noqa: E402
from deploykit.graph.pooling import MODES, Dense, Normalize, Pooling, Truncate  # noqa: E402

WIDTH = 6


def expected(mode, tokens, mask):
    """The same thing, one row at a time."""
    rows = []
    for vectors, keep in zip(tokens, mask, strict=True):
        kept = vectors[keep > 0]
        if not len(kept):
            rows.append(np.zeros(tokens.shape[-1]))
            continue
        rank = np.arange(1, len(kept) + 1)[:, None]
        rows.append(
            {
                "cls": lambda k, r: k[0],
                "last": lambda k, r: k[-1],
                "max": lambda k, r: k.max(0),
                "mean": lambda k, r: k.mean(0),
                "mean_sqrt_len": lambda k, r: k.sum(0) / np.sqrt(len(k)),
                "weighted_mean": lambda k, r: (k * r).sum(0) / r.sum(),
            }[mode](kept, rank)
        )
    return np.stack(rows)


def batch_of(size, length, side="right", seed=0):
    """Random tokens, NaN at padded places; row 0 is full, the others are shorter."""
    generator = np.random.default_rng(seed)
    tokens = generator.normal(size=(size, length, WIDTH)).astype(np.float32) - 3.0
    mask = np.zeros((size, length), np.int64)
    for row in range(size):
        count = max(1, length - row)
        mask[row, :count] = 1
    if side == "left":
        mask = mask[:, ::-1].copy()
    return tokens, mask


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pools_only_the_valid_tokens(mode, side):
    tokens, mask = batch_of(5, 7, side)
    poisoned = np.where(mask[..., None] > 0, tokens, np.nan).astype(np.float32)
    pooled = Pooling([mode])(torch.tensor(poisoned), torch.tensor(mask)).numpy()
    np.testing.assert_allclose(pooled, expected(mode, tokens, mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_no_valid_token_gives_zeros(mode):
    pooled = Pooling([mode])(torch.full((2, 3, 4), float("nan")), torch.zeros(2, 3, dtype=torch.int64))
    assert torch.equal(pooled, torch.zeros(2, 4))


def test_modes_stand_side_by_side_in_the_order_given():
    tokens, mask = batch_of(3, 5)
    pooled = Pooling(["max", "mean"])(torch.tensor(tokens), torch.tensor(mask)).numpy()
    assert pooled.shape == (3, 2 * WIDTH)
    np.testing.assert_allclose(pooled[:, WIDTH:], expected("mean", tokens, mask), rtol=1e-5)


def test_an_unknown_mode_names_the_nearest():
    with pytest.raises(SourceError, match="mean"):
        Pooling(["meen"])


def test_normalize_keeps_the_zero_vector_and_works_in_half_precision():
    unit = Normalize()(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float16))
    np.testing.assert_allclose(unit.float().numpy(), [[0.6, 0.8], [0.0, 0.0]], atol=1e-3)


def test_dense_adds_a_projected_residual():
    dense = Dense(4, 3, bias=True, activation=torch.nn.Tanh(), residual=True)
    vectors = torch.randn(2, 4)
    torch.testing.assert_close(dense(vectors), torch.tanh(dense.linear(vectors)) + dense.residual(vectors))


def test_truncate_keeps_the_first_components():
    assert Truncate(2)(torch.arange(6.0).view(2, 3)).tolist() == [[0.0, 1.0], [3.0, 4.0]]


class EveryMode(torch.nn.Module):
    """All modes at once: one export tests them all."""

    def __init__(self):
        super().__init__()
        self.pooling = Pooling(list(MODES))
        self.normalize = Normalize()

    def forward(self, tokens, mask):
        return self.normalize(self.pooling(tokens, mask))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("pooling") / "model.onnx"
    tokens, mask = batch_of(3, 5)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    torch.onnx.export(
        EveryMode().eval(),
        (torch.tensor(tokens), torch.tensor(mask)),
        path,
        dynamo=True,
        dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
        input_names=["tokens", "mask"],
        output_names=["pooled"],
        opset_version=20,
        verbose=False,
    )
    return path


def runner(engine, path):
    if engine == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda feeds: session.run(None, feeds)[0]
    import openvino

    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda feeds: model(feeds)[0]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_agree_at_every_shape(exported, engine):
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    run = runner(engine, exported)
    for size in (1, 2, 5):
        for length in (1, 2, 8):
            for side in ("left", "right"):
                tokens, mask = batch_of(size, length, side, seed=size * length)
                want = np.concatenate([expected(mode, tokens, mask) for mode in MODES], axis=1)
                want /= np.linalg.norm(want, axis=1, keepdims=True)
                got = run({"tokens": tokens, "mask": mask})
                np.testing.assert_allclose(got, want, atol=2e-5, err_msg=f"{engine} {size}x{length} {side}")
