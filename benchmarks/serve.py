"""Measure a server beside the bare model: requests a second, their times, and those that are lost or wrong.

    python benchmarks/serve.py FILE|SPEC [--concurrency 1,4,16] [--seconds 5] [--rounds 3] [--json]
    python benchmarks/serve.py FILE --triton-url localhost:8001 --triton-model NAME

Every request is the content of one JPEG, and its answer the mean of the map. *bare* decodes and encodes in this
process, by as many threads as there are clients; *Ray Serve* is `s2wrap serve` on this machine; *Triton* is a server
that holds the same model; for its native backends demos/triton_client.py decodes and resizes. The ways take turns, so
that a noisy machine disturbs all alike. Lost: no answer, or an error. Wrong: another vector than the bare model's, by
more than `WRONG`.
"""

import http.client
import io
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.numpy import load as read_tensors

from s2wrap.images import decode_image
from s2wrap.serve.here import served
from s2wrap.serve.options import ServeOptions
from s2wrap.serve.source import Source

DEMOS = Path(__file__).parent.parent / "demos"
WRONG = {"bare": 1e-4, "Ray Serve": 1e-4, "Triton": 2e-2}
"""The largest distance from the bare model's vector, relative to its length; a Triton model may have less precision,
and gets pictures that were rounded."""
Ask = Callable[[bytes], np.ndarray]


@dataclass
class Run:
    """What came of one way at one number of clients.

    Attributes:
        seconds: of every request that was answered.
        wall: seconds of all turns together.
        lost: requests without an answer.
        wrong: answers with another vector.
    """

    seconds: list[float] = field(default_factory=list)
    wall: float = 0.0
    lost: int = 0
    wrong: int = 0

    def figures(self) -> dict[str, float]:
        """Requests a second, milliseconds at the median and at the 99th percentile, and the two counts."""
        middle, slow = np.percentile(self.seconds, [50, 99]) * 1000 if self.seconds else (float("nan"),) * 2
        rate = len(self.seconds) / self.wall
        return {
            "requests/s": rate,
            "p50 ms": float(middle),
            "p99 ms": float(slow),
            "lost": self.lost,
            "wrong": self.wrong,
        }


