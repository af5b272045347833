"""Bundles that were built here, on emulated devices: a Raspberry Pi's two kinds of core, and an x86 CPU without VNNI.

Emulation shows loading and numerics, never speed.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from deploykit import load
from deploykit.cli import main
from deploykit.runtime import devices, hardware
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.selftest import cosines, read_inputs
from tests.edge import machines

DEVICES = tuple(machines.MODELS)
TEXTS = [
    "hello",
    "A man is playing a guitar on the stage.",
    "naïve café — ¿qué? 東京 🙂",
    "one two three four five six",
]
EXACT = not hardware.cpu().features.isdisjoint({"avx512_vnni", "avx_vnni", "asimd"})
# numpy, onnxruntime, tokenizers, typer, and what these four declare.
ALLOWED = {
    *("deploykit", "numpy", "onnxruntime", "tokenizers", "typer"),
    *("flatbuffers", "packaging", "protobuf"),
    *("huggingface-hub", "filelock", "fsspec", "hf-xet", "pyyaml", "tqdm", "typing-extensions"),
    *("httpx2", "httpcore2", "h11", "anyio", "idna", "truststore"),
    *("annotated-doc", "click", "markdown-it-py", "mdurl", "pygments", "rich", "shellingham"),
}

# On the device, where nothing but deploykit[ort,text] is installed: vectors of every variant that opens.
ENCODE = """
import json, sys
import numpy as np
import deploykit
from deploykit.errors import MissingError
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.selftest import read_inputs

path, texts, answer = sys.argv[1:]
bundle = Bundle.open(path)
inputs = json.loads(texts) or read_inputs(bundle)
vectors, refused = {}, {}
for variant in bundle.manifest.variants:
    try:
        with deploykit.load(path, variant.name) as encoder:
            vectors[variant.name] = encoder.encode(inputs)
    except MissingError as error:
        refused[variant.name] = error.message
np.savez(answer, **vectors)
print(json.dumps(refused))
"""
CHOOSE = """
import json, sys
import deploykit

with deploykit.load(sys.argv[1], prefer=sys.argv[2], select="measure") as encoder:
    report = encoder.report()
