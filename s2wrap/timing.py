"""Time several calls by trtexec's rules, in rounds in which they take turns."""

import platform
import shutil
import statistics
import subprocess
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2wrap.errors import S2WrapError, first_line

WARM_UP = 0.2
"""Seconds that every call runs before it is timed."""
ROUNDS = 10
"""Rounds of timing, and so the fewest runs of every call."""
BACKENDS = ("eager", "compile", "max-autotune", "cuda-graph")
"""PyTorch's ways to run a model."""
IN_FLIGHT = 2
"""Most runs that wait on a GPU while the next is enqueued."""


@dataclass
class Timing:
    """The measured times of one call, or the reason why it cannot run.

    Attributes:
        name: name of the call.
        rounds: seconds of every run, one list a round; on a GPU between two CUDA events.
        enqueued: seconds until every run returned to the CPU; on a GPU only.
        wall: wall-clock seconds of all runs together.
        first: seconds of the very first run, with compilation if there is any.
        reason: why the call cannot run; None where it did.
    """

    name: str
    rounds: list[list[float]] = field(default_factory=list)
    enqueued: list[float] = field(default_factory=list)
    wall: float = 0.0
    first: float = 0.0
    reason: str | None = None

    @property
    def seconds(self) -> list[float]:
        """Seconds of every run, in order."""
        return [run for runs in self.rounds for run in runs]

    def figures(self, pictures: int) -> dict[str, float]:
        """Return milliseconds a run (min, mean, percentiles, max, first), their variation, runs and images a second.

        Args:
            pictures: pictures in one run: the batch size, not the number of tiles.
        """
        runs = np.array(self.seconds) * 1e3
        p50, p90, p95, p99 = np.percentile(runs, (50, 90, 95, 99))
        return {
            "images_per_second": len(runs) * pictures / self.wall,
            "min_ms": float(runs.min()),
            "mean_ms": float(runs.mean()),
            "median_ms": float(p50),
            "p90_ms": float(p90),
            "p95_ms": float(p95),
            "p99_ms": float(p99),
            "max_ms": float(runs.max()),
            "variation": float(runs.std() / runs.mean()),
            "runs": len(runs),
            "first_ms": self.first * 1e3,
        }

    def ratio(self, other: "Timing") -> float:
        """Return the ratio of this call's time to another's: the median over rounds of the ratio of their medians."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(statistics.median(own) / statistics.median(others) for own, others in pairs)

    def warnings(self) -> list[str]:
        """Return why the figures are doubtful by trtexec's criteria; [] on a CPU, where they do not apply."""
        if not self.enqueued:
            return []
        warnings, figures = [], self.figures(1)
        enqueue = statistics.median(self.enqueued) * 1e3
        if enqueue > 0.8 * figures["median_ms"]:
            warnings.append(
                f"enqueueing takes {enqueue:.3g} ms of {figures['median_ms']:.3g} ms: the CPU is the limit; try a CUDA "
                f"graph, or a larger batch"
            )
        if figures["variation"] > 0.025:
            warnings.append(
                f"the GPU's time varies by {figures['variation']:.1%} (standard deviation ÷ mean); lock its clocks, or "
                f"time longer"
            )
        return warnings


def time_calls(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 3.0,
    device: str | torch.device = "cpu",
    progress: Callable[[float], object] = lambda done: None,
) -> list[Timing]:
    """Return the timings of several calls, each warmed up for 200 ms and timed for `seconds` and ten runs at least.

    The calls take turns in ten rounds, in a changing order, so that disturbances of the machine hit all alike. On a
    CUDA device a run's time is the GPU's own, between two events, while the next run is already being enqueued.

    Args:
        calls: functions by name; one that fails gets a reason instead of figures.
        seconds: how long each call is timed.
        device: the device that the calls use.
        progress: called after every turn with the share of the work that is done, 0…1.

    >>> [timing.name for timing in time_calls({"sum": lambda: sum(range(100))}, seconds=0.01)]
    ['sum']
    """
    if not calls or not seconds > 0:
        raise S2WrapError(f"{len(calls)} calls in {seconds} seconds: nothing to time; give seconds above 0, such as 3")
    device = torch.device(device)
    timings, names = {name: Timing(name) for name in calls}, list(calls)
    wait_for(device)
    # not the default stream, on which some runtimes synchronise at every call
    with torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext():
        for name, call in calls.items():
            _try_step(timings[name], _warm_up, call, device)
        for number in range(ROUNDS):
            start = number % len(names)
            for turn, name in enumerate(names[start:] + names[:start]):
                if timings[name].reason is None:
                    _try_step(timings[name], _time_round, calls[name], device, seconds / ROUNDS)
                progress((number * len(names) + turn + 1) / (ROUNDS * len(names)))
    return list(timings.values())


