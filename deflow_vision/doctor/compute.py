"""What computes: the CPU's cores and their rate, and each GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deflow_vision.doctor.drawing import egl_devices
from deflow_vision.doctor.rows import GIB, Row
from deflow_vision.envs.worker import WorkerError, run_in_worker

_SIZE = 1024
_LEAST_GPU_MEMORY = 4 * GIB


@dataclass(frozen=True)
class Cpu:
    """The processor.

    Attributes:
        cores: those that this process may run on.
        quota: cores' worth of time that the control group allows; None without a limit.
        capability: the widest vectors, as torch calls them.
        bfloat16: whether it has bfloat16 instructions.
        gflops: rate of a product of 1024 x 1024 matrices on all cores, by precision.
        exact: whether the product was right.
    """

    cores: int
    quota: float | None
    capability: str
    bfloat16: bool
    gflops: Mapping[str, float]
    exact: bool


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: its name.
        memory: bytes in all.
        free: bytes free.
        capability: CUDA's compute capability.
        bfloat16: whether it has bfloat16 instructions.
        graph_problem: why a recorded product could not be replayed, or what was wrong with it.
        egl: the number of its EGL device (MUJOCO_EGL_DEVICE_ID), None where it has none.
    """

    name: str
    memory: int
    free: int
    capability: str
    bfloat16: bool
    graph_problem: str
    egl: int | None


@dataclass(frozen=True)
class Gpus:
    """What torch sees of the GPUs.

    Attributes:
        driver: the driver's version as its kernel module gives it, None without one.
        cuda: the CUDA release that torch was built for, None where built without.
        problem: why torch cannot use them.
        gpus: one each, in CUDA's order.
    """

    driver: str | None
    cuda: str | None
    problem: str
    gpus: tuple[Gpu, ...]


def look_cpu() -> Cpu:
    """Measure products for about a second."""
    import torch

    from deflow_vision.training.devices import computes_bfloat16

    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(Path("/sys/fs/cgroup/cpu.max"))
    torch.set_num_threads(max(1, min(cores, int(quota or cores))))
    has_bf16 = computes_bfloat16(torch.device("cpu"))
    dtypes = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if has_bf16 else {})
    ones = torch.ones(_SIZE, _SIZE)
    rates, exact = {}, True
    for name, dtype in dtypes.items():
        x = ones.to(dtype)
        rates[name] = _rate(lambda x=x: x @ x)  # type: ignore[misc]
        exact &= bool((x @ x == _SIZE).all())  # a power of two: exact in either precision
    return Cpu(cores, quota, torch.backends.cpu.get_cpu_capability(), has_bf16, rates, exact)


def _rate(product: Callable[[], object]) -> float:
    """GFLOP/s of the fastest of several calls."""
    product()
    best, end = float("inf"), time.perf_counter() + 0.4
    while time.perf_counter() < end:
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return 2 * _SIZE**3 / best / 1e9


def cpu_quota(path: Path) -> float | None:
    """Cores' worth of time in a control group's `cpu.max`; None without a limit."""
    words = path.read_text().split() if path.is_file() else ["max"]
    return None if words[0] == "max" else int(words[0]) / int(words[1])


def judge_cpu(facts: Cpu) -> list[Row]:
    """One row."""
    rates = ", ".join(f"{rate:.0f} GFLOP/s {name}" for name, rate in facts.gflops.items())
    found = f"{facts.cores} cores, {facts.capability}, {rates}"
    if not facts.exact:
        remedy = "a product of ones was wrong: reinstall torch (pip install -r requirements.lock)"
        return [Row("CPU", "fail", found, remedy)]
    if facts.quota is not None and facts.quota < facts.cores:
        found += f"; the container may use {facts.quota:g} of them"
        remedy = (
            f"threads beyond that wait for each other: --num-threads {max(1, int(facts.quota))}"
        )
        return [Row("CPU", "warn", found, remedy)]
    if facts.bfloat16 and facts.gflops["bfloat16"] < facts.gflops["float32"]:
        remedy = "bfloat16 is slower than float32 here: leave --mixed-precision at no"
        return [Row("CPU", "warn", found, remedy)]
    precision = "--mixed-precision bf16 pays" if facts.bfloat16 else "no bfloat16 instructions"
    return [Row("CPU", "ok", f"{found}; {precision}")]


