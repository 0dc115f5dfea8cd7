"""A folder of pictures, with classes, with masks, or with neither; dealt into training and test."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2wrap.compare.folds import Fold, check_folds, deal
from s2wrap.errors import S2WrapError
from s2wrap.images import SUFFIXES, find_images, load_image

TEST_NAMES = ("val", "valid", "validation", "test")
"""What the folder beside `train` may be called."""
FEWEST = 4
"""Different pictures that a class must have, to be dealt into training and test, and training dealt again."""
IGNORED = 255
"""Value of mask pixels that do not count."""


@dataclass
class Pictures:
    """Pictures, and what is known of each.

    Attributes:
        paths: of the files.
        contents: a hash of each one's pixels: copies have the same.
        folds: which train, which test.
        classes: names of the classes; empty without labels.
        labels: (n,) index of each one's class; None without labels.
        masks: files of class numbers, one a picture; None without.
        skipped: what could not be read, with the reason.
    """

    paths: list[Path]
    contents: list[str]
    folds: list[Fold]
    classes: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    masks: list[Path] | None = None
    skipped: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """What is known: "labelled", "masked" or "plain"."""
        return "labelled" if self.labels is not None else "plain" if self.masks is None else "masked"


@dataclass(frozen=True)
class _Found:
    """A file of a folder."""

    path: Path
    label: str | None = None
    mask: Path | None = None
    tests: bool = False


def read_folder(
    folder: str | Path, *, skip_errors: bool = False, progress: Callable[[list[Any]], Iterable[Any]] = iter
) -> Pictures:
    """The pictures of a folder, all looked at once.

    Args:
        folder: `CLASS/…` (a folder a class); `images/` and `masks/` (a PNG of class numbers of the same name and size
            for each picture; 255 does not count); or just pictures. Any of them may stand in `train/` and `val/` (or
            `test/`), and is then not dealt into folds.
        skip_errors: leave out pictures and masks that cannot be read.
        progress: wraps the list of files that are read.

    Raises:
        S2WrapError: no pictures, one class, a class of less than four, a picture under two classes, or in training and
            test; masks that are missing, of another size or no class numbers; files that cannot be read, all of them
            named, unless they are skipped.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise S2WrapError(f"{folder}: there is no such folder")
    found = _find(folder)
    kept, contents, skipped = [], [], []
    for file in progress(found):
        try:
            contents.append(_read(file))
            kept.append(file)
        except S2WrapError as error:
            skipped.append(str(error))
    if skipped and not skip_errors:
        raise S2WrapError(
            f"{len(skipped)} of {len(found)} pictures cannot be used: {'; '.join(skipped[:5])}"
            f"{'; …' * (len(skipped) > 5)}; leave them out with --skip-errors (skip_errors=True)"
        )
    pair = any(file.tests for file in found)
    pictures = Pictures([file.path for file in kept], contents, [], skipped=skipped)
    if found[0].mask is not None:
        pictures.masks = [file.mask for file in kept if file.mask is not None]
    if found[0].label is not None:
        pictures.classes = tuple(sorted({file.label or "" for file in kept}))
        pictures.labels = np.array([pictures.classes.index(file.label or "") for file in kept])
    tests = np.array([file.tests for file in kept], dtype=bool)
    _check_enough(folder, pictures, tests, pair)
    if pair:
        pictures.folds = [Fold(np.flatnonzero(~tests), np.flatnonzero(tests))]
        _check_copies(pictures, tests)
    else:
        pictures.folds = deal(pictures.labels, contents)
    check_folds(pictures.folds, contents)
    return pictures


def _find(folder: Path) -> list[_Found]:
    """The files of a folder, in training and test or in one."""
    if not (folder / "train").is_dir():
        return _find_part(folder)
    others = [name for name in TEST_NAMES if (folder / name).is_dir()]
    if len(others) != 1:
        raise S2WrapError(
            f"{folder} has train/ and {', '.join(f'{name}/' for name in others) or 'nothing to test'}; have just "
            f"one of {', '.join(f'{name}/' for name in TEST_NAMES)}"
        )
    train, test = _find_part(folder / "train"), _find_part(folder / others[0])
    if (train[0].label is None, train[0].mask is None) != (test[0].label is None, test[0].mask is None):
        raise S2WrapError(f"{folder}: train/ and {others[0]}/ are laid out differently; both need classes, or masks")
    return train + [_Found(file.path, file.label, file.mask, tests=True) for file in test]


