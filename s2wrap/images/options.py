"""How pictures are read, and how large ones are cut into windows."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from s2wrap.errors import S2WrapError
from s2wrap.options import Checked

Range = tuple[float, float]
UNITS = {"nm": 1e-9, "um": 1e-6, "µm": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1.0, "km": 1e3}
"""Metres of each unit."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions(Checked):
    """How picture files are read: which of their bands, and within which limits.

    Raises:
        S2WrapError: a value that cannot be.
    """

    bands: Annotated[
        Sequence[int] | None, "Which bands of a picture become channels, counted from 1, as 4,3,2 (default: all)."
    ] = None
    max_pixels: Annotated[int, "The most pixels of a picture; larger ones are refused before decoding."] = 178_956_970
    max_memory: Annotated[
        int, "The most bytes of memory for a picture; those that would take more, by an estimate, are refused."
    ] = 2_500_000_000
    max_seconds: Annotated[
        int, "The most seconds of the processor for a picture, looked at whenever more of its file is read."
    ] = 10
    reject_scaling_attacks: Annotated[
        bool,
        "Count pictures that seem to hide another one, for a careless downscale, as unreadable; a megapixel takes "
        "5 seconds.",
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bands is not None:
            if isinstance(self.bands, str) or not self.bands or not all(map(_is_band, self.bands)):
                raise S2WrapError(f"bands={self.bands!r}; give their numbers, counted from 1, such as (4, 3, 2)")
            self._set(bands=tuple(self.bands))
        for name in ("max_pixels", "max_memory", "max_seconds"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value > 0:
                raise S2WrapError(f"{name}={value!r}; give a number above 0")


def _is_band(number: object) -> bool:
    return isinstance(number, int) and number > 0


@dataclass(frozen=True, kw_only=True)
class Reading(ReadOptions):
    """`ReadOptions`, and what the values mean where a file does not say it.

    Attributes:
        value_range: the values that stand for 0 and 1, for files that do not say it: signed and floating values, and
            16-bit TIFFs whose largest values are not used. Their values are returned as they are, for a model of the
            same `value_range`. Files that say it are not affected.
        footprints: whether `extract_features` notes where georeferenced TIFFs lie; it decides that by its output.

    Raises:
        S2WrapError: a value that cannot be.
    """

    value_range: Annotated[Range | None, "Which values stand for 0 and 1."] = None
    footprints: Annotated[bool, "Note where georeferenced TIFFs lie."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise S2WrapError(f"value_range={self.value_range}; give the values for 0 and 1, the smaller first")

    def check_size(self, name: object, size_hw: tuple[int, int], bytes_per_pixel: float, fixed: float = 0) -> None:
        """Raise S2WrapError for a picture that is too large, or of which a side is one pixel.

        Args:
            name: of the picture.
            size_hw: its height and width in pixels.
            bytes_per_pixel: the most memory that decoding it takes.
            fixed: further bytes.
        """
        height, width = size_hw
        size = f"{name}: {height}×{width} pixels"
        if height * width > self.max_pixels:
            raise S2WrapError(
                f"{size}, more than max_pixels={self.max_pixels}; raise it, or read a TIFF in windows (s2wrap features "
                f"--window)"
            )
        needed = height * width * bytes_per_pixel + fixed
        if needed > self.max_memory:
            raise S2WrapError(
                f"{size}, which take up to {needed / 1e9:.1f} GB to decode, more than max_memory={self.max_memory:.0f} "
                f"bytes; raise it, or read a TIFF in windows (s2wrap features --window)"
            )
        if min(size_hw) < 2:
            raise S2WrapError(f"{size}; each side needs at least 2")


USUAL = Reading()
"""As files are read by default."""


@dataclass(frozen=True, kw_only=True)
class WindowOptions(Checked):
    """How a large picture is cut into windows.

    Raises:
        S2WrapError: a value that cannot be, or one that has no effect without `window`.
    """

    window: Annotated[
        int | None, "Read one large picture in windows of this side in pixels, each a picture for the model."
    ] = None
    window_overlap: Annotated[int, "Cells of the map that neighbouring windows share; they are blended there."] = 0
    pixel_size: Annotated[
        str | None, "Size of the pixels that windows count in, such as 10m or 0.5um (default: the picture's own)."
    ] = None
    background: Annotated[
        str | None, "Values of background, as 235:255: cells whose pixels all lie there are left out, as NaN."
    ] = None
    mask: Annotated[
        str | None, "A picture of the same shape: cells where it is black everywhere are left out, as NaN."
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is None:
            if given := [name for name in self.changed() if name != "window"]:
                raise S2WrapError(f"{', '.join(given)} has no effect without window; give --window N")
            return
        if self.window < 2:
            raise S2WrapError(f"window={self.window}; give a side in pixels, such as 4096")
        if self.window_overlap < 0:
            raise S2WrapError(f"window_overlap={self.window_overlap}; give 0 cells or more")
        _ = self.pixel_metres, self.background_range  # which are checked

    @property
    def pixel_metres(self) -> float | None:
        """`pixel_size` in metres."""
        if self.pixel_size is None:
            return None
        parts = re.fullmatch(rf"([0-9.]+) ?({'|'.join(UNITS)})", self.pixel_size)
        try:
            size = float(parts[1]) * UNITS[parts[2]] if parts else 0
        except ValueError:
            size = 0
        if not 0 < size < math.inf:
            raise S2WrapError(f"pixel_size={self.pixel_size!r}; give a number and {', '.join(UNITS)}, such as 10m")
        return size

    @property
    def background_range(self) -> tuple[float, float] | None:
        """The lowest and highest value of `background`."""
        if self.background is None:
            return None
        try:
            low, high = map(float, self.background.split(":"))
        except ValueError:
            low, high = 1.0, 0.0
        if not low <= high:
            raise S2WrapError(f"background={self.background!r}; give the lowest and the highest value, as 235:255")
        return low, high
