"""A server on this machine: a Ray of its own, which starts and ends with it."""

import errno
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from typing import Any

from s2wrap.errors import S2WrapError, first_line
from s2wrap.extraction.fleet import quiet_ray, silent_stderr
from s2wrap.serve.options import ServeOptions
from s2wrap.serve.source import Source

NAME = "s2wrap"
"""Of the application in Ray Serve."""
LOOK_SECONDS = 5
"""How often Ray is asked whether the server still runs."""


@contextmanager
def served(source: Source, options: ServeOptions, host: str, port: int) -> Iterator[dict[str, Any]]:
    """A server that runs until the block ends; gives what `GET /model` answers.

    Args:
        source: what is served.
        options: how.
        host: the address that it listens at.
        port: its port.

    Raises:
        S2WrapError: a port that is taken, a model that cannot be made, too few GPUs, or Ray does not start.
        MissingExtraError: Ray Serve is not installed.
    """
    quiet_ray()
    _set_up_ray()
    from s2wrap.serve.build import import_serve, make_application

    serve = import_serve()
    check_port(host, port)
    _check_gpus(source, options)
    source.check()
    cores = _cores()
    share = options.cpus or max(1, cores // options.most_replicas)
    built = make_application(source, replace(options, cpus=share))
    try:
        _start_ray(max(cores, share * options.most_replicas))
        with _silent():
            http = {"host": host, "port": port, "request_timeout_s": options.timeout + 1}
            serve.start(http_options=http)
            try:
                serve.run(built, name=NAME, route_prefix="/")
            except Exception as error:  # a RuntimeError with the traceback of a replica, or one of Ray
                raise S2WrapError(
                    f"{source.spec} could not be started: {_cause(error)}; the logs of Ray's session say more"
                ) from error
        yield _facts(host, port)
    finally:
        _stop(serve)


def wait() -> None:
    """Wait until this process is told to stop: Ctrl-C raises KeyboardInterrupt, SIGTERM is no error.

    Raises:
        S2WrapError: the server has died.
    """
    stopped = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    with redirect_stdout(sys.stderr):  # where Ray tells of replicas that died
        while not stopped.wait(LOOK_SECONDS):
            check_alive()


def check_alive() -> None:
    """Raise S2WrapError if Ray, or the application on it, runs no more."""
    from ray import serve

    try:
        state = serve.status().applications[NAME].status
    except Exception as error:  # whatever Ray raises when its processes are gone
        raise S2WrapError(f"the server has died: {first_line(error)}; start it again") from error
    if state in ("DEPLOY_FAILED", "NOT_STARTED"):
        raise S2WrapError(f"the server has died: Ray Serve says {state}; start it again")


def check_port(host: str, port: int) -> None:
    """Raise S2WrapError unless a server can listen at an address and port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended is no hindrance
            trial.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise S2WrapError(f"port {port} of {host} is taken; give another one, such as --port {port + 1}") from error
        raise S2WrapError(
            f"no server can listen at {host}, port {port}: {first_line(error)}; try --host 127.0.0.1"
        ) from error


def _set_up_ray() -> None:
    """Settings of Ray, which it reads from the environment when it is imported."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: beside other work, replicas would hardly run
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    if "RAY_AUTH_MODE" not in os.environ:  # Ray's own ports are open to the network, and run whatever they are sent
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _start_ray(cores: int) -> None:
    """Start a Ray that ends with this process."""
    import ray

    if ray.is_initialized():
        raise S2WrapError("this process uses a Ray already; run the application on it: serve.run(application({…}))")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _silent():
            ray.init(
                address="local",
                num_cpus=cores,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
            )
    except (Exception, SystemExit) as error:
        raise S2WrapError(f"no Ray starts on this machine: {first_line(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():  # Ray's handlers end the process at once
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _stop(serve: Any) -> None:
    """End the server, its replicas when they have answered what they have begun, and Ray."""
    import ray

    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {
            number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
        }  # a second Ctrl-C would leave processes behind
    try:
        with _silent():
            if ray.is_initialized():
                with suppress(Exception):  # it may have died already
                    serve.delete(NAME)
            ray.shutdown()
            time.sleep(0.1)  # what Ray's threads still print
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _silent() -> Iterator[None]:
    """Discard what Ray prints of its own accord; what matters is raised as an error too."""
    with silent_stderr(), redirect_stdout(sys.stderr):
        yield


def _facts(host: str, port: int) -> dict[str, Any]:
    """What the server says of itself."""
    import json
    from urllib.request import ProxyHandler, build_opener

    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    name = f"[{reached}]" if ":" in reached else reached
    with build_opener(ProxyHandler({})).open(f"http://{name}:{port}/model", timeout=60) as answer:
        return {"address": f"http://{name}:{port}"} | json.load(answer)


def _check_gpus(source: Source, options: ServeOptions) -> None:
    """Raise S2WrapError if this machine has fewer GPUs than replicas that need one."""
    import torch

    count = torch.cuda.device_count()
    if source.needs_gpu and count < options.most_replicas:
        raise S2WrapError(
            f"{options.most_replicas} replicas of {source.spec} need a GPU each, and this machine has {count}; use "
            f"fewer, or --device cpu"
        )


def _cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cause(error: Exception) -> str:
    """Why no replica could be made: the last line of its traceback, which Ray passes on as text, or of Ray's error."""
    from ray import serve

    texts = [str(error)]
    with suppress(Exception):  # Ray itself may have failed
        texts += [each.message for each in serve.status().applications[NAME].deployments.values()]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("s2wrap.errors.S2WrapError: ") if lines else type(error).__name__
