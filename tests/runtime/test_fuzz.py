"""Whatever bytes come as a manifest, a packed bundle, a model or an array: they are taken or refused, nothing else.

``DEPLOYKIT_FUZZ_SECONDS`` says for how long in all (4 unless said; continuous integration takes 60). The seeds count
up from 0, so a longer run begins with what a shorter one did.
"""

import json
import os
import time

import numpy as np
import pytest

from deploykit.runtime import archive
from deploykit.runtime.bundle import parse_manifest
from deploykit.runtime.errors import BundleError
from deploykit.runtime.manifest import Manifest, to_json
from deploykit.runtime.trust import arrays, onnx_model, openvino_ir, signature

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

from tests.runtime import hostile  # noqa: E402

SECONDS = float(os.environ.get("DEPLOYKIT_FUZZ_SECONDS", "4")) / 6
EXAMPLES = 100

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
places = st.floats(0, 1, exclude_max=True)
edits = st.lists(
    st.tuples(st.sampled_from(["flip", "set", "cut", "copy", "insert"]), places, places, st.binary(max_size=12)),
    min_size=1,
    max_size=6,
)


def fuzz(check, *strategies):
    """Run ``check`` over examples of ``strategies``, seed after seed, until the time is up; at least one seed."""
    begun, seed = time.monotonic(), 0
    while seed == 0 or time.monotonic() - begun < SECONDS:
        quiet = hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        hypothesis.seed(seed)(quiet(hypothesis.given(*strategies)(check)))()
        seed += 1


def mutated(data, changes):
    """``data`` after edits at places given as parts of its length."""
    data = bytearray(data)
    for kind, first, second, more in changes:
        a, b = sorted((int(first * len(data)), int(second * len(data))))
        if kind == "flip" and data:
            data[a] ^= 1 << (b % 8)
        elif kind == "set":
            data[a : a + len(more)] = more
        elif kind == "cut":
            del data[a : min(b, a + 64)]
        elif kind == "copy":
            data[b:b] = data[a : a + 64]
        else:
            data[a:a] = more
    return bytes(data)


def at(tree, path):
    """The container that ``path`` (parts of lengths) ends in, and the key or index in it; None where it is empty."""
    here = tree
    for step, part in enumerate(path):
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return None
        key = keys[int(part * len(keys))]
        if step == len(path) - 1 or not isinstance(here[key], (dict, list)):
            return here, key
        here = here[key]
    return None


def test_a_manifest_with_any_value_anywhere_is_read_or_refused(shared):
    whole = (shared.root / "manifest.json").read_text(encoding="utf-8")

    def check(path, value, replaced_key):
        data = json.loads(whole)
        if (found := at(data, path)) is not None:
            container, key = found
            if replaced_key is not None and isinstance(container, dict):
                container[replaced_key] = container.pop(key)
            else:
                container[key] = value
        taken_or_refused(json.dumps(data).encode("utf-8", "surrogatepass"))

    fuzz(check, st.lists(places, min_size=1, max_size=5), values, st.none() | st.text(max_size=8))


def test_a_manifest_of_any_bytes_is_read_or_refused(shared):
    whole = (shared.root / "manifest.json").read_bytes()
    fuzz(lambda changes: taken_or_refused(mutated(whole, changes)), edits)


def taken_or_refused(data):
    try:
        found = parse_manifest(data)
    except BundleError as error:
        said(error)
        return
    assert isinstance(found, Manifest)
    again = json.dumps(to_json(found), ensure_ascii=False, allow_nan=False).encode("utf-8")
    assert parse_manifest(again) == found


def test_an_archive_of_any_bytes_is_unpacked_whole_or_refused(shared, tmp_path):
    import shutil

    copy = tmp_path / "x.bundle"
    shutil.copytree(shared.root, copy)
    whole = hostile.packed(copy, lambda entries: None).read_bytes()
    directory = whole.index(b"PK\1\2")
    odd, folder = tmp_path / "odd.dkb", tmp_path / "out"

    def check(changes, in_directory):
        # Most bytes are contents, which a digest covers: half of the time the edits go to the directory alone.
        head, tail = (whole[:directory], whole[directory:]) if in_directory else (b"", whole)
        odd.write_bytes(head + mutated(tail, changes))
        try:
            archive.unpack(odd, folder)
        except BundleError:
            assert sorted(p.name for p in tmp_path.iterdir()) == ["odd.dkb", "x.bundle", "x.dkb"]
        else:
            shutil.rmtree(folder)

    fuzz(check, edits, st.booleans())


def test_a_model_of_any_bytes_is_read_or_refused(shared, tmp_path):
    whole = (shared.root / hostile.MODEL).read_bytes()
    path = tmp_path / "m.onnx"
    place = onnx_model.Place(tmp_path, "m.onnx", {})

    def check(changes):
        path.write_bytes(mutated(whole, changes))
        only_refuses(lambda: onnx_model.check(place))

    fuzz(check, edits)


def test_an_openvino_model_of_any_bytes_is_read_or_refused(tmp_path):
    inner = '<data element_type="f32" shape="2,3" offset="0" size="24"/><output><port id="0"/></output>'
    whole = hostile._LAYER.format("Const", "opset1", inner).encode()
    path = tmp_path / "m.xml"
    (tmp_path / "m.bin").write_bytes(bytes(24))

    def check(changes):
        path.write_bytes(mutated(whole, changes))
        only_refuses(lambda: openvino_ir.check(path, "m.xml"))

    fuzz(check, edits)


def test_arrays_and_signatures_of_any_bytes_are_read_or_refused(tmp_path):
    path = tmp_path / "a.npz"
    whole = hostile.npz(a=np.arange(6), b=np.zeros((2, 3), np.float32))
    signed = json.dumps(
        {"schema": "deploykit.signature/1", "algorithm": "ed25519", "key": "0" * 64, "signature": "0" * 128}
    )

    def check(changes):
        path.write_bytes(mutated(whole, changes))
        only_refuses(lambda: arrays.check(path))
        only_refuses(lambda: signature.parse(mutated(signed.encode(), changes)))

    fuzz(check, edits)


def only_refuses(action):
    try:
        action()
    except BundleError as error:
        said(error)


def said(error):
    assert error.hint
    assert len(error.message) < 5000
