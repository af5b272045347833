"""Files that commands leave: refused in time, and never half there."""

import pytest

from deploykit.errors import InputError, MissingError
from deploykit.output import check_output, replacing, write_text


def test_what_could_not_be_written_is_refused_beforehand_with_the_way_out(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="is a folder") as found:
        check_output(tmp_path, "gate.json")
    assert str(tmp_path / "gate.json") in found.value.hint
    with pytest.raises(InputError, match="there is no folder"):
        check_output(tmp_path / "no" / "r.xml", "r.xml")
    check_output(tmp_path / "r.xml", "r.xml")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(MissingError, match="cannot be written"):
        check_output(tmp_path / "r.xml", "r.xml")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole(tmp_path):
    write_text(tmp_path / "r.md", "one\n")
    write_text(tmp_path / "r.md", "zwölf\n")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("r.md", "zwölf\n".encode())]


def half(path):
    with replacing(path) as file:
        file.write(b"half")
        raise RuntimeError


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "r.txt").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "r.txt", "\ud800")
    with pytest.raises(RuntimeError):
        half(tmp_path / "r.txt")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("r.txt", "old")]
