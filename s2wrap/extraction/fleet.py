"""Connections to Ray: to a running cluster, or to one started on this machine for the run."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from s2wrap.errors import MissingExtraError, S2WrapError, first_line

ANSWER_SECONDS = 5.0
"""Seconds that a cluster may take to answer; Ray itself would wait for 80."""
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The start of an HTTP/2 connection, as spoken by Ray's head: the preface and an empty SETTINGS frame."""


@dataclass(frozen=True)
class Cluster:
    """Which Ray cluster a run uses.

    Attributes:
        address: HOST:PORT of its head. None: RAY_ADDRESS of the environment, or else a cluster on this machine alone.
        actors: number of processes that hold the model. None: one per GPU, or per CPU less one for decoding.
        device: the device of the model, "cpu" or "cuda".
    """

    address: str | None = None
    actors: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise S2WrapError for another device, or fewer than one actor."""
        if self.device not in ("cpu", "cuda"):
            raise S2WrapError(f"--device {self.device} with Ray, which gives every actor a GPU itself; use cpu or cuda")
        if self.actors is not None and self.actors < 1:
            raise S2WrapError(f"--actors {self.actors} is no number of processes; use 1 or more")


@dataclass(frozen=True)
class Fleet:
    """A connected Ray cluster.

    Attributes:
        actors: number of processes that hold the model.
        device: the device of the model, "cpu" or "cuda".
        cpus: number of CPUs on all nodes.
    """

    actors: int
    device: str
    cpus: int

    def needs(self) -> dict[str, int]:
        """The resources that Ray reserves for an actor; no CPU if there is only one, as decoding needs that."""
        if self.device == "cuda":
            return {"num_gpus": 1, "num_cpus": 0}
        return {"num_cpus": 1 if self.cpus > 1 else 0}

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Let datasets created meanwhile keep their order, hold one row per Ray block, and show no progress."""
        from ray.data import DataContext

        context = DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.target_max_block_size = 1
        context.enable_progress_bars = False
        with DataContext.current(context):
            yield


def quiet_ray() -> None:
    """Have Ray collect no usage statistics and its core log little: for programs, before Ray is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


@contextmanager
def silent_logs() -> Iterator[None]:
    """Keep Ray Data's logs off the terminal for a while; its log files are still written."""
    handlers = [each for each in logging.getLogger("ray.data").handlers if isinstance(each, logging.StreamHandler)]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


@contextmanager
def connected(cluster: Cluster) -> Iterator[Fleet]:
    """A connection to a cluster, closed at the end; an existing connection of this process is used and kept open.

    Raises:
        S2WrapError: no Ray answers, or it lacks the requested resources.
        MissingExtraError: Ray is not installed.
    """
    ray = _ray()
    if ray.is_initialized():
        yield _fleet(cluster, ray.cluster_resources())
        return
    try:
        _join(ray, cluster.address or os.environ.get("RAY_ADDRESS"))
        yield _fleet(cluster, ray.cluster_resources())
    finally:
        ray.shutdown()


def _join(ray: Any, address: str | None) -> None:
    """Connect to the cluster at an address, or start one that ends with this process."""
    if address is not None and address != "auto":
        _check_answers(address)
    local = {"include_dashboard": False} if address is None else {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with silent_stderr():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **local)
    except (Exception, SystemExit) as error:  # Ray raises many types, and exits if its head does not answer
        raise S2WrapError(f"no Ray at {address or 'this machine'}: {first_line(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():  # Ray's handlers end the process at once
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Discard what Ray's core, which bypasses Python, writes to stderr; what matters is raised as an error too."""
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


def _check_answers(address: str) -> None:
    """Raise S2WrapError unless a Ray head answers at an address."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise S2WrapError(
            f"--ray-address {address} is not HOST:PORT of a Ray's head; run the command on a node of the cluster"
        )
    try:
        with socket.create_connection((host, int(port)), ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                connection.sendall(HELLO)
                if connection.recv(9)[3:4] != b"\x04":
                    raise ConnectionError("another server is there")
    except (OSError, OverflowError) as error:
        raise S2WrapError(
            f"no Ray answers at {address}: {first_line(error)}; `ray status` on its head tells the address"
        ) from error


def _fleet(cluster: Cluster, resources: dict[str, float]) -> Fleet:
    """The connected cluster, with its number of actors; S2WrapError if it lacks the resources."""
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    most = gpus if cluster.device == "cuda" else max(1, cpus - 1)
    total = f"{cpus} CPUs and {gpus} GPUs"
    if cpus == 0 or most == 0:
        raise S2WrapError(f"--device {cluster.device}: the cluster has {total}; it needs one of each, or --device cpu")
    actors = cluster.actors or most
    if actors > most:
        why = "each needs a GPU" if cluster.device == "cuda" else "a CPU must be left that decodes"
        raise S2WrapError(f"--actors {actors}: the cluster has {total}, and {why}; use {most} or fewer")
    return Fleet(actors, cluster.device, cpus)


def _ray() -> Any:
    """The module ray."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    return ray
