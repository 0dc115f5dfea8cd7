"""Large pictures in windows: right pixels, one map, levels, places on the ground, going on."""

import json
import os
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401 (gives xarray its .rio)
import tifffile
import torch
import xarray
import zarr
from rasterio.transform import from_origin
from torch import nn

import s2wrap
from s2wrap import S2WrapError
from s2wrap.extraction.check import check
from s2wrap.extraction.scene import WindowOptions, extract_scene
from s2wrap.images import Reading, open_scene

RANDOM = np.random.default_rng(0)
SCENE = RANDOM.integers(0, 256, (320, 480, 3), dtype=np.uint8)


def local_model(scales=(1,), channels=3, **options):
    """Cells of 16 pixels that know nothing of each other, so that windows can change nothing."""
    torch.manual_seed(0)
    options = {"mean": (0.5,) * channels, "std": (0.2,) * channels} | options
    patches = nn.Conv2d(channels, 8, 16, stride=16).eval()
    return s2wrap.wrap(patches, scales=scales, image_size=64, layout="bchw", in_channels=channels, **options)


def extract(path, output, model, reading=None, **windows):
    options = WindowOptions(**{"window": 64} | windows)
    run = partial(extract_scene, str(path), output, load=lambda: model, spec="local", options={}, windows=options)
    return run(reading=reading or Reading())


def one_pass(model, pixels):
    """The map of the whole picture, (8, rows, columns), without windows."""
    with torch.no_grad():
        images = model.input.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        return model.backbone.model(images)[0].numpy()


@pytest.fixture
def scene(tmp_path):
    tifffile.imwrite(tmp_path / "scene.tif", SCENE, tile=(64, 64), photometric="rgb", compression="zlib")
    return tmp_path / "scene.tif"


@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_windows_of_a_local_model_give_the_map_of_one_pass(tmp_path, scene, overlap):
    model = local_model()
    extract(scene, tmp_path / "map.zarr", model, window_overlap=overlap)
    found = zarr.open_group(tmp_path / "map.zarr", mode="r")
    np.testing.assert_allclose(found["spatial"][:], one_pass(model, SCENE), rtol=1e-4, atol=1e-4)
    assert found["seen"][:].all()


def test_the_last_cells_reach_beyond_a_scene_that_windows_do_not_divide(tmp_path):
    pixels = SCENE[:300, :450]
    tifffile.imwrite(tmp_path / "scene.tif", pixels, rowsperstrip=7, photometric="rgb")
    model = local_model()
    extract(tmp_path / "scene.tif", tmp_path / "map.zarr", model, window_overlap=1)
    repeated = np.pad(pixels, ((0, 4), (0, 14), (0, 0)), mode="edge")
    found = zarr.open_group(tmp_path / "map.zarr", mode="r")["spatial"][:]
    np.testing.assert_allclose(found, one_pass(model, repeated), rtol=1e-4, atol=1e-4)


def test_windows_that_are_no_tiff_are_cut_from_the_whole(tmp_path):
    import PIL.Image

    PIL.Image.fromarray(SCENE).save(tmp_path / "scene.png")
    model = local_model()
    extract(tmp_path / "scene.png", tmp_path / "map.zarr", model)
    found = zarr.open_group(tmp_path / "map.zarr", mode="r")["spatial"][:]
    np.testing.assert_allclose(found, one_pass(model, SCENE), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("overlap", "bands_done"), [(0, 0), (0, 2), (2, 1), (2, 3)])
def test_a_run_that_was_stopped_goes_on_to_the_same_map(tmp_path, scene, overlap, bands_done):
    model = s2wrap.load("timm:test_vit@1", pretrained=False)
    extract(scene, tmp_path / "whole.zarr", model, window=96, window_overlap=overlap)

    def tell(state):
        if state.done == bands_done:
            raise KeyboardInterrupt

    options = WindowOptions(window=96, window_overlap=overlap)
    common = {"load": lambda: model, "spec": "local", "options": {}, "windows": options, "reading": Reading()}
    with pytest.raises(KeyboardInterrupt):
        extract_scene(str(scene), tmp_path / "map.zarr", tell=tell, **common)
    extract_scene(str(scene), tmp_path / "map.zarr", **common)
    whole, again = (zarr.open_group(tmp_path / name, mode="r") for name in ("whole.zarr", "map.zarr"))
    np.testing.assert_array_equal(whole["spatial"][:], again["spatial"][:])
    progress = json.loads((tmp_path / "map.zarr.s2wrap" / "store.json").read_text())
    assert progress["finished"]


