"""Devices, processes and precision of a run."""

from __future__ import annotations

import ctypes
import logging
import os
from datetime import timedelta

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env

from deflow_vision.agents import AGENTS
from deflow_vision.config import TrainConfig, resolve_mixed_precision
from deflow_vision.types import UserError

log = logging.getLogger(__name__)


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Devices, processes and precision, from the launcher and the configuration.

    Raises:
        UserError: the launcher asks for what training does not do.
    """
    # Ranks wait for the main process while it evaluates, which may take long.
    use_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    device = PartialState(cpu=use_cpu, timeout=timedelta(hours=6)).device
    has_bf16 = computes_bfloat16(device)
    precision = resolve_mixed_precision(
        config.mixed_precision, os.environ.get("ACCELERATE_MIXED_PRECISION"), has_bf16
    )
    if precision == "bf16" and not has_bf16:
        log.warning("this device emulates bfloat16: float32 (--mixed-precision no) is much faster")
    # A choice of heads may leave the encoder without a gradient: the flow's alone, and frozen.
    partial = AGENTS[config.algo].staged or config.encoder.gradients_from is not None
    handler = DistributedDataParallelKwargs(find_unused_parameters=partial)
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[handler])
    if accelerator.gradient_accumulation_steps > 1:
        raise UserError(
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS is "
            f"{accelerator.gradient_accumulation_steps}: each update takes one batch; unset it, "
            "and split batches over processes where memory is short."
        )
    if accelerator.device.type == "cpu":
        # The launcher sets OMP_NUM_THREADS=1, which would leave all other cores idle.
        shared = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(config.num_threads or max(1, shared))
    return accelerator


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has bfloat16 instructions."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def is_of_another_process(error: RuntimeError) -> bool:
    """Whether an error says that another process of the run is gone: NCCL's, or gloo's."""
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def free_device_memory(device: torch.device) -> int:
    """Free bytes of a GPU; 0 for a device without memory of its own."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0


def keep_freed_memory() -> bool:
    """Let the C library keep what tensors free, for the next ones; whether it does now.

    By default glibc takes each large block from the system and gives it back, and the system clears
    the pages every time: a fifth of an update from pixels. Memory then peaks as before, and what a
    process has freed stays with it.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        return bool(libc.mallopt(trim_threshold, 2**31 - 1) and libc.mallopt(mmap_max, 0))
    except (OSError, AttributeError):  # not Linux, or another C library
        return False
