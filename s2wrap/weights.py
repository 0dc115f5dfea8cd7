"""`Weights`: every tensor of a backbone, to and from a safetensors file, each in its own precision."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2wrap.backbones.base import Backbone
from s2wrap.backbones.checkpoint import misfit
from s2wrap.errors import S2WrapError, first_line

NOTES = "s2wrap"
"""The entry of a file's header that says which tensors are shared, and which are computed."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The tensors of a backbone.

    Attributes:
        tensors: every parameter and buffer by name; what is shared (tied) under each of its names.
        computed: names of buffers that the model computes itself, and that its state dict leaves out.
    """

    tensors: Mapping[str, Tensor]
    computed: frozenset[str]

    @classmethod
    def of(cls, backbone: Backbone) -> "Weights":
        """Those of a backbone, in its own memory. Raises S2WrapError for a backbone of other things than tensors."""
        tensors = _tensors(backbone)
        if other := [key for key in backbone.state_dict() if key not in tensors]:
            raise S2WrapError(f"{backbone.name} holds more than tensors ({', '.join(other[:3])}), and cannot be saved")
        for name, tensor in tensors.items():
            if type(tensor.data) is not Tensor or tensor.is_meta or tensor.layout != torch.strided:
                kind = f"{type(tensor.data).__name__}, {tensor.layout}, {tensor.device}"
                raise S2WrapError(f"{name} of {backbone.name} is no plain tensor ({kind}), and cannot be saved")
        return cls(tensors, frozenset(_computed(backbone)))

    @classmethod
    def read(cls, path: Path) -> "Weights":
        """Those in a file that `write` wrote."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()[NOTES])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            tensors |= {name: tensors[other] for name, other in about["shared"].items()}
            return cls(tensors, frozenset(about["computed"]))
        except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            raise S2WrapError(f"{path} cannot be read as the weights of a saved model: {first_line(error)}") from error

    def write(self, path: Path) -> None:
        """Write every tensor once; the other names of shared ones are noted."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        names: dict[Any, str] = {}
        written: dict[str, Tensor] = {}
        shared: dict[str, str] = {}
        for name, tensor in self.tensors.items():
            place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if tensor.numel() and place in names:
                shared[name] = names[place]
                continue
            names[place] = name
            own = tensor.detach().cpu().contiguous()
            part = own.untyped_storage().nbytes() != own.nbytes  # a view: other tensors may lie in the same memory
            written[name] = own.clone() if part else own
        try:
            notes = json.dumps({"shared": shared, "computed": sorted(self.computed)})
            save_file(written, path, metadata={NOTES: notes})  # one entry: several are written in a random order
        except SafetensorError as error:
            raise S2WrapError(f"cannot write {path}: {first_line(error)}") from error

    def put_into(self, backbone: Backbone, source: object) -> None:
        """Give a backbone these tensors, in their own precision, where its own are.

        Raises:
            S2WrapError: keys that are missing, left over or of another shape. Computed ones are taken where they fit.
        """
        own = _tensors(backbone)
        computed = self.computed | _computed(backbone)
        misshapen = [
            f"{key} {tuple(self.tensors[key].shape)} instead of {tuple(own[key].shape)}"
            for key in (own.keys() & self.tensors.keys()) - computed
            if own[key].shape != self.tensors[key].shape
        ]
        missing, left_over = own.keys() - self.tensors.keys() - computed, self.tensors.keys() - own.keys() - computed
        if words := misfit(missing, left_over, misshapen):
            raise S2WrapError(f"the weights in {source} are not those of {backbone.name}: {words}")
        for name, tensor in self.tensors.items():
            if name in own and own[name].shape == tensor.shape:
                own[name].data = tensor.to(own[name].device)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return parameters | dict(module.named_buffers(remove_duplicate=False))


def _computed(module: nn.Module) -> set[str]:
    return {
        f"{path}.{name}" if path else name
        for path, part in module.named_modules(remove_duplicate=False)
        for name in part._non_persistent_buffers_set
        if part._buffers.get(name) is not None
    }
