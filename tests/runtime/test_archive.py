import json
import stat
import warnings
import zipfile

import pytest

from deploykit.bundle.pack import pack
from deploykit.runtime.archive import cache_folder
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.errors import BundleError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def packed(tiny, tmp_path):
    return pack(tiny.root, tmp_path / "tiny.dkb")


def repack(source, target, change=lambda infos: None, **options):
    """Copy a zip entry by entry; ``change`` may edit the list of (info, bytes) pairs."""
    with zipfile.ZipFile(source) as old:
        entries = [(info, old.read(info)) for info in old.infolist()]
    change(entries)
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", **options) as new:
        warnings.simplefilter("ignore")
        for info, data in entries:
            new.writestr(info, data)
    return target


def test_a_packed_bundle_opens_like_its_folder(packed, tiny):
    opened = Bundle.open(packed)
    opened.verify()
    assert opened.digest == tiny.digest


def test_it_is_unpacked_once(packed, cache):
    first = Bundle.open(packed).root
    stamp = (first / "manifest.json").stat().st_mtime_ns
    assert Bundle.open(packed).root == first
    assert (first / "manifest.json").stat().st_mtime_ns == stamp
    assert [path.name for path in (cache / "bundles").iterdir()] == [first.name]


def add(name, data=b"x", mode=0o100644):
    def change(entries):
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        entries.append((info, data))

    return change


def compress(entries):
    entries[1][0].compress_type = zipfile.ZIP_DEFLATED


def shorten(entries):
    entries[1] = (entries[1][0], entries[1][1][:-1])


def alter(entries):
    entries[1] = (entries[1][0], entries[1][1][:-1] + b"?")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (add("../escape"), "leaves its folder"),
        (add("/absolute"), "is absolute"),
        (add("extra.txt"), "is not listed"),
        (add("manifest.json"), "one file on some systems"),
        (add("MODEL_card.md"), "one file on some systems"),
        (add("link", b"/etc/passwd", stat.S_IFLNK | 0o777), "no plain file"),
        (add("folder/"), "leaves its folder"),
        (compress, "is compressed"),
        (shorten, "another size"),
        (alter, "was altered"),
        (lambda entries: entries.pop(0), "has no manifest.json"),
        (lambda entries: entries.pop(1), "is missing"),
    ],
)
def test_an_odd_archive_is_refused_and_leaves_nothing(packed, tmp_path, cache, change, reason):
    odd = repack(packed, tmp_path / "odd.dkb", change)
    with pytest.raises(BundleError, match=reason):
        Bundle.open(odd)
    assert not list((cache / "bundles").iterdir())
    assert not (tmp_path / "escape").exists()


def test_a_truncated_archive_is_refused(packed):
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(BundleError, match="no intact packed bundle"):
        Bundle.open(packed)


def test_a_flipped_byte_is_refused(packed):
    data = bytearray(packed.read_bytes())
    data[len(data) // 2] ^= 1
    packed.write_bytes(data)
    with pytest.raises(BundleError):
        Bundle.open(packed)


def test_a_file_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "x.dkb").write_text(json.dumps({}))
    with pytest.raises(BundleError, match="no intact packed bundle"):
        Bundle.open(tmp_path / "x.dkb")


def test_an_archive_with_the_long_form_of_its_end_is_read(packed, tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)  # what an archive of 65,536 files or 4 GiB has
    long = repack(packed, tmp_path / "long.dkb")
    assert b"PK\6\6" in long.read_bytes()
    assert Bundle.open(long).digest == tiny.digest


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"#!/bin/sh\n" + data, "its directory is not where it says"),
        (lambda data: data + b"more", "no end, or something behind it"),
        (lambda data: data[:-2] + b"\4\0more", "no end, or something behind it"),
        (lambda data: data[:6] + b"\0\x08" + data[8:], "other things of itself"),
        (lambda data: data[:8] + b"\x08\0" + data[10:], "other things of itself"),
        (lambda data: data[:14] + b"\0\0\0\0" + data[18:], "other things of itself"),
        (lambda data: b"XX" + data[2:], "an entry has no head"),
        (lambda data: data[:30] + b"M" + data[31:], "no intact packed bundle"),
        (lambda data: data[:-10] + (1 << 30).to_bytes(4, "little") + data[-6:], "directory of 1073741824 bytes"),
        (lambda data: b"", "no end"),
        (lambda data: b"PK\5\6" + bytes(18), "has no manifest"),
    ],
)
def test_an_archive_that_two_readers_would_read_in_two_ways_is_refused(packed, cache, change, reason):
    packed.write_bytes(change(packed.read_bytes()))
    with pytest.raises(BundleError, match=reason):
        Bundle.open(packed)
    assert not list((cache / "bundles").iterdir())


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("DEPLOYKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "deploykit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().parts[-2:] == (".cache", "deploykit")
