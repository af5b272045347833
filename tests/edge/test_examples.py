"""The programs of ``tests/examples``, built and run where their tools are: their vectors are Python's.

What they need beside compilers is fetched once into ``build/edge``: Node's packages from npm, and onnxruntime's C
header from Debian, since the wheel brings the library alone.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

import deploykit
from deploykit.bundle.write import Contents, write_bundle
from deploykit.runtime.bundle import PORTABLE_PATH, Bundle
from deploykit.runtime.manifest import Variant
from deploykit.runtime.selftest import cosines
from deploykit.targets import openvino as openvino_target
from tests.edge import machines

pytestmark = pytest.mark.edge

EXAMPLES = Path(__file__).parents[1] / "examples"
FOLDER = machines.FOLDER / "examples"
LEAST = 0.99999
ONNX_VARIANTS = ("onnxruntime-fp32", "onnxruntime-int8", "onnxruntime-int8-dynamic")
TEXTS = [
    "A man is playing a guitar.",
    "hello",
    "Zürich's naïve café — “très cher”, 42 €!",
    "日本語のテキスト and some English",
    "Twice\ttabbed,   and spaced; it didn't stop...",
    "UPPER and lower, e-mail@example.org, 3.14159, #tag",
    "the end of a text that is longer than the encoder takes is cut off, " * 8,
    "antidisestablishmentarianism and pneumonoultramicroscopicsilicovolcanoconiosis",
]
# The first Debian that has onnxruntime as a package; the library may be newer than its header.
DEBIAN_WITH_ONNXRUNTIME = "trixie"


def run(*command, folder=FOLDER, **variables):
    """The output of a command that must succeed; without the threads of the others that compute here."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def need(*tools):
    """Skip where one of the tools is not here."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not here")


def once(name, make):
    """The folder ``name``, made by ``make(folder)`` if no run before has; others wait, and it is whole or not there."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    done = FOLDER / name
    with FileLock(FOLDER / f".{name}.lock"):
        if not done.is_dir():
            work = FOLDER / f".{name}.work"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            make(work)
            work.rename(done)
    return done


@pytest.fixture(scope="module")
def bundle(minilm, tmp_path_factory):
    """The bundle of the emulated devices, all-MiniLM-L6-v2 with its texts cut to 16 tokens, with OpenVINO beside."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("examples")
    opened = Bundle.open(minilm)
    card, portable = opened.manifest.card, opened.file(PORTABLE_PATH)
    listed = [(v, {v.path: opened.file(v.path)} if v.path != PORTABLE_PATH else {}) for v in opened.manifest.variants]
    compiled = openvino_target.compile(portable, card, "fp32", openvino_target.Options(), folder)
    files = {f"models/openvino-fp32.{suffix}": folder / f"model.{suffix}" for suffix in ("xml", "bin")}
    listed.append((Variant("openvino-fp32", "openvino", "fp32", "models/openvino-fp32.xml", compiled.settings), files))
    others = {name: opened.file(name) for name in opened.manifest.files if name.startswith(("preprocess", "selftest"))}
    write_bundle(folder / "minilm.bundle", Contents(card, portable, listed, others, opened.manifest.selftest))
    return folder / "minilm.bundle"


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def worst(printed, bundle, variant):
    """The smallest cosine of the printed vectors, one a line, to Python's for the same texts."""
    vectors = np.array([line.split() for line in printed.splitlines()], np.float32)
    with deploykit.load(bundle, variant, threads=1) as encoder:
        # One by one, as the programs do: dynamic int8 rounds by what else is in a batch.
        return cosines(vectors, np.concatenate([encoder.encode([text]) for text in TEXTS])).min()


def built(name, tmp_path, *definitions):
    """The program of the example ``name``, with all warnings as errors."""
    flags = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_C_FLAGS": "-Wall -Wextra -Werror",
        "CMAKE_CXX_FLAGS": "-Wall -Wextra",
    }
    settings = [f"-D{key}={value}" for key, value in flags.items()]
    run("cmake", "-S", EXAMPLES / name, "-B", tmp_path / "build", *settings, *definitions)
    run("cmake", "--build", tmp_path / "build")
    return tmp_path / "build" / "embed"


