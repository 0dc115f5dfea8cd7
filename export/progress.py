"""The progress of an engine build on the terminal, and its interruption by Ctrl-C."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from types import ModuleType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

Result = TypeVar("Result")


class BuildBar:
    """A progress bar for an engine build; once `cancelled` is set, the builder stops at its next step.

    A builder reports nested phases from several threads. The bar counts the steps of a phase and, within the current
    step, its nested phases. Its text only names phases of the two outermost levels, so as not to flicker.
    """

    def __init__(self, title: str, console: Console | None):
        console = console or Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_interactive)
        self.title = title
        self.task = self.progress.add_task(title, total=1.0)
        self.phases: dict[str, tuple[str | None, int, int]] = {}  # name → parent, steps done, number of steps
        self.lock = threading.Lock()
        self.cancelled = False
        self.done = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Add a phase, nested in `parent`."""
        with self.lock:
            self.phases[phase] = (parent, 0, max(steps, 1))
            is_outer = parent is None or self.phases.get(parent, ("",))[0] is None
            if is_outer and not self.cancelled:
                self.progress.update(self.task, description=f"{self.title}: {phase[0].lower()}{phase[1:]}")

    def step(self, phase: str, step: int) -> bool:
        """Record a completed step; the result False asks the builder to stop."""
        with self.lock:
            if phase in self.phases:
                parent, _, steps = self.phases[phase]
                self.phases[phase] = (parent, step + 1, steps)
            self.done = max(self.done, min(1.0, self._share(None)))  # never goes backwards
            self.progress.update(self.task, completed=self.done)
        return not self.cancelled

    def finish(self, phase: str) -> None:
        """Remove a phase that has ended or was aborted."""
        with self.lock:
            self.phases.pop(phase, None)

    def cancel(self) -> None:
        """Ask the builder to stop at the end of its current step, and show that."""
        self.cancelled = True
        self.progress.update(self.task, description=f"{self.title}: stopping after the current step")

    def _share(self, parent: str | None, depth: int = 0) -> float:
        """The fraction (0 to 1) of the current step of `parent` that its nested phases have done."""
        if depth > 8:
            return 0.0
        fractions = [
            min(1.0, (done + self._share(name, depth + 1)) / steps)
            for name, (outer, done, steps) in self.phases.items()
            if outer == parent
        ]
        return max(fractions, default=0.0)


def make_monitor(trt: ModuleType, bar: BuildBar) -> Any:
    """A progress monitor of the library that updates a bar; it must live as long as the builder."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name, parent_phase, num_steps):
            bar.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name, step):
            return bar.step(phase_name, step)

        def phase_finish(self, phase_name):
            bar.finish(phase_name)

    return Monitor()


def interruptible(work: Callable[[], Result], bar: BuildBar) -> Result:
    """The result of `work`, which runs in another thread so that Ctrl-C is handled meanwhile.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once the builder has stopped, which it does between two steps; the longest
            step, compiling the graph, takes seconds for a large model.
    """
    with bar.progress, ThreadPoolExecutor(1, "s2wrap-build") as pool:
        future = pool.submit(work)
        try:
            while not wait([future], timeout=0.5).done:
                pass
        except (KeyboardInterrupt, SystemExit):  # the command line raises SystemExit on SIGTERM
            bar.cancel()
            wait([future])
            raise
        return future.result()
