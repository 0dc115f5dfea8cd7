"""`VisionTower`: a wrapped model in the place of the vision tower of a multimodal model of transformers."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from s2wrap.backbones.from_tower import TowerBackbone
from s2wrap.backbones.from_transformers import TransformersBackbone
from s2wrap.errors import S2WrapError
from s2wrap.wrapper import MultiScale

OF_TRANSFORMERS = (TransformersBackbone, TowerBackbone)
KEY_PREFIX = "model.backbone.model."
"""Where the tower's own weights lie in a `VisionTower`; checkpoints have their keys without it."""
HARMLESS = {"return_dict", "output_hidden_states", "use_cache"}
"""Arguments of towers that change nothing in the features."""


class VisionTower(nn.Module):
    """A `MultiScale` that is called as a vision model of transformers is: pixels in, hidden states out.

    `s2wrap.wrap_tower` makes one for a multimodal model and puts it in place. Made by hand, of any backbone:
    `wrap(…, layers=(-2,))` is read as `hidden_states[-2]`; with several layers and `join_layers=False` each is read at
    its own place, and joined ones at the place of the last. Any other place raises S2WrapError. `last_hidden_state` is
    the last of them; without `layers` the features of the model. The projector must take `config.hidden_size` channels:
    those of all scales with `fuse="concat"`, those of the backbone with "mean" or "detail". With
    `target_grid="coarsest"` (the default but for "detail") there are as many tokens as at the smallest scale.

    Parts of the tower that it wraps are its attributes too, and its state dict has the keys of that tower.

    Args:
        model: of any backbone.

    Attributes:
        model: as given.
        config: that of the tower, with the new `hidden_size`. For a backbone that is none of transformers, one with
            the sizes that a multimodal model reads, for `LlavaConfig(vision_config=tower.config)`.

    Raises:
        S2WrapError: a pyramid, which is no sequence of tokens.
    """

    def __init__(self, model: MultiScale):
        super().__init__()
        if model.options.fuse == "pyramid":
            raise S2WrapError("fuse='pyramid' is no sequence of tokens; a vision tower takes fuse='mean' or 'detail'")
        self.model = model
        self.config = _config(model)
        self.register_state_dict_post_hook(_own_keys)
        self.register_load_state_dict_pre_hook(_inner_keys)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_modules", {}).get("model")
            if model is None or name.startswith("_") or not isinstance(model.backbone, OF_TRANSFORMERS):
                raise
            return getattr(model.backbone.model, name)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.model.backbone.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.backbone.device

    def forward(self, pixel_values: Tensor, **asked: object) -> Any:
        """The fused tokens as transformers' `BaseModelOutputWithPooling`, without a pooled vector.

        Args:
            pixel_values: (b, 3, H, W), normalised: as large as the largest scale, for detail to be in them.
            **asked: what multimodal models ask of a tower. What would change the features is refused; a mask may hide
                nothing, and `image_sizes` must be the size of the backbone, whose grid the tokens have.

        Raises:
            S2WrapError: an argument that would change the features.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        self._check(asked)
        features = self.model(pixel_values)
        states = [self._as_tower(*parts) for parts in zip(features.maps, features.prefixes, strict=True)]
        places, count = _places(self.model)
        last = states[0] if isinstance(self.model.backbone, TowerBackbone) else states[-1]
        hidden_states = HiddenStates(dict(zip(places, states[-len(places) :], strict=True)) if places else {}, count)
        answer = BaseModelOutputWithPooling(
            last_hidden_state=last,  # type: ignore[arg-type]  # annotated as a FloatTensor
            hidden_states=hidden_states,  # type: ignore[arg-type]  # annotated as a tuple
        )
        return answer.to_tuple() if asked.get("return_dict") is False else answer

    def _as_tower(self, spatial: Tensor, prefix: Tensor) -> Tensor:
        """A map and prefix tokens as the tower gives them: a sequence (b, n, c), or a map where it gives maps."""
        backbone = self.model.backbone
        if isinstance(backbone, TowerBackbone) and backbone.layout.order != "bnc":
            return spatial if backbone.layout.order == "bchw" else rearrange(spatial, "b c h w -> b h w c")
        tokens = torch.cat([prefix, rearrange(spatial, "b c h w -> b (h w) c")], dim=1)
        if getattr(backbone, "kind", None) == "pixtral":  # it joins the images of a batch to one sequence
            return rearrange(tokens, "b n c -> 1 (b n) c")
        return tokens

    def _check(self, asked: Mapping[str, object]) -> None:
        """Refuse what would change the features."""
        for name, value in asked.items():
            if name in HARMLESS or value is None or value is False:
                continue
            if name == "image_sizes":
                _check_sizes(value, self.model.backbone.image_hw)
            elif not (name.endswith("_mask") and isinstance(value, Tensor) and bool(value.all())):
                shown = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                remedy = "it may hide nothing: give images without padding" if "mask" in name else "leave it out"
                raise S2WrapError(f"a wrapped vision tower cannot honour {name}={shown}; {remedy}")


class HiddenStates:
    """The hidden states that a tower was wrapped for, read by their index as those of transformers are.

    Args:
        states: by index, as it is asked for.
        count: how many states the tower has, so that negative indices are told; 0 if that is unknown.
    """

    def __init__(self, states: Mapping[int, Tensor], count: int):
        self.states, self.count = states, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: object) -> Tensor:
        known = {place % self.count if self.count else place: state for place, state in self.states.items()}
        place = index % self.count if self.count and isinstance(index, int) else index
        if not isinstance(place, int) or place not in known:
            raise S2WrapError(
                f"hidden_states[{index}] is asked of a vision tower that was wrapped for "
                f"{sorted(self.states) or 'the last features'} alone; put it in place with s2wrap.wrap_tower(model, "
                f"…), which reads the model's config, or wrap with layers= and join_layers=False"
            )
        return known[place]

    def __iter__(self) -> Any:
        return (self[index] for index in range(self.count))


def _places(model: MultiScale) -> tuple[tuple[int, ...], int]:
    """The indices of hidden states that the last maps of a model are, and how many the tower has (0: unknown)."""
    backbone = model.backbone
    if isinstance(backbone, TowerBackbone):
        return backbone.places, backbone.num_states
    foreign = not isinstance(backbone, OF_TRANSFORMERS)
    count = 0 if foreign else getattr(backbone.model.config, "num_hidden_layers", -1) + 1
    if backbone.layers is None:  # the last features of transformers are after a norm, which hidden states are not
        return ((-1,) if foreign else ()), count
    places = tuple(layer + 1 if layer >= 0 else layer for layer in backbone.layers)
    return (places[-1:] if model.options.join_layers else places), count


def _config(model: MultiScale) -> Any:
    """The config of the tower, or for a backbone of another library one that multimodal models can read."""
    backbone = model.backbone
    layers = 1 if model.options.join_layers else len(backbone.layouts)
    width = model.num_features // layers
    if isinstance(backbone, OF_TRANSFORMERS):
        config = deepcopy(backbone.model.config)
        config.hidden_size = width
        return config
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_channels=backbone.input.channels,
        image_size=backbone.image_hw[0],
        patch_size=backbone.stride_hw[0],
    )


def _check_sizes(image_sizes: Any, image_hw: tuple[int, int]) -> None:
    """Refuse other image sizes than that of the backbone: as many tokens as that has stand for each image."""
    sizes = {tuple(int(side) for side in size) for size in image_sizes}
    if sizes != {image_hw}:
        raise S2WrapError(
            f"image_sizes={sorted(sizes)}, but the wrapped tower gives the tokens of {image_hw[0]}×{image_hw[1]} "
            f"pixels for every image; resize images to squares, and give image_sizes=[{list(image_hw)}, …]"
        )


def _own_keys(tower: VisionTower, state: dict[str, Any], prefix: str, _metadata: object) -> None:
    """Give weights the keys that they have in the tower that is wrapped."""
    for key in [key for key in state if key.startswith(prefix + KEY_PREFIX)]:
        state[prefix + key.removeprefix(prefix + KEY_PREFIX)] = state.pop(key)


def _inner_keys(tower: VisionTower, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Find weights under the keys that they have in the tower that is wrapped."""
    outside = {
        name for name, _ in (*tower.named_parameters(), *tower.named_buffers()) if not name.startswith(KEY_PREFIX)
    }
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if not name.startswith(KEY_PREFIX) and name not in outside:
            state[prefix + KEY_PREFIX + name] = state.pop(key)
