"""`FeatureModule`: full backward hooks on modules that return `Features`.

torch calls them where a module returns a tensor or a tuple of tensors, and warns elsewhere.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import BackwardHook, RemovableHandle

from s2wrap.features import Features

Hook = Callable[..., Any]


class _Calls(threading.local):
    """The hooked calls that this thread is in, the innermost last."""

    def __init__(self) -> None:
        self.hooks: list[BackwardHook] = []


_CALLS = _Calls()


class FeatureModule(nn.Module):
    """A module that returns `Features`, and on which full backward hooks are called as on any other.

    What they get as `grad_output` are the gradients of the maps and then of the prefix tokens, one tuple.
    """

    def __init__(self) -> None:
        super().__init__()
        self._full_hooks: OrderedDict[int, Hook] = OrderedDict()
        self._full_pre_hooks: OrderedDict[int, Hook] = OrderedDict()
        self._hooked = False

    def register_full_backward_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """As `nn.Module.register_full_backward_hook`: `hook(module, grad_input, grad_output)`."""
        return self._register(self._full_hooks, hook, prepend)

    def register_full_backward_pre_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """As `nn.Module.register_full_backward_pre_hook`: `hook(module, grad_output)`."""
        return self._register(self._full_pre_hooks, hook, prepend)

    def _register(self, hooks: "OrderedDict[int, Hook]", hook: Hook, prepend: bool) -> RemovableHandle:
        if not self._hooked:
            self.register_forward_pre_hook(_before)
            self.register_forward_hook(_after, always_call=True)
            self._hooked = True
        handle = RemovableHandle(hooks)
        hooks[handle.id] = hook
        if prepend:
            hooks.move_to_end(handle.id, last=False)
        return handle


def _before(module: FeatureModule, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a call, from which its hooks will be told their gradients."""
    hooks = BackwardHook(module, [*module._full_hooks.values()], [*module._full_pre_hooks.values()])
    _CALLS.hooks.append(hooks)
    return hooks.setup_input_hook(args)


def _after(module: FeatureModule, _args: tuple[Any, ...], features: object) -> Features | None:
    """The features of a call whose gradients its hooks will be told; None after a call that failed."""
    hooks = _CALLS.hooks.pop()
    if not isinstance(features, Features) or not (hooks.user_hooks or hooks.user_pre_hooks):
        return None
    tensors = hooks.setup_output_hook((*features.maps, *features.prefixes))
    count = len(features.maps)
    return Features(tensors[:count], tensors[count:], features.view)
