import json
import os
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from deploykit.data import builtin, read
from deploykit.errors import InputError, MissingError, UnknownNameError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_line_n_is_input_n_blank_lines_included(tmp_path):
    data = read(write(tmp_path / "a.txt", "one\n\nthree\n"))
    assert list(data.inputs) == ["one", "", "three"]
    assert data.modality == "text"


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfone\r\ntwo\r\n", b"one\ntwo"])
def test_marks_and_line_ends_of_other_systems_are_no_text(tmp_path, content):
    assert list(read(write(tmp_path / "a.txt", content)).inputs) == ["one", "two"]


def test_a_line_separator_inside_a_text_does_not_split_it(tmp_path):
    assert list(read(write(tmp_path / "a.txt", "one\u2028still one\n")).inputs) == ["one\u2028still one"]


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path):
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        read(write(tmp_path / "a.txt", b"one\ncaf\xe9\n"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_of_16_bit_characters_is_refused_by_its_encoding(tmp_path, encoding):
    with pytest.raises(InputError, match="is UTF-16") as caught:
        read(write(tmp_path / "a.txt", "hello\n".encode(encoding)))
    assert "iconv -f utf-16" in caught.value.hint


def test_lines_that_end_as_on_old_macs_are_refused(tmp_path):
    with pytest.raises(InputError, match="ends its lines with carriage returns alone"):
        read(write(tmp_path / "a.txt", "one\rtwo\r"))
    assert list(read(write(tmp_path / "b.txt", "one\rstill one\ntwo")).inputs) == ["one\rstill one", "two"]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, content):
    with pytest.raises(InputError, match="is empty"):
        read(write(tmp_path / "a.txt", content))


def test_jsonl_takes_objects_and_strings(tmp_path):
    rows = [{"text": "one", "label": 3}, {"text": "two", "label": 4}]
    data = read(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n"))
    assert (list(data.inputs), data.labels) == (["one", "two"], [3, 4])
    assert list(read(write(tmp_path / "b.jsonl", '"one"\n"two"\n')).inputs) == ["one", "two"]


def test_broken_json_is_refused_with_its_line(tmp_path):
    with pytest.raises(InputError, match="line 2 is not JSON"):
        read(write(tmp_path / "a.jsonl", '{"text": "one"}\n{"text": \n'))


def test_a_missing_text_is_refused_with_its_row(tmp_path):
    with pytest.raises(InputError, match="row 2: column 'text' holds no text"):
        read(write(tmp_path / "a.jsonl", '{"text": "one"}\n{"label": 1}\n'))


def test_csv_quotes_and_tsv_does_not(tmp_path):
    comma = read(write(tmp_path / "a.csv", 'sentence,label\n"one, ""1""\nmore",x\n'))
    tab = read(write(tmp_path / "a.tsv", 'sentence\tlabel\n"one\t0\n'))
    assert (list(comma.inputs), comma.labels) == (['one, "1"\nmore'], ["x"])
    assert (list(tab.inputs), tab.labels) == (['"one'], ["0"])


def test_an_empty_text_in_quotes_is_a_row(tmp_path):
    assert list(read(write(tmp_path / "a.csv", 'text\n""\n\nb\n')).inputs) == ["", "b"]


def test_a_quote_that_nothing_closes_is_refused_with_its_line(tmp_path):
    with pytest.raises(InputError, match=r"'a\.csv' line 3 opens a quote"):
        read(write(tmp_path / "a.csv", 'text,label\na,1\n"open,2\nb,3\n'))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text\nfine\nhello, world\n"),
        ("a.csv", "text,label\nfine,1\nhello, world,3\n"),
        ("a.tsv", "text\tlabel\nfine\t1\nhello\tworld\t3\n"),
    ],
)
def test_a_row_with_more_fields_than_columns_is_refused_with_its_line(tmp_path, name, content):
    with pytest.raises(InputError, match=f"'{name}' line 3 has . fields, and the header names"):
        read(write(tmp_path / name, content))


def test_empty_fields_behind_the_last_column_are_nothing(tmp_path):
    data = read(write(tmp_path / "a.csv", "text,label\na,1,,\n"))
    assert (list(data.inputs), data.labels) == (["a"], ["1"])


