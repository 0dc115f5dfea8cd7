"""Vectors of georeferenced pictures: the column geometry of GeoParquet, against other libraries' geometry."""

import json
import struct
import subprocess
import sys

import fsspec
import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pyproj
import pytest
import torch
from PIL import Image

import s2wrap
from s2wrap import MissingExtraError
from s2wrap.extraction import extract_features
from s2wrap.images.ground import read_footprint

rasterio = pytest.importorskip("rasterio")
from rasterio.transform import Affine, from_origin  # noqa: E402 (after the skip)
from rasterio.warp import transform_bounds  # noqa: E402

TURNED = Affine.translation(450_000, 5_100_000) @ Affine.rotation(30) @ Affine.scale(10, -10)
PLACES = {
    "utm": ("EPSG:32633", from_origin(500_000, 5_000_000, 10, 10), (40, 60)),
    "south up": ("EPSG:32733", Affine(10, 0, 300_000, 0, 10, 8_000_000), (40, 60)),
    "degrees": ("EPSG:4326", from_origin(7.0, 51.5, 1e-4, 2e-4), (30, 50)),
    "turned": ("EPSG:32633", TURNED, (50, 30)),
    "large": ("EPSG:3035", from_origin(2_500_000, 5_500_000, 40_000, 40_000), (100, 110)),
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return s2wrap.load("timm:test_vit@1", pretrained=False)


def geo_tiff(path, crs, transform, image_hw):
    pixels = np.random.default_rng(0).integers(0, 256, (3, *image_hw), dtype=np.uint8)
    about = {"driver": "GTiff", "height": image_hw[0], "width": image_hw[1], "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", **about, photometric="RGB", crs=crs, transform=transform) as file:
        file.write(pixels)
    return path


def corners_of(transform, image_hw):
    """The corners on the ground, from the upper left one down and around."""
    height, width = image_hw
    return [transform @ corner for corner in ((0, 0), (0, height), (width, height), (width, 0))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for number, (name, place) in enumerate(PLACES.items()):
        geo_tiff(folder / f"{number} {name}.tif", *place)
    Image.new("RGB", (40, 30)).save(folder / "8 photograph.jpg")
    Image.new("RGB", (40, 30)).save(folder / "9 plain.TIF")
    return folder


def write(addresses, output, model, **options):
    common = {"load": lambda: model, "spec": "timm:test_vit@1", "options": {}, "workers": 0, "shard": 3}
    return extract_features(list(map(str, addresses)), output, **common | options)


def rings_of(wkb):
    """The outer ring (points, 2) of each polygon."""
    order, kind, count = struct.unpack_from("<BII", wkb)
    assert order == 1
    if kind == 6:
        rings, start = [], 9
        for _ in range(count):
            (ring,) = rings_of(wkb[start:])
            rings.append(ring)
            start += 13 + 16 * len(ring)
        assert start == len(wkb)
        return rings
    assert (kind, count) == (3, 1)
    (points,) = struct.unpack_from("<I", wkb, 9)
    ring = np.frombuffer(wkb, "<f8", 2 * points, 13).reshape(-1, 2)
    np.testing.assert_array_equal(ring[0], ring[-1])
    return [ring]


def geometries(output):
    table = pyarrow.dataset.dataset(output).to_table()
    return dict(zip(table["path"].to_pylist(), table["geometry"].to_pylist(), strict=True))


def test_outlines_lie_where_pyproj_and_rasterio_put_their_pictures(folder, model, tmp_path):
    write([folder], tmp_path / "x.parquet", model)
    found = {path.rpartition("/")[2]: wkb for path, wkb in geometries(tmp_path / "x.parquet").items()}
    assert found["8 photograph.jpg"] is found["9 plain.TIF"] is None
    for number, (name, (crs, transform, image_hw)) in enumerate(PLACES.items()):
        (ring,) = rings_of(found[f"{number} {name}.tif"])
        assert (len(ring) > 5) == (name == "large")
        to_degrees = pyproj.Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
        for corner in corners_of(transform, image_hw):
            assert np.abs(ring - to_degrees.transform(*corner)).sum(axis=1).min() < 1e-7
        if name == "turned":
            continue  # rasterio's bounds are those of pictures that lie straight
        left, bottom, right, top = rasterio.transform.array_bounds(*image_hw, transform)
        bounds = transform_bounds(crs, "OGC:CRS84", left, min(bottom, top), right, max(bottom, top), densify_pts=100)
        pixel = (bounds[2] - bounds[0]) / image_hw[1]
        np.testing.assert_allclose((*ring.min(0), *ring.max(0)), bounds, rtol=0, atol=pixel / 2)


def test_the_metadata_are_those_of_geoparquet_and_the_description_stays(folder, model, tmp_path):
    write([folder], tmp_path / "x.parquet", model)
    for part in sorted((tmp_path / "x.parquet").glob("*.parquet")):
        metadata = pq.read_schema(part).metadata
        geo = json.loads(metadata[b"geo"])
        assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
        assert geo["columns"]["geometry"]["encoding"] == "WKB"
        assert geo["columns"]["geometry"]["geometry_types"] == ["Polygon", "MultiPolygon"]
        assert "crs" not in geo["columns"]["geometry"]  # which stands for OGC:CRS84
    store = s2wrap.open(tmp_path / "x.parquet")
    assert (len(store), store.made_by["spec"]) == (7, "timm:test_vit@1")
    assert "geo" not in store.made_by


def test_geopandas_reads_a_store(folder, model, tmp_path):
    geopandas, shapely = pytest.importorskip("geopandas"), pytest.importorskip("shapely")
    write([folder], tmp_path / "x.parquet", model, dtype="int8")
    frame = geopandas.read_parquet(tmp_path / "x.parquet")
    assert pyproj.CRS(frame.crs).to_authority() == ("OGC", "CRS84")
    assert frame.geometry.isna().tolist() == [False] * 5 + [True] * 2
    assert frame.geometry.dropna().is_valid.all()
    for geometry, (crs, transform, image_hw) in zip(frame.geometry, PLACES.values(), strict=False):
        whole = shapely.Polygon(corners_of(transform, image_hw))
        wanted = geopandas.GeoSeries([whole.segmentize(whole.length / 400)], crs=crs).to_crs("OGC:CRS84")[0]
        assert geometry.symmetric_difference(wanted).area < 2e-3 * wanted.area


@pytest.mark.parametrize(
    ("crs", "left", "top"), [("EPSG:32701", 150_000, 8_000_000), ("EPSG:32660", 790_000, 1_000_000)]
)
def test_an_outline_across_the_antimeridian_is_cut_there(tmp_path, crs, left, top):
    path = geo_tiff(tmp_path / "x.tif", crs, from_origin(left, top, 1000, 1000), (100, 100))
    with path.open("rb") as file:
        rings = rings_of(read_footprint(file, str(path)))
    assert len(rings) == 2
    west, east = sorted((ring[:, 0].min(), ring[:, 0].max()) for ring in rings)
    assert (west[0], east[1]) == (-180, 180)
    metres = (west[1] + 360 - east[0]) * 111_320 * np.cos(np.radians(rings[0][0, 1]))
    assert metres == pytest.approx(100_000, rel=0.05)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(("crs", "left"), [('LOCAL_CS["x",UNIT["metre",1]]', 5), ("EPSG:32633", 1e12), (None, 0)])
def test_pictures_without_longitude_and_latitude_have_no_geometry(tmp_path, capfd, crs, left):
    path = geo_tiff(tmp_path / "x.tif", crs, from_origin(left, left, 10, 10), (20, 20))
    with path.open("rb") as file:
        assert read_footprint(file, str(path)) is None
    assert capfd.readouterr() == ("", "")


def test_what_is_called_tif_and_is_none_has_no_geometry(tmp_path):
    (tmp_path / "photograph.tif").write_bytes(b"\xff\xd8\xff" + bytes(100))
    with (tmp_path / "photograph.tif").open("rb") as file:
        assert read_footprint(file, "photograph.tif") is None


def test_the_first_picture_decides_and_a_run_that_goes_on_does_the_same(folder, model, tmp_path):
    paths = sorted(folder.iterdir())
    write([paths[-1], *paths[:-1]], tmp_path / "plain.parquet", model)
    assert "geometry" not in pq.read_schema(tmp_path / "plain.parquet" / "part-000000.parquet").names
    write(paths, tmp_path / "whole.parquet", model)
    for count in (1, 3, 4, 6):  # within a part of three, and at its end

        def stop(state, count=count):
            if state.done == count:
                raise KeyboardInterrupt

        output = tmp_path / f"{count}.parquet"
        with pytest.raises(KeyboardInterrupt):
            write(paths, output, model, tell=stop)
        write(paths, output, model)
        assert geometries(output) == geometries(tmp_path / "whole.parquet")
        assert pyarrow.dataset.dataset(output).to_table().num_rows == len(paths)


def test_pictures_of_servers_and_workers_have_the_same_outlines(folder, model, tmp_path):
    write([folder], tmp_path / "here.parquet", model)
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/scenes", recursive=True)
    write(["memory://scenes"], tmp_path / "there.parquet", model)
    write([folder], tmp_path / "workers.parquet", model, workers=2)
    expected = list(geometries(tmp_path / "here.parquet").values())
    for name in ("there", "workers"):
        assert list(geometries(tmp_path / f"{name}.parquet").values()) == expected


def test_a_missing_rasterio_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with (
        (folder / "0 utm.tif").open("rb") as file,
        pytest.raises(MissingExtraError, match=r"rasterio.*s2wrap\[images\]"),
    ):
        read_footprint(file, "0 utm.tif")
    with (folder / "9 plain.TIF").open("rb") as file:
        assert read_footprint(file, "9 plain.TIF") is None


def test_other_pictures_import_no_rasterio(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    Image.new("RGB", (40, 30)).save(tmp_path / "b.tif")
    code = (
        "import sys; from s2wrap.extraction.decode import decode; from s2wrap.extraction.picture import Picture; "
        "from s2wrap.images import Reading; reading = Reading(footprints=True); "
        "print([decode(Picture(name), reading).image.shape[0] for name in sys.argv[1:]], 'rasterio' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "a.jpg"), str(tmp_path / "b.tif")]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == "[3, 3] False"
