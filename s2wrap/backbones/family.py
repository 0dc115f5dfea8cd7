"""What an adapter for one library offers: `Family`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from s2wrap.backbones.base import Backbone
from s2wrap.errors import S2WrapError
from s2wrap.options import BackboneOptions

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Place = Literal["cached", "package", "download", "no package"]
"""Where the weights of a name are: on this disk, in a Python package, on a hub, or in a package that is missing."""


@dataclass(frozen=True)
class Family:
    """How the models of one library become backbones.

    Attributes:
        name: the word before the colon in a spec.
        adapt: `adapt(model, options)` makes a `Backbone` of a model; the options are what the caller knows of it.
        matches: whether a model is of this library. Must not import it.
        names: the names that `load` knows; or that it knows by heart, where a hub has more.
        load: `load(name, options, pretrained=, checkpoint=)` makes a `Backbone` of a name; `options.image_size` and
            `options.in_channels` say what it is built for.
        open_ended: `load` takes other names too: those of a hub.
        describe: `describe(backbone)` is what `rebuild` needs to make such a model again, as JSON keeps it; None for
            backbones of others, and where the model does not show how it was built.
        rebuild: `rebuild(description)` makes a model of the same shape, with random weights, without a network.
        resamples_patches: `load` takes `patch=`, the side of patches in pixels, and resamples weights to it.
        tag_mark: what stands before the tag of weights in a name, "" where names have none.
        weights: `weights(name)` is where the weights of a name are; a download is not begun.
    """

    name: str
    adapt: Callable[..., Backbone]
    matches: Callable[[Any], bool] = lambda model: False
    names: Callable[[], Iterable[str]] = tuple
    load: Callable[..., Backbone] | None = None
    open_ended: bool = False
    describe: Callable[[Backbone], dict[str, Any] | None] | None = None
    rebuild: Callable[[dict[str, Any]], Any] | None = None
    resamples_patches: bool = False
    tag_mark: str = ""
    weights: Callable[[str], Place | None] = lambda name: None


def made_by(model: object, package: str) -> bool:
    """Whether a model's class, or one that it derives from, comes from this package."""
    return any(kind.__module__.partition(".")[0] == package for kind in type(model).__mro__)


def structure(model: nn.Module) -> dict[str, Any]:
    """What a model consists of: the type of every module and the shape of every tensor, by name."""
    return {name: type(part) for name, part in model.named_modules()} | {
        f"{name} (tensor)": tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }


def allowed(description: dict[str, Any], *names: str) -> dict[str, Any]:
    """The arguments in a description read from a file, once none but these are there: others might read files."""
    arguments = dict(description["arguments"])
    if other := arguments.keys() - set(names):
        raise S2WrapError(f"a model built with {', '.join(sorted(other))}; only {', '.join(names)} are taken")
    return arguments


def check_rgb(options: BackboneOptions, spec: str) -> None:
    """Raise S2WrapError for other channels than RGB, where a library builds its models for these alone."""
    if options.in_channels not in (None, 3):
        raise S2WrapError(
            f"in_channels={options.in_channels} of {spec}, whose library builds models for 3 channels; change the "
            f"first layer of a model, and wrap() that"
        )
