"""Every hostile bundle is refused for the right reason, before an engine sees it, within little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.runtime import decide, loading, trial
from deploykit.runtime.errors import BundleError
from tests.runtime import hostile

pytest.importorskip("onnx")
pytest.importorskip("tokenizers")
ROOT = Path(__file__).parents[2]
MOST_MIB = 200


@pytest.fixture(autouse=True)
def no_engine(tmp_path, monkeypatch):
    """A folder for unpacked bundles, engines that are all installed, and none that may be opened."""
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decide, "candidates", _all_can_run)
    monkeypatch.setattr(loading, "open_engine", _opened)
    monkeypatch.setattr(trial, "run", _opened)
    return tmp_path


def _all_can_run(bundle, prefer, device):
    from deploykit.runtime.selection import Candidate

    names = [v for v in bundle.manifest.variants if v.name == bundle.manifest.default]
    return [Candidate(variant, "first") for variant in [*names, *bundle.manifest.variants]]


def _opened(*given):
    raise AssertionError("an engine was opened")


@pytest.mark.parametrize("name", sorted(hostile.CASES))
def test_it_is_refused_for_the_right_reason_before_an_engine_loads_it(tiny, name):
    maker, reason = hostile.CASES[name]
    path = maker(tiny.root)
    with pytest.raises(BundleError, match=reason):
        hostile.try_it(path)


def test_the_bundle_that_they_are_made_of_is_let_through(tiny):
    with pytest.raises(AssertionError, match="an engine was opened"):
        hostile.try_it(tiny.root)


def test_sealing_alone_changes_nothing(tiny):
    with pytest.raises(AssertionError, match="an engine was opened"):
        hostile.try_it(hostile.seal(tiny.root))


def test_packing_alone_changes_nothing(tiny):
    with pytest.raises(AssertionError, match="an engine was opened"):
        hostile.try_it(hostile.packed(tiny.root, lambda entries: None))


def test_nothing_is_left_behind(tiny, no_engine):
    before = set(Path("/tmp").glob("escape")) | set(Path("/tmp").glob("deploykit-was-unpickled"))
    for name in ("zip: ../", "zip: absolute", "zip: symlink"):
        with pytest.raises(BundleError):
            hostile.try_it(hostile.CASES[name][0](tiny.root))
    assert not list((no_engine / "cache" / "bundles").iterdir())
    assert not (no_engine / "cache" / "escape").exists()
    assert set(Path("/tmp").glob("escape")) | set(Path("/tmp").glob("deploykit-was-unpickled")) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="counts the memory of forked processes")
def test_each_takes_little_memory(tiny, tmp_path):
    hostile.make_all(tiny.root, tmp_path / "all")
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.hostile", str(tmp_path / "all")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(hostile.CASES) >= 25, done.stderr
    assert not [row for row in rows if not row.get("said", "").startswith("BundleError")]
    assert not [row for row in rows if row["mib"] > MOST_MIB]


def test_control_flow_passes_where_it_is_allowed(tiny):
    path = hostile.CASES["control_flow"][0](tiny.root)
    with pytest.raises(AssertionError, match="an engine was opened"):
        loading.load(path, allow_control_flow=True)
