"""The features of one large picture, window by window, as one map."""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from s2wrap.errors import S2WrapError
from s2wrap.extraction.addresses import answers, kind, opened
from s2wrap.extraction.encode import weights_of
from s2wrap.extraction.picture import Mark, Row
from s2wrap.extraction.run import Outcome, State, fill
from s2wrap.extraction.scene_map import SceneLayout, SceneWriter
from s2wrap.extraction.store import check_place, opened_store
from s2wrap.images import Reading, WindowOptions, load_image
from s2wrap.images.scene import Scene, open_scene
from s2wrap.plan import tile_axis
from s2wrap.wrapper import MultiScale

BATCH_PIXELS = 1 << 24
"""Pixels of windows that are held for one call of the model; one window may have more."""


@dataclass(frozen=True)
class Grid:
    """Where the windows of a scene lie.

    Attributes:
        cell: height and width of a cell in pixels of the scene.
        window: rows and columns of cells of a window.
        rows: the first row of cells of each row of windows.
        cols: the first column of each column of windows.
        cells_hw: rows and columns of the whole map.
    """

    cell: tuple[int, int]
    window: tuple[int, int]
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    cells_hw: tuple[int, int]

    @property
    def window_hw(self) -> tuple[int, int]:
        """Height and width of a window in pixels of the scene."""
        return self.window[0] * self.cell[0], self.window[1] * self.cell[1]

    @property
    def ends(self) -> tuple[int, ...]:
        """The row of cells where the part ends that is finished with each row of windows."""
        return (*self.rows[1:], self.cells_hw[0])


def extract_scene(
    address: str,
    output: Path,
    *,
    load: Callable[[], MultiScale],
    spec: str,
    options: Mapping[str, Any],
    windows: WindowOptions,
    dtype: str = "float32",
    reading: Reading,
    overwrite: bool = False,
    tell: Callable[[State], object] = lambda state: None,
) -> Outcome:
    """Write the map of one large picture to a Zarr group, a row of windows at a time; it is resumed as all stores are.

    Args:
        address: the picture, local or as a URL for fsspec.
        output: a folder NAME.zarr: `spatial` (channels, rows, columns), of which cells that were left out are NaN,
            `seen` (rows, columns), and where the cells lie: coordinates, and the CRS of a georeferenced picture.
        load: loads the model onto its device.
        spec: the name of the model.
        options: all else that determines the features.
        windows: how the picture is cut.
        dtype: "float32" or "float16".
        reading: how it is read.
        overwrite: whether a store is begun anew.
        tell: called at the start and after every row of windows.

    Raises:
        S2WrapError: no such picture, one that cannot be read, a window that is larger than it, a model of several
            maps, or as for `s2wrap.extraction.run.extract_features`.
    """
    if output.suffix != ".zarr" or dtype not in ("float32", "float16"):
        raise S2WrapError(f"windows are written to a .zarr of float32 or float16, not to {output} of {dtype}")
    if kind(address) != "file":
        raise S2WrapError(f"{address}: --window reads one picture; there is no such file")
    check_place(output)
    model = load()
    reading = replace(reading, value_range=model.input.value_range)
    with ExitStack() as stack:
        with answers(address):
            stream = stack.enter_context(opened(address))
        scene = stack.enter_context(open_scene(stream, address, reading))
        grid, channels = plan_windows(model, scene, windows, reading.max_memory)
        description = {
            "spec": spec,
            "options": dict(options),
            "weights_sha256": weights_of(model),
            "s2wrap_version": version("s2wrap"),
            "dtype": dtype,
            "reading": {"bands": reading.bands},
            "scene": {"address": address, "image_hw": scene.image_hw, "windows": windows.to_json()},
        }
        layout = SceneLayout((channels, *grid.cells_hw), grid.cell, grid.rows, scene.ground)
        writer = SceneWriter(output, dtype, layout)
        mask = None if windows.mask is None else read_mask(windows.mask, grid.cells_hw)
        with opened_store(output, writer, description, overwrite) as store:
            rows = encode_windows(model, scene, grid, windows, mask, channels, store.mark, getattr(torch, dtype))
            shapes = fill(store, rows, len(grid.rows), 1, tell)
            return Outcome(store.rows, store.failed, shapes and [{"spatial": layout.shape}])


def plan_windows(model: MultiScale, scene: Scene, windows: WindowOptions, max_memory: int) -> tuple[Grid, int]:
    """The windows of a scene, whose cells are whole pixels, and the channels of its map.

    Raises:
        S2WrapError: a picture smaller than a window or of unknown pixel size, a window that takes more than
            `max_memory` bytes, or a model of several maps.
    """
    assert windows.window is not None
    side = windows.window
    if windows.pixel_metres is not None:
        if scene.pixel_metres is None:
            raise S2WrapError(
                f"{scene.name} does not say how large its pixels are; leave pixel_size={windows.pixel_size!r} out"
            )
        side = max(2, round(side * windows.pixel_metres / scene.pixel_metres))
    shrink = side / finest_side(model, (side, side))
    needed = 4 * scene.pixels_read((side, side), shrink) * scene.pixel_bytes
    if needed > max_memory:
        raise S2WrapError(
            f"a window of {side} pixels takes up to {needed / 1e9:.1f} GB, more than max_memory={max_memory}; give a "
            f"smaller --window, or raise it"
        )
    shapes = model.map_shapes((side, side))
    if len(shapes) != 1:
        raise S2WrapError(f"{len(shapes)} maps; windows are joined into one: use another --fuse, or --join-layers")
    channels, *window = shapes[0]
    if windows.window_overlap >= min(window):
        raise S2WrapError(
            f"window_overlap={windows.window_overlap}, but a window has {window[0]}×{window[1]} cells; use fewer"
        )
    cell_hw = [max(1, round(side / count)) for count in window]
    window_hw = window[0] * cell_hw[0], window[1] * cell_hw[1]
    if any(size < side for size, side in zip(scene.image_hw, window_hw, strict=True)):
        raise S2WrapError(
            f"{scene.name}: {scene.image_hw[0]}×{scene.image_hw[1]} pixels, smaller than a window of {window_hw[0]}×"
            f"{window_hw[1]}; give a smaller --window, or none"
        )
    cells = [math.ceil(size / cell) for size, cell in zip(scene.image_hw, cell_hw, strict=True)]
    rows, cols = (
        tile_axis(count, tile, windows.window_overlap).starts for count, tile in zip(cells, window, strict=True)
    )
    return Grid((cell_hw[0], cell_hw[1]), (window[0], window[1]), rows, cols, (cells[0], cells[1])), channels


