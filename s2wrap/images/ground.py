"""Where georeferenced TIFFs lie, by rasterio: their place, and their outline in longitude and latitude."""

import struct
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.images.limits import Stream
from s2wrap.images.tiff import MAGIC, first_picture, tifffile

Affine = tuple[float, float, float, float, float, float]
ENDINGS = (".tif", ".tiff")
LON_LAT = "OGC:CRS84"
EDGE_POINTS = 16
"""Points of each edge of an outline, where edges bend."""
POLYGON, MULTI_POLYGON = 3, 6
"""Types of geometries in WKB."""


class Ground(NamedTuple):
    """Where a picture lies on the ground.

    Attributes:
        transform: (a, b, c, d, e, f): x = a · column + b · row + c, y = d · column + e · row + f, at corners of pixels.
        crs: its coordinate reference system, as WKT.
        metres: in one unit of it; None for degrees.
    """

    transform: Affine
    crs: str
    metres: float | None


def ground_of(page: Any, stream: Stream) -> Ground | None:
    """Where a TIFF lies; None where it has no GeoTIFF tags, or tags that name no place.

    Raises:
        MissingExtraError: rasterio is not installed, and there are such tags.
    """
    if not page.is_geotiff:
        return None
    try:
        import rasterio
    except ImportError as error:
        raise MissingExtraError("rasterio", "images") from error
    stream.seek(0)
    with rasterio.open(getattr(stream, "name", stream)) as dataset:
        if dataset.crs is None or dataset.transform.is_identity:
            return None
        metres = dataset.crs.linear_units_factor[1] if dataset.crs.is_projected else None
        return Ground(tuple(dataset.transform)[:6], dataset.crs.to_wkt(), metres)


def read_footprint(stream: Stream, name: str) -> bytes | None:
    """The outline of a georeferenced TIFF in longitude and latitude (OGC:CRS84), as WKB.

    Args:
        stream: the file, which `load_image` can read.
        name: None is returned at once for another ending than .tif and .tiff.

    Returns:
        A polygon; where it crosses the antimeridian, a multipolygon of its parts. None for a picture without a place,
        or with one that has no longitude and latitude.

    Raises:
        MissingExtraError: rasterio is not installed, and the picture has GeoTIFF tags.
    """
    if not name.lower().endswith(ENDINGS) or stream.read(4) not in MAGIC:
        return None
    stream.seek(0)
    try:
        with tifffile().TiffFile(stream) as tiff:
            page = first_picture(tiff, name)
            ground = ground_of(page, stream)
            return None if ground is None else outline(ground, (page.imagelength, page.imagewidth))
    except S2WrapError:
        raise
    except Exception:  # GDAL raises errors of many kinds, such as of a CRS without longitude and latitude
        return None


def outline(ground: Ground, image_hw: tuple[int, int]) -> bytes:
    """The outline of a picture of this height and width in longitude and latitude, as WKB.

    It has four corners; where edges bend by half a pixel, more points along them.
    """
    from rasterio.warp import transform, transform_geom

    height, width = image_hw
    a, b, c, d, e, f = ground.transform
    corners = np.array([(0, 0), (0, height), (width, height), (width, 0)]) @ [(a, d), (b, e)] + (c, f)
    ring = _along(corners)
    points = np.stack(transform(ground.crs, LON_LAT, *ring.T), axis=1)
    half_a_pixel = np.abs(points[EDGE_POINTS] - points[0]).max() / height / 2
    if np.abs(points - _along(points[::EDGE_POINTS])).max() < half_a_pixel:
        ring = corners
    return _wkb(transform_geom(ground.crs, LON_LAT, {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}))


def _along(corners: np.ndarray) -> np.ndarray:
    """Points along straight edges between corners (4, 2): `EDGE_POINTS` an edge, of which the first is the corner."""
    shares = np.arange(EDGE_POINTS)[:, None] / EDGE_POINTS
    edges = zip(corners, np.roll(corners, -1, axis=0), strict=True)
    return np.concatenate([start + (end - start) * shares for start, end in edges])


def _wkb(geometry: Any) -> bytes:
    """A Polygon or MultiPolygon of GeoJSON as WKB."""
    parts = geometry["coordinates"]
    if geometry["type"] == "MultiPolygon":
        polygons = [_wkb({"type": "Polygon", "coordinates": part}) for part in parts]
        return struct.pack("<BII", 1, MULTI_POLYGON, len(parts)) + b"".join(polygons)
    rings = [struct.pack(f"<I{2 * len(ring)}d", len(ring), *chain(*ring)) for ring in parts]
    return struct.pack("<BII", 1, POLYGON, len(parts)) + b"".join(rings)
