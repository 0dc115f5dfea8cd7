"""Hostile picture files through `load_image`, hostile folders through `find_images`.

The files are read by a child process (this file, run as a script), so that a crash, a hang or too much memory in a
decoder ends the child and not the tests. The child says which file it takes before it takes it.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from PIL import Image

from s2wrap import S2WrapError
from s2wrap.images import Reading, find_images, load_image, silence_decoders

SECONDS = 10
"""Of the processor, for a file."""
MAX_PIXELS = 1_000_000
CAP = 20 * MAX_PIXELS + 300_000_000
"""Bytes of memory for a file, as `load_image` says it: 20 a pixel, and 300 MB; 40 a byte of the file come on top."""
QUARTERS = {1: 0, 3: 2, 6: -1, 8: 1}
"""Quarter turns, counted against the clock, that make a picture of this EXIF orientation upright (EXIF 2.3, 4.6.4)."""


def outcome(path: Path) -> tuple[str, str]:
    """What came of a file, and what is wrong with that, if anything."""
    opened, error, image = set(os.listdir("/proc/self/fd")), None, None
    try:
        image = load_image(path, Reading(max_pixels=MAX_PIXELS))
    except BaseException as caught:
        error = caught
    left = set(os.listdir("/proc/self/fd")) - opened  # while the error lives, and the frames that it came through
    if left:
        return "", f"left {len(left)} files open"
    if image is not None:
        fine = image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] > 1 and min(image.shape[1:]) > 1
        return "a picture", "" if fine else f"gave {image.dtype} {tuple(image.shape)}"
    said = str(error)
    clear = type(error) is S2WrapError and said.startswith(f"{path}: ") and "\n" not in said
    return said.removeprefix(f"{path}: "), "" if clear and "MemoryError" not in said else repr(error)


def _status(name: str) -> int:
    """A size of this process in bytes, such as VmRSS."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def _reset_peak() -> int:
    """Forget the peak of memory so far, which a process takes over from its parent; the bytes that are held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def read_all(folder: str) -> None:
    """Read the files of names.json, a line of JSON before and after each; a signal ends what takes too long."""
    warnings.resetwarnings()
    warnings.simplefilter("always")
    silence_decoders()  # as every program of s2wrap does
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 4_000_000_000, held + 4_000_000_000))
    for number, name in enumerate(json.loads(Path(folder, "names.json").read_text())):
        print(json.dumps(name), flush=True)
        path = Path(folder, f"{number}.{name.rpartition('.')[2]}")
        before, started = _reset_peak(), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        what, fault = outcome(path)
        signal.setitimer(signal.ITIMER_PROF, 0)
        memory = _status("VmHWM") - before
        if memory > CAP + 40 * path.stat().st_size:
            fault = f"took {memory / 1e6:.0f} MB"
        print(json.dumps({"what": what, "fault": fault, "memory": memory, "seconds": time.process_time() - started}))


def measure(folder: str) -> None:
    """The bytes of memory a pixel that each file takes, each in a process of its own."""
    for path in sorted(Path(folder).iterdir()):
        if not os.fork():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            image = load_image(path)
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(json.dumps([path.name, (after - before) * 1024 * 3 / image.numel()]), flush=True)
            os._exit(0)
        os.wait()


def child(task: str, folder: Path) -> tuple[list, subprocess.CompletedProcess]:
    command = [sys.executable, __file__, task, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines()], done


def test_hostile_files_give_a_picture_or_one_clear_error(tmp_path):
    """No crash, no hang (10 s of the processor a file), no leak, nothing on stderr.

    No more memory than 20 bytes a pixel of max_pixels, 40 a byte of the file, and 300 MB.
    """
    names = []
    for number, (name, content) in enumerate(hostile.files()):
        (tmp_path / f"{number}.{name.rpartition('.')[2]}").write_bytes(content)
        names.append(name)
    (tmp_path / "names.json").write_text(json.dumps(names))
    said, done = child("read_all", tmp_path)
    assert done.returncode == 0, f"signal {-done.returncode} at {said[-1]!r}; {done.stderr[-500:]}"
    results = dict(zip(said[::2], said[1::2], strict=True))
    assert {name: result["fault"] for name, result in results.items() if result["fault"]} == {}
    assert done.stderr == ""
    counts = Counter(" ".join(result["what"].split()[:3]) for result in results.values())
    print(f"\n{len(results)} files, {sum(result['seconds'] for result in results.values()):.1f} s of the processor")
    for measured in ("seconds", "memory"):
        most = max(results, key=lambda name, measured=measured: results[name][measured])
        print(f"most {measured}: {results[most][measured]:,.1f} at {most}")
    print(*(f"{count:5} {words}" for words, count in counts.most_common(12)), sep="\n")
    assert len(results) > 2_000
    assert counts["a picture"] > 500
    for name in hostile.seeds():
        if name not in ("nan .tif", "int32 .tif", "LAB .tif", "float64 .tif"):
            assert results[name]["what"] == "a picture", name


def test_memory_a_pixel_is_what_the_docstring_says(tmp_path):
    """7 bytes for RGB (PIL's 4 and the result's 3), never more than 20."""
    side = 3000
    rgb = Image.fromarray(np.tile(np.linspace(0, 255, side * 3).astype(np.uint8).reshape(side, 1, 3), (1, side, 1)))
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(tmp_path / "rgb.png", compress_level=1)
    rgb.save(tmp_path / "turned.jpg", exif=exif)
    rgb.save(tmp_path / "progressive.jpg", progressive=True, subsampling=0)
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg", progressive=True)
    rgb.convert("RGBA").save(tmp_path / "alpha.png", compress_level=1)
    rgb.resize((side, side)).convert("RGBA").save(tmp_path / "lossless.webp", lossless=True, method=0, quality=0)
    rgb.save(tmp_path / "turned.webp", method=0, exif=exif)
    rgb.save(tmp_path / "strip.tif", compression="tiff_deflate", tiffinfo={278: side})
    Image.fromarray(np.asarray(rgb)[..., 0].astype(np.uint16) * 257).save(tmp_path / "16.png", compress_level=1)
    Image.fromarray(np.asarray(rgb)[..., 0].astype(np.float32) / 255).save(tmp_path / "float.tif")
    said, done = child("measure", tmp_path)
    assert done.returncode == 0, done.stderr
    found = dict(said)
    print("\n", *(f"{name}: {count:.1f} bytes a pixel\n" for name, count in found.items()))
    assert len(found) == 10
    assert found["rgb.png"] < 9
    assert max(found.values()) < 20


def test_pictures_of_many_blocks_are_read_exactly(tmp_path):
    random = np.random.default_rng(0)
    rgba = random.integers(0, 256, (1030, 2050, 4), np.uint8)
    rgba[..., 3] = random.choice([0, 255], (1030, 2050))
    on_white = np.where(rgba[..., 3:] == 0, 255, rgba[..., :3])
    Image.fromarray(rgba[..., :3].copy()).save(tmp_path / "rgb.bmp")
    Image.fromarray(rgba).save(tmp_path / "rgba.png", compress_level=1)
    Image.fromarray(rgba[..., 0].astype(np.uint16) * 257).save(tmp_path / "16.png", compress_level=1)
    for name, expected in {"rgb.bmp": rgba[..., :3], "rgba.png": on_white, "16.png": rgba[..., [0, 0, 0]]}.items():
        np.testing.assert_array_equal(load_image(tmp_path / name).permute(1, 2, 0).numpy(), expected, err_msg=name)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "raw.tif", "tiff_lzw.tif"])
@pytest.mark.parametrize("orientation", QUARTERS)
def test_every_format_is_turned_once(tmp_path, name, orientation):
    stored = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / name, exif=exif, lossless=True, compression=name.split(".")[0])
    found = load_image(tmp_path / name).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, np.rot90(stored, QUARTERS[orientation]))


def test_broken_exif_and_profiles_leave_the_pixels_as_they_are(tmp_path):
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    rgb.save(tmp_path / "a.jpg")
    for number, broken in enumerate((b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\xa5" * 99)):
        rgb.save(tmp_path / f"{number}.jpg", exif=broken, icc_profile=broken)
        assert torch.equal(load_image(tmp_path / f"{number}.jpg"), load_image(tmp_path / "a.jpg"))


def stop(*_):
    raise TimeoutError


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(S2WrapError, match=f"{name}: cannot be decoded; it is no file"):
            load_image(tmp_path / name)
    with pytest.raises(S2WrapError, match="folder.png is a folder"):
        load_image(tmp_path / "folder.png")
    signal.alarm(0)
    for name in ("loop.png", "gone.png"):
        with pytest.raises(S2WrapError, match=f"{name}: it is a link that leads nowhere"):
            load_image(tmp_path / name)
    for name in ("nul\0.png", "a" * 300):
        with pytest.raises(S2WrapError, match=f"{name}: there is no such file"):
            load_image(tmp_path / name)
    (tmp_path / "folder.png" / "a.png").touch()
    assert find_images([tmp_path]) == [tmp_path / "folder.png" / "a.png"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "a.png").touch()
    (inside / "a.png").symlink_to(outside / "a.png")
    (inside / "again").symlink_to(inside)
    (inside / "out").symlink_to(outside)
    assert find_images([inside]) == [inside / "a.png"]
    assert find_images([inside / "out"]) == [inside / "out" / "a.png"]


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "a.png").touch()
    (tmp_path / "b.png").touch()
    (tmp_path / "locked").chmod(0)
    if os.geteuid() == 0:  # who may read everything
        allowed = os.scandir

        def scandir(folder):
            if "locked" in folder:
                raise PermissionError(13, "Permission denied", folder)
            return allowed(folder)

        monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(S2WrapError, match=r"locked: cannot be searched \(Permission denied\)"):
        find_images([tmp_path])
    (tmp_path / "locked").chmod(0o700)


def test_names_that_are_not_utf8_are_found_and_read(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png"))
    Image.new("RGB", (4, 4)).save(path)
    assert find_images([tmp_path]) == [path]
    assert load_image(path).shape == (3, 4, 4)


def test_deep_folders_are_searched_as_far_as_paths_go(tmp_path):
    deep = [tmp_path]
    for _ in range(1_200):  # more than Python nests calls
        deep.append(deep[-1] / "d")
        deep[-1].mkdir()
    (deep[-1] / "a.png").touch()
    assert find_images([tmp_path]) == [deep[-1] / "a.png"]
    (deep[-1] / "a.png").unlink()
    for folder in reversed(deep[1:]):
        folder.rmdir()
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(25):  # more than the 4,096 bytes that a path may have
        os.mkdir("d" * 200, dir_fd=here)
        here, above = os.open("d" * 200, os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)
    with pytest.raises(S2WrapError, match=r"dddd: cannot be searched \(File name too long\)") as caught:
        find_images([tmp_path])
    assert len(str(caught.value)) < 300


if __name__ == "__main__":
    {"read_all": read_all, "measure": measure}[sys.argv[1]](sys.argv[2])
