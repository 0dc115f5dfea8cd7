"""`Features` on their way from the replicas of `torch.nn.DataParallel`, which gathers dicts of tensors only."""

from collections.abc import Iterable
from typing import Any, TypeVar

from torch import Tensor, nn

from s2wrap.features import Features

Model = TypeVar("Model", bound=nn.Module)


class ReplicaFeatures(dict[str, Tensor]):
    """The tensors of a replica's features by name. Made of gathered tensors, it is the `Features` of the whole batch.

    How the images were looked at (`Features.view`) is not gathered.
    """

    def __new__(cls, items: Iterable[tuple[str, Tensor]] | Features) -> Any:
        """The dict of a replica's features; the features of gathered items, as DataParallel makes its result."""
        if isinstance(items, Features):
            return super().__new__(cls)
        tensors = dict(items)
        maps, prefixes = (
            tuple(tensor for name, tensor in tensors.items() if name.startswith(kind)) for kind in ("map", "prefix")
        )
        return Features(maps, prefixes)

    def __init__(self, features: Features):
        named = {f"map{k}": tensor for k, tensor in enumerate(features.maps)}
        super().__init__(named | {f"prefix{k}": tensor for k, tensor in enumerate(features.prefixes)})


def gatherable(replica: Model) -> Model:
    """A replica of a model that returns its features as `ReplicaFeatures`."""

    def to_dict(_module: Any, _inputs: Any, features: Any) -> Any:
        return ReplicaFeatures(features)

    replica._forward_hooks = replica._forward_hooks.copy()  # shared with the model itself
    replica.register_forward_hook(to_dict)
    return replica
