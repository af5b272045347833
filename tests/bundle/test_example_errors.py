"""The example programs end in a sentence, not in a stack trace; `tests/edge` builds and runs them."""

import shutil
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PACKAGES = {
    "onnxruntime-node": "export default {};",
    "tokenizers": "export default { Tokenizer: { fromFile() { throw new Error('no tokenizer\\n at x') } } };",
}


@pytest.fixture
def node(tmp_path):
    """Runs the example of Node in a folder of its own, with packages that only say what they were asked."""
    if shutil.which("node") is None:
        pytest.skip("node is not here")
    shutil.copy(EXAMPLES / "node-onnxruntime" / "embed.mjs", tmp_path)
    (tmp_path / "texts.txt").write_text("hello\n")

    def run(*words, packages=PACKAGES):
        for name, text in packages.items():
            folder = tmp_path / "node_modules" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "index.mjs").write_text(text)
            (folder / "package.json").write_text('{"main": "index.mjs"}')
        done = subprocess.run(["node", "embed.mjs", *words], cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stderr.splitlines()

    return run


@pytest.mark.parametrize(
    ("manifest", "words", "says"),
    [
        (None, ["gone.bundle", "texts.txt"], "error: 'gone.bundle' is no bundle folder"),
        ("{", ["a.bundle", "texts.txt"], "error: 'a.bundle' is no bundle folder"),
        ('{"card": {}, "variants": []}', ["a.bundle", "texts.txt", "x"], "error: the bundle has no variant 'x'"),
        (
            '{"card": {"preprocess": {"tokenizer": "t"}, "limits": {"axes": {}}}, "variants": []}',
            ["a.bundle", "texts.txt"],
            "error: no tokenizer",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(node, tmp_path, manifest, words, says):
    if manifest:
        (tmp_path / "a.bundle").mkdir()
        (tmp_path / "a.bundle" / "manifest.json").write_text(manifest)
    code, lines = node(*words)
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(says)


def test_a_package_that_is_missing_is_one_sentence_with_the_way_out(node):
    code, lines = node("a.bundle", "texts.txt", packages={})
    assert (code, len(lines)) == (1, 1)
    assert "onnxruntime-node" in lines[0]
    assert "npm install" in lines[0]
    assert node("a.bundle")[0] == 2
