"""How many CPUs a process may use, by files as kernels write them."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import ray

from vamf import cpus
from vamf.cluster.ray import connect


@pytest.fixture(autouse=True)
def sixty_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)


def files(root: Path, contents: Mapping[str, str]) -> Path:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"
NESTED = {"proc/self/cgroup": "0::/system.slice/job_7/step_0\n"}
OLDER = {"proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/docker/ab\n0::/\n"}


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({}, 64),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "50000 100000\n"}, 1),
        ({**NESTED, f"{V2}/system.slice/job_7/cpu.max": "400000 100000\n"}, 4),
        (
            {
                **NESTED,
                f"{V2}/system.slice/job_7/step_0/cpu.max": "800000 100000\n",
                f"{V2}/system.slice/cpu.max": "500000 100000\n",
            },
            5,
        ),
        ({"proc/self/cgroup": "0::/../../out\n", f"{V2}/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "unreadable"}, 64),
        (
            {
                **OLDER,
                f"{V1}/docker/ab/cpu.cfs_quota_us": "600000\n",
                f"{V1}/docker/ab/cpu.cfs_period_us": "100000\n",
            },
            6,
        ),
        (  # in a container, whose group is the mount itself
            {
                **OLDER,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "700000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            7,
        ),
        (
            {
                **OLDER,
                f"{V1}/docker/ab/cpu.cfs_quota_us": "-1\n",
                f"{V1}/docker/ab/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
    ],
)
def test_quotas_count(contents: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert cpus.usable(files(tmp_path, contents)) == expected


def test_the_smallest_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = files(tmp_path, {"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "400000 100000\n"})
    for slurm, expected in {"8": 4, "2": 2, "0": 1, "many": 4}.items():
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
        assert cpus.usable(root) == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert cpus.usable(root) == 1


def test_without_affinity_the_machines_cpus_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert cpus.usable(tmp_path) == 12


def test_ray_is_started_with_what_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: started.append(options["num_cpus"]))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    connect.connect()
    assert started == [1]
