import errno
import os
import subprocess
import sys

import pytest

from deploykit.errors import BusyError, DiskError
from deploykit.pipeline.store import Store, disk_errors


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def commit(store, key="k1", text="hello", **metadata):
    with store.workspace() as work:
        out = work / "out"
        out.mkdir()
        (out / "a.txt").write_text(text)
        return store.commit(key, "export", out, metadata, ())


def test_what_was_committed_is_found(store):
    made = commit(store, colour="red")
    found = store.find("k1")
    assert found == made
    assert (found.path / "a.txt").read_text() == "hello"


def test_an_unknown_key_is_not_found(store):
    assert store.find("nothing") is None


def test_a_truncated_or_missing_file_is_not_found(store):
    made = commit(store)
    (made.path / "a.txt").write_text("hell")
    assert store.find("k1") is None
    (made.path / "a.txt").unlink()
    assert store.find("k1") is None


def test_equal_content_has_equal_digests_whatever_time_it_took(store):
    one = commit(store, "k1", run={"seconds": 1})
    two = commit(store, "k2", run={"seconds": 2})
    assert one.digest == two.digest
    assert commit(store, "k3", text="other").digest != one.digest


def test_a_failed_workspace_leaves_nothing(store):
    def fail():
        with store.workspace() as work:
            (work / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list((store.root / "tmp").iterdir())


def test_the_remains_of_a_killed_run_are_swept(store):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    remains = store.root / "tmp" / f"{process.pid}-abc"
    remains.mkdir(parents=True)
    with store.workspace():
        assert not remains.exists()


def test_a_lock_held_elsewhere_is_busy(store):
    code = (
        "import sys; from pathlib import Path; from deploykit.pipeline.store import Store\n"
        "with Store(Path(sys.argv[1])).lock('out', wait=False):\n    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    holder.stdout.readline()
    with pytest.raises(BusyError, match="busy with 'out'"), store.lock("out", wait=False):
        pass
    holder.stdin.close()
    holder.wait()
    with store.lock("out", wait=False):
        assert True


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_or_read_only_disk_is_a_disk_error(code):
    with pytest.raises(DiskError, match="'there'"), disk_errors("'there'"):
        raise OSError(code, os.strerror(code))


def test_other_system_errors_pass_through():
    with pytest.raises(IsADirectoryError), disk_errors("x"):
        raise IsADirectoryError(errno.EISDIR, "is a directory")
