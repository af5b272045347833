"""int8 built for any CPU must give the same vectors on one without VNNI, which is emulated here.

Kernels of such CPUs add two products of 8 bits in 16 bits and saturate. Emulation shows numerics, never speed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

from deploykit.runtime import hardware  # noqa: E402
from tests.edge import saturating  # noqa: E402

QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
WITHOUT_VNNI = "Haswell"
TIMEOUT_S = 120
EXACT = not hardware.cpu().features.isdisjoint({"avx512_vnni", "avx_vnni"})

pytestmark = [
    pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 is not installed (Debian: qemu-user-static)"),
    pytest.mark.skipif(hardware.cpu().architecture != "x86_64", reason="it emulates an x86 CPU for this Python"),
]

# All that a device has: numpy and onnxruntime.
CHILD = """
import sys
import numpy as np
import onnxruntime

model, feeds, answer = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 3
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
with np.load(feeds) as arrays:
    np.save(answer, session.run(None, {name: arrays[name] for name in arrays.files})[0])
"""


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    return saturating.save(tmp_path_factory.mktemp("portable") / "model.onnx")


def here(model, feeds):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def emulated(model, feeds, folder):
    """The answer of a process on a CPU without VNNI."""
    np.savez(folder / "feeds.npz", **feeds)
    (folder / "child.py").write_text(CHILD)
    command = [QEMU, "-cpu", WITHOUT_VNNI, sys.executable, folder / "child.py", model]
    command += [folder / "feeds.npz", folder / "answer.npy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "answer.npy")


def cosine(a, b):
    return float((np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
def test_int8_for_any_cpu_is_as_close_to_fp32_without_vnni_as_with_it(precision, portable, tmp_path):
    model, facts = saturating.lowered(precision, "any", portable, tmp_path)
    feeds = saturating.texts(1, seed=2)[0]
    reference = here(portable, feeds)
    with_it, without_it = here(model, feeds), emulated(model, feeds, tmp_path)
    assert not facts.get("requires")
    assert cosine(reference, without_it) > 0.98
    assert cosine(reference, without_it) == pytest.approx(cosine(reference, with_it), abs=0.001)
    assert cosine(with_it, without_it) > 0.99999  # nothing saturates, not even now and then


@pytest.mark.skipif(not EXACT, reason="this CPU saturates itself")
@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
def test_full_weights_saturate_without_vnni_and_require_it(precision, portable, tmp_path):
    model, facts = saturating.lowered(precision, "vnni", portable, tmp_path)
    feeds = saturating.texts(1, seed=2)[0]
    reference = here(portable, feeds)
    lost = cosine(reference, here(model, feeds)) - cosine(reference, emulated(model, feeds, tmp_path))
    assert lost > 0.001  # otherwise the test above proves nothing
    assert "avx512_vnni" in facts["requires"]["cpu_features"][0]
