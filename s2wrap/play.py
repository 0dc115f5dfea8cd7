"""A page in the browser that shows what models see in a photograph, and what is like a point of it."""

import base64
import io
from collections.abc import Sequence
from functools import lru_cache, partial
from html import escape
from typing import Any, get_args

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from s2wrap.backbones.sample import SAMPLES
from s2wrap.cost import count_cost
from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.factory import load, wrap
from s2wrap.features import Features
from s2wrap.geometry import Number
from s2wrap.images import load_image
from s2wrap.look import COMPONENTS, LIKENESS, Panel, every_scale, panels, place_of
from s2wrap.options import Fusion

MODELS = [f"sample:{name}" for name in SAMPLES]
FUSIONS = [word for word in get_args(Fusion) if word != "weighted"]  # weights have no field
WHOLE = {"as suits the model": None, "in tiles": False, "whole": True}
CSS = """
.s2wrap { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: .7rem; align-items: end }
.s2wrap figure { margin: 0; max-width: 24rem }
.s2wrap figcaption { line-height: 1.3; margin-bottom: .3rem }
.s2wrap figure div { position: relative; line-height: 0 }
.s2wrap img { width: 100%; image-rendering: pixelated }
.s2wrap i { position: absolute; width: 14px; height: 14px; margin: -7px; border: 2px solid white; border-radius: 50%;
  outline: 2px solid black }
.s2wrap-error { border: 2px solid #c00; border-radius: 6px; padding: .7rem 1rem }
"""


def make_page(model: str, device: torch.device) -> Any:
    """The page, as `Blocks` of Gradio; `launch` opens it.

    Raises:
        MissingExtraError: Gradio is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise MissingExtraError("gradio", "play") from error
    name, _, scales = model.partition("@")
    with gradio.Blocks(title="s2wrap", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown("# What a model sees\nDrop a photograph. Then click on it, and see what is like that point.")
        with gradio.Row():
            with gradio.Column(scale=3, min_width=320):
                photo = gradio.Image(
                    label="photograph", type="filepath", image_mode=None, sources=["upload", "clipboard"], buttons=[]
                )
                photo.preprocess = lambda payload: payload and payload.path  # s2wrap reads it, and says what is wrong
                failure, alike, seen = gradio.HTML(), gradio.HTML(), gradio.HTML()
            with gradio.Column(scale=2, min_width=300):
                choices = [
                    gradio.Dropdown(
                        MODELS,
                        value=name,
                        allow_custom_value=True,
                        label="model",
                        info="one of these, or any FAMILY:NAME that s2wrap.load takes",
                    ),
                    gradio.Textbox(scales or "1", label="scales", info="multiples, or sides such as 448px"),
                    gradio.Dropdown(FUSIONS, value=FUSIONS[0], label="fusion"),
                    gradio.Radio(list(WHOLE), value=next(iter(WHOLE)), label="larger scales are seen"),
                    gradio.Number(0, precision=0, label="overlap", info="tokens that neighbouring tiles share"),
                ]
                again = gradio.Button("Look", variant="primary")
                cost = gradio.Markdown(container=False)
        looks = gradio.State()
        shown = [looks, failure, cost, seen, alike]
        gradio.on([photo.upload, again.click], partial(_look, device), [photo, *choices], shown)
        photo.clear(lambda: (None, "", "", "", ""), outputs=shown)

        def click(path: str, kept: list[Features] | None, event: gradio.SelectData) -> tuple[str, str]:
            across, down = event.index
            return _alike(path, kept, (across, down))

        photo.select(click, [photo, looks], [failure, alike])
    return page


def launch(page: Any, port: int, **options: Any) -> None:
    """Serve a page to this machine alone; S2WrapError where the port is taken."""
    import gradio

    theme = gradio.themes.Default(  # pyright: ignore[reportPrivateImportUsage] (documented so)
        font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )  # none from the internet
    served: dict[str, Any] = {"server_name": "127.0.0.1", "server_port": port, "share": False}
    quiet: dict[str, Any] = {"quiet": True, "footer_links": [], "enable_monitoring": False, "ssr_mode": False}
    try:
        page.launch(**served, **quiet, theme=theme, css=CSS, **options)
    except OSError as error:
        raise S2WrapError(f"port {port} is taken; give another one, such as --port {port + 1}") from error


@lru_cache(maxsize=2)
def _backbone(name: str, device: torch.device) -> Any:
    """A backbone by name, kept for the next look."""
    if "@" in name:
        raise S2WrapError(f"the model {name!r} names scales; write them in their own field")
    return load(name).to(device).backbone


def _look(
    device: torch.device, path: str | None, name: str, scales: str, fuse: Any, whole: str, overlap: int | None
) -> tuple[list[Features] | None, str, str, str, str]:
    """What the page shows of a photograph: its features to keep, an error, the cost, the components, no likeness."""
    try:
        if path is None:
            raise S2WrapError("there is no photograph yet; drop one")
        picture = load_image(path)
        options: dict[str, Any] = {"fuse": fuse, "whole": WHOLE[whole], "overlap": overlap or 0}
        model = wrap(_backbone(name.strip(), device), tuple(scales.split(",")), **options)
        with torch.inference_mode():
            looks = [each.encode(picture)[0].cpu() for each in every_scale(model)]
        image_hw = (picture.shape[1], picture.shape[2])
        cost, alone = count_cost(model, image_hw), count_cost(wrap(model.backbone, (1,)), image_hw)
        (shown,) = panels([looks])
    except S2WrapError as error:
        return None, _error(error), "", "", ""
    price = (
        f"**{cost.tiles} tile{'s' * (cost.tiles > 1)}, {cost.multiply_adds / 1e9:.1f} G multiply-adds** — "
        f"{cost.multiply_adds / alone.multiply_adds:.1f} times the {alone.multiply_adds / 1e9:.1f} G of the model alone"
    )
    return looks, "", price, _figures(picture, shown, COMPONENTS), ""


def _alike(path: str, looks: list[Features] | None, point: Number) -> tuple[str, str]:
    """An error, and what is like a point of the photograph."""
    try:
        if looks is None:
            raise S2WrapError("this photograph was not looked at yet; press Look")
        picture = load_image(path)
        place = place_of(point, (picture.shape[1], picture.shape[2]))
        (shown,) = panels([looks], place)
    except S2WrapError as error:
        return _error(error), ""
    return "", _figures(picture, shown, LIKENESS, place)


def _error(error: S2WrapError) -> str:
    return f'<div class="s2wrap-error" role="alert">{escape(str(error))}</div>'


def _figures(picture: Tensor, shown: Sequence[Panel], legend: str, place: Number | None = None) -> str:
    """The photograph and its panels as HTML that fits any screen."""
    photo = Image.fromarray(rearrange(picture, "c h w -> h w c").numpy())
    shape = f"aspect-ratio: {photo.width} / {photo.height}"
    photo.thumbnail((600, 600))
    images = [(("photograph", "&nbsp;"), photo)]
    images += [(panel.title, Image.fromarray(panel.cells)) for panel in shown]
    ring = "" if place is None else f'<i style="left: {place[0]:.2%}; top: {place[1]:.2%}"></i>'
    figures = [
        f'<figure><figcaption>{first}<br><small>{second}</small></figcaption><div><img src="{_data(image)}" '
        f'alt="{first}" style="{shape}">{ring}</div></figure>'
        for (first, second), image in images
    ]
    return f'<div class="s2wrap">{"".join(figures)}</div><p><small>{legend}</small></p>'


def _data(image: Image.Image) -> str:
    """A picture as an address that holds it."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
