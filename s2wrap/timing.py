"""How long calls take: trtexec's rules for all alike, one beside the other in rounds."""

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
"""How PyTorch can run a model."""
IN_FLIGHT = 2
"""Runs that may wait on a GPU while the next is enqueued."""


@dataclass
class Timing:
    """What one call took; or why it cannot run here.

    Attributes:
        name: which call.
        rounds: seconds of every run, in lists of one round each; on a GPU its own time between two CUDA events.
        enqueued: seconds until every run gave control back; on a GPU only.
        wall: seconds on the clock for all runs together.
        first: seconds of the first run of all: compilation, if there is any.
        reason: why it cannot run; None where it did.
    """

    name: str
    rounds: list[list[float]] = field(default_factory=list)
    enqueued: list[float] = field(default_factory=list)
    wall: float = 0.0
    first: float = 0.0
    reason: str | None = None

    @property
    def seconds(self) -> list[float]:
        """Of every run, in order."""
        return [each for part in self.rounds for each in part]

    def figures(self, pictures: int) -> dict[str, float]:
        """Milliseconds a run (min, mean, median, p90, p95, p99, max), its variation, runs and pictures a second.

        Args:
            pictures: in one run: the batch, not the tiles.
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
        """Its time over another's: the median over the rounds of the ratio inside a round."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(statistics.median(ours) / statistics.median(theirs) for ours, theirs in pairs)

    def warnings(self) -> list[str]:
        """What makes the figures doubtful, as trtexec judges it: on a GPU only, where a run is timed by itself."""
        if not self.enqueued:
            return []
        found, figures = [], self.figures(1)
        enqueue = statistics.median(self.enqueued) * 1e3
        if enqueue > 0.8 * figures["median_ms"]:
            found.append(
                f"enqueueing takes {enqueue:.3g} ms of {figures['median_ms']:.3g} ms: the CPU is the limit; try a CUDA "
                f"graph, or a larger batch"
            )
        if figures["variation"] > 0.025:
            found.append(
                f"the GPU's time varies by {figures['variation']:.1%} (standard deviation ÷ mean); lock its clocks, or "
                f"time longer"
            )
        return found


def time_calls(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 3.0,
    device: str | torch.device = "cpu",
    progress: Callable[[float], object] = lambda done: None,
) -> list[Timing]:
    """Time several calls alike: each warmed up for 200 ms, then for `seconds` and ten runs at least.

    They take turns in ten rounds, and who begins changes, so that what disturbs the machine disturbs all. On a CUDA
    device a run's time is the GPU's own, between two events, while the next run is being enqueued already.

    Args:
        calls: what to run, by name; a call that fails gets a reason instead of figures.
        seconds: for each call.
        device: where they run.
        progress: told after every turn the share of the work that is done, 0…1.

    >>> [timing.name for timing in time_calls({"sum": lambda: sum(range(100))}, seconds=0.01)]
    ['sum']
    """
    if not calls or not seconds > 0:
        raise S2WrapError(f"{len(calls)} calls in {seconds} seconds: nothing to time; give seconds above 0, such as 3")
    device = torch.device(device)
    timings, names = {name: Timing(name) for name in calls}, list(calls)
    wait_for(device)
    # a stream of its own: on the default one, some runtimes wait at every call
    with torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext():
        for name, call in calls.items():
            _guarded(timings[name], _warm_up, call, device)
        for turn in range(ROUNDS):
            start = turn % len(names)
            for place, name in enumerate(names[start:] + names[:start]):
                if timings[name].reason is None:
                    _guarded(timings[name], _time_round, calls[name], device, seconds / ROUNDS)
                progress((turn * len(names) + place + 1) / (ROUNDS * len(names)))
    return list(timings.values())


def torch_call(backend: str, model: Callable[[Tensor], object], images: Tensor) -> Callable[[], object]:
    """A call of a wrapped model on images, both on their device already, in one of PyTorch's ways.

    Args:
        backend: "eager"; "compile" (`torch.compile`); "max-autotune" (the same, trying kernels for minutes); or
            "cuda-graph" (the eager call, recorded once and replayed).
        model: anything that takes images; with "compile" it must be traceable.
        images: (b, 3, height, width).

    Raises:
        S2WrapError: another backend, or one that cannot run on this device.
    """
    if backend not in BACKENDS:
        raise S2WrapError(f"backend {backend!r} is unknown; use some of {', '.join(BACKENDS)}")
    if backend == "cuda-graph":
        return _recorded(model, images)
    if backend != "eager":
        mode = "max-autotune" if backend == "max-autotune" else None
        model = torch.compile(model, fullgraph=True, dynamic=False, mode=mode)
    return lambda: model(images)


def _recorded(model: Callable[[Tensor], object], images: Tensor) -> Callable[[], object]:
    """The model's call on these images as a CUDA graph."""
    if images.device.type != "cuda":
        raise S2WrapError(f"CUDA graphs need a GPU, and the images are on {images.device}")
    aside = torch.cuda.Stream(images.device)
    aside.wait_stream(torch.cuda.current_stream(images.device))
    with torch.cuda.stream(aside):
        for _ in range(3):  # libraries choose their kernels and workspaces before, not while, they are recorded
            model(images)
    torch.cuda.current_stream(images.device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=aside):
        result = model(images)

    def replay(kept: object = (model, images)) -> object:  # what the graph reads lives as long as it
        graph.replay()
        return result

    return replay


def when_first_called(make: Callable[[], Callable[[], object]]) -> Callable[[], object]:
    """A call that is made when it is first run, so that what cannot be made becomes its reason."""
    made = cache(make)
    return lambda: made()()


def wait_for(device: torch.device) -> None:
    """Return once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _guarded(timing: Timing, step: Callable[..., None], *arguments: Any) -> None:
    """Do one step of a timing; what fails becomes its reason."""
    try:
        step(timing, *arguments)
    except Exception as error:  # whatever a compiler or a runtime raises: the others go on
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
    """Run a call for that long, once at least, and note a round."""
    run = _runs_on_gpu(timing, call, device) if device.type == "cuda" else _runs(call, device)
    wait_for(device)
    start = perf_counter()
    times = [next(run)]
    while perf_counter() - start < seconds:
        times.append(next(run))
    run.close()
    wait_for(device)
    timing.wall += perf_counter() - start
    timing.rounds.append([each if isinstance(each, float) else each[0].elapsed_time(each[1]) / 1e3 for each in times])


def _runs(call: Callable[[], object], device: torch.device) -> Generator[Any]:
    """Run again and again: the seconds of each on the clock."""
    while True:
        start = perf_counter()
        call()
        wait_for(device)
        yield perf_counter() - start


def _runs_on_gpu(timing: Timing, call: Callable[[], object], device: torch.device) -> Generator[Any]:
    """Run again and again: the CUDA events around each."""
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
    """What is to be told beside every figure: the device, its driver (on a GPU), threads (on a CPU), torch."""
    device = torch.device(device)
    if device.type == "cuda":
        found = {"device": torch.cuda.get_device_name(device), "driver": _driver()}
    elif device.type == "cpu":
        found = {"device": f"CPU ({platform.machine()})", "threads": str(torch.get_num_threads())}
    else:
        found = {"device": device.type}
    return {**found, "torch": torch.__version__}


def _driver() -> str:
    """The version of NVIDIA's driver, as its own tool tells it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown (no nvidia-smi)"
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30).stdout.split()
    return found[0] if found else "unknown"
