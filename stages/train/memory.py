"""Memory of a device: what may still be taken, what a block took at its peak, when it ran out; one copy of weights."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"
CGROUPS = Path("/sys/fs/cgroup")
VMSTAT = Path("/proc/vmstat")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed; torch has no exception of its own for that on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or CPU_ALLOCATOR in str(error)


def kernel_kills() -> int:
    """Return how many processes the kernel of this machine has killed because memory ran out, since it started."""
    counts = dict(line.split() for line in VMSTAT.read_text(encoding="utf-8").splitlines()) if VMSTAT.exists() else {}
    return int(counts.get("oom_kill", 0))


def one_copy(engine: Any) -> None:
    """Let a ZeRO-3 engine's fp32 master weights be its partitioned weights, where those are fp32 on the same device.

    That saves 4 of 20 bytes a weight. DeepSpeed means to do so itself, but compares a torch.device with a string.
    """
    zero = engine.optimizer
    for master, weights in zip(zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat, strict=True):
        if (master.dtype, master.device) == (weights.dtype, weights.device):
            master.data = weights.data


def trim() -> None:
    """Return to the system the host's memory that is free, which glibc's allocator keeps; nothing elsewhere."""
    if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def drop(tensor: torch.Tensor) -> None:
    """Return a tensor's memory on the host to the system until it is written again, and read as 0 until then.

    Its first and last page may stay as they are. Nothing happens on a GPU, to pinned memory, or where the system is not
    Linux.
    """
    if tensor.device.type != "cpu" or tensor.is_pinned() or sys.platform != "linux":
        return
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (tensor.data_ptr() + tensor.nbytes - begin) // mmap.PAGESIZE * mmap.PAGESIZE
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def available(device: torch.device) -> int:
    """Return the bytes that processes may still take: of the GPU's memory, else of the host's, or what is left in this
    process's group or those above it, where they have a limit (version 2 of cgroups).
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    left = [int(psutil.virtual_memory().available)]
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), "")
    group = CGROUPS / own.strip("/")
    while own and group != CGROUPS.parent:
        with contextlib.suppress(OSError, ValueError):
            limit, used = (int((group / f"memory.{n}").read_text(encoding="utf-8")) for n in ("max", "current"))
            left.append(limit - used)
        group = group.parent
    return min(left)


@contextlib.contextmanager
def peak(device: torch.device) -> Iterator[list[int]]:
    """Yield a list that holds, after the block, the bytes by which memory grew at its peak."""
    grown: list[int] = []
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield grown
        grown.append(torch.cuda.max_memory_allocated() - before)
        return
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the kernel's own peak starts anew
    before = _resident("VmRSS")
    yield grown
    grown.append(max(0, _resident("VmHWM") - before))


def _resident(name: str) -> int:
    """Bytes of a line of /proc/self/status, which counts in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
