import pytest

from deploykit.runtime import memory

MEMINFO = "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 600 kB\nSwapFree: 100 kB\n"


@pytest.fixture
def system(tmp_path):
    (tmp_path / "meminfo").write_text(MEMINFO)
    return tmp_path / "meminfo"


def group(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_what_can_be_dropped_and_swapped_out_counts(system):
    assert memory.available(system, []) == 700 << 10


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory__max": "max", "memory__current": "5", "memory__stat": ""}, 700 << 10),
        (
            {"memory__max": "500000", "memory__current": "200000", "memory__stat": "anon 1\ninactive_file 50000"},
            350_000,
        ),
        ({"memory__max": "100", "memory__current": "200", "memory__stat": ""}, 0),
        ({"memory__max": "nonsense", "memory__current": "1", "memory__stat": ""}, 700 << 10),
        ({}, 700 << 10),
    ],
)
def test_the_limit_of_the_control_group_cuts_it(system, tmp_path, files, left):
    assert memory.available(system, [(2, group(tmp_path / "g", **files))]) == left


def test_the_first_version_of_control_groups_is_read_too(system, tmp_path):
    files = {
        "memory__limit_in_bytes": "300000",
        "memory__usage_in_bytes": "100000",
        "memory__stat": "total_inactive_file 1000\ninactive_file 9",
    }
    assert memory.available(system, [(1, group(tmp_path / "g", **files))]) == 201_000


def test_the_tightest_group_counts(system, tmp_path):
    loose = group(tmp_path / "a", memory__max="400000", memory__current="0", memory__stat="")
    tight = group(tmp_path / "b", memory__max="300000", memory__current="0", memory__stat="")
    assert memory.available(system, [(2, loose), (2, tight)]) == 300_000


def test_a_system_that_says_nothing_useful_is_unknown(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\n")
    assert memory.available(tmp_path / "meminfo", []) is None


def test_without_the_file_all_memory_is_assumed(tmp_path):
    assert memory.available(tmp_path / "none", []) > 1 << 20


def test_a_model_needs_its_weights_and_an_engine():
    assert 100 << 20 < memory.least_needed(100 << 20) < 200 << 20
