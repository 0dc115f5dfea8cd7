"""Made-up pictures with exact labels for `benchmarks/tasks.py`, in the folder forms that `s2wrap compare` reads.

    python benchmarks/tasks_data.py FOLDER

writes `scenes/` (textures in random regions, with masks), `defects/` (a woven cloth with planted defects, as MVTec AD),
`relief/` (spheres on a floor seen by a camera, with depth) and `photographs/` (those that come with scikit-image, and
textiles of conformal-clip-data). All but the photographs are computed from a seed: no downloads, any number of them.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

SIDE = 336
"""Side in pixels of the pictures that are made."""
PHOTOGRAPHS = ["astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png"]
PHOTOGRAPHS += ["gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png"]
PHOTOGRAPHS += ["retina.jpg", "rocket.jpg"]
TEXTURES = [(0.04, 0.0), (0.04, 1.2), (0.1, 0.6), (0.1, 1.8), (0.2, 0.0), (0.2, None)]
"""Waves a pixel and direction (radians; None: all directions) of each class of texture."""


def write_scenes(folder: Path, count: int, seed: int = 0) -> Path:
    """Write `images/` and `masks/`: regions of six textures, whose colours say nothing of their class."""
    rng = np.random.default_rng([seed, 1])
    for number in range(count):
        mask = regions(rng, 7)
        pixels = np.zeros((SIDE, SIDE, 3))
        for label, (frequency, angle) in enumerate(TEXTURES):
            waves = texture(rng, frequency * rng.uniform(0.85, 1.18), angle)
            for region in np.flatnonzero(mask[1] == label):
                colour, contrast = rng.uniform(70, 185, 3), rng.uniform(20, 45)
                inside = mask[0] == region
                pixels[inside] = (colour + contrast * waves[..., None])[inside]
        save(folder / "images" / f"{number:03}.png", pixels + rng.normal(0, 4, pixels.shape))
        save(folder / "masks" / f"{number:03}.png", mask[1][mask[0]])
    return folder


def regions(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the region of each pixel, with wavy borders, and the class of each region."""
    centres = rng.uniform(0, SIDE, (count, 2))
    positions = np.stack(np.meshgrid(*[np.arange(SIDE)] * 2, indexing="ij"), axis=-1).astype(float)
    positions += 10 * np.stack([texture(rng, 0.01, None), texture(rng, 0.01, None)], axis=-1)
    nearest = np.square(positions[:, :, None] - centres).sum(axis=-1).argmin(axis=-1)
    return nearest, rng.integers(0, len(TEXTURES), count)


def texture(rng: np.random.Generator, frequency: float, angle: float | None) -> np.ndarray:
    """Return noise (SIDE, SIDE) around a frequency and a direction, of mean 0 and deviation 1."""
    down, across = np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE), indexing="ij")
    radius = np.hypot(down, across)
    weight = np.exp(-(((radius - frequency) / (0.35 * frequency)) ** 2))
    if angle is not None:
        turn = np.arctan2(down, across) - angle - rng.normal(0, 0.08)
        weight *= np.exp(-((np.sin(turn) / 0.25) ** 2))
    waves = np.fft.ifft2(np.fft.fft2(rng.normal(size=(SIDE, SIDE))) * weight).real
    return (waves - waves.mean()) / waves.std()