def torch_call(backend: str, model: Callable[[Tensor], object], images: Tensor) -> Callable[[], object]:
    """Return a function that runs a model on images, both already on their device, in one of PyTorch's ways.

    Args:
        backend: "eager"; "compile" (`torch.compile`); "max-autotune" (the same, trying kernels for minutes); or
            "cuda-graph" (the eager call, recorded once and replayed).
        model: any function of images; with "compile" it must be traceable.
        images: (b, c, height, width).

    Raises:
        S2WrapError: an unknown backend, or one that cannot run on this device.
    """
    if backend not in BACKENDS:
        raise S2WrapError(f"backend {backend!r} is unknown; use some of {', '.join(BACKENDS)}")
    if backend == "cuda-graph":
        return _record_graph(model, images)
    if backend != "eager":
        mode = "max-autotune" if backend == "max-autotune" else None
        model = torch.compile(model, fullgraph=True, dynamic=False, mode=mode)
    return lambda: model(images)


def _record_graph(model: Callable[[Tensor], object], images: Tensor) -> Callable[[], object]:
    """Return a function that replays the model's run on these images as a CUDA graph."""
    if images.device.type != "cuda":
        raise S2WrapError(f"CUDA graphs need a GPU, and the images are on {images.device}")
    stream = torch.cuda.Stream(images.device)
    stream.wait_stream(torch.cuda.current_stream(images.device))
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries must choose their kernels and workspaces before the recording
            model(images)
    torch.cuda.current_stream(images.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = model(images)

    def replay(kept_alive: object = (model, images)) -> object:  # the graph reads their memory
        graph.replay()
        return result

    return replay


def when_first_called(make: Callable[[], Callable[[], object]]) -> Callable[[], object]:
    """Return a call that is made when it first runs, so that a failure to make it becomes its timing's reason."""
    make_once = cache(make)
    return lambda: make_once()()


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _try_step(timing: Timing, step: Callable[..., None], *arguments: object) -> None:
    """Do one step of a timing, whose reason becomes the error's text if it fails."""
    try:
        step(timing, *arguments)
    except Exception as error:  # whatever a compiler or a runtime raises: the other calls are timed all the same
        timing.reason = str(error) if isinstance(error, S2WrapError) else first_line(error)


def _warm_up(timing: Timing, call: Callable[[], object], device: torch.device) -> None:
    start = perf_counter()
    call()
    wait_for(device)
    first = perf_counter()
    timing.first = first - start
    while perf_counter() - first < WARM_UP:
        call()
        wait_for(device)


def _time_round(timing: Timing, call: Callable[[], object], device: torch.device, seconds: float) -> None:
    """Run a call for a number of seconds, once at least, and add a round to its timing."""
    runs = _run_on_gpu(timing, call, device) if device.type == "cuda" else _run(call, device)
    wait_for(device)
    start = perf_counter()
    times = [next(runs)]
    while perf_counter() - start < seconds:
        times.append(next(runs))
    runs.close()
    wait_for(device)
    timing.wall += perf_counter() - start
    timing.rounds.append([each if isinstance(each, float) else each[0].elapsed_time(each[1]) / 1e3 for each in times])


def _run(call: Callable[[], object], device: torch.device) -> Generator[Any]:
    """Run a call again and again, and yield the wall-clock seconds of each run."""
    while True:
        start = perf_counter()
        call()
        wait_for(device)
        yield perf_counter() - start


def _run_on_gpu(timing: Timing, call: Callable[[], object], device: torch.device) -> Generator[Any]:
    """Run a call again and again, and yield the CUDA events before and after each run."""
    waiting: deque[Any] = deque()
    while True:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if len(waiting) == IN_FLIGHT:
            waiting.popleft().synchronize()
        start = perf_counter()
        before.record(torch.cuda.current_stream(device))
        call()
        after.record(torch.cuda.current_stream(device))
        timing.enqueued.append(perf_counter() - start)
        waiting.append(after)
        yield before, after


def describe_device(device: str | torch.device) -> dict[str, str]:
    """Return what figures depend on: the device, its driver (on a GPU), threads (on a CPU) and torch's version."""
    device = torch.device(device)
    if device.type == "cuda":
        facts = {"device": torch.cuda.get_device_name(device), "driver": _driver_version()}
    elif device.type == "cpu":
        facts = {"device": f"CPU ({platform.machine()})", "threads": str(torch.get_num_threads())}
    else:
        facts = {"device": device.type}
    return {**facts, "torch": torch.__version__}


def _driver_version() -> str:
    """Return the version of NVIDIA's driver as nvidia-smi reports it, or "unknown"."""
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return "unknown (no nvidia-smi)"
    command = [nvidia_smi, "--query-gpu=driver_version", "--format=csv,noheader"]
    versions = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.split()
    return versions[0] if versions else "unknown"
