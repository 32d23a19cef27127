"""The CPU: how many cores this process may use, and which instructions it has."""

import math
import os
import platform
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPUINFO = Path("/proc/cpuinfo")


def available_cpus(cgroup: Path = CGROUP) -> int:
    """Return the CPUs that this process may use: the cgroup's quota, rounded up, or the affinity, whichever is less.

    os.cpu_count() returns the host's cores, which is wrong in a container.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, min(cpus, math.ceil(quota)) if quota else cpus)


def _quota(cgroup: Path) -> float | None:
    """Return the cgroup's quota in CPUs, or None without a limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()  # cgroup v2
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()  # cgroup v1
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not limit.isdigit() or not period.isdigit() or int(period) == 0:
        return None  # "max" or -1: no limit
    return int(limit) / int(period)


def features(cpuinfo: Path = CPUINFO) -> dict[str, str | bool]:
    """Return the machine's architecture and its instructions: VNNI and AMX multiply INT8 in hardware, BF16 bfloat16."""
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        words = set()
    return {
        "architecture": platform.machine(),
        "amx": "amx_int8" in words,
        "bf16": bool(words & {"avx512_bf16", "amx_bf16"}),
        "vnni": bool(words & {"avx512_vnni", "avx_vnni"}),
        "avx512": "avx512f" in words,
        "avx2": "avx2" in words,
    }