def test_every_file_of_a_map_is_checked(tmp_path, scene):
    output = tmp_path / "map.zarr"
    extract(scene, output, local_model())
    assert (check(output).damage, check(output).counted) == ([], "rows of windows")
    files = [path for path in output.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        path.unlink()
        assert check(output).damage == [f"{path} is missing"]
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert check(output).damage == [f"{path} has another SHA-256 than what was written"]
        path.write_bytes(content)
    assert check(output).damage == []


def test_another_window_or_picture_does_not_enter_a_store(tmp_path, scene):
    model = local_model()
    extract(scene, tmp_path / "map.zarr", model)
    with pytest.raises(S2WrapError, match="window 64, and 128 is asked for"):
        extract(scene, tmp_path / "map.zarr", model, window=128)
    scene.rename(tmp_path / "other.tif")
    with pytest.raises(S2WrapError, match="address"):
        extract(tmp_path / "other.tif", tmp_path / "map.zarr", model)


def test_a_map_lies_where_its_picture_does(tmp_path):
    transform = from_origin(500_000, 4_600_000, 10, 10)
    with rasterio.open(
        tmp_path / "ground.tif", "w", driver="GTiff", height=320, width=480, count=3, dtype="uint8", tiled=True,
        crs="EPSG:32633", transform=transform, photometric="rgb",
    ) as file:  # fmt: skip
        file.write(SCENE.transpose(2, 0, 1))
    model = local_model()
    extract(tmp_path / "ground.tif", tmp_path / "map.zarr", model)
    wanted = one_pass(model, SCENE)
    found = xarray.open_zarr(tmp_path / "map.zarr", consolidated=False)
    assert found.spatial.dims == ("channel", "y", "x")
    assert found.spatial.rio.crs == rasterio.CRS.from_epsg(32633)
    point = {"x": 500_000 + 10 * (7 * 16 + 3), "y": 4_600_000 - 10 * (11 * 16 + 9)}  # in row 11, column 7 of cells
    np.testing.assert_allclose(found.spatial.sel(point, method="nearest"), wanted[:, 11, 7], rtol=1e-4, atol=1e-4)
    with rasterio.open(f'ZARR:"{tmp_path / "map.zarr"}":/spatial') as file:
        assert file.crs == rasterio.CRS.from_epsg(32633)
        assert file.transform == from_origin(500_000, 4_600_000, 160, 160)
        row, col = file.index(point["x"], point["y"])
        np.testing.assert_allclose(file.read()[:, row, col], wanted[:, 11, 7], rtol=1e-4, atol=1e-4)


def pyramid(path, pixels, **tags):
    """A TIFF of three levels, whose coarser ones are of one colour each, so that one sees which is read."""
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, tile=(64, 64), photometric="rgb", subifds=2, **tags)
        for level, colour in ((1, 50), (2, 200)):
            small = np.full((pixels.shape[0] >> level, pixels.shape[1] >> level, 3), colour, np.uint8)
            file.write(small, tile=(64, 64), photometric="rgb", subfiletype=1)


def test_coarse_windows_are_read_from_coarse_levels(tmp_path):
    pyramid(tmp_path / "levels.tif", SCENE)
    with open(tmp_path / "levels.tif", "rb") as stream, open_scene(stream, "levels.tif", Reading()) as scene:
        assert [level.image_hw for level in scene.levels] == [(320, 480), (160, 240), (80, 120)]
        np.testing.assert_array_equal(scene.window(64, 128, (32, 48)), SCENE[64:96, 128:176].transpose(2, 0, 1))
        assert scene.window(64, 128, (32, 48), shrink=1.9).shape == (3, 32, 48)
        assert scene.window(64, 128, (32, 48), shrink=2).unique().tolist() == [50]
        assert scene.window(64, 128, (32, 48), shrink=2).shape == (3, 16, 24)
        assert scene.window(64, 128, (32, 48), shrink=5).unique().tolist() == [200]
    model = local_model()
    extract(tmp_path / "levels.tif", tmp_path / "map.zarr", model, window=256)  # 256 pixels become 64
    found = zarr.open_group(tmp_path / "map.zarr", mode="r")["spatial"][:]
    grey = one_pass(model, np.full((320, 480, 3), 200, np.uint8))
    np.testing.assert_allclose(found[:, 0, 0], grey[:, 0, 0], rtol=1e-4, atol=1e-4)