def test_cpp_with_openvino_takes_texts(bundle, texts, tmp_path):
    need("cmake", "c++")
    for module in ("openvino", "openvino_tokenizers", "transformers"):
        pytest.importorskip(module)
    from openvino.utils import get_cmake_path

    program = built("cpp-openvino", tmp_path, f"-DOpenVINO_DIR={get_cmake_path()}")
    convert = EXAMPLES / "cpp-openvino" / "convert_tokenizer.py"
    library = run(sys.executable, convert, bundle, tmp_path / "tokenizer.xml").splitlines()[-1]
    model = bundle / "models" / "openvino-fp32.xml"
    printed = run(program, model, "f32", tmp_path / "tokenizer.xml", library, texts)
    assert worst(printed, bundle, "openvino-fp32") >= LEAST
    assert refused(program) == 2
    assert refused(program, "no.xml", "f32", tmp_path / "tokenizer.xml", library, texts) == 1


def test_c_with_onnxruntime_takes_token_ids(bundle, texts, tmp_path):
    need("cmake", "cc")
    program = built("c-onnxruntime", tmp_path, f"-DONNXRUNTIME_ROOT={onnxruntime_release(tmp_path)}")
    tokens = tmp_path / "tokens.bin"
    run(sys.executable, EXAMPLES / "c-onnxruntime" / "tokens.py", bundle, texts, tokens)
    for variant in ("portable", *ONNX_VARIANTS):
        found = Bundle.open(bundle).variant(variant)
        settings = [f"{key}={value}" for key, value in found.settings.get("config", {}).items()]
        printed = run(program, bundle / found.path, tokens, *settings)
        assert worst(printed, bundle, variant) >= LEAST, variant
    assert refused(program) == 2
    tokens.write_bytes(tokens.read_bytes()[:-4])
    assert refused(program, bundle / "models" / "fp32.onnx", tokens) == 1


def test_node_with_onnxruntime_takes_texts(bundle, texts):
    need("node", "npm")
    package = EXAMPLES / "node-onnxruntime" / "package.json"
    key = hashlib.sha256(package.read_bytes()).hexdigest()[:12]
    folder = once(f"node-{key}", lambda work: _npm_install(package, work))
    shutil.copy(EXAMPLES / "node-onnxruntime" / "embed.mjs", folder)
    assert worst(run("node", folder / "embed.mjs", bundle, texts), bundle, "portable") >= LEAST
    for variant in ONNX_VARIANTS:
        assert worst(run("node", folder / "embed.mjs", bundle, texts, variant), bundle, variant) >= LEAST, variant
    assert refused("node", folder / "embed.mjs") == 2


def refused(*command):
    """The exit code of a command that must say why it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.stderr
    return done.returncode


def _npm_install(package, work):
    shutil.copy(package, work)
    # CUDA's libraries, which its script would fetch, are of no use here.
    run("npm", "install", "--no-audit", "--no-fund", folder=work, ONNXRUNTIME_NODE_INSTALL="skip")


def onnxruntime_release(tmp_path):
    """A folder with include/ and lib/ like a release: ONNXRUNTIME_ROOT, or the wheel's library and a header."""
    if given := os.environ.get("ONNXRUNTIME_ROOT"):
        return given
    onnxruntime = pytest.importorskip("onnxruntime")
    libraries = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))
    if not libraries:
        pytest.skip("the onnxruntime that is installed brings no library to link with")
    root = tmp_path / "onnxruntime"
    (root / "lib").mkdir(parents=True)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (root / "lib" / name).symlink_to(libraries[0])
    (root / "include").symlink_to(_header_folder())
    return root


def _header_folder():
    for place in (Path("/usr/include/onnxruntime"), Path("/usr/local/include/onnxruntime")):
        if (place / "onnxruntime_c_api.h").is_file():
            return place
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            pytest.skip("onnxruntime_c_api.h is not here: set ONNXRUNTIME_ROOT to an unpacked release")
    if not machines.KEYRING.exists():
        pytest.skip("onnxruntime_c_api.h is not here: apt-get install libonnxruntime-dev, or set ONNXRUNTIME_ROOT")
    return once("onnxruntime-header", _fetch_header) / "usr" / "include" / "onnxruntime"


def _fetch_header(work):
    """Debian's libonnxruntime-dev, unpacked; nothing of the system's apt but its proxy is read, and nothing written."""
    apt = work / "apt"
    for part in ("state/lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()
    source = f"deb [signed-by={machines.KEYRING}] http://deb.debian.org/debian {DEBIAN_WITH_ONNXRUNTIME} main\n"
    (apt / "sources.list").write_text(source)
    settings = {
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    run("apt-get", *options, "-q", "update", folder=work)
    run("apt-get", *options, "-q", "download", "libonnxruntime-dev", folder=work)
    run("dpkg-deb", "--extract", next(work.glob("*.deb")), work)
    shutil.rmtree(apt)
