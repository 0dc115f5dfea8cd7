"""What a model returns: `Features`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from s2wrap.errors import S2WrapError
from s2wrap.geometry import Geometry, Number
from s2wrap.guided import Upsampler, guided_strips, guided_upsample, upsample_by
from s2wrap.indexing import Images, choose_images
from s2wrap.notebook import html_table
from s2wrap.plan import Axis, Plan, ScalePlan
from s2wrap.policies import Pair
from s2wrap.upsample import check_result, upsample, upsample_strips
from s2wrap.view import View, join_views

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """The features of a batch of images: one map; or one a scale for `fuse="pyramid"`, one a layer for a list of them.

    `len(features)` images; `features[2]`, `features[1:3]`, `features[[0, 2]]` and `features[mask]` are the features
    of some of them, and iteration gives each, a batch of one. Objects are equal only to themselves.

    Attributes:
        maps: spatial maps (b, c, h, w), top row first.
        prefixes: prefix tokens (b, p, c): CLS first, then registers; p is 0 where the backbone has none.
        view: how the images were looked at; None from a traced model, or for images of several sizes joined.
        heads: the answer (b, …) of the head of an exported file, see `head`; empty where there is none.

    >>> features = Features((torch.rand(4, 8, 16, 16),), (torch.rand(4, 1, 8),))
    >>> features.tokens.shape, features[1:3].pooled.shape, len(features)
    (torch.Size([4, 256, 8]), torch.Size([2, 8]), 4)
    """

    maps: tuple[Float[Tensor, "b _c _h _w"], ...]
    prefixes: tuple[Float[Tensor, "b _p _c"], ...]
    view: View | None = None
    heads: tuple[Float[Tensor, "b ..."], ...] = ()

    @property
    def spatial(self) -> Float[Tensor, "b c h w"]:
        """The spatial map. Raises S2WrapError where there are several: see `maps`."""
        return _only(self.maps, "maps")

    @property
    def prefix(self) -> Float[Tensor, "b p c"]:
        """The prefix tokens. Raises S2WrapError where there are several: see `prefixes`."""
        return _only(self.prefixes, "prefixes")

    @property
    def tokens(self) -> Float[Tensor, "b n c"]:
        """The spatial map as a sequence, row by row, without prefix tokens."""
        return rearrange(self.spatial, "b c h w -> b (h w) c")

    @property
    def pooled(self) -> Float[Tensor, "b c"]:
        """The average of the spatial map: one vector an image."""
        return reduce(self.spatial, "b c h w -> b c", "mean")

    @property
    def head(self) -> Float[Tensor, "b ..."]:
        """The answer of the head of an exported file. Raises S2WrapError where there is none."""
        if not self.heads:
            raise S2WrapError("these features have no head: only those of a file exported with head= have one")
        return self.heads[0]

    @property
    def plan(self) -> Plan:
        """Where the tiles lay. As for the three below: raises S2WrapError where there is no `view`."""
        return self._viewed("plan").plan

    @property
    def geometry(self) -> tuple[Geometry, ...]:
        """For every map, where its cells lie on the original image."""
        return self._viewed("geometry").geometry

    @property
    def boxes(self) -> tuple[Float[Tensor, "_h _w 4"], ...]:
        """For every scale (h, w, 4), the pixels that each cell looked at: left, top, right, bottom; see `View`."""
        boxes = self._viewed("boxes").boxes
        if not boxes:
            raise S2WrapError("an exported file notes no boxes; use the model that was exported, or geometry")
        return boxes

    @property
    def ran(self) -> tuple[Bool[Tensor, "b _rows _cols"], ...]:
        """For every scale (b, rows, columns), which tiles the backbone saw; all but for `select`."""
        return self._viewed("ran").ran

    @property
    def block_size(self) -> Pair:
        """Rows and columns of tiles of the last scale: how `split_blocks` cuts a map on its grid (dynamic-S2)."""
        return self.plan.scales[-1].block_size

    @property
    def saved(self) -> float:
        """The share of tiles that the backbone was spared by `select`, 0…1, weighed by their pixels."""
        areas = [scale.tile_hw[0] * scale.tile_hw[1] for scale in self.plan.scales]
        total = sum(area * ran.numel() for area, ran in zip(areas, self.ran, strict=True))
        return 1 - sum(area * int(ran.sum()) for area, ran in zip(areas, self.ran, strict=True)) / total

    def __len__(self) -> int:
        return len(self.maps[0]) if self.maps else 0

    def __getitem__(self, images: Images) -> "Features":
        chosen = choose_images(images, len(self))
        return self._each(lambda tensor: tensor[chosen], self.view and self.view.of_images(chosen))

    def __iter__(self) -> "Iterator[Features]":
        return (self[image] for image in range(len(self)))

    def to(
        self,
        device: torch.device | str | int | torch.dtype | Tensor | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
        copy: bool = False,
    ) -> "Features":
        """The features on another device or in another precision; the arguments are those of `Tensor.to`.

        Args:
            device: where to; or a dtype, or a tensor to be like.
            dtype: a floating type for maps and prefix tokens; boxes and ran only follow to the device.
            non_blocking: copy without waiting where the memory allows it.
            copy: new memory even where nothing changes.

        Raises:
            S2WrapError: the dtype is not a floating one, or there is no such device.
        """
        if isinstance(device, Tensor):
            device, dtype = device.device, device.dtype
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if isinstance(device, str):
            try:
                torch.device(device)
            except RuntimeError as error:
                raise S2WrapError(
                    f"{device!r} is no device; use one such as 'cuda:0', or a dtype: torch.float16"
                ) from error
        if dtype is not None and not dtype.is_floating_point:
            raise S2WrapError(f"dtype={dtype} holds no features; use a floating type such as torch.float16")

        def move(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
            return tensor.to(device=device, dtype=dtype, non_blocking=non_blocking, copy=copy)

        return self._each(lambda tensor: move(tensor, dtype), self.view and self.view.moved(move))

    def cpu(self) -> "Features":
        """The features in the CPU's memory."""
        return self.to("cpu")

    def float(self) -> "Features":
        """The features in float32."""
        return self.to(torch.float32)

    def detach(self) -> "Features":
        """The features without the graph that gradients would flow through; the same memory."""
        return self._each(Tensor.detach, self.view)

    def numpy(self) -> dict[str, np.ndarray]:
        """Arrays by the names of exported files and stores: "spatial" and "prefix", or "spatial_0", … for several maps.

        "head" is among them where there is one. bfloat16, which numpy lacks, becomes float32.
        """
        arrays = {}
        for name, tensors in (("spatial", self.maps), ("prefix", self.prefixes), ("head", self.heads)):
            for k, tensor in enumerate(tensors):
                plain = tensor.detach().cpu()
                array = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
                arrays[name if len(tensors) == 1 else f"{name}_{k}"] = array
        return arrays

    def upsample(
        self,
        size: Pair | None = None,
        *,
        index: int | None = None,
        image: Any = None,
        by: Upsampler = guided_upsample,
    ) -> Float[Tensor, "b c height width"]:
        """A map at the resolution of the original image: interpolated linearly, or following the edges of an image.

        Args:
            size: height and width instead of the image's own; any size.
            index: which of `maps`, where there are several.
            image: what the features were made of, all of it, at any size: then the map follows its edges, see
                `s2wrap.guided.guided_upsample`. A batch, a picture as for `model.encode`, or a list of them.
            by: another up-sampler that takes an image: AnyUp, JAFAR, NAF or any callable, which is called as
                `by(image, features, output_size=(height, width))`. The image is given to it as it is, so it must be a
                tensor of floats, normalised as the up-sampler expects it.

        Raises:
            S2WrapError: no size was given, and the result would take more than 512 MiB, or there is no `view`; `by`
                without `image`; an image that does not fit; an answer of `by` that does not fit, or is not finite.
        """
        spatial = self._map(index)
        if size is None:
            size = self._viewed("image size (give size=)").plan.image_hw
            check_result(spatial, size)
        if image is None:
            if by is not guided_upsample:
                raise S2WrapError("by= takes an image beside the features; use upsample(image=…, by=…)")
            return upsample(spatial, size)
        return guided_upsample(image, spatial, size) if by is guided_upsample else upsample_by(by, image, spatial, size)

    def upsample_strips(
        self, size: Pair | None = None, *, height: int | None = None, index: int | None = None, image: object = None
    ) -> Iterator[tuple[int, Tensor]]:
        """The result of `upsample` as (top, strip of `height` rows), where memory cannot hold it whole."""
        spatial = self._map(index)
        image_hw = self._viewed("image size (give size=)").plan.image_hw if size is None else size
        if image is None:
            return upsample_strips(spatial, image_hw, height)
        return guided_strips(image, spatial, image_hw, height)

    def show(self, image: object = None, point: Number | None = None) -> "Image":
        """The maps as a PIL image, which notebooks display: principal components as colours, a row for each image.

        Equal colours are like features, in all images and in all scales of a pyramid; see `s2wrap.look.panels`.

        Args:
            image: what is shown beside them: the photograph, as for `model.encode`, or one for each image. It may have
                another size than the model was given, as long as all of it was given.
            point: show instead how alike each cell is (the cosine) to the one at this pixel of the first photograph:
                across and down, as PIL counts.

        Raises:
            S2WrapError: another number of photographs, pixels that are no uint8, a point outside, no `view`.
        """
        from s2wrap.look import draw, photographs

        shown = [self.plan.image_hw] * len(self) if image is None else photographs(image, len(self))
        return draw(shown, [[each] for each in self], point)

    def _map(self, index: int | None) -> Tensor:
        """The map of an index; the only one without."""
        if index is not None and not -len(self.maps) <= index < len(self.maps):
            raise S2WrapError(
                f"index={index}, but these features hold {len(self.maps)} maps; use 0 to {len(self.maps) - 1}"
            )
        return self.spatial if index is None else self.maps[index]

    def __repr__(self) -> str:
        return f"Features({', '.join(f'{name}: {value}' for name, value in self._summary().items())})"

    def _repr_html_(self) -> str:
        return html_table("Features", [], self._summary().items())

    def _summary(self) -> dict[str, str]:
        """What is worth knowing at a glance."""
        named = {"maps": self.maps, "prefixes": self.prefixes}
        facts = {name: _some(tuple(tensor.shape) for tensor in tensors) for name, tensors in named.items()}
        if self.maps:
            facts["values"] = f"{str(self.maps[0].dtype).removeprefix('torch.')} on {self.maps[0].device}"
        if self.heads:
            facts["head"] = str(tuple(self.head.shape))
        if self.view is not None:
            facts["images"] = f"{self.plan.image_hw[0]}×{self.plan.image_hw[1]} pixels in {self.plan.num_tiles} tiles"
            strides = (geometry.stride for geometry in self.geometry)
            facts["cells"] = _some(f"{down:.4g}×{across:.4g} pixels each" for down, across in strides)
        return facts

    def _viewed(self, name: str) -> View:
        if self.view is None:
            raise S2WrapError(
                f"these features have no {name}: a traced model notes none, and images of several sizes joined have "
                f"none in common; use the model untraced, or the features of one image size"
            )
        return self.view

    def _each(self, change: Callable[[Tensor], Tensor], view: View | None) -> "Features":
        maps, prefixes, heads = (tuple(map(change, tensors)) for tensors in (self.maps, self.prefixes, self.heads))
        return Features(maps, prefixes, view, heads)


