import os

import pytest

from deploykit.runtime import hardware


@pytest.fixture(autouse=True)
def _no_limit_of_instructions(monkeypatch):
    """What these tests read is theirs, also where the suite runs under a limit."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)


def test_x86_flags_are_read(tmp_path):
    (tmp_path / "cpuinfo").write_text("model name\t: Some Xeon\nflags\t\t: fpu avx2 amx_bf16\n")
    cpu = hardware.cpu(tmp_path / "cpuinfo", "AMD64")
    assert cpu == hardware.Cpu("x86_64", "Some Xeon", frozenset({"fpu", "avx2", "amx_bf16"}))


def test_what_the_environment_hides_from_the_engine_is_left_out(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text("flags : fma avx avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8\n")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    assert hardware.cpu(path, "x86_64").features == {"fma", "avx", "avx2", "avx512f", "avx512_vnni"}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    assert hardware.cpu(path, "x86_64").features == {"fma", "avx", "avx2"}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "DEFAULT")
    assert "amx_int8" in hardware.cpu(path, "x86_64").features


def test_arm_features_are_read(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\nModel\t\t: Raspberry Pi 5\n")
    cpu = hardware.cpu(tmp_path / "cpuinfo", "arm64")
    assert cpu == hardware.Cpu("aarch64", "Raspberry Pi 5", frozenset({"fp", "asimd", "asimddp"}))


def test_only_features_of_every_core_count(tmp_path):
    (tmp_path / "cpuinfo").write_text("Features : asimd i8mm\n\nFeatures : asimd\n")
    assert hardware.cpu(tmp_path / "cpuinfo", "aarch64").features == {"asimd"}


def test_a_system_without_the_list_has_no_known_feature(tmp_path):
    assert hardware.cpu(tmp_path / "nothing", "x86_64") == hardware.Cpu("x86_64", "", frozenset())


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"a/b/cpu.max": "max 100000"}, 8),
        ({"a/b/cpu.max": "300000 100000"}, 3),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"a/b/cpu.max": "9999999 100000"}, 8),
        ({"a/b/cpu.max": "nonsense"}, 8),
    ],
)
@pytest.mark.usefixtures("eight_cores")
def test_cores_are_cut_by_the_quota_of_the_group_and_its_parents(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "membership").write_text("0::/a/b\n")
    assert hardware.usable_cores(tmp_path, tmp_path / "membership") == cores


@pytest.mark.usefixtures("eight_cores")
def test_the_older_form_of_control_groups_is_read(tmp_path):
    folder = tmp_path / "cpu" / "job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("200000")
    (folder / "cpu.cfs_period_us").write_text("100000")
    (tmp_path / "membership").write_text("4:cpu,cpuacct:/job\n3:memory:/other\n")
    assert hardware.usable_cores(tmp_path, tmp_path / "membership") == 2


def test_affinity_bounds_the_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert hardware.usable_cores(tmp_path, tmp_path / "membership") == 1
