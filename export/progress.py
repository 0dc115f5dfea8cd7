"""The progress of an engine's build on the terminal, and Ctrl-C in the middle of one."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from types import ModuleType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

Result = TypeVar("Result")


class BuildBar:
    """One line that shows how far the builder is; `cancelled` asks the builder to stop at its next step.

    A builder reports phases inside phases from several threads. The line counts a phase's own steps and, inside the
    current step, the phases below it, and it names only the phases right below the outermost, so that it stays calm.
    """

    def __init__(self, title: str, console: Console | None):
        console = console or Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.title = title
        self.task = self.progress.add_task(title, total=1.0)
        self.phases: dict[str, tuple[str | None, int, int]] = {}  # name → parent, steps done, all its steps
        self.lock = threading.Lock()
        self.cancelled = False
        self.done = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Note a phase, with the phase that it is part of."""
        with self.lock:
            self.phases[phase] = (parent, 0, max(steps, 1))
            calm = parent is None or self.phases.get(parent, ("",))[0] is None
            if calm and not self.cancelled:
                self.progress.update(self.task, description=f"{self.title}: {phase[0].lower()}{phase[1:]}")

    def step(self, phase: str, step: int) -> bool:
        """Note a step; False asks the builder to stop."""
        with self.lock:
            if phase in self.phases:
                parent, _, steps = self.phases[phase]
                self.phases[phase] = (parent, step + 1, steps)
            self.done = max(self.done, min(1.0, self._share(None)))  # it never runs backwards
            self.progress.update(self.task, completed=self.done)
        return not self.cancelled

    def finish(self, phase: str) -> None:
        """Forget a phase that has ended, or was cut short."""
        with self.lock:
            self.phases.pop(phase, None)

    def cancel(self) -> None:
        """Ask the builder to stop at the end of its current step, and say so."""
        self.cancelled = True
        self.progress.update(self.task, description=f"{self.title}: stopping after the current step")

    def _share(self, parent: str | None, depth: int = 0) -> float:
        """How much of `parent`'s current step its phases have done, from 0 to 1."""
        if depth > 8:
            return 0.0
        inner = [
            min(1.0, (done + self._share(name, depth + 1)) / steps)
            for name, (above, done, steps) in self.phases.items()
            if above == parent
        ]
        return max(inner, default=0.0)


def make_monitor(trt: ModuleType, bar: BuildBar) -> Any:
    """The library's progress monitor that feeds a bar. It must live as long as the builder."""

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
    """What `work` returns, done in another thread, so that Ctrl-C is heard while the builder works.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once the builder has stopped. It hears of it between its steps; the longest
            of them, compiling the graph, takes seconds for a large model.
    """
    with bar.progress, ThreadPoolExecutor(1, "s2wrap-build") as pool:
        future = pool.submit(work)
        try:
            while not wait([future], timeout=0.5).done:
                pass
        except (KeyboardInterrupt, SystemExit):  # SystemExit: the command line's way to end on SIGTERM
            bar.cancel()
            wait([future])
            raise
        return future.result()