def main(
    source: Annotated[str, typer.Argument(help="An exported file, or FAMILY:NAME@SCALES.")] = "timm:test_vit@1,2",
    concurrency: Annotated[str, typer.Option(help="Numbers of clients, with commas between.")] = "1,4,16",
    seconds: Annotated[float, typer.Option(help="Of a turn.")] = 5,
    rounds: Annotated[int, typer.Option(help="Turns of each way.")] = 3,
    side: Annotated[int, typer.Option(help="Sides of the JPEGs: about this many pixels.")] = 320,
    pictures: Annotated[int, typer.Option(help="JPEGs.")] = 16,
    batch: Annotated[int, typer.Option(help="The most pictures in a batch of the server.")] = 8,
    device: Annotated[str | None, typer.Option(help="Where model and server run.")] = None,
    triton_url: Annotated[str | None, typer.Option(help="The gRPC address of a Triton server.")] = None,
    triton_model: Annotated[str | None, typer.Option(help="The model's name there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the table."""
    contents = make_jpegs(pictures, side)
    clients = [int(text) for text in concurrency.split(",")]
    # weights do not change the time, and timm has none in packages
    options = {"pretrained": False} if source.startswith("timm:") else {}
    known = Source(source, options, device)
    bare = ask_model(known)
    expected = [bare(content) for content in contents]
    server = served(known, ServeOptions(batch=batch, device=device), "127.0.0.1", free_port())
    triton = nullcontext() if triton_url is None else ask_triton(triton_url, str(triton_model))
    with server as facts, triton as by_triton:
        ways: dict[str, Ask] = {"bare": bare, "Ray Serve": ask_server(facts["address"])}
        if by_triton is not None:
            ways["Triton"] = by_triton
        runs = {(way, count): Run() for count in clients for way in ways}
        for ask in ways.values():
            take_turn(ask, Run(), contents, expected, 1.0, max(clients), 1)  # a warm-up
        turns = [(count, way) for _ in range(rounds) for count in clients for way in ways]
        for count, way in track(turns, description="timing", console=Console(stderr=True)):
            take_turn(ways[way], runs[way, count], contents, expected, WRONG[way], count, seconds)
    rows = [{"way": way, "clients": count} | run.figures() for (way, count), run in runs.items()]
    if as_json:
        print(json.dumps({"source": source, "device": facts["device"], "batch": batch, "rows": rows}, indent=2))
        return
    where = torch.cuda.get_device_name() if known.needs_gpu else f"CPU, {len(os.sched_getaffinity(0))} cores"
    table = Table(
        title=f"{source}, {where}, batches of at most {batch}, JPEGs of about {side} pixels, {rounds} × {seconds:g} s"
    )
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "way" else "right")
    for row in rows:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=120).print(table)


def make_jpegs(count: int, side: int) -> list[bytes]:
    """JPEGs of smooth noise, no two of one size."""
    random, contents = np.random.default_rng(0), []
    for number in range(count):
        small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        stream = io.BytesIO()
        size = (side + 3 * number, side - 2 * number)
        small.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        contents.append(stream.getvalue())
    return contents


def take_turn(
    ask: Ask, run: Run, contents: list[bytes], expected: list[np.ndarray], most: float, clients: int, seconds: float
) -> None:
    """Let clients ask one after the other's answer, for some seconds, and add what came of it to a run."""
    start = time.perf_counter()
    lock = threading.Lock()

    def work(client: int) -> None:
        number = client
        while time.perf_counter() - start < seconds:
            picture, number = number % len(contents), number + 1
            asked = time.perf_counter()
            try:
                vector = ask(contents[picture])
            except Exception as error:
                with lock:
                    run.lost += 1
                    if run.lost == 1:
                        Console(stderr=True).print(f"the first that was lost: {error}", highlight=False)
                continue
            took, wanted = time.perf_counter() - asked, expected[picture]
            wrong = vector.shape != wanted.shape or np.linalg.norm(vector - wanted) > most * np.linalg.norm(wanted)
            with lock:
                run.seconds.append(took)
                run.wrong += int(wrong)

    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.wall += time.perf_counter() - start


def ask_model(source: Source) -> Ask:
    """The model itself, in this process."""
    model = source.open()

    def ask(content: bytes) -> np.ndarray:
        with torch.inference_mode():
            features = model.encode([decode_image(content, "a picture")])[0]
            return features.pooled[0].float().cpu().numpy()

    return ask


def ask_server(address: str) -> Ask:
    """A server of s2wrap, over one connection a client that stays open."""
    parts, kept = urlsplit(address), threading.local()

    def ask(content: bytes) -> np.ndarray:
        if not hasattr(kept, "connection"):
            kept.connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
        try:
            kept.connection.request("POST", "/features?features=pooled", content)
            answer = kept.connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            del kept.connection
            raise
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {body[:200]!r}")
        return read_tensors(body)["pooled"][0]

    return ask


@contextmanager
def ask_triton(url: str, model: str) -> Iterator[Ask]:
    """A Triton server, by the functions of demos/triton_client.py."""
    sys.path.insert(0, str(DEMOS))
    triton_client: Any = __import__("triton_client")
    known = triton_client.connect(url, model)

    def ask(content: bytes) -> np.ndarray:
        if known.input == "pictures":  # the python backend decodes and resizes itself
            request = np.frombuffer(content, np.uint8)
        else:
            request = triton_client.prepare(decode_image(content, "a picture"), known)
        features = triton_client.send(known, request[None]).result(60)
        return features["spatial"][0].mean(axis=(1, 2)) if "spatial" in features else features["pooled"][0]

    yield ask


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


if __name__ == "__main__":
    typer.run(main)
