"""Every kind of picture file that `benchmarks/pictures.py` makes is read to the values that it means, or refused."""

import numpy as np
import pictures
import pytest
import rasterio
from commands import run
from PIL import Image

from s2wrap import S2WrapError
from s2wrap.images import Reading, decode_image, find_images, load_image
from s2wrap.images.folders import LeftOut


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
@pytest.mark.parametrize("case", pictures.all_cases(), ids=str)
def test_a_file_is_read_to_the_values_that_it_means(tmp_path, case):
    outcome, fault = pictures.verdict(case, tmp_path)
    assert fault == "", outcome


def jpeg(tmp_path, **options):
    noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg", **options)
    return (tmp_path / "whole.jpg").read_bytes()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}], ids=str)
def test_a_jpeg_whose_data_end_early_is_refused_though_it_has_an_end_mark(tmp_path, options):
    content = jpeg(tmp_path, **options)
    with pytest.raises(S2WrapError, match="x.jpg: cannot be decoded: damaged or cut short"):
        decode_image(content[: len(content) // 2] + b"\xff\xd9", "x.jpg")


def test_a_jpeg_with_padding_before_its_end_as_cameras_write_it_is_read(tmp_path):
    content = jpeg(tmp_path)
    padded = decode_image(content[:-2] + b"\0" * 7 + content[-2:], "x.jpg")
    assert padded.equal(decode_image(content, "x.jpg"))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 50}, {"subsampling": 0}], ids=str)
def test_jpegs_are_read_as_pillow_reads_them(tmp_path, options):
    jpeg(tmp_path, **options)
    with Image.open(tmp_path / "whole.jpg") as picture:
        np.testing.assert_array_equal(load_image(tmp_path / "whole.jpg").permute(1, 2, 0), np.asarray(picture))


def test_a_thumbnail_before_the_picture_is_not_taken_for_it(tmp_path):
    import tifffile

    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(picture[::4, ::4].copy(), photometric="rgb", subfiletype=1)
        file.write(picture, photometric="rgb")
    np.testing.assert_array_equal(load_image(tmp_path / "x.tif").permute(1, 2, 0), picture)


def with_nodata(path, values, nodata, **options):
    height, width, count = values.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": values.dtype}
    with rasterio.open(path, "w", nodata=nodata, **profile, **options) as file:
        file.write(values.transpose(2, 0, 1))


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_pixels_without_data_are_black_and_count_in_no_guess(tmp_path):
    colours = np.full((16, 16, 3), (255, 100, 7), np.uint8)
    colours[4:8] = 255
    with_nodata(tmp_path / "rgb.tif", colours, 255, photometric="rgb")
    wanted = np.where((colours == 255).all(-1, keepdims=True), 0, colours)  # one band of three is no missing pixel
    np.testing.assert_array_equal(load_image(tmp_path / "rgb.tif").permute(1, 2, 0), wanted)
    grey = np.full((16, 16, 1), 200, np.uint8)
    grey[4:8] = 7
    with_nodata(tmp_path / "white.tif", grey, 7, photometric="miniswhite")
    np.testing.assert_array_equal(load_image(tmp_path / "white.tif")[0], np.where(grey == 7, 0, 55)[..., 0])
    wide = np.full((16, 16, 1), 4000, np.uint16)
    wide[4:8] = 65535
    with_nodata(tmp_path / "wide.tif", wide, 65535)
    with pytest.raises(S2WrapError, match="nothing says which of them are black and white"):
        load_image(tmp_path / "wide.tif")
    found = load_image(tmp_path / "wide.tif", Reading(value_range=(100, 5000)))
    np.testing.assert_array_equal(found[0], np.where(wide == 65535, 100, wide)[..., 0])
    heights = np.full((16, 16, 1), 0.5, np.float32)
    heights[4:8] = np.nan
    with_nodata(tmp_path / "nan.tif", heights, np.nan)
    np.testing.assert_array_equal(load_image(tmp_path / "nan.tif")[0], np.where(np.isnan(heights), 0, 128)[..., 0])


