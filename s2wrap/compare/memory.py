"""Measure the peak memory of a call."""

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """Return the peak of the bytes that are allocated during a call, beyond those allocated before it.

    On a CPU PyTorch's allocations are counted (its profiler's memory events), on CUDA those of its caching allocator.
    Other devices give None.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "7")  # else the profiler writes a line whenever it starts and ends
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    record = profiler.profiler
    if record is None or record.kineto_results is None:
        raise RuntimeError("the profiler recorded nothing")
    changes = [
        (event.start_ns(), event.nbytes())  # pyright: ignore[reportAttributeAccessIssue] (the stub lacks it)
        for event in record.kineto_results.events()
        if event.name() == "[memory]"
    ]
    total = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        total += change
        peak = max(peak, total)
    return peak