def read_mask(path: str, cells_hw: tuple[int, int]) -> Tensor:
    """The cells in which a picture is not black everywhere, (rows, columns)."""
    pixels = load_image(path).amax(0).float()
    return functional.adaptive_max_pool2d(pixels[None, None], cells_hw)[0, 0] > 0


def encode_windows(
    model: MultiScale,
    scene: Scene,
    grid: Grid,
    windows: WindowOptions,
    mask: Tensor | None,
    channels: int,
    mark: Mark,
    dtype: torch.dtype,
) -> Generator[Row]:
    """The rows of cells that are finished with each row of windows, from the one after a mark.

    Where windows overlap, each counts less towards its edge; a map that does not depend on what lies around a cell
    comes out as in one pass.
    """
    if mark.inside == len(grid.rows):
        return
    wanted = grid.rows[mark.inside]
    first = next(row for row, top in enumerate(grid.rows) if top + grid.window[0] > wanted)  # has a share in its cells
    height, width = grid.window[0], grid.cells_hw[1]
    sums, weights = torch.zeros(channels, height, width), torch.zeros(height, width)
    seen = torch.zeros(height, width, dtype=torch.bool)
    ramps = _ramp(grid.window[0])[:, None] * _ramp(grid.window[1])
    for row in range(first, len(grid.rows)):
        top, end = grid.rows[row], grid.ends[row]
        for col, cells, features in _encode_row(model, scene, grid, windows, mask, top):
            place = slice(None), slice(col, col + grid.window[1])
            seen[place] |= cells
            if features is not None:
                sums[:, *place] += features * ramps
                weights[place] += ramps
        done = end - top
        if row >= mark.inside:
            values = (sums[:, :done] / weights[:done]).masked_fill(~seen[:done], math.nan)
            arrays = {"spatial": values.to(dtype), "seen": seen[:done].clone()}
            yield Row(f"{scene.name}#{row}", *scene.image_hw, arrays, Mark(0, row + 1, str(top)))
        for buffer in (sums, weights, seen):
            rolled = buffer.roll(-done, dims=-2)
            rolled[..., height - done :, :] = 0
            buffer.copy_(rolled)


def _ramp(cells: int) -> Tensor:
    """Weights of the cells along one side of a window: 1 at its edges, more towards its middle."""
    steps = torch.arange(1, cells + 1)
    return torch.minimum(steps, steps.flip(0)).float()


def _encode_row(
    model: MultiScale, scene: Scene, grid: Grid, windows: WindowOptions, mask: Tensor | None, top: int
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """For each window of a row: its first column of cells, which of its cells are seen, and its features if any is."""
    window_hw = grid.window_hw
    shrink = min(window_hw) / finest_side(model, window_hw)
    batch = max(1, min(model.tile_batch_for(1, model.device), BATCH_PIXELS // scene.pixels_read(window_hw, shrink)))

    def read(col: int) -> tuple[int, Tensor, Tensor]:
        pixels = scene.window(top * grid.cell[0], col * grid.cell[1], window_hw, shrink)
        cells = seen_cells(pixels, grid.window, windows.background_range)
        if mask is not None:
            part = mask[top : top + grid.window[0], col : col + grid.window[1]]
            cells &= functional.pad(part, (0, cells.shape[1] - part.shape[1], 0, cells.shape[0] - part.shape[0]))
        return col, cells, pixels

    with torch.inference_mode(), ThreadPoolExecutor(1) as reader:
        reads = ahead(reader, read, grid.cols, batch)
        while group := list(islice(reads, batch)):
            looked = [pixels for _, cells, pixels in group if cells.any()]
            encoded = iter(model.encode(looked) if looked else [])
            for col, cells, _ in group:
                yield col, cells, next(encoded).spatial[0].float().cpu() if cells.any() else None


def finest_side(model: MultiScale, window_hw: tuple[int, int]) -> int:
    """The side in pixels at which the largest scale sees a window."""
    return max(max(scale.image_hw) for scale in model.plan(window_hw).scales)


def seen_cells(pixels: Tensor, window: tuple[int, int], background: tuple[float, float] | None) -> Tensor:
    """The cells of a window (rows, columns) of which a pixel has a value that is no background."""
    if background is None:
        return torch.ones(window, dtype=torch.bool)
    values = pixels.float()
    content = ((values < background[0]) | (values > background[1])).any(0).float()
    return functional.adaptive_max_pool2d(content[None, None], window)[0, 0] > 0


def ahead(
    reader: ThreadPoolExecutor, read: Callable[[int], Any], columns: tuple[int, ...], count: int
) -> Iterator[Any]:
    """The results of reading each column, of which a thread reads some ahead."""
    waiting: deque[Any] = deque()
    for column in columns:
        waiting.append(reader.submit(partial(read, column)))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
