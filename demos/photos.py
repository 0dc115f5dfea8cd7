"""Photographs that come with scikit-image, for the demos."""

import numpy as np
from skimage import data

NAMES = {"astronaut": "astronaut", "cat": "chelsea", "coffee": "coffee", "rocket": "rocket", "retina": "retina"}
"""What is to be seen, and scikit-image's name for it."""


def photo(name: str) -> np.ndarray:
    """The middle of a photograph, cut to a square: (side, side, 3), RGB in 0…255."""
    pixels = getattr(data, NAMES[name])()
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])