def test_a_file_whose_pages_are_thumbnails_alone_is_refused(tmp_path):
    import tifffile

    picture = np.zeros((40, 60, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "raw.tif") as file:
        file.write(picture[::4, ::4].copy(), photometric="rgb", subfiletype=1, subifds=1)
        file.write(picture, photometric="rgb", subfiletype=0)
    with pytest.raises(S2WrapError, match="its pages are thumbnails"):
        load_image(tmp_path / "raw.tif")


@pytest.mark.parametrize("mode", ["1", "P", "CMYK"])
def test_bands_of_what_has_none_are_refused(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new("RGB", (16, 16), (200, 150, 100)).convert(mode).save(path)
    with pytest.raises(S2WrapError, match=f"of a picture of mode {mode}; leave bands out"):
        load_image(path, Reading(bands=(1, 1, 1)))


def test_a_deflated_dicom_is_refused_before_it_is_inflated():
    content = next(case.content for case in pictures.dicom_cases())
    deflated = content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99", 1)
    with pytest.raises(S2WrapError, match="a deflated DICOM file is not read"):
        decode_image(deflated, "x.dcm")


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (Reading(max_pixels=255), "16×16 pixels, more than max_pixels=255"),
        (Reading(max_memory=2000), "more than max_memory=2000"),
        (Reading(bands=(1, 4)), "bands=.1, 4., and the file has 3"),
    ],
)
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_limits_hold_before_decoding(tmp_path, reading, words, ending):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / f"x.{ending}")
    with pytest.raises(S2WrapError, match=words):
        load_image(tmp_path / f"x.{ending}", reading)


def test_time_ends_a_gif_of_a_header_and_zeros(tmp_path):
    path = tmp_path / "x.gif"
    path.write_bytes(b"GIF89a" + b"\x20\0\x20\0\x80\0\0" + bytes(6 + 30_000_000))
    with pytest.raises(S2WrapError, match="x.gif: not decoded after 1 seconds of the processor; raise max_seconds"):
        load_image(path, Reading(max_seconds=1))


def test_a_sparse_file_of_a_terabyte_is_refused_by_its_size(tmp_path):
    for start in (b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\0", b"\0\0\0\0"):
        with (tmp_path / "x.jpg").open("wb") as file:
            file.write(start)
            file.truncate(1 << 40)
        with pytest.raises(S2WrapError, match=r"x.jpg: a file of 1099511627776 bytes, more than max_memory"):
            load_image(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    "values", [{"bands": ()}, {"bands": (0,)}, {"bands": "432"}, {"max_pixels": 0}, {"value_range": (1, 0)}], ids=str
)
def test_readings_that_cannot_be_are_refused(values):
    with pytest.raises(S2WrapError, match=f"{next(iter(values))}="):
        Reading(**values)


def test_one_rule_says_what_is_a_picture_of_a_folder(tmp_path, capsys):
    for name in ("a.jpg", "b.JFIF", "c.avif", ".hidden.png", "._a.jpg", "notes.txt", "raw.CR2", "more.cr2"):
        (tmp_path / name).touch()
    for folder in (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").touch()
    left_out = LeftOut()
    assert [path.name for path in find_images([tmp_path], left_out)] == ["a.jpg", "b.JFIF", "c.avif"]
    assert str(left_out) == "2 .cr2, 1 .txt"
    for name in ("a.jpg", "b.JFIF", "c.avif"):
        Image.new("RGB", (40, 30)).save(tmp_path / name, {"c.avif": "AVIF"}.get(name, "JPEG"))
    words = ("features", tmp_path, "--model", "timm:test_vit@1", "--random-weights", "--output", tmp_path / "x.npz")
    assert run(*words) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("3 pictures")
    assert "left out, as no pictures by their endings: 2 .cr2, 1 .txt" in printed.err


def test_bands_and_limits_are_flags_of_features(tmp_path, capsys):
    import tifffile

    values = np.random.default_rng(0).integers(0, 256, (32, 32, 5), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="minisblack", planarconfig="contig")
    words = ("features", tmp_path / "x.tif", "--model", "timm:test_vit@1", "--random-weights")
    assert run(*words, "--output", tmp_path / "all.npz") == 2
    assert "images have shape (5, 32, 32); give (3, height, width), or choose bands" in capsys.readouterr().err
    assert run(*words, "--bands", "4,3,2", "--output", tmp_path / "some.npz") == 0
    Image.fromarray(values[..., [3, 2, 1]]).save(tmp_path / "rgb.png")
    assert run(*words[:1], tmp_path / "rgb.png", *words[2:], "--output", tmp_path / "rgb.npz") == 0
    some, rgb = np.load(tmp_path / "some.npz"), np.load(tmp_path / "rgb.npz")
    np.testing.assert_array_equal(some["spatial"], rgb["spatial"])
    capsys.readouterr()
    assert run(*words, "--bands", "4,3,2", "--max-pixels", "100", "--output", tmp_path / "few.npz") == 2
    assert "32×32 pixels, more than max_pixels=100" in capsys.readouterr().err
