"""The number of CPUs: from the quota, not from the host."""

import os
from pathlib import Path

import pytest

from app.engine import cpu


@pytest.fixture(autouse=True)
def _eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("max 100000", 8), ("50000 100000", 1), ("150000 100000", 2), ("400000 100000", 4), ("1600000 100000", 8)],
)
def test_cgroup_v2(tmp_path: Path, quota: str, cpus: int) -> None:
    """The quota of cgroup v2, rounded up, limits the affinity's count."""
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert cpu.available_cpus(tmp_path) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("200000", 2)])
def test_cgroup_v1(tmp_path: Path, quota: str, cpus: int) -> None:
    """The quota of cgroup v1 limits the affinity's count, too."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert cpu.available_cpus(tmp_path) == cpus


def test_no_cgroup(tmp_path: Path) -> None:
    """Without a quota the affinity counts."""
    assert cpu.available_cpus(tmp_path) == 8


def test_vnni(tmp_path: Path) -> None:
    """VNNI is read from the CPU's flags; an unreadable file means no."""
    (tmp_path / "with").write_text("flags : fpu avx2 avx512f avx512_vnni\n")
    assert cpu.features(tmp_path / "with")["vnni"] is True
    assert cpu.features(tmp_path / "without")["vnni"] is False


def test_amx_and_bf16(tmp_path: Path) -> None:
    """AMX and BF16 are read from the flags, each for itself: AMX has instructions for INT8 and for bfloat16."""
    for flags, amx, bf16 in [("avx512_bf16", False, True), ("amx_int8 amx_bf16", True, True), ("avx2", False, False)]:
        (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags}\n")
        found = cpu.features(tmp_path / "cpuinfo")
        assert (found["amx"], found["bf16"]) == (amx, bf16)
