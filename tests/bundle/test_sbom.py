import hashlib
import json
import re
from dataclasses import replace

import pytest

from deploykit.bundle import sbom
from tests.runtime import made

pytest.importorskip("onnx")
pytest.importorskip("tokenizers")
SOFTWARE = {"python": "3.11.7", "torch": "2.13.0+cpu", "deploykit": "0.1.0"}


def document(bundle):
    return json.loads((bundle.root / "sbom.cdx.json").read_text(encoding="utf-8"))


@pytest.fixture
def bundle(tmp_path):
    card = made.card()
    facts = {**card.provenance, "license": "apache-2.0", "architecture": "BertModel", "weights_sha256": "a" * 64}
    return made.bundle(
        tmp_path,
        card=replace(card, provenance=facts),
        provenance={"software": SOFTWARE, "source": {"model": "folder/", "digest": "d" * 64}},
    )


def test_every_other_file_is_listed_with_its_true_digest(bundle):
    files = {c["name"]: c["hashes"][0]["content"] for c in document(bundle)["components"] if c["type"] == "file"}
    assert set(files) == set(bundle.manifest.files) - {"sbom.cdx.json"}
    for name, digest in files.items():
        assert hashlib.sha256((bundle.root / name).read_bytes()).hexdigest() == digest


def test_the_encoder_is_a_model_with_its_licence_and_weights(bundle):
    encoder = document(bundle)["metadata"]["component"]
    assert encoder["type"] == "machine-learning-model"
    assert encoder["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert encoder["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert encoder["modelCard"]["modelParameters"]["modelArchitecture"] == "BertModel"
    assert {"name": "deploykit:source.digest", "value": "d" * 64} in encoder["properties"]


def test_what_built_it_stands_with_versions(bundle):
    tools = {tool["name"]: tool for tool in document(bundle)["metadata"]["tools"]["components"]}
    assert {name: tool["version"] for name, tool in tools.items()} == SOFTWARE
    assert tools["torch"]["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert "purl" not in tools["python"]


def test_what_the_device_needs_is_optional_and_depended_on(bundle):
    found = document(bundle)
    needed = {c["name"] for c in found["components"] if c.get("scope") == "optional"}
    assert needed == {"onnxruntime", "openvino", "tokenizers"}
    references = {c["bom-ref"] for c in found["components"]}
    assert set(found["dependencies"][0]["dependsOn"]) == references


def test_it_is_the_same_for_the_same_bundle_and_another_for_another(bundle, tmp_path):
    assert sbom.render(bundle.manifest) == sbom.render(bundle.manifest)
    other = made.bundle(tmp_path / "other", files={**made.contents(tmp_path / "w").files, "LICENSE": __file_path()})
    assert document(bundle)["serialNumber"] != document(other)["serialNumber"]
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", document(bundle)["serialNumber"])


def __file_path():
    from pathlib import Path

    return Path(__file__)


def test_a_licence_that_is_no_known_identifier_is_a_name_and_none_is_none(tmp_path):
    plain = made.bundle(tmp_path / "a")
    assert "licenses" not in document(plain)["metadata"]["component"]
    card = replace(made.card(), provenance={"license": "other (see page)"})
    own = made.bundle(tmp_path / "b", card=card)
    assert document(own)["metadata"]["component"]["licenses"] == [{"license": {"name": "other (see page)"}}]
