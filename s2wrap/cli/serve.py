"""`s2wrap serve`: a model or an exported file behind HTTP, on this machine."""

import sys
from typing import Annotated, Any

import typer

from s2wrap.cli import model as flags
from s2wrap.cli import output as out
from s2wrap.serve.options import ServeOptions


@flags.model_options()
@flags.option_flags(ServeOptions, "serve_options")
def serve(
    source: Annotated[
        str, typer.Argument(help=f"An exported file (.onnx, .plan, .engine, .rtx, .pt2), or {flags.SPEC_HELP}")
    ],
    *,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 lets other machines in, without a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen at.")] = 8000,
    as_json: out.Json = False,
    serve_options: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Serve a model or an exported file over HTTP: pictures in, features out.

    POST a picture, several, or an array to /features; the page at / says how. Requests share batches. Runs on Ray
    Serve, in processes of its own; the same application runs on a cluster: `serve run s2wrap.serve:application
    spec=…`. When it is ready, a line with the address is printed, or with --json what is served. Ctrl-C ends it.
    """
    from s2wrap.serve.here import served, wait
    from s2wrap.serve.source import Source

    chosen = ServeOptions(**serve_options)
    status = out.notes().status(f"starting {source}: loading, then Ray Serve")
    with status, served(Source(source, options, chosen.device), chosen, host, port) as facts:
        status.stop()
        if as_json:
            out.print_json(facts)
        else:
            replicas = "1 replica" if chosen.most_replicas == 1 else f"up to {chosen.most_replicas} replicas"
            out.print_line(f"{facts['address']} serves {source} on {facts['device']}, {replicas} (Ctrl-C ends it)")
        sys.stdout.flush()
        wait()
        status.update("stopping")
        status.start()
