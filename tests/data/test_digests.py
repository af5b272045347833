"""A digest changes when the data does."""

import pytest

from deploykit.data import digests
from deploykit.errors import InputError


def test_a_file_by_its_content_whatever_its_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\nhello\n")
    first = digests.of(str(path))
    assert digests.of(f"{path}#text") == first
    path.write_text("text\nother\n")
    assert digests.of(str(path)) != first


def test_a_folder_by_its_listing(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"one")
    first = digests.of(str(tmp_path))
    assert digests.of(str(tmp_path)) == first
    (tmp_path / "b.wav").write_bytes(b"two")
    assert digests.of(str(tmp_path)) != first


def test_a_builtin_set_by_its_name():
    assert digests.of("builtin:sentences") == "builtin:sentences"


def test_what_is_not_there_is_told_with_what_is_near(tmp_path):
    (tmp_path / "texts.txt").write_text("a\n")
    with pytest.raises(InputError, match="there is no file or folder") as caught:
        digests.of(str(tmp_path / "text.txt"))
    assert "texts.txt" in caught.value.hint