def write_defects(folder: Path, count: int, seed: int = 0) -> Path:
    """Write `train/good/`, `test/` and `ground_truth/`: a woven cloth, flawless or with one of three defects."""
    rng = np.random.default_rng([seed, 2])
    for number in range(count):
        save(folder / "train" / "good" / f"{number:03}.png", cloth(rng))
        save(folder / "test" / "good" / f"{number:03}.png", cloth(rng))
    for kind, plant in DEFECTS.items():
        for number in range(max(1, count // 2)):
            pixels, mask = plant(cloth(rng), rng)
            save(folder / "test" / kind / f"{number:03}.png", pixels)
            save(folder / "ground_truth" / kind / f"{number:03}_mask.png", 255 * mask)
    return folder


def cloth(rng: np.random.Generator, turn: float = 0.0) -> np.ndarray:
    """Return a picture (SIDE, SIDE, 3) of threads across each other, slightly bent, under uneven light."""
    down, across = np.meshgrid(*[np.arange(SIDE, dtype=float)] * 2, indexing="ij")
    turn += rng.normal(0, 0.02)
    down, across = down * np.cos(turn) + across * np.sin(turn), across * np.cos(turn) - down * np.sin(turn)
    bend, phases = 1.5 * texture(rng, 0.01, None), rng.uniform(0, 2 * np.pi, 2)
    one = np.sin(2 * np.pi * (down + bend) / 9 + phases[0])
    other = np.sin(2 * np.pi * (across + bend) / 11 + phases[1])
    over = np.where(np.sin(np.pi * down / 9) * np.sin(np.pi * across / 11) > 0, one, other)
    light = 12 * texture(rng, 0.004, None) + rng.uniform(-15, 15)
    grey = 125 + 30 * over + 10 * texture(rng, 0.2, None) + light
    return grey[..., None] * np.array([1.0, 0.93, 0.8])


def blob(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Return a mask of a roundish spot."""
    centre = rng.uniform(2 * radius, SIDE - 2 * radius, 2)
    down, across = np.meshgrid(*[np.arange(SIDE, dtype=float)] * 2, indexing="ij")
    return np.hypot(down - centre[0], across - centre[1]) < radius * (1 + 0.2 * texture(rng, 0.02, None))


def plant_spot(pixels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture with a small stain, and where it is."""
    mask = blob(rng, rng.uniform(4, 9))
    return np.where(mask[..., None], pixels * rng.uniform(0.55, 0.75), pixels), mask


def plant_scratch(pixels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture with a thin bright line, and where it is."""
    angle, centre, length = rng.uniform(0, np.pi), rng.uniform(80, SIDE - 80, 2), rng.uniform(20, 50)
    down, across = np.meshgrid(*[np.arange(SIDE, dtype=float)] * 2, indexing="ij")
    along = (down - centre[0]) * np.sin(angle) + (across - centre[1]) * np.cos(angle)
    aside = (down - centre[0]) * np.cos(angle) - (across - centre[1]) * np.sin(angle)
    mask = (np.abs(along) < length) & (np.abs(aside + 4 * np.sin(along / 15)) < 1.6)
    return np.where(mask[..., None], pixels + 55, pixels), mask


def plant_patch(pixels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture with a patch that is woven in another direction, and where it is."""
    mask = blob(rng, rng.uniform(12, 22))
    return np.where(mask[..., None], cloth(rng, rng.uniform(0.5, 1.0)), pixels), mask


DEFECTS: dict[str, Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "spot": plant_spot,
    "scratch": plant_scratch,
    "patch": plant_patch,
}


def write_relief(folder: Path, count: int, seed: int = 0) -> Path:
    """Write `images/` and `targets/`: spheres on a floor, and how far each pixel is away."""
    rng = np.random.default_rng([seed, 3])
    for number in range(count):
        pixels, depth = render(rng)
        save(folder / "images" / f"{number:03}.png", pixels + rng.normal(0, 3, pixels.shape))
        (folder / "targets").mkdir(parents=True, exist_ok=True)
        np.save(folder / "targets" / f"{number:03}.npy", depth.astype(np.float32))
    return folder


def render(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture (SIDE, SIDE, 3), and the distance of each pixel along the camera's axis, 1…20."""
    height, pitch = rng.uniform(1.5, 3), rng.uniform(0.5, 0.8)
    down, across = np.meshgrid(*[np.linspace(-0.6, 0.6, SIDE)] * 2, indexing="ij")
    # x to the right, y down, z forwards, turned down by the pitch
    rays = np.stack([across, down * np.cos(pitch) + np.sin(pitch), np.cos(pitch) - down * np.sin(pitch)], axis=-1)
    depth = np.where(rays[..., 1] > 0.02, height / rays[..., 1].clip(0.02), 20).clip(1, 20)
    points, normal = rays * depth[..., None], np.broadcast_to([0.0, -1.0, 0.0], rays.shape).copy()
    shade = np.full((SIDE, SIDE), rng.uniform(0.5, 0.9))
    for _ in range(6):
        radius, ahead = rng.uniform(0.2, 0.7), rng.uniform(2.5, 7)
        centre = np.array([rng.uniform(-0.45, 0.45) * ahead, height - radius, ahead])
        along, length = rays @ centre, np.square(rays).sum(axis=-1)
        inside = along**2 - length * (centre @ centre - radius**2)
        distance = np.where(inside > 0, (along - np.sqrt(inside.clip(0))) / length, np.inf)
        hit = (distance > 0) & (distance < depth)
        depth = np.where(hit, distance, depth)
        points[hit] = (rays * depth[..., None])[hit]
        normal[hit] = (points[hit] - centre) / radius
        shade[hit] = rng.uniform(0.4, 1)
    light = np.array([rng.uniform(-1, 1), -1.5, rng.uniform(-1, 0)])
    lit = 0.35 + 0.65 * (normal @ (light / np.linalg.norm(light))).clip(0)
    tiles = 0.85 + 0.15 * np.sign(
        np.sin(9 * points[..., 0]) * np.sin(9 * points[..., 2]) + 0.3 * texture(rng, 0.1, None)
    )
    return (225 * shade * lit * tiles)[..., None] * np.array([1.0, 0.95, 0.9]), depth


def write_photographs(folder: Path, count: int, seed: int = 0) -> Path:
    """Write photographs of scikit-image (15 at most), and textiles up to `count` where their package is installed."""
    from skimage import data

    paths = [Path(data.__file__).parent / name for name in PHOTOGRAPHS][:count]
    for path in paths:
        save(folder / f"{path.stem}.png", np.asarray(Image.open(path).convert("RGB")))
    package = find_spec("conformal_clip_data")
    if package is not None and package.submodule_search_locations and count > len(paths):
        root = Path(package.submodule_search_locations[0], "data", "textile_images", "simulated")
        textiles = sorted(root.rglob("*.jpg"))
        for number in np.random.default_rng([seed, 4]).choice(len(textiles), count - len(paths), replace=False):
            save(folder / f"textile_{number}.png", np.asarray(Image.open(textiles[number]).convert("RGB")))
    return folder


def save(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG of 8 bits, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


WRITERS: dict[str, Callable[[Path, int, int], Path]] = {
    "photographs": write_photographs,
    "scenes": write_scenes,
    "defects": write_defects,
    "relief": write_relief,
}


def main(folder: Path, count: Annotated[int, typer.Option(min=4)] = 25, seed: int = 0) -> None:
    """Write all sets into a folder."""
    for name, write in WRITERS.items():
        print(write(folder / name, count, seed))


if __name__ == "__main__":
    typer.run(main)
