"""What the doctor says of facts: ok, warn and fail of each row."""

from __future__ import annotations

import dataclasses

import pytest

from deflow_vision.doctor import compute, data, drawing, packages, storage, tracking
from deflow_vision.doctor.rows import GIB, Row

RANGES = {"torch": "<2.15,>=2.14", "mujoco": "<5,>=3.3.2"}
PACKAGES = packages.Packages(
    python="3.11.7",
    python_range=">=3.11",
    ranges=RANGES,
    installed={"torch": "2.14.1", "mujoco": "4.0.0"},
    locked={"torch": "2.14.1", "mujoco": "4.0.0"},
)
DRAWING = drawing.Drawing("", "egl", "NVIDIA Corporation, NVIDIA H100", {"official": 2.0})
CPU = compute.Cpu(8, None, "AVX512", True, {"float32": 100.0, "bfloat16": 300.0}, True)
GPU = compute.Gpu("NVIDIA H100", 80 * GIB, 78 * GIB, "9.0", True, "", 0)
GPUS = compute.Gpus("580.1", "13.0", "", (GPU,))
DISK = storage.Disk(("data", "runs"), 100 * GIB, 5e8, 2e9)
LIMITS = storage.Limits((1024, 4096), GIB)
PLAN = data.Plan("cube-double-play", "", "ram", "observations 1,000,000")
STORE = data.Checked(
    "a.zarr", (), "visual-cube-v0", (("mujoco", "4.0.0"),), (("mujoco", "4.0.0"),), True
)
WANDB = tracking.Wandb("0.31.0", "", "api.wandb.ai", "WANDB_API_KEY")

replace = dataclasses.replace