def test_the_pixel_size_is_that_of_the_picture(tmp_path):
    tifffile.imwrite(
        tmp_path / "slide.tif", SCENE, photometric="rgb", resolution=(20_000, 20_000), resolutionunit="CENTIMETER"
    )  # half a micrometre a pixel
    model = local_model()
    extract(tmp_path / "slide.tif", tmp_path / "a.zarr", model, window=64, pixel_size="1um")
    extract(tmp_path / "slide.tif", tmp_path / "b.zarr", model, window=128)
    maps = [zarr.open_group(tmp_path / name, mode="r")["spatial"][:] for name in ("a.zarr", "b.zarr")]
    np.testing.assert_array_equal(*maps)
    with pytest.raises(S2WrapError, match="scene.tif does not say how many metres its pixels have"):
        tifffile.imwrite(tmp_path / "scene.tif", SCENE, photometric="rgb", resolutionunit="NONE")
        extract(tmp_path / "scene.tif", tmp_path / "c.zarr", model, pixel_size="10m")


def test_a_slide_of_aperio_says_its_size_and_its_levels(tmp_path):
    words = "Aperio Image Library v12\n480x320 [0,0 480x320] (64x64)|AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(tmp_path / "slide.svs") as file:
        common = {"photometric": "rgb", "metadata": None}
        file.write(SCENE, tile=(64, 64), description=words, **common)
        file.write(SCENE[::8, ::8].copy(), description="Aperio Image Library v12\nthumbnail", **common)
        file.write(np.full((80, 120, 3), 77, np.uint8), tile=(64, 64), description="Aperio Image Library v12", **common)
    with open(tmp_path / "slide.svs", "rb") as stream, open_scene(stream, "slide.svs", Reading()) as scene:
        assert [level.image_hw for level in scene.levels] == [(320, 480), (80, 120)]
        assert scene.pixel_metres == pytest.approx(5e-7)
        assert scene.window(0, 0, (64, 64), shrink=4).unique().tolist() == [77]


def test_background_and_mask_are_left_out_as_nan(tmp_path):
    pixels = SCENE.copy()
    pixels[:128, :200] = 255
    tifffile.imwrite(tmp_path / "slide.tif", pixels, tile=(64, 64), photometric="rgb")
    mask = np.ones((320, 480), np.uint8)
    mask[256:] = 0
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    model, looked = local_model(), []
    model.backbone.model.register_forward_hook(lambda module, args, out: looked.append(len(args[0])))
    extract(tmp_path / "slide.tif", tmp_path / "map.zarr", model, background="250:255", mask=str(tmp_path / "mask.tif"))
    found = zarr.open_group(tmp_path / "map.zarr", mode="r")
    seen = np.ones((20, 30), bool)
    seen[:8, :12] = False  # 200 pixels are 12 cells and a half
    seen[16:] = False
    np.testing.assert_array_equal(found["seen"][:], seen)
    np.testing.assert_array_equal(np.isnan(found["spatial"][:]).all(0), ~seen)
    wanted = one_pass(model, pixels)
    np.testing.assert_allclose(found["spatial"][:][:, seen], wanted[:, seen], rtol=1e-4, atol=1e-4)
    assert sum(looked[:-1]) == 8 * 5 - 2 * 3 - 8  # windows without anything to see were not looked at