def test_columns_are_named_after_a_hash(tmp_path):
    path = write(tmp_path / "a.csv", "title,body,topic\na,b,c\n")
    assert list(read(f"{path}#body").inputs) == ["b"]
    data = read(f"{path}#text=title,label=topic")
    assert (list(data.inputs), data.labels) == (["a"], ["c"])


def test_a_column_by_number_means_that_there_is_no_header(tmp_path):
    assert list(read(f"{write(tmp_path / 'a.csv', 'x1,one{0}x2,two{0}'.format(chr(10)))}#2").inputs) == ["one", "two"]


def test_an_unknown_column_names_the_nearest(tmp_path):
    path = write(tmp_path / "a.csv", "title,body\na,b\n")
    with pytest.raises(InputError, match="has no column 'bdy'") as caught:
        read(f"{path}#bdy")
    assert "'body'" in caught.value.hint


def test_a_table_with_several_unknown_columns_asks_which(tmp_path):
    with pytest.raises(InputError, match="does not tell which column") as caught:
        read(write(tmp_path / "a.csv", "title,remark\na,b\n"))
    assert "title, remark" in caught.value.hint


def test_an_unknown_role_and_an_empty_column_are_refused(tmp_path):
    path = write(tmp_path / "a.csv", "text\na\n")
    with pytest.raises(InputError, match="is no role"):
        read(f"{path}#txet=text")
    with pytest.raises(InputError, match="cannot be read"):
        read(f"{path}#text=")


@pytest.mark.parametrize("content", ["text\n", "\n\n"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_without_rows_is_refused(tmp_path, name, content):
    with pytest.raises(InputError, match="has no rows"):
        read(write(tmp_path / name, content))


def test_a_file_whose_name_holds_a_hash_is_read(tmp_path):
    assert list(read(write(tmp_path / "c#.txt", "one\n")).inputs) == ["one"]


def test_class_folders_give_labels(tmp_path):
    for name in ("cat/1.png", "dog/2.JPG", "dog/.hidden.png", "dog/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    data = read(tmp_path)
    assert [p.name for p in data.inputs] == ["1.png", "2.JPG"]
    assert (data.modality, data.labels) == ("image", ["cat", "dog"])


@pytest.mark.parametrize("name", ["a.flac", "a.OGG", "a.mp3", "a.opus", "a.aiff"])
def test_sounds_of_every_format_that_can_be_decoded_are_found(tmp_path, name):
    (tmp_path / name).touch()
    for spec in (tmp_path, tmp_path / name):
        assert [p.name for p in read(spec).inputs] == [name]
        assert read(spec).modality == "audio"


def test_a_flat_folder_of_wavs_has_no_labels(tmp_path):
    (tmp_path / "b.wav").touch()
    (tmp_path / "a.wav").touch()
    data = read(tmp_path)
    assert [p.name for p in data.inputs] == ["a.wav", "b.wav"]
    assert (data.modality, data.labels) == ("audio", None)


def test_folders_with_nothing_or_with_both_kinds_are_refused(tmp_path):
    with pytest.raises(InputError, match="no image and no sound"):
        read(tmp_path)
    (tmp_path / "a.wav").touch()
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match="1 images and 1 sounds"):
        read(tmp_path)


def test_tensors_are_split_along_their_first_axis(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(6).reshape(3, 2), y=np.arange(3))
    data = read(tmp_path / "a.npz")
    assert (len(data), data.modality) == (3, "tensor")
    assert data.inputs[1]["x"].tolist() == [2, 3]
    assert data.inputs[1]["y"] == 1


def test_tensors_that_disagree_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.zeros(2))
    with pytest.raises(InputError, match="count different inputs: x 3, y 2"):
        read(tmp_path / "a.npz")


def test_pickles_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="is not a readable"):
        read(tmp_path / "a.npz")


def test_a_damaged_npz_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a readable"):
        read(write(tmp_path / "a.npz", b"PK\x03\x04 cut off"))


def test_a_missing_file_names_the_nearest(tmp_path):
    write(tmp_path / "texts.txt", "one\n")
    with pytest.raises(InputError, match="there is no file") as caught:
        read(tmp_path / "text.txt")
    assert "'texts.txt'" in caught.value.hint


def test_an_unknown_kind_of_file_lists_the_known(tmp_path):
    with pytest.raises(InputError, match="of no kind") as caught:
        read(write(tmp_path / "a.docx", "x"))
    assert ".jsonl" in caught.value.hint


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingError, match="pyarrow") as caught:
        read(write(tmp_path / "a.parquet", b"PAR1"))
    assert 'pip install "pyarrow>=' in caught.value.hint


