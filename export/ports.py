"""What an exported file takes and gives, and the face that everything that runs one has."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.scales import whole_number


@dataclass(frozen=True)
class Port:
    """An input or output: "batch" stands for an open first dimension."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def sized(self, batch: int) -> tuple[int, ...]:
        """Its shape at a batch size."""
        return tuple(batch if isinstance(size, str) else size for size in self.shape)


class Session(ABC):
    """A file that is ready to run. Safe to call from several threads at once.

    Attributes:
        path: the file.
        inputs: what `run` takes.
        outputs: what it gives, in the file's order.
        device: where the inputs must be and the outputs will be.
        batch: the smallest, most frequent and largest batch; None takes any.
    """

    path: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    device: torch.device
    batch: tuple[int, int, int] | None

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name, new tensors on the session's device, for inputs by name.

        Contiguous inputs that start at a multiple of 256 bytes, as whole tensors do, are read in place. On a GPU the
        call of an engine returns before the work is done, as PyTorch's own calls do: it is queued on the current CUDA
        stream (a stream of your own spares TensorRT the default one's waiting).

        Raises:
            S2WrapError: inputs that are missing, unknown, on another device, of another type, shape or batch size; or
                the library failed, whose messages stand at the end.
        """
        batch = self._check(inputs)
        held = {port.name: _in_place(inputs[port.name]) for port in self.inputs}
        return self._run(held, batch)

    @abstractmethod
    def _run(self, inputs: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
        """The outputs for checked inputs; what each runtime does in its own way."""

    def _check(self, inputs: Mapping[str, Tensor]) -> int:
        """The batch size that all inputs share."""
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
                wanted = "×".join(map(str, port.shape))
                raise S2WrapError(f"{port.name} is {'×'.join(map(str, tensor.shape))}; {self.path.name} takes {wanted}")
        if batch == 0 or (self.batch and not self.batch[0] <= batch <= self.batch[2]):
            low, _, high = self.batch or (1, 1, "any")
            raise S2WrapError(f"a batch of {batch} does not fit {self.path.name}, which takes {low} to {high}")
        return batch

    def _new_outputs(self, batch: int) -> dict[str, Tensor]:
        return {
            port.name: torch.empty(port.sized(batch), dtype=port.dtype, device=self.device) for port in self.outputs
        }


def _in_place(tensor: Tensor) -> Tensor:
    """The tensor itself where an engine can read it, else a copy."""
    tensor = tensor.detach().contiguous()
    return tensor if tensor.device.type == "cpu" or tensor.data_ptr() % 256 == 0 else tensor.clone()


def check_batch(batch: Any) -> tuple[int, int, int]:
    """MIN, OPT and MAX as three whole numbers in order."""
    numbers = [whole_number(part) for part in batch] if isinstance(batch, tuple | list) else []
    if len(numbers) == 3:
        low, best, high = (number or 0 for number in numbers)
        if 1 <= low <= best <= high:
            return low, best, high
    raise S2WrapError(f"batch={batch!r} is no profile; use (MIN, OPT, MAX), 1 ≤ MIN ≤ OPT ≤ MAX, such as (1, 8, 32)")