CASES = [
    (packages.judge, PACKAGES, "ok", "as in requirements.lock"),
    (packages.judge, replace(PACKAGES, locked={}), "ok", "no requirements.lock"),
    (
        packages.judge,
        replace(PACKAGES, installed={"torch": "2.14.0", "mujoco": "4.0.0"}),
        "warn",
        "torch 2.14.0 (tested: 2.14.1)",
    ),
    (
        packages.judge,
        replace(PACKAGES, installed={"torch": "2.13.0", "mujoco": "4.0.0"}),
        "fail",
        "pip install 'torch==2.14.1'",
    ),
    (
        packages.judge,
        replace(PACKAGES, installed={"torch": "2.14.1"}, locked={}),
        "fail",
        "pip install 'mujoco<5,>=3.3.2'",
    ),
    (packages.judge, replace(PACKAGES, python="3.10.4"), "fail", "3.10.4, >=3.11"),
    (packages.judge, packages.Packages("3.11.7", None), "fail", "is not installed"),
    (drawing.judge, DRAWING, "ok", "2 ms official"),
    (drawing.judge, replace(DRAWING, renderer="Mesa, llvmpipe (LLVM 15)"), "warn", "fast"),
    (drawing.judge, drawing.Drawing("cannot draw\nOn Debian: apt-get"), "fail", "On Debian"),
    (drawing.judge, drawing.Drawing("black frames"), "fail", "libegl1"),
    (compute.judge_cpu, CPU, "ok", "bf16 pays"),
    (compute.judge_cpu, replace(CPU, quota=2.5), "warn", "--num-threads 2"),
    (compute.judge_cpu, replace(CPU, quota=0.5), "warn", "--num-threads 1"),
    (
        compute.judge_cpu,
        replace(CPU, gflops={"float32": 100.0, "bfloat16": 50.0}),
        "warn",
        "--mixed-precision at no",
    ),
    (compute.judge_cpu, replace(CPU, exact=False), "fail", "reinstall torch"),
    (compute.judge_gpus, GPUS, "ok", "EGL device 0, CUDA graphs work"),
    (compute.judge_gpus, compute.Gpus(None, "13.0", "", ()), "warn", "runs on the CPU"),
    (compute.judge_gpus, compute.Gpus("470.0", "13.0", "too old", ()), "fail", "too old"),
    (compute.judge_gpus, compute.Gpus("580.1", None, "", ()), "fail", "no CUDA"),
    (compute.judge_gpus, replace(GPUS, gpus=(GPU, replace(GPU, egl=None))), "warn", "libnvidia-gl"),
    (compute.judge_gpus, replace(GPUS, gpus=(replace(GPU, free=GIB),)), "warn", "nvidia-smi"),
    (compute.judge_gpus, replace(GPUS, gpus=(replace(GPU, bfloat16=False),)), "warn", "emulated"),
    (
        compute.judge_gpus,
        replace(GPUS, gpus=(replace(GPU, graph_problem="operation not permitted"),)),
        "fail",
        "--no-cuda-graphs",
    ),
    (data.judge_memory, (16 * GIB, 24 * GIB), "ok", "16.0 GiB can be taken of the machine's 24.0"),
    (data.judge_memory, (2 * GIB, None), "warn", "2.0 GiB"),
    (data.judge_memory, (GIB // 2, None), "fail", "0.5 GiB"),
    (data.judge_plan, PLAN, "ok", "1,000,000"),
    (data.judge_plan, replace(PLAN, residency="stream"), "warn", "docs/scaling.md"),
    (data.judge_plan, data.Plan("x", "no dataset:\n  a\n  b"), "fail", "a; or b"),
    (data.judge_plan, data.Plan("x", "unknown task"), "fail", "another --task"),
    (data.judge_store, STORE, "ok", "matches its digest"),
    (data.judge_store, replace(STORE, installed=(("mujoco", "3.3.2"),)), "warn", "--render"),
    (
        data.judge_store,
        replace(STORE, installed=(("mujoco", "3.3.2"),), pixels=False),
        "ok",
        "matches its digest",
    ),
    (data.judge_store, data.Checked("a.zarr", ("block 3", "b")), "fail", "block 3 (and 1 more)"),
    (storage.judge_disks, [DISK], "ok", "writes 500 MB/s, reads 2,000 MB/s"),
    (storage.judge_disks, [DISK, replace(DISK, free=5 * GIB)], "warn", "a million frames"),
    (storage.judge_disks, [replace(DISK, write=1e6)], "warn", "network disk"),
    (storage.judge_disks, [replace(DISK, free=GIB // 2)], "fail", "free some"),
    (storage.judge_disks, [replace(DISK, problem="/x: read-only")], "fail", "make it writable"),
    (storage.judge_limits, LIMITS, "ok", "1024 in a process, at most 4096"),
    (storage.judge_limits, replace(LIMITS, files=(-1, -1)), "ok", "unlimited in a process"),
    (storage.judge_limits, replace(LIMITS, files=(512, 4096)), "warn", "ulimit -n 1024"),
    (storage.judge_limits, replace(LIMITS, files=(64, 128)), "fail", "ulimit -n 128"),
    (storage.judge_limits, replace(LIMITS, shm=64 << 20), "warn", "--shm-size"),
    (storage.judge_limits, replace(LIMITS, shm=None), "warn", "no /dev/shm"),
    (tracking.judge, WANDB, "ok", "logged in to api.wandb.ai by WANDB_API_KEY"),
    (tracking.judge, replace(WANDB, login=""), "ok", "--log.wandb offline works"),
    (tracking.judge, replace(WANDB, mode="disabled"), "warn", "unset WANDB_MODE"),
    (tracking.judge, replace(WANDB, mode="online", login=""), "warn", "wandb login"),
    (tracking.judge, replace(WANDB, problem="x, line 3, cannot be read"), "warn", "line 3"),
    (tracking.judge, replace(WANDB, version=None), "fail", "not installed"),
]


@pytest.mark.parametrize(("judge", "facts", "status", "words"), CASES)
def test_facts_get_their_status_and_their_remedy(judge, facts, status, words):
    rows: list[Row] = judge(facts)
    complaints = [row for row in rows if row.status != "ok"]
    assert {row.status for row in complaints} == ({status} - {"ok"})
    assert any(words in f"{row.found} {row.remedy}" for row in complaints or rows)
