"""New versions in a model folder of Triton Inference Server: one config.pbtxt holds for all of them."""

import json
from pathlib import Path
from typing import Any

from s2wrap.errors import S2WrapError
from s2wrap.export.options import TritonOptions
from s2wrap.export.triton_config import messages

CONTRACT = ("platform", "backend", "max_batch_size", "input", "output")
"""Fields that every version of a model shares, as there is one config.pbtxt for all."""
SERVING = {
    "instances": "instance_group",
    "queue_delay_us": "dynamic_batching",
    "cuda_graphs": "optimization",
    "max_pixels": "parameters",
}
"""Options of how a model is served, and the fields that they become."""
PREPARED = ("mean", "std", "value_range", "channels", "interpolation")
"""Facts of a manifest's `input` by which clients prepare images."""


def next_version(model: Path) -> int:
    """The number of a model folder's next version."""
    return 1 + max((int(each.name) for each in model.iterdir() if each.name.isdecimal()), default=0)


def read_config(folder: Path) -> Any:
    """The config of a model folder.

    Raises:
        S2WrapError: there is no config.pbtxt, or one that Triton would refuse, or whose manifest is damaged.
    """
    from google.protobuf import text_format

    try:
        config = text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), messages().ModelConfig())
        _prepared(config)
        return config
    except (OSError, ValueError, text_format.ParseError) as error:
        raise S2WrapError(f"{folder} gets no new version: its config.pbtxt cannot be read ({error})") from error


def check_same(folder: Path, old: object, new: object, options: TritonOptions) -> None:
    """Raise S2WrapError if a model folder's config does not hold for a new version.

    Args:
        folder: of the model.
        old: its config.
        new: the config that a folder of its own would have.
        options: by which that was made; those at their defaults follow the old config.
    """
    help_text = "lay it under another name (--triton-name), or replace the model (--overwrite)"
    for field in CONTRACT:
        before, after = getattr(old, field), getattr(new, field)
        if before != after:
            raise S2WrapError(
                f"{folder} gets no new version: {field} was {_shown(before)}, and would be {_shown(after)}; {help_text}"
            )
    for option, value in options.changed().items():
        field = SERVING.get(option)
        if field and _serving(old, field) != _serving(new, field):
            raise S2WrapError(
                f"{option}={value!r}: a new version is served as {folder}/config.pbtxt says; change it there"
            )
    before, after = (_prepared(config) for config in (old, new))
    for name, value in after.items():
        if before.get(name) != value:
            raise S2WrapError(
                f"{folder} gets no new version: its clients prepare images for {name} {before.get(name)}, and this "
                f"file has {value}; {help_text}"
            )


def _serving(config: Any, field: str) -> Any:
    """A field of how a model is served; of the parameters only what an option decides."""
    return config.parameters["max_pixels"].string_value if field == "parameters" else getattr(config, field)


def _prepared(config: Any) -> dict[str, Any]:
    """What clients go by when they prepare images, from the manifest in a config."""
    manifest = json.loads(config.parameters["s2wrap"].string_value or "{}")
    facts = {name: manifest.get("input", {}).get(name) for name in PREPARED}
    facts |= {name: manifest.get(name) for name in ("part", "pixels")}
    return facts | {"fits": [scale["fit"] for scale in manifest.get("options", {}).get("scales", [])]}


def _shown(value: Any) -> str:
    """A field of a config on one line."""
    if isinstance(value, str | int):
        return repr(value)
    ports = (f"{port.name} {messages().DataType.Name(port.data_type)} {list(port.dims)}" for port in value)
    return ", ".join(ports)
