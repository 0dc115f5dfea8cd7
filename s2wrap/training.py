"""What training asks of a wrapped model: which weights learn where PEFT added some, and gradient checkpointing."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import nn

from s2wrap.backbones.base import Backbone
from s2wrap.backbones.family import made_by
from s2wrap.backward import FeatureModule
from s2wrap.errors import S2WrapError, first_line
from s2wrap.options import Options

PEFT_LAYERS = {"peft.tuners.tuners_utils": "BaseTunerLayer", "peft.utils.other": "AuxiliaryTrainingWrapper"}
"""Where PEFT has the classes of the layers that it puts in the place of others, and their names."""
REPLACED = ("base_layer", "original_module")
"""What such a layer calls the one in whose place it is."""
OF_TRANSFORMERS = ("activation_checkpointing", "gradient_checkpointing")
"""Gradient checkpointing by the names of transformers, newest first: with `_enable`, `_disable` and `_kwargs`."""
OF_TIMM = "set_grad_checkpointing"
USUAL = {"use_reentrant": False, "every_n_layers": 1, "offload": False}
"""What timm and open_clip do, in the words of transformers."""
Trainable = TypeVar("Trainable", bound="TrainableModule")


class TrainableModule(FeatureModule):
    """A module around a backbone: its training mode, and gradient checkpointing by the names of timm and transformers.

    Checkpointing is handed to the backbone's model. All its methods raise S2WrapError for one that has none, or in
    which it, or an argument of it, would have no effect.
    """

    backbone: Backbone
    options: Options

    def train(self: Trainable, mode: bool = True) -> Trainable:
        """As `nn.Module.train`, but a frozen backbone stays in evaluation mode; PEFT's adapters that train do not."""
        super().train(mode)
        if self.options.frozen:
            self.backbone.eval()
            train_adapters(self.backbone, mode)
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again in the backward pass instead of keeping them, as timm names it."""
        set_checkpointing(self.backbone, enable, frozen=self.options.frozen)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **others: object
    ) -> None:
        """The same, as transformers names it from version 5; `others` are `every_n_layers` and `offload`."""
        frozen = self.options.frozen
        set_checkpointing(self.backbone, True, frozen=frozen, kwargs=activation_checkpointing_kwargs, **others)

    def activation_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self.set_grad_checkpointing(False)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **others: object
    ) -> None:
        """The same, as transformers named it before."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **others)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self.set_grad_checkpointing(False)


def freeze(module: nn.Module) -> None:
    """Switch off the gradients of all weights; where PEFT's adapters train, it has decided which, and they stay."""
    if not any(_training_adapters(module)):
        module.requires_grad_(False)


def train_adapters(module: nn.Module, mode: bool) -> None:
    """Set the training mode of PEFT's adapters that train (their dropout), but not of the layers that they adapt."""
    for layer in _training_adapters(module):
        layer.train(mode)
        for replaced in _replaced(layer):
            replaced.eval()


def set_checkpointing(
    backbone: Backbone, enable: bool, *, frozen: bool, kwargs: Mapping[str, Any] | None = None, **others: object
) -> None:
    """Switch gradient checkpointing of a backbone's model on or off, by the method that it has.

    Args:
        backbone: whose model has the method; or which has it itself.
        enable: on or off.
        frozen: whether it stays in evaluation mode.
        kwargs: of `torch.utils.checkpoint.checkpoint`.
        **others: `every_n_layers` and `offload`, of newer versions of transformers.

    Raises:
        S2WrapError: a model without checkpointing, or one in which it, or an argument of it, would have no effect.
    """
    verb = "enable" if enable else "disable"
    methods = [*(f"{name}_{verb}" for name in OF_TRANSFORMERS), OF_TIMM]
    found = [(part, name) for part in (backbone, *backbone.children()) for name in methods if hasattr(part, name)]
    if not found:
        raise S2WrapError(
            f"{backbone.name} has no gradient checkpointing: neither {OF_TIMM}() nor "
            f"{OF_TRANSFORMERS[1]}_{verb}(); {_instead()}"
        )
    module, method = found[0]
    unusual = {name: value for name, value in others.items() if value != USUAL.get(name)}
    try:
        if method == OF_TIMM:
            _check_usual(backbone, {**(kwargs or {}), **others})
            getattr(module, method)(enable)
            _check_checkpoints(backbone, module, enable)
        elif not enable:
            getattr(module, method)()
        elif frozen:
            raise S2WrapError(
                f"gradient checkpointing of {backbone.name} has no effect: transformers checkpoints in training mode "
                f"only, and a frozen model stays in evaluation mode; wrap with frozen=False"
            )
        else:
            getattr(module, method)(**{f"{method.removesuffix('_enable')}_kwargs": kwargs}, **unusual)
    except S2WrapError:
        raise
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:  # what libraries say that have none
        raise S2WrapError(
            f"{backbone.name} does no gradient checkpointing: {first_line(error)}; {_instead()}"
        ) from error


def _training_adapters(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of PEFT in a module whose own weights have gradients, outer ones first; none without PEFT."""
    libraries = [(sys.modules.get(library), name) for library, name in PEFT_LAYERS.items()]
    kinds = tuple(kind for library, name in libraries if (kind := getattr(library, name, None)) is not None)
    for layer in module.modules() if kinds else ():
        if isinstance(layer, kinds):
            others = {weight for replaced in _replaced(layer) for weight in replaced.parameters()}
            if any(weight.requires_grad for weight in layer.parameters() if weight not in others):
                yield layer


def _replaced(layer: nn.Module) -> list[nn.Module]:
    """The layer in whose place a layer of PEFT is."""
    parts = (getattr(layer, name, None) for name in REPLACED)
    return [part for part in parts if isinstance(part, nn.Module)]


def _check_usual(backbone: Backbone, asked: Mapping[str, object]) -> None:
    """Raise S2WrapError for arguments of transformers' method that timm's has no place for."""
    for name, value in asked.items():
        if name not in USUAL or value != USUAL[name]:
            raise S2WrapError(
                f"{name}={value!r} has no effect on the gradient checkpointing of {backbone.name}, whose {OF_TIMM}() "
                f"takes no arguments; leave it out"
            )


def _check_checkpoints(backbone: Backbone, module: nn.Module, enable: bool) -> None:
    """Raise S2WrapError for a model of timm or open_clip whose method does nothing."""
    flags = any(getattr(part, "grad_checkpointing", False) for part in module.modules())
    if enable and not flags and (made_by(module, "timm") or made_by(module, "open_clip")):
        raise S2WrapError(f"{OF_TIMM}() of {backbone.name} does nothing; {_instead()}")


def _instead() -> str:
    return (
        "wrap such an architecture of timm or transformers that has it, or a module whose forward calls "
        "torch.utils.checkpoint"
    )