def test_parquet_is_read_with_its_pictures_and_labels(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"img": [{"bytes": b"123", "path": None}], "label": [7]})
    parquet.write_table(table, tmp_path / "a.parquet")
    data = read(tmp_path / "a.parquet")
    assert (data.modality, list(data.inputs), data.labels) == ("image", [b"123"], [7])
    with pytest.raises(InputError, match="not a readable parquet"):
        read(write(tmp_path / "b.parquet", b"PAR1"))


def test_the_builtin_sentences_are_many_varied_and_distinct():
    texts = read("builtin:sentences").inputs
    lengths = sorted(len(text.split()) for text in texts)
    assert len(set(texts)) == len(texts) >= 120
    assert lengths[0] == 1
    assert 150 < lengths[-1] <= 220
    assert all(text == text.strip() for text in texts)


def test_the_builtin_images_are_uint8_pictures_of_many_sizes():
    images = read("builtin:images").inputs
    assert {image.dtype for image in images} == {np.dtype(np.uint8)}
    assert all(image.shape[2] == 3 and image.std() > 10 for image in images)
    assert len({image.shape for image in images}) > 20


def test_the_builtin_tones_fit_what_an_encoder_can_hear():
    tones = read("builtin:tones").inputs[:6]
    fitted = builtin.fitted(tones, 8_000, 20_000)
    assert [len(tone) for tone in fitted] == [min(max(len(tone), 8_000), 20_000) for tone in tones]
    assert all(np.array_equal(new[:4_000], old[:4_000]) for new, old in zip(fitted, tones, strict=True))


def test_the_builtin_tones_are_sounds_that_do_not_clip():
    tones = read("builtin:tones").inputs
    assert all(tone.dtype == np.float32 and tone.ndim == 1 for tone in tones)
    assert all(0.1 < np.abs(tone).max() < 1 for tone in tones)
    assert 0.3 * 16_000 <= min(map(len, tones)) < max(map(len, tones)) <= 3 * 16_000


def test_builtin_sets_are_the_same_each_time():
    for name in ("images", "tones"):
        first, second = read(f"builtin:{name}").inputs, read(f"builtin:{name}").inputs
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_unknown_builtin_set_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        read("builtin:sentence")
    assert "'sentences'" in caught.value.hint


needs_data = pytest.mark.skipif("DEPLOYKIT_DATA" not in os.environ, reason="DEPLOYKIT_DATA is not set")


@needs_data
def test_real_files_are_read():
    root = Path(os.environ["DEPLOYKIT_DATA"])
    assert len(read(root / "sst2" / "dev.tsv")) == 872
    assert len(read(f"{root}/stsb/sts-dev.csv#text=6,label=5")) == 1500
    sounds = read(root / "fsdd")
    assert (len(sounds), sounds.modality) == (3000, "audio")
    with wave.open(str(sounds.inputs[0])) as sound:
        assert sound.getframerate() == 8000


def test_scored_pairs_come_from_three_columns_and_keep_an_input_once(tmp_path):
    path = write(tmp_path / "a.csv", "x\t5.0\ta man\ta woman\nx\t1.5\ta dog\ta man\textra\n")
    data = read(f"{path}#a=3,b=4,score=2")
    assert list(data.inputs) == ["a man", "a woman", "a dog"]
    assert list(data.pairs) == [(0, 1, 5.0), (2, 0, 1.5)]
    assert (data.modality, data.labels) == ("text", None)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("a=one,b=two", "lack 'score'"),
        ("a=one,b=two,score=three,label=one", "take no 'label'"),
        ("a=one,b=two,score=one", "row 1: column 'one' holds no number but 'hello'"),
        ("a=one,b=too,score=three", "no column 'too'"),
        ("a=one,b=four,score=three", "row 1: column 'four' holds no text but None"),
        ("a=one,b=two,scores=three", "did you mean 'score'"),
    ],
)
def test_pairs_that_cannot_be_read_are_refused(tmp_path, columns, says):
    path = write(tmp_path / "a.csv", "one,two,three,four\nhello,world,3\n")
    with pytest.raises(InputError) as caught:
        read(f"{path}#{columns}")
    assert says in str(caught.value)