def look_gpus() -> Gpus:
    """Ask torch for every GPU, and EGL for its device, in a process without torch."""
    import torch

    version = Path("/sys/module/nvidia/version")
    driver = version.read_text().strip() if version.is_file() else None
    problem, gpus = "", []
    if torch.version.cuda is not None:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            count = torch.cuda.device_count()
            numbers = physical_numbers(count, os.environ.get("CUDA_VISIBLE_DEVICES"))
            egl = _egl() if count else {}
            gpus = [_gpu(index, egl.get(number)) for index, number in enumerate(numbers)]
        except RuntimeError as error:
            problem = str(error).splitlines()[0]
    return Gpus(driver, torch.version.cuda, problem, tuple(gpus))


def physical_numbers(count: int, visible: str | None) -> list[int]:
    """The driver's numbers of the GPUs that torch calls 0, 1, ...: EGL knows them by these.

    Args:
        count: of GPUs that torch sees.
        visible: CUDA_VISIBLE_DEVICES; where it has other names than numbers, torch's are taken.
    """
    words = [word.strip() for word in (visible or "").split(",")]
    numbers = [int(word) for word in words if word.isdigit()]
    return numbers[:count] if len(numbers) >= count else list(range(count))


def _egl() -> dict[int, int]:
    try:
        found: dict[int, int] = run_in_worker(egl_devices, variables={"MUJOCO_GL": "egl"})
    except WorkerError:
        return {}
    return found


def _gpu(index: int, egl: int | None) -> Gpu:
    import torch

    from deflow_vision.training.devices import computes_bfloat16

    with torch.cuda.device(index):
        free, memory = torch.cuda.mem_get_info()
        return Gpu(
            name=torch.cuda.get_device_name(),
            memory=memory,
            free=free,
            capability=".".join(map(str, torch.cuda.get_device_capability())),
            bfloat16=computes_bfloat16(torch.device("cuda")),
            graph_problem=_graph_problem(),
            egl=egl,
        )


def _graph_problem() -> str:
    """Record a product on the current GPU, replay it on other numbers."""
    import torch

    try:
        x = torch.zeros(64, 64, device="cuda")
        warm = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(warm):
            _ = x @ x  # cuBLAS makes its workspace outside of the graph
        warm.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=warm):  # the default one stays on the first GPU
            y = x @ x
        x.fill_(1)
        graph.replay()
        return "" if bool((y == 64).all()) else "a replayed product was wrong"
    except RuntimeError as error:
        return str(error).splitlines()[0]


def judge_gpus(facts: Gpus) -> list[Row]:
    """A row for each GPU, or one that says why there is none."""
    if facts.gpus:
        return [_judge_gpu(index, gpu) for index, gpu in enumerate(facts.gpus)]
    if facts.driver is None:
        remedy = (
            "training runs on the CPU, where a published run takes days: shorten it "
            "(--offline-steps, --preset demo-state), or use a machine with an NVIDIA GPU"
        )
        found = f"none: {facts.problem}" if facts.problem else "none"
        return [Row("GPU", "warn", found, remedy)]
    built = f"CUDA {facts.cuda}" if facts.cuda else "no CUDA"
    reason = facts.problem or "torch sees no GPU"
    return [
        Row(
            "GPU",
            "fail",
            f"driver {facts.driver}, torch built for {built}: {reason}",
            "install a driver that is new enough for this CUDA, or a torch for your driver's; in a "
            "container pass the GPU on (docker run --gpus all); see CUDA_VISIBLE_DEVICES",
        )
    ]


def _judge_gpu(index: int, gpu: Gpu) -> Row:
    name = f"GPU {index}"
    egl = "no EGL device" if gpu.egl is None else f"EGL device {gpu.egl}"
    precision = "bfloat16" if gpu.bfloat16 else "no bfloat16"
    found = (
        f"{gpu.name}, {gpu.free / GIB:.1f} of {gpu.memory / GIB:.1f} GiB free, capability "
        f"{gpu.capability}, {precision}, {egl}"
    )
    if gpu.graph_problem:
        remedy = "updates cannot be recorded: --no-cuda-graphs; or see the driver's and torch's fit"
        return Row(name, "fail", f"{found}; CUDA graphs: {gpu.graph_problem}", remedy)
    found += ", CUDA graphs work"
    if gpu.free < _LEAST_GPU_MEMORY:
        remedy = "another process holds its memory (nvidia-smi): end it, or pick another GPU"
        return Row(name, "warn", found, remedy)
    if gpu.egl is None:
        remedy = (
            "MuJoCo does not draw on it: install the driver's EGL (libnvidia-gl; in a container "
            "NVIDIA_DRIVER_CAPABILITIES=all)"
        )
        return Row(name, "warn", found, remedy)
    if not gpu.bfloat16:
        return Row(name, "warn", found, "leave --mixed-precision at no: bfloat16 is emulated here")
    return Row(name, "ok", found)
