"""The features of one large picture, window by window, as one map."""

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from s2wrap.errors import S2WrapError
from s2wrap.extraction.addresses import answers, file_facts, is_remote, kind, opened
from s2wrap.extraction.encode import made_by
from s2wrap.extraction.maps import own_arrays
from s2wrap.extraction.picture import Mark, Row
from s2wrap.extraction.run import Outcome, State, fill
from s2wrap.extraction.scene_grid import Grid, plan_windows, read_mask, shrinks_by
from s2wrap.extraction.scene_map import SceneLayout, SceneWriter
from s2wrap.extraction.sources import Section
from s2wrap.extraction.store import check_place, opened_store
from s2wrap.images import Reading, WindowOptions
from s2wrap.images.scene import Scene, open_scene
from s2wrap.wrapper import MultiScale

BATCH_PIXELS = 1 << 24
"""Pixels of windows that are held for one call of the model; one window may have more."""


@dataclass(frozen=True)
class Windows:
    """The windows of a scene, to be encoded.

    Attributes:
        model: on its device.
        scene: that is looked at.
        grid: where its windows lie.
        background: the lowest and highest value of pixels that are not looked at.
        mask: the cells that may be looked at, (rows, columns).
    """

    model: MultiScale
    scene: Scene
    grid: Grid
    background: tuple[float, float] | None = None
    mask: Tensor | None = None

    def bands_after(self, mark: Mark, dtype: torch.dtype) -> Generator[Row]:
        """The rows of cells that are finished with each row of windows, from the one after a mark.

        Where windows overlap, each counts less towards its edge; a map that does not depend on what lies around a cell
        comes out as in one pass.
        """
        grid = self.grid
        if mark.inside == len(grid.rows):
            return
        wanted = grid.rows[mark.inside]
        first = next(row for row, top in enumerate(grid.rows) if top + grid.window[0] > wanted)  # has a share in it
        height, width = grid.window[0], grid.cells_hw[1]
        sums, weights = torch.zeros(grid.channels, height, width), torch.zeros(height, width)
        seen = torch.zeros(height, width, dtype=torch.bool)
        ramps = _ramp(grid.window[0])[:, None] * _ramp(grid.window[1])
        for row in range(first, len(grid.rows)):
            top, done = grid.rows[row], grid.ends[row] - grid.rows[row]
            for col, cells, features in self._row(top):
                place = slice(None), slice(col, col + grid.window[1])
                seen[place] |= cells
                if features is not None:
                    sums[:, *place] += features * ramps
                    weights[place] += ramps
            if row >= mark.inside:
                values = (sums[:, :done] / weights[:done]).masked_fill(~seen[:done], math.nan)
                arrays = {"spatial": values.to(dtype), "seen": seen[:done].clone()}
                yield Row(f"{self.scene.name}#{row}", *self.scene.image_hw, arrays, Mark(0, row + 1, str(top)))
            for buffer in (sums, weights, seen):
                rolled = buffer.roll(-done, dims=-2)
                rolled[..., height - done :, :] = 0
                buffer.copy_(rolled)

    def _row(self, top: int) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """For each window of a row: its first column of cells, which of them are seen, its features if any is."""
        grid, model = self.grid, self.model
        shrink = shrinks_by(model, grid.window_hw)
        pixels_read = self.scene.pixels_read(grid.window_hw, shrink)
        batch = max(1, min(model.tile_batch_for(1, model.device), BATCH_PIXELS // pixels_read))

        def read(col: int) -> tuple[int, Tensor, Tensor]:
            pixels = self.scene.window(top * grid.cell_hw[0], col * grid.cell_hw[1], grid.window_hw, shrink)
            cells = seen_cells(pixels, grid.window, self.background)
            if self.mask is not None:
                cells &= self.mask[top : top + grid.window[0], col : col + grid.window[1]]
            return col, cells, pixels

        with torch.inference_mode(), ThreadPoolExecutor(1) as reader:
            reads = ahead(reader, read, grid.cols, batch)
            while group := list(islice(reads, batch)):
                looked = [pixels for _, cells, pixels in group if cells.any()]
                encoded = iter(model.encode(looked) if looked else [])
                for col, cells, _ in group:
                    yield col, cells, next(encoded).spatial[0].float().cpu() if cells.any() else None


def extract_scene(
    address: str,
    output: Path,
    *,
    load: Callable[[], MultiScale],
    spec: str,
    options: Mapping[str, object],
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
    if kind(address) != "file" or not (is_remote(address) or os.path.isfile(address)):
        raise S2WrapError(f"{address}: --window reads one picture; there is no such file")
    check_place(output, own_arrays(output))
    model = load()
    reading = replace(reading, value_range=model.input.value_range)
    with ExitStack() as stack:
        with answers(address):
            stream = stack.enter_context(opened(address))
        scene = stack.enter_context(open_scene(stream, address, reading))
        grid = plan_windows(model, scene, windows, reading.max_memory)
        mask = None if windows.mask is None else read_mask(windows.mask, scene.image_hw, grid)
        description = made_by(model, spec, options, dtype) | {
            "reading": {"bands": reading.bands},
            "scene": {"address": address, "image_hw": scene.image_hw, "windows": windows.to_json()},
            "files": {name: _state(name) for name in (address, windows.mask) if name is not None},
        }
        layout = SceneLayout((grid.channels, *grid.cells_hw), grid.cell_hw, grid.rows, scene.ground)
        writer = SceneWriter(output, dtype, layout)
        with opened_store(output, writer, description, overwrite) as store:
            todo = Windows(model, scene, grid, windows.background_range, mask)
            shapes = fill(store, partial(_bands, todo, getattr(torch, dtype)), [], len(grid.rows), tell)
            return Outcome(store.rows, store.failed, shapes and [{"spatial": layout.shape}])


def _bands(windows: Windows, dtype: torch.dtype, _: list[Section], mark: Mark) -> Generator[Row]:
    return windows.bands_after(mark, dtype)


def _state(address: str) -> list[Any]:
    """What tells a file from another one of its name: its size, and when it was changed."""
    if not is_remote(address):
        state = os.stat(address)
        return [state.st_size, state.st_mtime_ns]
    facts = file_facts(address)
    return [facts.get("size"), str(facts.get("ETag") or facts.get("LastModified") or facts.get("mtime"))]


def _ramp(cells: int) -> Tensor:
    """Weights of the cells along one side of a window: 1 at its edges, more towards its middle."""
    steps = torch.arange(1, cells + 1)
    return torch.minimum(steps, steps.flip(0)).float()


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