def join(parts: Sequence[Features]) -> Features:
    """The features of parts of a batch as those of the whole; without a `view` unless all were looked at alike.

    Raises:
        S2WrapError: their maps or prefix tokens differ in shape.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts[1:]:
        parts_of = ((*each.maps, *each.prefixes, *each.heads) for each in (first, part))
        shapes, others = ([tensor.shape[1:] for tensor in tensors] for tensors in parts_of)
        if shapes != others:
            raise S2WrapError(
                f"{first} and {part} make no batch; keep a list, or use fit='stretch' or target_grid=(rows, columns), "
                f"which give all images one shape"
            )
    maps = map(torch.cat, zip(*(part.maps for part in parts), strict=True))
    prefixes = map(torch.cat, zip(*(part.prefixes for part in parts), strict=True))
    heads = map(torch.cat, zip(*(part.heads for part in parts), strict=True))
    return Features(tuple(maps), tuple(prefixes), join_views([part.view for part in parts]), tuple(heads))


def _only(tensors: tuple[Tensor, ...], name: str) -> Tensor:
    if len(tensors) != 1:
        raise S2WrapError(f"these features hold {len(tensors)} maps, one a scale or layer; use features.{name}[k]")
    return tensors[0]


def _some(values: Iterable[object]) -> str:
    """The first three of some values, and how many more there are."""
    texts = list(map(str, values))
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


# What other parts of torch know of Features: traced graphs return them (View is None there), DataLoader joins them into
# batches, and torch.load reads what torch.save wrote of them.
torch.export.register_dataclass(Features, serialized_type_name="s2wrap.Features")
torch.export.register_dataclass(View, serialized_type_name="s2wrap.View")
default_collate_fn_map[Features] = lambda parts, **_: join(parts)
torch.serialization.add_safe_globals([Features, View, Geometry, Plan, ScalePlan, Axis])