def _find_part(folder: Path) -> list[_Found]:
    if (folder / "images").is_dir() and (folder / "masks").is_dir():
        images = find_images([folder / "images"])
        masks = [folder / "masks" / path.relative_to(folder / "images").with_suffix(".png") for path in images]
        if missing := [mask for mask in masks if not mask.is_file()]:
            raise S2WrapError(f"{len(missing)} of {len(images)} pictures have no mask: there is no {missing[0]}")
        if len(set(masks)) < len(masks):
            raise S2WrapError(f"{folder / 'images'}: two pictures differ in their endings only, and share a mask")
        return [_Found(path, mask=mask) for path, mask in zip(images, masks, strict=True)]
    entries = [entry for entry in sorted(folder.iterdir()) if entry.name[0] != "."]  # an editor's own folders
    beside = [entry for entry in entries if entry.suffix.lower() in SUFFIXES and entry.is_file()]
    classes = [entry for entry in entries if entry.is_dir()]
    if beside and classes:
        raise S2WrapError(
            f"{folder} has pictures beside folders, such as {beside[0].name} and {classes[0].name}/; put each picture "
            f"into the folder of its class, or all into one"
        )
    if not classes:
        return [_Found(path) for path in beside or find_images([folder])]  # which tells that there is none
    return [_Found(path, label=each.name) for each in classes for path in find_images([each])]


def _read(file: _Found) -> str:
    """The hash of a picture's pixels. Raises S2WrapError if it, or its mask, cannot be used."""
    image = load_image(file.path)
    if file.mask is not None:
        mask = load_mask(file.mask)
        if mask.shape != image.shape[1:]:
            raise S2WrapError(
                f"{file.mask}: {mask.shape[0]}×{mask.shape[1]} pixels, but its picture has "
                f"{image.shape[1]}×{image.shape[2]}"
            )
        if (mask == IGNORED).all():
            raise S2WrapError(f"{file.mask}: every pixel is {IGNORED}, which does not count")
    return hashlib.sha256(str(tuple(image.shape)).encode() + image.numpy().tobytes()).hexdigest()


def load_mask(path: Path) -> np.ndarray:
    """The class numbers (height, width) of a mask, uint8; of a palette, its indices."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in ("L", "P", "1"):
                raise S2WrapError(f"{path}: a mask of mode {image.mode}; use grey (8 bits) or a palette: class numbers")
            return np.array(image, dtype=np.uint8)
    except S2WrapError:
        raise
    except Exception as error:  # PIL's decoders raise many kinds for damaged files
        raise S2WrapError(f"{path}: the mask cannot be read ({type(error).__name__})") from error


def _check_enough(folder: Path, pictures: Pictures, tests: np.ndarray, pair: bool) -> None:
    """Raise S2WrapError where there is nothing to tell apart, or too little of it."""
    if len(pictures.classes) == 1:
        raise S2WrapError(
            f"{folder} has one class, {pictures.classes[0]!r}: there is nothing to tell apart; give a folder for each "
            f"of two classes or more, or put pictures without classes beside each other in one folder"
        )
    groups = pictures.labels if pictures.labels is not None else np.zeros(len(tests), dtype=int)
    for label in range(max(1, len(pictures.classes))):
        for side, wanted in (("training", FEWEST), ("test", 1)) if pair else (("all", FEWEST),):
            members = (groups == label) & (True if side == "all" else tests == (side == "test"))
            different = len({pictures.contents[i] for i in np.flatnonzero(members)})
            if different < wanted:
                what = f"class {pictures.classes[label]!r}" if pictures.classes else "the folder"
                where = "" if side == "all" else f" for {side}"
                raise S2WrapError(
                    f"{folder}: {what} has {different} different pictures{where} that can be read; it needs "
                    f"{wanted} or more: add some, or take it out"
                )
    if pictures.labels is not None:
        owners: dict[str, int] = {}
        for index, (content, label) in enumerate(zip(pictures.contents, pictures.labels, strict=True)):
            first = owners.setdefault(content, index)
            if pictures.labels[first] != label:
                raise S2WrapError(
                    f"{pictures.paths[first]} and {pictures.paths[index]} are the same picture under two classes"
                )


def _check_copies(pictures: Pictures, tests: np.ndarray) -> None:
    """Raise S2WrapError for a picture that stands in training and in test."""
    trained = {pictures.contents[i]: i for i in np.flatnonzero(~tests)}
    copies = [i for i in np.flatnonzero(tests) if pictures.contents[i] in trained]
    if copies:
        twin = trained[pictures.contents[copies[0]]]
        raise S2WrapError(
            f"{len(copies)} pictures of the test stand in training too, such as {pictures.paths[copies[0]]} = "
            f"{pictures.paths[twin]}; a score on them would be a memory, not a skill: take them out of one"
        )
