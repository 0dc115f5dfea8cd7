"""`s2wrap play`: a page in the browser that shows what models see."""

import os
from typing import Annotated

import typer

from s2wrap.cli import model as flags


def play(
    *,
    model: Annotated[str, typer.Option(help=f"At first: {flags.SPEC_HELP}")] = "sample:dinov2_s14@1,2,3",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of 127.0.0.1: no other machine sees the page.")] = 7860,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    device: flags.Device = "cpu",
) -> None:
    """Open a page in the browser that shows what models see in your photographs.

    Drop a photograph, choose model, scales and fusion, and click on a point to see what is like it. Photographs stay on
    this machine, and are deleted an hour later. Ctrl-C ends it.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    from s2wrap.play import launch, make_page

    page = make_page(model, flags.device(device))
    launch(page, port, inbrowser=browser, prevent_thread_lock=True)
    print(f"http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    page.block_thread()
