import io
import json

import numpy as np
import pytest


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("hello\nhello world\ncat\n")
    return path


def pipe(monkeypatch, data):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data.encode())))


def test_vectors_are_written_one_row_an_input(command, bundle, texts):
    code, out, err = command("embed", bundle, texts, "-o", "v.npy")
    vectors = np.load("v.npy")
    assert (code, vectors.shape, vectors.dtype) == (0, (3, 6), np.float32)
    assert "3 vectors of 6 float32" in out
    assert "onnxruntime-fp32" in err


def test_one_json_document_about_the_run(command, bundle, texts):
    code, out, _ = command("embed", bundle, texts, "-o", "v.npy", "--json")
    facts = json.loads(out)
    assert (code, facts["count"], facts["dim"], facts["variant"]) == (0, 3, 6, "onnxruntime-fp32")


def test_without_a_file_json_lines_go_to_stdout(command, bundle, texts):
    command("embed", bundle, texts, "-o", "v.npy")
    code, out, _ = command("embed", bundle, texts, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(r["index"], r["input"]) for r in rows] == [(0, "hello"), (1, "hello world"), (2, "cat")]
    assert np.array_equal(np.array([r["embedding"] for r in rows], np.float32), np.load("v.npy"))


def test_lines_come_from_stdin(command, bundle, monkeypatch):
    pipe(monkeypatch, "hello\ncat\n")
    code, out, _ = command("embed", bundle, "-", "--json")
    assert (code, len(out.splitlines())) == (0, 2)


def test_nothing_on_stdin_is_said(command, bundle, monkeypatch):
    pipe(monkeypatch, "")
    code, _, err = command("embed", bundle, "-", "--json")
    assert code == 2
    assert "nothing came in on stdin" in err


@pytest.mark.parametrize(("before", "behind"), [(7, 1), (6, 0)])
def test_an_input_that_cannot_be_encoded_is_named_by_its_place(command, bundle, tmp_path, monkeypatch, before, behind):
    monkeypatch.setattr("deploykit.vectors._PIECE", 3)
    (tmp_path / "a.jsonl").write_text('"hello"\n' * before + '"half \\ud800"\n' + '"cat"\n' * behind)
    code, _, err = command("embed", bundle, tmp_path / "a.jsonl", "-o", "v.npy")
    assert code == 2
    place = f"of {before + 1 + behind} inputs, number {before} fails: input 0 holds"
    assert place in " ".join(err.split())


def test_what_is_wrong_with_every_input_names_none(command, bundle, texts, monkeypatch):
    monkeypatch.setattr("deploykit.vectors._PIECE", 2)
    code, _, err = command("embed", bundle, texts, "-o", "v.npy", "--kind", "query")
    assert code == 2
    assert "number" not in err


def test_a_column_of_a_table(command, bundle, tmp_path):
    (tmp_path / "a.csv").write_text("title,words\nx,hello\ny,cat\n")
    code, _, _ = command("embed", bundle, tmp_path / "a.csv", "--column", "words", "-o", "v.npy")
    assert (code, len(np.load("v.npy"))) == (0, 2)


def test_several_inputs_are_one_list(command, bundle, texts):
    command("embed", bundle, texts, texts, "-o", "v.npy")
    vectors = np.load("v.npy")
    assert np.array_equal(vectors[:3], vectors[3:])


def test_a_variant_by_name(command, bundle, texts):
    assert command("embed", f"{bundle}@onnxruntime-fp32", texts, "-o", "v.npy")[0] == 0
    code, _, err = command("embed", f"{bundle}@openvino-int8", texts, "-o", "v.npy")
    assert code == 2
    assert "onnxruntime-fp32" in err


def test_a_text_in_place_of_a_file_is_explained(command, bundle):
    code, _, err = command("embed", bundle, "hello big world", "-o", "v.npy")
    assert code == 2
    assert "pipe it in" in err


def test_a_missing_destination_is_said_before_the_work(command, bundle, texts):
    code, _, err = command("embed", bundle, texts)
    assert code == 2
    assert "-o vectors.npy" in err


@pytest.mark.parametrize(
    ("output", "says"),
    [("v.txt", "written as .npy"), ("nowhere/v.npy", "no folder 'nowhere'"), ("folder.npy", "is a folder")],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(command, bundle, texts, tmp_path, output, says):
    (tmp_path / "folder.npy").mkdir()
    code, _, err = command("embed", bundle, texts, "-o", output)
    assert code == 2
    assert says in err


def test_the_wrong_kind_of_input_is_refused(command, bundle, tmp_path):
    (tmp_path / "a.wav").touch()
    code, _, err = command("embed", bundle, tmp_path / "a.wav", "-o", "v.npy")
    assert code == 2
    assert "encodes texts" in err


def test_what_was_there_stays_when_embedding_fails(command, bundle, tmp_path):
    (tmp_path / "v.npy").write_bytes(b"old")
    assert command("embed", bundle, "missing.txt", "-o", "v.npy")[0] == 2
    assert (tmp_path / "v.npy").read_bytes() == b"old"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".v.npy")]