def test_bands_and_wide_values_reach_a_model_of_as_many(tmp_path):
    reflectance = RANDOM.integers(0, 10_000, (5, 128, 192), dtype=np.uint16)
    with rasterio.open(
        tmp_path / "bands.tif", "w", driver="GTiff", height=128, width=192, count=5, dtype="uint16", tiled=True,
        blockxsize=64, blockysize=64, interleave="band",
    ) as file:  # fmt: skip
        file.write(reflectance)
    model = local_model(channels=3, value_range=(0, 10_000))
    extract(tmp_path / "bands.tif", tmp_path / "map.zarr", model, Reading(bands=(4, 3, 2)))
    chosen = reflectance[[3, 2, 1]].transpose(1, 2, 0).astype(np.float32) / 10_000
    with torch.no_grad():
        wanted = model.backbone.model((torch.from_numpy(chosen).permute(2, 0, 1)[None] - 0.5) / 0.2)[0]
    found = zarr.open_group(tmp_path / "map.zarr", mode="r")["spatial"][:]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(S2WrapError, match="uint16, and the file does not say which of them are black and white"):
        extract(tmp_path / "bands.tif", tmp_path / "none.zarr", local_model(), Reading(bands=(4, 3, 2)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 640}, "smaller than a window of 640×640"),
        ({"window_overlap": 4}, "window has 4×4 cells"),
        ({"window": 1}, "window=1"),
        ({"window": None, "mask": "x.png"}, "mask has no effect without window"),
        ({"pixel_size": "10 miles"}, "pixel_size='10 miles'; give a number and nm"),
        ({"background": "255"}, "background='255'; give the lowest and the highest value"),
        ({"background": "nan:nan"}, "background='nan:nan'"),
        ({"pixel_size": "9" * 400 + "m"}, "pixel_size='999"),
    ],
)
def test_windows_that_cannot_be_are_refused(tmp_path, scene, options, words):
    with pytest.raises(S2WrapError, match=words):
        extract(scene, tmp_path / "map.zarr", local_model(), **options)
    assert not (tmp_path / "map.zarr").exists()


def ground_tiff(path, pixels, transform=None, overviews=(), **options):
    height, width = pixels.shape[:2]
    profile = {"driver": "GTiff", "height": height, "width": width, "count": pixels.shape[2], "dtype": pixels.dtype}
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "crs": "EPSG:32633"} | options
    with rasterio.open(path, "w", transform=transform or from_origin(0, 0, 10, 10), **profile, **options) as file:
        file.write(pixels.transpose(2, 0, 1))
        file.build_overviews(list(overviews), rasterio.enums.Resampling.average)


@pytest.mark.filterwarnings("ignore:Use `@` matmul")
@pytest.mark.parametrize("image_hw", [(512, 704), (501, 703), (503, 711)])
def test_levels_of_odd_sizes_do_not_shift_the_map(tmp_path, image_hw):
    rows, cols = np.mgrid[: image_hw[0], : image_hw[1]]
    waves = (127 + 120 * np.sin(rows / 23) * np.sin(cols / 31)).astype(np.uint8)[..., None].repeat(3, 2)
    model, maps = local_model(), []
    for name, overviews in (("plain", ()), ("levels", (2, 4))):
        ground_tiff(tmp_path / f"{name}.tif", waves, overviews=overviews, photometric="rgb")
        extract(tmp_path / f"{name}.tif", tmp_path / f"{name}.zarr", model, window=256, window_overlap=1)
        maps.append(zarr.open_group(tmp_path / f"{name}.zarr", mode="r")["spatial"][:])
    assert np.abs(maps[0] - maps[1]).mean() < 0.015 * maps[0].std()


@pytest.mark.filterwarnings("ignore:Use `@` matmul")
def test_a_picture_that_lies_askew_keeps_its_place_and_the_size_of_its_pixels(tmp_path):
    askew = rasterio.Affine(0, 10, 500_000, 10, 0, 4_600_000)  # a quarter turn
    ground_tiff(tmp_path / "askew.tif", SCENE, askew, photometric="rgb")
    model = local_model()
    extract(tmp_path / "askew.tif", tmp_path / "map.zarr", model, window=64, pixel_size="10m")
    found = xarray.open_zarr(tmp_path / "map.zarr", consolidated=False)
    assert found.spatial.rio.transform() == rasterio.Affine(0, 160, 500_000, 160, 0, 4_600_000)
    assert "x" not in found.coords


def test_another_file_of_the_same_name_does_not_go_on_with_a_map(tmp_path, scene):
    model = local_model()

    def stop(state):
        if state.done == 2:
            raise KeyboardInterrupt

    options = WindowOptions(window=64)
    common = {"load": lambda: model, "spec": "local", "options": {}, "windows": options, "reading": Reading()}
    with pytest.raises(KeyboardInterrupt):
        extract_scene(str(scene), tmp_path / "map.zarr", tell=stop, **common)
    tifffile.imwrite(scene, SCENE[::-1].copy(), tile=(64, 64), photometric="rgb", compression="zlib")
    with pytest.raises(S2WrapError, match=r"holds features with .*scene.tif \["):
        extract_scene(str(scene), tmp_path / "map.zarr", **common)


