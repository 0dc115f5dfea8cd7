import struct
import zlib

import numpy as np
import pictures
import pytest
import torch
from PIL import Image
from skimage import data

from s2wrap import S2WrapError
from s2wrap.images import Reading, find_images, load_image

PHOTO = data.chelsea()  # 300 × 451


def pixels(path):
    image = load_image(path)
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("ending", ["png", "tiff", "bmp"])
def test_lossless_files_are_read_exactly(tmp_path, ending):
    Image.fromarray(PHOTO).save(tmp_path / f"photo.{ending}")
    np.testing.assert_array_equal(pixels(tmp_path / f"photo.{ending}"), PHOTO)


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_lossy_files_are_read_closely(tmp_path, ending):
    Image.fromarray(PHOTO).save(tmp_path / f"photo.{ending}", quality=95)
    assert np.abs(pixels(tmp_path / f"photo.{ending}").astype(int) - PHOTO).mean() < 3


def test_grey_16_bit_and_float_pictures_are_the_same_grey(tmp_path):
    grey = np.asarray(Image.fromarray(PHOTO).convert("L"))
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.tiff")
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "float.tiff")
    for name in ("8.png", "16.png", "16.tiff", "float.tiff"):
        np.testing.assert_array_equal(pixels(tmp_path / name), np.repeat(grey[:, :, None], 3, axis=2), err_msg=name)


def test_transparent_pixels_are_laid_on_white(tmp_path):
    rgba = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])
    rgba[:100, :, 3] = 0
    rgba[100:200, :, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    found = pixels(tmp_path / "rgba.png").astype(int)
    assert (found[:100] == 255).all()
    half = np.round(PHOTO[100:200] * (128 / 255) + 255 * (127 / 255))
    assert np.abs(found[100:200] - half).max() <= 1
    np.testing.assert_array_equal(found[200:], PHOTO[200:])


def test_palettes_bits_and_cmyk_become_rgb(tmp_path):
    photo = Image.fromarray(PHOTO)
    photo.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    photo.convert("1").save(tmp_path / "bits.png")
    photo.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    photo.convert("LA").save(tmp_path / "la.png")
    for name in ("palette.png", "bits.png", "cmyk.jpg", "la.png"):
        assert pixels(tmp_path / name).shape == PHOTO.shape
    assert np.abs(pixels(tmp_path / "cmyk.jpg").astype(int) - PHOTO).mean() < 5
    assert np.abs(pixels(tmp_path / "palette.png").astype(int) - PHOTO).mean() < 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_rotation_is_applied(tmp_path, orientation):
    stored = pictures.stored_turned(PHOTO)[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / "photo.png"), PHOTO)


def test_of_several_frames_the_first_is_taken(tmp_path):
    frames = [Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1].copy())]
    frames[0].save(tmp_path / "pages.tiff", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(tmp_path / "pages.tiff"), PHOTO)


def png_header(width, height):
    """A PNG of a few bytes that says it is huge."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_bombs_and_absurd_sizes_are_refused_before_decoding(tmp_path):
    path = tmp_path / "bomb.png"
    for side in (20_000, 60_000, 2**31 - 1):
        path.write_bytes(png_header(side, side))
        with pytest.raises(S2WrapError, match=r"bomb.png: .*178956970"):
            load_image(path)
    Image.fromarray(PHOTO).save(path)
    with pytest.raises(S2WrapError, match="300×451 pixels, more than max_pixels=1000"):
        load_image(path, Reading(max_pixels=1000))


def test_files_that_are_no_pictures_say_so(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").touch()
    for name in ("text.jpg", "empty.png"):
        with pytest.raises(S2WrapError, match=f"{name}: not a picture"):
            load_image(tmp_path / name)
    with pytest.raises(S2WrapError, match=r"none.png: there is no such file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(S2WrapError, match=r"is a folder; s2wrap.images.find_images\(\[.*\]\) lists its pictures"):
        load_image(tmp_path)
    (tmp_path / "wrong.png").write_bytes(png_header(0, 5))
    with pytest.raises(S2WrapError, match="wrong.png"):
        load_image(tmp_path / "wrong.png")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff", "bmp", "gif"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
def test_files_cut_short_are_errors_never_half_a_picture(tmp_path, ending, kept):
    whole = tmp_path / f"photo.{ending}"
    Image.fromarray(PHOTO).save(whole)
    content = whole.read_bytes()
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(S2WrapError, match=f"cut.{ending}: "):
        load_image(cut)


def test_damaged_files_give_a_picture_or_one_clear_error(tmp_path):
    """Bytes overwritten at random: whatever PIL's decoders make of it, nothing but S2WrapError may come out."""
    random = np.random.default_rng(0)
    small = Image.fromarray(PHOTO[:64, :64])
    failed = 0
    for ending in ("jpg", "png", "webp", "tiff", "bmp", "gif"):
        path = tmp_path / f"photo.{ending}"
        small.save(path)
        content = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            damaged = content.copy()
            damaged[random.integers(0, len(content), 8)] = random.integers(0, 256, 8)
            path.write_bytes(damaged.tobytes())
            try:
                assert load_image(path).shape[0] == 3
            except S2WrapError as error:
                assert "\n" not in str(error)
                failed += 1
    assert failed > 20


@pytest.mark.parametrize("values", [np.nan, np.inf, -0.5, 200.0])
def test_floats_outside_0_to_1_are_refused(tmp_path, values):
    Image.fromarray(np.full((8, 8), values, np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(S2WrapError, match="nothing says which of them are black and white"):
        load_image(tmp_path / "float.tiff")


def test_pictures_of_one_pixel_are_refused(tmp_path):
    Image.fromarray(PHOTO[:1]).save(tmp_path / "line.png")
    with pytest.raises(S2WrapError, match="1×451 pixels; each side needs at least 2"):
        load_image(tmp_path / "line.png")


def test_folders_are_searched_in_order(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("z.JPG", "b/a.png", "b/c/x.tif", "notes.txt"):
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in find_images([tmp_path])] == ["b/a.png", "b/c/x.tif", "z.JPG"]
    assert find_images([tmp_path / "notes.txt", tmp_path / "b"])[0].name == "notes.txt"
    with pytest.raises(S2WrapError, match="no such file or folder"):
        find_images([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(S2WrapError, match="no picture in"):
        find_images([tmp_path / "empty"])
