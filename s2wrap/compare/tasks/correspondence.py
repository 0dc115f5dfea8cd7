"""Find the same place in a warped picture: the token that looks most like a token should lie where the warp put it.

No labels are needed. A picture is resized to a square and warped by known homographies and lightings; for each of
the points of a common grid, the token nearest to it looks for the most similar token (by cosine) of the warped
picture. Models of other grids are judged at the centres of their own cells.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from einops import rearrange
from torch import Tensor

from s2wrap.compare.score import Score, mean_score
from s2wrap.compare.tasks.base import Bench, Task
from s2wrap.compare.warps import Warp, centres, chunks, draw_warps, load_square, maps_of_values, move
from s2wrap.errors import S2WrapError

GRID = 48
"""Rows and columns of the common grid of points; distances are told in its cells."""
WITHIN = (1.5, 0.5, 0.75, 3.0)
"""Distances in cells up to which a match counts; the first decides."""
MARGIN = 2
"""Cells: points whose place in the warped picture lies nearer to its edges are left out."""
DRAWS = {"medium": 2, "easy": 1, "hard": 1}
"""Warps a picture of each strength."""
CHUNK = 1024
"""Tokens that look for their nearest at a time."""


@dataclass(frozen=True)
class Query:
    """Tokens that look for others, of unit length.

    Attributes:
        tokens: (q, c) the token of the first map that is nearest to each point.
        others: (n, c) all tokens of the second map.
        wanted: (q, 2) where the centre of each token's cell lies in the second picture: down and across, 0…1.
    """

    tokens: Tensor
    others: Tensor
    wanted: Tensor

    def nearest(self) -> Tensor:
        """Return the index (q,) of the token with the largest cosine."""
        return torch.cat(
            [(self.tokens[part] @ self.others.T).argmax(dim=1) for part in chunks(len(self.tokens), CHUNK)]
        )


def query(map_a: Tensor, map_b: Tensor, homography: Tensor, *, grid: int = GRID) -> Query:
    """Return the tokens nearest to the points of the common grid, and where they should be found.

    Args:
        map_a: (c, h, w) of a picture.
        map_b: (c, h', w') of the warped picture.
        homography: (3, 3) from the one to the other, see `Warp`.
        grid: rows and columns of the points; those that leave the picture, or nearly do, are left out.

    Raises:
        S2WrapError: maps of other shapes, or no point that stays in the picture.
    """
    if map_a.ndim != 3 or map_b.ndim != 3 or len(map_a) != len(map_b):
        raise S2WrapError(f"maps {tuple(map_a.shape)} and {tuple(map_b.shape)}; give (c, h, w), of as many channels")
    points = centres((grid, grid))
    moved, margin = move(homography, points), MARGIN / grid
    points = points[((moved >= margin) & (moved <= 1 - margin)).all(dim=1)]
    if not len(points):
        raise S2WrapError("the warp moves every point out of the picture; use a smaller one")
    index = cell_at(points, (map_a.shape[1], map_a.shape[2]))
    wanted = move(homography, centres((map_a.shape[1], map_a.shape[2]))[index])
    tokens, others = (F.normalize(rearrange(each.float(), "c h w -> (h w) c"), dim=1) for each in (map_a, map_b))
    return Query(tokens[index], others, wanted)


def cell_at(points: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Return the index, row by row, of the cell of a grid that holds each point (n, 2): the nearest by its centre."""
    size = torch.tensor(grid_hw)
    cells = (points * size).floor().long().clamp(min=torch.zeros(2, dtype=torch.long), max=size - 1)
    return cells[:, 0] * grid_hw[1] + cells[:, 1]


def correspondence(
    maps_a: Tensor, maps_b: Tensor, homographies: Tensor, *, grid: int = GRID, side: float = 1.0
) -> dict[str, Tensor]:
    """Return how well the tokens of pictures are found again in the warped pictures, for each pair.

    Args:
        maps_a: (b, c, h, w) of the pictures.
        maps_b: (b, c, h', w') of the warped pictures.
        homographies: (b, 3, 3) from the ones to the others, see `s2wrap.compare.warps.Warp`.
        grid: rows and columns of the common grid.
        side: of the pictures, in whatever unit the error is wanted.

    Returns:
        By name (b,): "matches@1.5", the share of points whose nearest token lies within 1.5 cells of the common grid
        of where it should, and for other distances alike; "match error", the mean distance.

    >>> same = torch.rand(2, 8, 6, 6)
    >>> correspondence(same, same, torch.eye(3).expand(2, 3, 3))["matches@0.5"].tolist()
    [1.0, 1.0]
    """
    results = []
    for map_a, map_b, homography in zip(maps_a, maps_b, homographies, strict=True):
        asked = query(map_a, map_b, homography, grid=grid)
        places = centres((map_b.shape[1], map_b.shape[2]))[asked.nearest()]
        distances = (places - asked.wanted).norm(dim=1)
        shares = {f"matches@{cells:g}": (distances <= cells / grid + 1e-9).double().mean() for cells in WITHIN}
        results.append(shares | {"match error": side * distances.mean()})
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}


class Correspondence(Task):
    """The task: each picture under warps of all strengths; those of medium strength decide."""

    forms = ("plain",)

    def __init__(self, bench: Bench):
        super().__init__(bench)
        self.side = bench.side
        bench.facts["matched"] = f"warped squares of {self.side} pixels, in cells of a {GRID}×{GRID} grid"

    def score(self, spec: str) -> dict[str, Score]:
        """As `Task.score`."""
        parts = self.bench.kept(spec, f"correspondence-1-{self.side}", lambda index: self._match(spec, index))
        scores = {
            name: mean_score([float(part[f"medium {name}"]) for part in parts])
            for name in (*(f"matches@{cells:g}" for cells in WITHIN), "match error")
        }
        first = f"matches@{WITHIN[0]:g}"
        for strength in ("easy", "hard"):
            scores[f"{strength} {first}"] = mean_score([float(part[f"{strength} {first}"]) for part in parts])
        return scores

    def _match(self, spec: str, index: int) -> dict[str, Tensor]:
        """Return a picture's figures, by strength and name, averaged over its warps."""
        model, pictures = self.bench.models[spec], self.bench.pictures
        path, content = pictures.paths[index], pictures.contents[index]
        picture = load_square(path, model, self.side)
        warps: list[tuple[str, Warp]] = [
            (strength, warp) for strength, count in DRAWS.items() for warp in draw_warps(strength, count, content)
        ]
        maps = maps_of_values(model, torch.cat([picture, *(warp(picture) for _, warp in warps)]), path)
        homographies = torch.stack([warp.homography for _, warp in warps])
        figures = correspondence(maps[:1].expand(len(warps), -1, -1, -1), maps[1:], homographies, side=self.side)
        return {
            f"{strength} {name}": values[[each == strength for each, _ in warps]].mean()
            for strength in DRAWS
            for name, values in figures.items()
        }
