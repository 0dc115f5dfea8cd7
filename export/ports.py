"""Inputs and outputs of an exported file, and the base class of sessions that run one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from s2wrap.errors import S2WrapError


@dataclass(frozen=True)
class Port:
    """An input or output; a dynamic first dimension is given as "batch"."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def sized(self, batch: int) -> tuple[int, ...]:
        """The shape for a batch size."""
        return tuple(batch if isinstance(size, str) else size for size in self.shape)


class Session(ABC):
    """A file that is ready to run; thread-safe.

    Attributes:
        path: the file.
        inputs: the inputs of `run`.
        outputs: the outputs of `run`, in the order of the file.
        device: the device of inputs and outputs.
        batch: the smallest, most frequent and largest batch size; None for any.
        reopen: opens the file again: what pickling keeps, as a process cannot hand its runtime to another.
    """

    path: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    device: torch.device
    batch: tuple[int, int, int] | None
    reopen: "Callable[[], Session]"

    def __reduce__(self) -> "tuple[Callable[[], Session], tuple[()]]":
        return self.reopen, ()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name, as new tensors on the session's device.

        Contiguous inputs whose memory is aligned to 256 bytes, as whole tensors are, are read without a copy. Engines
        run asynchronously on the current CUDA stream, like PyTorch (on the default stream, TensorRT synchronises more).

        Args:
            inputs: a tensor for each input, by name.

        Raises:
            S2WrapError: an input is missing, unknown, or of another device, dtype, shape or batch size; or the library
                failed, and the message ends with its own.
        """
        batch = self._check(inputs)
        return self._run({port.name: _aligned(inputs[port.name]) for port in self.inputs}, batch)

    @abstractmethod
    def _run(self, inputs: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
        """The outputs for checked inputs, computed by the runtime."""

    def _check(self, inputs: Mapping[str, Tensor]) -> int:
        """The batch size of the inputs, after a check of their names, devices, dtypes and shapes."""
        names = [port.name for port in self.inputs]
        if set(inputs) != set(names):
            raise S2WrapError(f"{self.path.name} takes {', '.join(names)}; received {', '.join(inputs) or 'nothing'}")
        batch = next(iter(getattr(inputs[names[0]], "shape", ())), 0)
        for port in self.inputs:
            tensor = inputs[port.name]
            if not isinstance(tensor, Tensor):
                raise S2WrapError(f"{port.name} must be a torch.Tensor; received {type(tensor).__name__}")
            if tensor.device != self.device:
                raise S2WrapError(f"{port.name} is on {tensor.device}, but {self.path.name} runs on {self.device}")
            if tensor.dtype != port.dtype:
                raise S2WrapError(f"{port.name} is {tensor.dtype}; {self.path.name} takes {port.dtype}")
            if tuple(tensor.shape) != port.sized(batch):
                expected = "×".join(map(str, port.shape))
                received = "×".join(map(str, tensor.shape))
                raise S2WrapError(f"{port.name} is {received}; {self.path.name} takes {expected}")
        if batch == 0 or (self.batch and not self.batch[0] <= batch <= self.batch[2]):
            low, _, high = self.batch or (1, 1, "any")
            raise S2WrapError(f"a batch of {batch} does not fit {self.path.name}, which takes {low} to {high}")
        return batch

    def _new_outputs(self, batch: int) -> dict[str, Tensor]:
        return {
            port.name: torch.empty(port.sized(batch), dtype=port.dtype, device=self.device) for port in self.outputs
        }


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if an engine could not read it in place."""
    tensor = tensor.detach().contiguous()
    return tensor if tensor.device.type == "cpu" or tensor.data_ptr() % 256 == 0 else tensor.clone()
