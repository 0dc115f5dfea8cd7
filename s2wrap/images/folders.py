"""Which files of a folder are pictures: one rule for every command."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from s2wrap.errors import S2WrapError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".heic", ".heif", ".gif", ".bmp"),
    *(".tif", ".tiff", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".npy", ".dcm"),
)
"""Which files of a folder are pictures."""
ASIDE = ("@eaDir", "__MACOSX")
"""Folders that systems put beside pictures, with previews and metadata; hidden ones are left out as well."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is left out of folders unseen: .x, ._x, .ipynb_checkpoints, @eaDir, __MACOSX."""
    return name.startswith(".") or name in ASIDE


def is_picture(name: str) -> bool:
    """Whether a file name, or an address, is that of a picture in a folder."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not is_hidden(os.path.basename(name))


class LeftOut(Counter[str]):
    """The files of folders that are no pictures, counted by ending."""

    def add(self, name: str) -> None:
        """Count a file, unless it is hidden."""
        if not is_hidden(os.path.basename(name)):
            self[os.path.splitext(name)[1].lower() or "no ending"] += 1

    def __str__(self) -> str:
        return ", ".join(f"{count} {ending}" for ending, count in self.most_common(8))


def walk_folder(folder: str, left_out: LeftOut) -> Iterator[tuple[str, OSError | None]]:
    """The pictures below a folder, sorted by name within each; links to folders are not followed: they may loop.

    Among them are broken links, pipes and devices with the name of a picture: whoever reads them finds out. A folder
    below that cannot be listed comes with the error.

    Args:
        folder: a local folder.
        left_out: counts the other files.

    Raises:
        OSError: the folder itself cannot be listed.
    """
    stack = [_entries(folder)]  # of folders that are being searched: recursion would end at some depth
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif entry.is_dir(follow_symlinks=False):
            if not is_hidden(entry.name):
                try:
                    stack.append(_entries(entry.path))
                except OSError as error:
                    yield entry.path, error
        elif not is_picture(entry.name):
            left_out.add(entry.name)
        elif not (entry.is_symlink() and os.path.isdir(entry.path)):
            yield entry.path, None


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))


def find_images(paths: Iterable[str | Path], left_out: LeftOut | None = None) -> list[Path]:
    """The picture files among files and folders, folders searched all the way down, in a stable order.

    Files are taken whatever their name; of folders, those with a picture's ending that are not hidden. Links to files
    are followed, links to folders below the given ones are not. Broken links, pipes and devices are left out.

    Args:
        paths: files and folders.
        left_out: counts the files of folders that are no pictures.

    Raises:
        S2WrapError: a path does not exist, a folder cannot be read, or there is no picture at all.
    """
    paths, left_out = [Path(path) for path in paths], LeftOut() if left_out is None else left_out
    try:
        found = [file for path in paths for file in _files(path, left_out)]
    except OSError as error:
        raise S2WrapError(f"{str(error.filename)[:200]}: cannot be searched ({error.strerror})") from error
    if not found:
        where = ", ".join(map(str, paths)) or "nothing"
        raise S2WrapError(f"no picture in {where}; endings read: {', '.join(SUFFIXES)}; left out: {left_out or 'none'}")
    return found


def _files(path: Path, left_out: LeftOut) -> Iterable[Path]:
    """A file itself, or the pictures below a folder."""
    if len(path.name) > 255:
        raise S2WrapError(f"{path.name[:40]}…: no file has a name of {len(path.name)} characters")
    if not path.is_dir():
        if not path.exists():
            raise S2WrapError(f"{path}: there is no such file or folder")
        return [path]
    found: list[Path] = []
    for name, error in walk_folder(os.fspath(path), left_out):
        if error is not None:
            raise error
        if os.path.isfile(name):
            found.append(Path(name))
    return sorted(found)
