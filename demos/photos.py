"""Photographs that come with scikit-image, for the demos."""

from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

NAMES = {"astronaut": "astronaut", "cat": "chelsea", "coffee": "coffee", "rocket": "rocket", "retina": "retina"}
"""Names of the demos, and scikit-image's own names."""
FILES = ["astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png"]
FILES += ["grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png"]
FILES += ["page.png", "retina.jpg", "rocket.jpg"]
"""scikit-image's photographs that are large enough to be cut into squares."""
PIECES = 3
"""Squares along the shorter side of a photograph."""


def photo(name: str) -> np.ndarray:
    """Return the centre square of a photograph: (side, side, 3), RGB in 0…255."""
    pixels = getattr(data, NAMES[name])()
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def squares(file: str) -> list[tuple[int, int, int, Image.Image]]:
    """Return a photograph's squares, which do not overlap: row, column, number of columns and pixels of each."""
    photograph = Image.open(Path(data.__file__).parent / file).convert("RGB")
    side = min(photograph.size) // PIECES
    columns, rows = photograph.width // side, photograph.height // side
    return [
        (row, column, columns, photograph.crop((column * side, row * side, (column + 1) * side, (row + 1) * side)))
        for column, row in product(range(columns), range(rows))
    ]


def cut_squares(folder: Path) -> Path:
    """Write the squares of all photographs, a sub-folder for each photograph, and return the folder."""
    for file in FILES:
        (folder / Path(file).stem).mkdir(parents=True, exist_ok=True)
        for row, column, _, piece in squares(file):
            piece.save(folder / Path(file).stem / f"{row}_{column}.png")
    return folder
