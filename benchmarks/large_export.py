"""Measure the memory of an export whose weights no single ONNX file can hold (more than 2 GB).

    python benchmarks/large_export.py [--model vit_huge_patch14_224] [--no-verify]

Random weights. The export should take at most 1.5 times the weights beside the model. Linux, by its /proc.
"""

import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import s2wrap
import s2wrap.export

GB = 10**9


def main(
    model: Annotated[str, typer.Option(help="Of timm.")] = "vit_huge_patch14_224",
    verify: Annotated[bool, typer.Option(help="Compare the file with PyTorch too, which loads it.")] = True,
) -> None:
    """Print the table."""
    wrapped = s2wrap.load(f"timm:{model}@1", pretrained=False)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in wrapped.backbone.parameters())
    before, peak = _resident(), _Peak()
    with tempfile.TemporaryDirectory() as folder, peak:
        start = time.perf_counter()
        s2wrap.export.export(wrapped, Path(folder) / "model.onnx", batch=(1, 1, 1), verify=verify)
        seconds = time.perf_counter() - start
        files = {file.name: file.stat().st_size for file in Path(folder).iterdir()}
    table = Table("model", "weights", "resident before", "most beside", "÷ weights", "seconds", "files")
    sizes = ", ".join(f"{name} {size / GB:.2f} GB" for name, size in sorted(files.items()))
    most = peak.bytes - before
    figures = (f"{weights / GB:.2f} GB", f"{before / GB:.2f} GB", f"{most / GB:.2f} GB", f"{most / weights:.2f}")
    table.add_row(model, *figures, f"{seconds:.0f}", sizes)
    Console().print(table)


class _Peak:
    """The most resident memory within a block, looked at every 20 milliseconds."""

    def __init__(self):
        self.bytes, self.done = 0, threading.Event()

    def __enter__(self) -> "_Peak":
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.02):
            self.bytes = max(self.bytes, _resident())


def _resident() -> int:
    """Bytes of this process in memory that no file backs: pages of a mapped file can be dropped at any time."""
    status = Path("/proc/self/status").read_text()
    return sum(int(status.partition(f"{name}:")[2].split()[0]) for name in ("RssAnon", "RssShmem")) * 1024


if __name__ == "__main__":
    typer.run(main)