def test_a_mask_counts_cell_by_cell_and_must_have_the_shape_of_its_scene(tmp_path):
    import PIL.Image

    tifffile.imwrite(tmp_path / "scene.tif", SCENE[:90, :75], photometric="rgb")
    mask = np.zeros((90, 75), np.uint16)
    mask[64:80, 3] = 1  # the fifth row of cells and the first column, exactly
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    extract(tmp_path / "scene.tif", tmp_path / "map.zarr", local_model(), mask=str(tmp_path / "mask.png"))
    seen = zarr.open_group(tmp_path / "map.zarr", mode="r")["seen"][:]
    assert np.argwhere(seen).tolist() == [[4, 0]]
    PIL.Image.fromarray(mask[:, :40]).save(tmp_path / "narrow.png")
    with pytest.raises(S2WrapError, match=r"narrow.png: 90×40 pixels, and the scene has 90×75; a mask has its shape"):
        extract(tmp_path / "scene.tif", tmp_path / "none.zarr", local_model(), mask=str(tmp_path / "narrow.png"))


def test_what_cannot_be_read_in_windows_leaves_no_store(tmp_path):
    tifffile.imwrite(tmp_path / "turned.tif", SCENE, photometric="rgb", extratags=[(274, "H", 1, 3, True)])
    blank = {"photometric": "rgb", "compression": "zlib", "rowsperstrip": 6000}
    tifffile.imwrite(tmp_path / "strip.tif", np.zeros((6000, 6000, 3), np.uint8), **blank)
    ground_tiff(tmp_path / "bands.tif", SCENE[..., [0, 1, 2, 0, 1]])
    small = Reading(max_memory=50_000_000)
    for name, reading, words in (
        ("turned.tif", Reading(), "is stored turned"),
        ("strip.tif", small, "strips or tiles of 36000000 pixels"),
        ("bands.tif", Reading(), "bands.tif has 5 channels, and the model takes 3; choose bands: --bands 1,2,3"),
        (".", Reading(), "--window reads one picture"),
    ):
        with pytest.raises(S2WrapError, match=words):
            extract(tmp_path / name, tmp_path / "map.zarr", local_model(), reading)
    assert not (tmp_path / "map.zarr").exists()


def test_a_scene_of_a_server_gives_the_same_map(tmp_path, scene):
    import fsspec

    with fsspec.open("memory://scenes/scene.tif", "wb") as file:
        file.write(scene.read_bytes())
    model = local_model()
    extract(scene, tmp_path / "a.zarr", model)
    extract("memory://scenes/scene.tif", tmp_path / "b.zarr", model)
    maps = [zarr.open_group(tmp_path / name, mode="r")["spatial"][:] for name in ("a.zarr", "b.zarr")]
    np.testing.assert_array_equal(*maps)


def test_a_run_over_windows_that_is_killed_at_any_moment_goes_on_to_the_same_map(tmp_path):
    """S2WRAP_KILLS sets how often, twice by default."""
    pixels = np.random.default_rng(0).integers(0, 256, (1600, 640, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "scene.tif", pixels, tile=(64, 64), photometric="rgb")
    words = ["--model", "timm:test_vit@1,2", "--random-weights", "--window", "160", "--window-overlap", "4"]
    command = [sys.executable, "-m", "s2wrap", "features", str(tmp_path / "scene.tif"), *words, "--output"]
    subprocess.run([*command, str(tmp_path / "whole.zarr")], check=True, capture_output=True)
    random, progress = np.random.default_rng(1), tmp_path / "map.zarr.s2wrap" / "store.json"

    def rows():
        return json.loads(progress.read_text())["rows"] if progress.exists() else 0

    for _ in range(int(os.environ.get("S2WRAP_KILLS", "2"))):
        before = rows()
        run = subprocess.Popen([*command, str(tmp_path / "map.zarr")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while run.poll() is None and rows() == before:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.1))
        run.kill()
        run.communicate()
    done = subprocess.run([*command, str(tmp_path / "map.zarr")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole, again = (zarr.open_group(tmp_path / name, mode="r") for name in ("whole.zarr", "map.zarr"))
    for name in ("spatial", "seen"):
        np.testing.assert_array_equal(whole[name][:], again[name][:])
