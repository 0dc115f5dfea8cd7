"""Maps at the resolution of the image, guided by the image itself: without training, or by a learned up-sampler."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.policies import Pair
from s2wrap.resample import full_precision, resize
from s2wrap.upsample import checked_height, checked_size, result_bytes

REACH = 2
"""Cells on each side of a pixel's own that count: 5 × 5 of them."""
CELLS = (2 * REACH + 1) ** 2
DISTANCE, COLOUR = 0.7, 0.5
"""The default widths of the two Gaussians; chosen on other pictures than those of `benchmarks/upsample.py`."""
READ_ROWS = 64
"""Rows of an image that are floats at a time."""
Pairs = tuple[Tensor, Tensor]


@runtime_checkable
class Upsampler(Protocol):
    """What AnyUp, JAFAR and NAF are: an image and a map (b, c, rows, columns) in, the map at `output_size` out."""

    def __call__(self, image: Any, features: Any, *, output_size: Any) -> Any:
        """The map at that size."""
        ...


def guided_upsample(
    image: object,
    features: Float[Tensor, "b c rows columns"],
    output_size: Pair,
    *,
    distance: float = DISTANCE,
    colour: float = COLOUR,
) -> Float[Tensor, "b c height width"]:
    """Maps at the resolution of an image whose edges they follow: joint bilateral up-sampling (Kopf et al. 2007).

    A pixel is the weighted mean of the 5 × 5 cells around it. The weight of a cell is a Gaussian in the distance of the
    pixel to the cell's centre, times the density of the pixel's colour in a Gaussian with the mean and the variance of
    the colours in the cell. So a cell of one colour counts more than a motley one that straddles an edge, no value lies
    outside those of the cells around, and a map that is constant stays so.

    Args:
        image: what the maps were made of, all of it, at any size: a tensor (b, k, height, width) of any values, a
            picture as for `model.encode`, or a list of pictures of one size.
        features: of any floating type; half precision is computed in float32 and rounded once.
        output_size: height and width of the result.
        distance: the standard deviation in cells.
        colour: the standard deviation of colours in a cell of one colour, as a share of that of the image's values,
            whose range does not matter; a cell's own variance is added to it. `math.inf` leaves colours out.

    Raises:
        S2WrapError: another number of images, values that are not finite, a size or a width that cannot be.

    >>> guided_upsample(torch.rand(2, 3, 48, 100), torch.rand(2, 8, 4, 6), (48, 100)).shape
    torch.Size([2, 8, 48, 100])
    """
    height, width = checked_size(output_size)
    strips = guided_strips(image, features, output_size, distance=distance, colour=colour)
    result = features.new_empty(*features.shape[:2], height, width)
    for top, strip in strips:
        result[:, :, top : top + strip.shape[2]] = strip
    return result


def guided_strips(
    image: object,
    features: Float[Tensor, "b c rows columns"],
    output_size: Pair,
    height: int | None = None,
    *,
    distance: float = DISTANCE,
    colour: float = COLOUR,
) -> Iterator[tuple[int, Tensor]]:
    """The result of `guided_upsample` in strips of full width, as `upsample_strips` gives that of `upsample`.

    Memory holds two to three strips at the peak; and the image in float32 at the size of the result, if its own is
    another.
    """
    size = checked_size(output_size)
    row = result_bytes(features, (1, size[1])) * max(1.0, 4 * CELLS / max(1, features.shape[1]))
    step = checked_height(height, round(row))
    for name, value in (("distance", distance), ("colour", colour)):
        if not isinstance(value, int | float) or not value > 0:
            raise S2WrapError(f"{name}={value!r} is no width of a Gaussian; use a number above 0")
    return _strips(guide_batch(image, features), features, size, step, (distance, colour))


def _strips(images: Tensor, features: Tensor, size: Pair, step: int, widths: tuple[float, float]) -> Iterator[Any]:
    values = features.to(torch.promote_types(features.dtype, torch.float32))
    grid = (features.shape[2], features.shape[3])
    table = rearrange(values, "b c h w -> (b h w) c").contiguous()  # of a strided one, bags take twenty times as long
    firsts = torch.arange(len(features), device=values.device)[:, None, None, None] * (grid[0] * grid[1])
    spread = widths[1] * _spread(images)
    means, variances = _cell_colours(images, grid)
    cells = (means / spread, variances / spread.square())
    guide = images if images.shape[2:] == size else resize(images, size, interpolation="bilinear")
    across, far_across = _neighbours(grid[1], size[1], widths[0], values)
    for top in range(0, size[0], step):
        pixels = _floats(guide[:, :, top : top + step]) / spread
        down, far_down = (each[top : top + step] for each in _neighbours(grid[0], size[0], widths[0], values))
        places = rearrange(down[:, None, :, None] * grid[1] + across[None, :, None], "h w r q -> h w (r q)")
        weights = _weights(pixels, cells, (down, across), (far_down, far_across)).to(values.dtype).flatten(0, 2)
        with full_precision(values.device):
            sums = F.embedding_bag((places + firsts).flatten(0, 2), table, mode="sum", per_sample_weights=weights)
        del weights
        strip = rearrange(sums, "(b h w) c -> b c h w", b=len(features), w=size[1]).to(features.dtype).contiguous()
        del sums
        yield top, strip
        del strip  # so that the next is made after this one's memory is free


