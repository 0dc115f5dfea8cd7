"""Look at the same picture shifted by a few pixels: what the phase of patches and the borders of tiles change.

Two windows are cut from a picture that is a little larger, so that no border is made up. A token of the first is
compared with the token of the second whose cell holds the same content.
"""

import numpy as np
import torch
from torch import Tensor

from s2wrap.compare.score import Score, mean_score
from s2wrap.compare.tasks.base import Bench, Task
from s2wrap.compare.tasks.correspondence import GRID, cell_at, query
from s2wrap.compare.warps import load_square, maps_of_values

DRAWS = 2
"""Shifts a picture."""


class Stability(Task):
    """The task: the share of tokens whose nearest is the same place, and the cosine to it, under small shifts."""

    forms = ("plain",)

    def __init__(self, bench: Bench):
        super().__init__(bench)
        self.side = bench.side
        self.most = max(1, self.side // GRID - 1)  # a whole cell of the common grid would be no change of its phase
        bench.facts["shifted"] = f"squares of {self.side} pixels by 1 to {self.most} pixels"

    def score(self, spec: str) -> dict[str, Score]:
        """As `Task.score`."""
        parts = self.bench.kept(spec, f"stability-1-{self.side}", lambda index: self._shift(spec, index))
        return {name: mean_score([float(part[name]) for part in parts]) for name in ("stable", "shift cosine")}

    def _shift(self, spec: str, index: int) -> dict[str, Tensor]:
        model, pictures = self.bench.models[spec], self.bench.pictures
        path, content = pictures.paths[index], pictures.contents[index]
        large = load_square(path, model, self.side + self.most)
        shifts = np.random.default_rng(int(content[:12], 16)).integers(1, self.most + 1, (DRAWS, 2))
        corners = [(0, 0), *((int(down), int(across)) for down, across in shifts)]
        windows = [large[..., top : top + self.side, left : left + self.side] for top, left in corners]
        first, *others = maps_of_values(model, torch.cat(windows), path)
        return stability(first, torch.stack(others), torch.from_numpy(shifts) / self.side)


def stability(map_a: Tensor, maps_b: Tensor, shifts: Tensor) -> dict[str, Tensor]:
    """Return how alike the tokens of the same content are in windows that are shifted.

    Args:
        map_a: (c, h, w) of a window.
        maps_b: (b, c, h, w) of windows that lie further down and to the right.
        shifts: (b, 2) how far, down and across, in parts of the side.

    Returns:
        "stable", the share of tokens whose nearest token (by cosine) is that of the same content, and "shift cosine",
        the mean cosine to it.
    """
    stable, cosines = [], []
    for map_b, shift in zip(maps_b, shifts, strict=True):
        homography = torch.eye(3, dtype=torch.float64)
        homography[:2, 2] = -shift
        asked = query(map_a, map_b, homography)
        right = cell_at(asked.wanted, (map_b.shape[1], map_b.shape[2]))
        stable.append((asked.nearest() == right).double().mean())
        cosines.append((asked.tokens * asked.others[right]).sum(dim=1).double().mean())
    return {"stable": torch.stack(stable).mean(), "shift cosine": torch.stack(cosines).mean()}
