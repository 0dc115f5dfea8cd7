"""How many flawless tokens must a bank hold, drawn at random or chosen as a coreset? AU-PRO on made-up cloths.

    python benchmarks/bank.py

Three seeds of cloths, as `benchmarks/tasks_data.py` makes them. It prints means over the seeds, with the image AUROC.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import typer
from tasks_data import write_defects

import s2wrap
from s2wrap.compare.data import load_mask, read_folder
from s2wrap.compare.tasks.anomaly import DRAWN, AnomalyMap, image_auroc, make_bank, pixel_scores


def main(
    model: str = "sample:dinov2_s14@1,2", fuse: str = "detail", layer: int = -6, pictures: int = 25, seeds: int = 3
) -> None:
    """Print a line a bank."""
    options: dict[str, Any] = {"fuse": fuse, "layers": (layer,)}
    wrapped, found = s2wrap.load(model, **options), dict[str, list[tuple[float, float]]]()
    for seed in range(seeds):
        with TemporaryDirectory() as folder, torch.inference_mode():
            cloths = read_folder(write_defects(Path(folder), pictures, seed))
            maps = [wrapped(path).spatial.float() for path in cloths.paths]
            masks = [None if path is None else load_mask(path) > 0 for path in cloths.masks or []]
        (fold,) = cloths.folds
        train = [maps[index][0] for index in fold.train]
        every = make_bank(train, DRAWN)
        banks = {f"all {len(every)}": every}
        for size in (500, 2000):
            drawn = np.random.default_rng(seed).permutation(len(every))[:size]
            banks |= {f"random {size}": every[drawn], f"coreset {size}": make_bank(train, size)}
        for name, bank in banks.items():
            scores = [AnomalyMap(bank)(maps[index])[0, 0] for index in fold.test]
            tested = [masks[index] for index in fold.test]
            flawless = np.zeros(cloths.sizes[0], dtype=bool)
            aupro = pixel_scores(scores, (flawless if mask is None else mask for mask in tested))["AU-PRO"].value
            auroc = image_auroc(scores, np.array([mask is not None for mask in tested])).value
            found.setdefault(name, []).append((aupro, auroc))
    for name, pairs in found.items():
        aupro, auroc = np.mean(pairs, axis=0)
        print(f"{name}: AU-PRO {aupro:.3f}, image AUROC {auroc:.3f}; AU-PRO by seed {[round(a, 3) for a, _ in pairs]}")


if __name__ == "__main__":
    typer.run(main)