def _weights(pixels: Tensor, cells: Pairs, places: Pairs, far: Pairs) -> Tensor:
    """The weights (b, h, w, n) of the n cells around each pixel, which sum to 1; 0 for cells that are not there.

    Args:
        pixels: the colours (b, k, h, w) of a strip, in units in which `colour` is 1, as are those of cells.
        cells: mean (b, k, rows, columns) and variance (b, 1, rows, columns) of each cell's colours.
        places: indices of the rows around each pixel (h, 5), and of the columns (w, 5).
        far: their squared distances, in units in which `distance` is 1.
    """
    means, variances = cells
    heights = pixels.shape[1] * torch.log1p(variances)
    unlikely = []
    for down, far_down in zip(places[0].T, far[0].T, strict=True):
        for across, far_across in zip(places[1].T, far[1].T, strict=True):
            mean, variance, height = (each[:, :, down][..., across] for each in (means, variances, heights))
            difference = (pixels - mean).square().sum(dim=1) / (1 + variance[:, 0])
            unlikely.append(difference + height[:, 0] + far_down[:, None] + far_across)
    return torch.softmax(torch.stack(unlikely, dim=-1).mul_(-0.5), dim=-1)


def _neighbours(cells: int, pixels: int, width: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """For each pixel of an axis the indices (pixels, 5) of the cells around, and their squared distances in `width`s.

    Cells that are not there are infinitely far, and have the index of one that is.
    """
    places = (torch.arange(pixels, device=like.device, dtype=torch.float64) + 0.5) * cells / pixels
    near = places.floor()[:, None] + torch.arange(-REACH, REACH + 1, device=like.device)
    far = ((near + 0.5 - places[:, None]) / width).square()
    far = far.masked_fill((near < 0) | (near >= cells), torch.inf)
    return near.clamp(0, cells - 1).long(), far.to(like.dtype)


def _cell_colours(images: Tensor, grid: Pair) -> Pairs:
    """Mean (b, k, rows, columns) of the pixels that each cell touches, and variance, averaged over the channels."""
    rows, pixels = grid[0], images.shape[2]
    means, variances = [], []
    for k in range(rows):
        strip = _floats(images[:, :, k * pixels // rows : -(-(k + 1) * pixels // rows)])
        means.append(F.adaptive_avg_pool2d(strip, (1, grid[1])))
        centre = strip.mean(dim=(2, 3), keepdim=True)  # of large values with small differences squares lose all digits
        squares = F.adaptive_avg_pool2d((strip - centre).square(), (1, grid[1])) - (means[-1] - centre).square()
        variances.append(squares.mean(dim=1, keepdim=True).clamp(min=0))
    return torch.cat(means, dim=2), torch.cat(variances, dim=2)


def _spread(images: Tensor) -> Tensor:
    """The standard deviation (b, 1, 1, 1) of the values of each image, within its channels."""
    strips = images.split(READ_ROWS, dim=2)

    def mean_of(values: Iterator[Tensor]) -> Tensor:
        sums = [each.double().sum(dim=(2, 3), keepdim=True) for each in values]
        return torch.stack(sums).sum(dim=0) / (images.shape[2] * images.shape[3])

    means = mean_of(_floats(strip) for strip in strips)
    squares = mean_of((_floats(strip) - means).square() for strip in strips)
    spread = (squares.mean(dim=1, keepdim=True).sqrt() + 1e-4 * means.abs().amax(dim=1, keepdim=True)).float()
    if not bool(spread.isfinite().all()):
        raise S2WrapError("the image that guides has values that are not finite; give the one that the model saw")
    return torch.where(spread > 0, spread, 1.0)


def _floats(images: Tensor) -> Tensor:
    return images.to(torch.promote_types(images.dtype, torch.float32))


def guide_batch(image: object, features: Tensor) -> Tensor:
    """Images of any kind as a tensor (b, k, height, width) beside features of as many; integers stay so.

    Raises:
        S2WrapError: another number of images, pictures of several sizes, what is no image.
    """
    if not isinstance(image, Tensor):
        from s2wrap.images import as_image, as_pictures

        pictures = [as_image(picture) for picture in as_pictures(image)]
        if len({picture.shape for picture in pictures}) > 1:
            shapes = ", ".join(str(tuple(picture.shape)) for picture in pictures[:3])
            raise S2WrapError(f"pictures of several shapes ({shapes}) guide no batch; upsample features[k] one by one")
        image = torch.stack(pictures) if pictures else torch.empty(0, 3, 1, 1)
    images = image[None] if image.ndim == 3 else image
    if images.ndim != 4 or len(images) != len(features) or 0 in images.shape[1:]:
        raise S2WrapError(
            f"image has shape {tuple(image.shape)} beside the features of {len(features)}; give (batch, channels, "
            f"height, width) with an image for each"
        )
    return images.to(features.device)


def upsample_by(by: Upsampler, image: object, features: Tensor, size: Pair) -> Tensor:
    """What a learned up-sampler makes of an image and a map, checked.

    Args:
        by: called as `by(image, features, output_size=(height, width))`.
        image: as for `guided_upsample`, in floats, normalised as the up-sampler expects it.
        features: the map (b, c, rows, columns).
        size: height and width of the result.

    Raises:
        S2WrapError: integers for an image; an answer of another shape, or that is not finite.
    """
    height, width = checked_size(size)
    images = guide_batch(image, features)
    if not images.is_floating_point():
        raise S2WrapError(
            f"image has {images.dtype} values, and by= takes floats, normalised as the up-sampler expects them: most "
            f"expect ImageNet's mean and std; model.transform()(picture)[None] normalises with the model's own"
        )
    answer = by(images, features, output_size=(height, width))
    wanted = (*features.shape[:2], height, width)
    if not isinstance(answer, Tensor) or answer.shape != wanted:
        what = tuple(answer.shape) if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise S2WrapError(f"by= answered with {what} where a tensor {wanted} was asked for: (b, c, height, width)")
    if not bool(answer.isfinite().all()):
        raise S2WrapError(f"by= answered with values that are not finite, for features in {features.dtype}")
    return answer
