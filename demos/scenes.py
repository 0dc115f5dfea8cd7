"""Made-up pictures of textures in random regions, with exact masks: for `dense_head.py`, `benchmarks/upsample.py`."""

import numpy as np

TEXTURES = ("stripes", "checks", "dots", "rings", "grain", "clouds")
"""What a region is made of: its class. Colours, sizes and directions say nothing of it."""


def make_scene(seed: int, side: int = 448, regions: int = 6, coloured: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture uint8 (side, side, 3), and the class of each pixel uint8 (side, side), always alike for a seed.

    Args:
        seed: of everything that is random.
        side: height and width in pixels.
        regions: how many; neighbours may be of one class.
        coloured: each region has two colours of its own; otherwise all are of the same two greys, so that only their
            texture tells regions apart.
    """
    rng = np.random.default_rng(seed)
    down, across = np.meshgrid(*[(np.arange(side) + 0.5) / side] * 2, indexing="ij")
    places = np.stack([down + 0.1 * _smooth(rng, side, 4), across + 0.1 * _smooth(rng, side, 4)], axis=-1)
    centres = rng.uniform(0, 1, (regions, 2))
    region = np.square(places[:, :, None] - centres).sum(axis=-1).argmin(axis=-1)
    kinds = rng.permutation(np.arange(regions) % len(TEXTURES))
    picture = np.zeros((side, side, 3))
    for number, kind in enumerate(kinds):
        share = _texture(TEXTURES[kind], rng, down, across)[..., None]
        dark, light = rng.uniform(30, 225, (2, 3)) if coloured else (np.full(3, 70.0), np.full(3, 185.0))
        picture = np.where(region[..., None] == number, dark + share * (light - dark), picture)
    picture += rng.normal(0, 4, picture.shape)
    return picture.round().clip(0, 255).astype(np.uint8), kinds[region].astype(np.uint8)


def boundary_band(mask: np.ndarray, width: float) -> np.ndarray:
    """Return which pixels have another class within `width` pixels, across or down or askew: bool, as the mask."""
    from scipy.ndimage import distance_transform_edt

    edge = np.zeros(mask.shape, dtype=bool)
    for axis in (0, 1):
        changes = np.diff(mask.astype(int), axis=axis) != 0
        before, after = [(0, 1), (0, 0)], [(1, 0), (0, 0)]
        edge |= np.pad(changes, before if axis == 0 else before[::-1])
        edge |= np.pad(changes, after if axis == 0 else after[::-1])
    return np.asarray(distance_transform_edt(~edge)) < width


def _texture(name: str, rng: np.random.Generator, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Return how much of the second colour each pixel has, 0…1."""
    side, period, angle = len(down), rng.uniform(0.03, 0.07), rng.uniform(0, np.pi)
    u = (np.cos(angle) * down + np.sin(angle) * across) / period
    v = (np.cos(angle) * across - np.sin(angle) * down) / period
    if name == "stripes":
        return (np.sin(2 * np.pi * u) > 0).astype(float)
    if name == "checks":
        return ((np.floor(u) + np.floor(v)) % 2).astype(float)
    if name == "dots":
        return (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3).astype(float)
    if name == "rings":
        middle = rng.uniform(0, 1, 2)
        return (np.sin(2 * np.pi * np.hypot(down - middle[0], across - middle[1]) / period) > 0).astype(float)
    if name == "grain":
        return rng.uniform(0, 1, down.shape)
    return np.clip(0.5 + 0.5 * _smooth(rng, side, 24), 0, 1)


def _smooth(rng: np.random.Generator, side: int, knots: int) -> np.ndarray:
    """Return smooth noise (side, side) of about -1…1, which goes up and down `knots` times at most."""
    from scipy.ndimage import zoom

    return np.asarray(zoom(rng.uniform(-1, 1, (knots, knots)), side / knots, order=3))
