"""How the images of a batch were looked at: `View`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from s2wrap.geometry import Geometry
from s2wrap.plan import Plan


@dataclass(frozen=True, eq=False)
class View:
    """How the images of a batch, all of one size, were looked at.

    Attributes:
        plan: where the tiles lay.
        geometry: for every map, where its cells lie on the original image.
        boxes: for every scale (h, w, 4): the pixels of the original image that each cell of the result looked at (of the
            scale's own grid for a pyramid; with several layers, of the last): left, top, right, bottom. Empty for
            exported files, which note none.
        ran: for every scale (b, rows, columns): which tiles the backbone saw; all but for `select`.
    """

    plan: Plan
    geometry: tuple[Geometry, ...]
    boxes: tuple[Float[Tensor, "_h _w 4"], ...]
    ran: tuple[Bool[Tensor, "b _rows _cols"], ...]

    def of_images(self, chosen: slice | Tensor) -> "View":
        """The view of some images of the batch."""
        return replace(self, ran=tuple(tiles[chosen] for tiles in self.ran))

    def moved(self, move: Callable[[Tensor], Tensor]) -> "View":
        """The view with its tensors on another device."""
        return replace(self, boxes=tuple(map(move, self.boxes)), ran=tuple(map(move, self.ran)))


def join_views(views: Sequence[View | None]) -> View | None:
    """The view of parts of a batch as that of the whole; None unless all were looked at alike."""
    known = [view for view in views if view is not None]
    first = known[0] if known else None
    if first is None or len(known) < len(views):
        return None
    if any(view.plan != first.plan or view.geometry != first.geometry for view in known):
        return None
    return replace(first, ran=tuple(map(torch.cat, zip(*(view.ran for view in known), strict=True))))
