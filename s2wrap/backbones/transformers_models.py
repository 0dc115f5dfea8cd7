"""What transformers has: the kinds of models that take images, their configurations, their weights on the hub."""

import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from s2wrap.backbones.checkpoint import from_hub, misfit
from s2wrap.errors import MissingExtraError, S2WrapError

POOLER = "pooler"
"""In the keys of the part that makes one vector of an image: it is not asked for features, and may be random."""


@cache
def names() -> tuple[str, ...]:
    """The kinds of models whose main input is an image; any repository of the hub has a name as well."""
    transformers = library()
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    found, modules = [], transformers._class_to_module
    for kind, classes in MODEL_MAPPING_NAMES.items():
        name = classes if isinstance(classes, str) else classes[0]
        file = Path(transformers.__file__).parent.joinpath(*modules.get(name, "none").split(".")).with_suffix(".py")
        if kind.endswith(("_vision", "_vision_model")) or (file.exists() and _takes_pixels(file.read_text(), name)):
            found.append(kind)
    return tuple(found)


def _takes_pixels(source: str, name: str) -> bool:
    """Whether the source of a module says that the main input of a class is an image: its import takes 0.1 s."""
    lines = re.search(rf"^class {name}\(([^)]*)\):\n(.*?)(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL)
    if lines is None:
        return False
    own = re.search(r"^    main_input_name\b[^=]*= (.+)", lines[2], re.MULTILINE)
    bases = (base.strip() for base in lines[1].split(","))
    return own[1] == '"pixel_values"' if own else any(_takes_pixels(source, base) for base in bases)


def pretrained_model(name: str, config: object) -> Any:
    """The model of a repository. Keys of a head, which it is without, are ignored; every other weight must be there."""
    from_pretrained = library().AutoModel.from_pretrained
    options = {"output_loading_info": True, "use_safetensors": True, "ignore_mismatched_sizes": True}
    model, info = from_hub(lambda: from_pretrained(name, config=config, **options), f"transformers:{name}")
    missing = [key for key in info["missing_keys"] if POOLER not in key]
    misshapen = [
        f"{key} {tuple(theirs)} instead of {tuple(own)}"
        for key, theirs, own in info["mismatched_keys"]
        if POOLER not in key
    ]
    if words := misfit(missing, [], misshapen):
        raise S2WrapError(f"the weights of transformers:{name} are not those of its model: {words}")
    return model


def default_config(kind: str) -> Any:
    """The default configuration of a kind; of a model for images and text, that of the vision tower."""
    config = library().CONFIG_MAPPING[kind]()
    return getattr(config, "vision_config", config)


def make(config: Any) -> Any:
    """The model of a configuration, with random weights; a tower that `AutoModel` does not know, by its own module."""
    transformers = library()
    try:
        if type(config) in transformers.MODEL_MAPPING:
            return transformers.AutoModel.from_config(config)
        module = import_module(type(config).__module__.replace("configuration_", "modeling_"))
        classes = [part for part in vars(module).values() if getattr(part, "config_class", None) is type(config)]
        return next(part for part in classes if part.main_input_name == "pixel_values")(config)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise S2WrapError(
            f"transformers cannot make {config.model_type} as its configuration says: {reason}"
        ) from error


def library() -> Any:
    """The module transformers. Raises MissingExtraError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "transformers") from error
    return transformers