print(json.dumps([report.variant, {row.variant: [row.status, row.why] for row in report.rows}, str(report)]))
"""


def on_each(*names):
    return pytest.mark.parametrize("device", names, indirect=True)


pytestmark = pytest.mark.edge


def encode(device, bundle, texts, home):
    """Vectors of each variant on the device, and why the others did not open."""
    done = device.run("-c", ENCODE, bundle, json.dumps(texts), home / "vectors.npz", home=home)
    assert done.returncode == 0, done.stderr
    with np.load(home / "vectors.npz") as arrays:
        return dict(arrays), json.loads(done.stdout.splitlines()[-1])


def choose(python, bundle, prefer, home):
    done = python.run("-c", CHOOSE, bundle, prefer, home=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@on_each(*DEVICES)
def test_nothing_but_numpy_an_engine_a_tokenizer_and_the_command_line_is_installed(device):
    assert device.installed() >= {"deploykit", "numpy", "onnxruntime", "tokenizers", "typer"}
    assert device.installed() - ALLOWED == set()


@on_each(*DEVICES)
def test_every_variant_of_minilm_passes_its_self_test_or_is_refused_with_a_reason(device, said):
    code, report, _ = said
    status = {row["variant"]: row["status"] for row in report["variants"]}
    assert (code, report["passed"]) == (0, True)
    assert set(status.values()) <= {"passed", "refused"}
    assert all(row["reason"] for row in report["variants"] if row["status"] == "refused")
    assert status["onnxruntime-fp32"] == "passed"
    assert status["onnxruntime-int8-dynamic"] == "passed"
    # All 8 bits of a weight: ARM adds the products in 32 bits, an x86 CPU without VNNI in 16.
    assert status["onnxruntime-int8"] == ("refused" if device.name == "haswell" else "passed")
    assert report["device"]["architecture"] == machines.MODELS[device.name].architecture


@on_each(*DEVICES)
def test_minilm_chooses_for_itself_and_gives_the_vectors_of_here(device, said, minilm, tmp_path):
    script = (
        "import json, sys, numpy as np, deploykit\n"
        "with deploykit.load(sys.argv[1]) as encoder:\n"
        "    np.save('vectors.npy', encoder.encode(json.loads(sys.argv[2])))\n"
        "    print(encoder.report().variant)\n"
    )
    home = said[2].parent  # its self-test has unpacked the bundle there, and may have left its choice
    done = device.run("-c", script, minilm, json.dumps(TEXTS), home=home)
    assert done.returncode == 0, done.stderr
    used = done.stdout.split()[-1]
    assert used in {row["variant"] for row in said[1]["variants"] if row["status"] == "passed"}
    with load(minilm, used) as encoder:
        expected = encoder.encode(TEXTS)
    assert cosines(np.load(home / "vectors.npy"), expected).min() > (0.99999 if "fp32" in used else 0.998)


@on_each(*DEVICES)
def test_each_variant_gives_the_vectors_of_here(device, saturating, tmp_path):
    bundle = saturating / "honest.dkb"
    vectors, refused = encode(device, bundle, None, tmp_path)
    assert set(refused) == ({"onnxruntime-int8"} if device.name == "haswell" else set())
    inputs = read_inputs(Bundle.open(bundle))
    for name, there in vectors.items():
        with load(bundle, name) as encoder:
            assert cosines(there, encoder.encode(inputs)).min() > (0.999999 if "fp32" in name else 0.9999), name


@on_each("haswell")
@pytest.mark.skipif(not EXACT, reason="this CPU saturates itself")
@pytest.mark.parametrize(("claim", "reason"), [("honest", "the CPU lacks"), ("claims", "is below")])
def test_what_saturates_there_is_chosen_here_and_not_there(device, saturating, tmp_path, claim, reason):
    """Refused for what it requires, or, where it claims to require nothing, by its own self-test."""
    bundle = saturating / f"{claim}.dkb"
    with load(bundle, prefer="size", select="measure") as encoder:
        here = encoder.report()
    used, rows, _ = choose(device, bundle, "size", tmp_path)
    full = "onnxruntime-int8"
    assert "refused" not in {row.status for row in here.rows if row.variant == full}
    assert rows[full][0] == "refused"
    assert reason in rows[full][1]
    assert used != full
    if claim == "claims":
        assert (here.variant, used) == (full, "onnxruntime-fp32")


@on_each("cortex-a72", "cortex-a76")
def test_int8_is_chosen_on_arm_where_it_is_smallest(device, saturating, tmp_path):
    used, rows, _ = choose(device, saturating / "claims.dkb", "size", tmp_path)
    assert used == "onnxruntime-int8"
    assert rows[used][0] == "used"


@on_each(*DEVICES)
def test_what_the_device_found_goes_into_the_manifest(device, said, unpacked, tmp_path, capsys):
    bundle = tmp_path / "minilm.bundle"
    shutil.copytree(unpacked, bundle)
    assert main(["bundle", "record", str(bundle), str(said[2]), "--no-times"]) == 0
    opened = Bundle.open(bundle)
    opened.verify()
    found = {row["variant"]: row for row in said[1]["variants"]}
    for variant in opened.manifest.variants:
        (row,) = devices.rows(variant)
        assert row["architecture"] == machines.MODELS[device.name].architecture
        assert (row["status"], row["cosine_min"]) == tuple(found[variant.name][key] for key in ("status", "cosine_min"))
        assert row["p50_ms"] is None  # an emulator's time says nothing
    capsys.readouterr()
    assert main(["inspect", str(bundle)]) == 0
    assert machines.MODELS[device.name].architecture in capsys.readouterr().out
