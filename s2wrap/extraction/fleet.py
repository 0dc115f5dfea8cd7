"""A connection to Ray: one that is there, or one of this machine for as long as a run lasts."""

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
"""How long a cluster may take to answer; Ray itself would wait for 80 seconds."""
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client of HTTP/2, which Ray's head speaks, begins: the preface, and a frame of settings without any."""


@dataclass(frozen=True)
class Cluster:
    """Which Ray a run is to use.

    Attributes:
        address: HOST:PORT of its head; None: what the environment's RAY_ADDRESS names, or else one of this machine.
        actors: processes that hold the model; None: as many as the cluster has GPUs, or CPUs less one for decoding.
        device: "cpu" or "cuda", of the model.
    """

    address: str | None = None
    actors: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse what no cluster could do."""
        if self.device not in ("cpu", "cuda"):
            raise S2WrapError(f"--device {self.device} with Ray, which gives every actor a GPU itself; use cpu or cuda")
        if self.actors is not None and self.actors < 1:
            raise S2WrapError(f"--actors {self.actors} is no number of processes; use 1 or more")


@dataclass(frozen=True)
class Fleet:
    """A Ray that is connected.

    Attributes:
        actors: processes that hold the model.
        device: "cpu" or "cuda".
        cpus: of all its nodes.
    """

    actors: int
    device: str
    cpus: int

    def needs(self) -> dict[str, int]:
        """What Ray is to set aside for an actor. Of a single CPU it can have nothing: decoding needs that too."""
        if self.device == "cuda":
            return {"num_gpus": 1, "num_cpus": 0}
        return {"num_cpus": 1 if self.cpus > 1 else 0}

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Settings of the datasets made meanwhile: in order, a block a row, and without words or bars."""
        from ray.data import DataContext

        context = DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.target_max_block_size = 1
        context.enable_progress_bars = False
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):  # those of files go on
                handler.setLevel(logging.CRITICAL)
        with DataContext.current(context):
            yield


@contextmanager
def connected(cluster: Cluster) -> Iterator[Fleet]:
    """A connection to a cluster, given up at the end; one that this process has already is used, and kept.

    Raises:
        S2WrapError: no Ray answers, or it has not what is asked for.
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
    """Connect to the Ray at an address, or start one that ends with this process."""
    if address is not None and address != "auto":
        _check_answers(address)
    local = {"include_dashboard": False} if address is None else {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _quiet():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **local)
    except (Exception, SystemExit) as error:  # it has many, and exits where its head gives no answer
        raise S2WrapError(f"no Ray at {address or 'this machine'}: {first_line(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():  # Ray's own end the process on the spot
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray's core writes to this process's stderr off the terminal: it goes past Python, and comes as errors.

    How much it says for the rest of the run is set by the environment when it starts, and told on stderr likewise.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_answers(address: str) -> None:
    """Raise S2WrapError where no Ray is."""
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
    """How many actors there are to be."""
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    most = gpus if cluster.device == "cuda" else max(1, cpus - 1)
    there = f"{cpus} CPUs and {gpus} GPUs"
    if cpus == 0 or most == 0:
        raise S2WrapError(f"--device {cluster.device}: the cluster has {there}; it needs one of each, or --device cpu")
    actors = cluster.actors or most
    if actors > most:
        why = "each needs a GPU" if cluster.device == "cuda" else "a CPU must be left that decodes"
        raise S2WrapError(f"--actors {actors}: the cluster has {there}, and {why}; use {most} or fewer")
    return Fleet(actors, cluster.device, cpus)


def _ray() -> Any:
    """Ray, which reads its environment when it is first imported: no news of its use to its makers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    return ray
