"""Read a folder of pictures, with classes, masks, measurements or defects, and split it into training and test."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2wrap.compare.folds import Fold, deal
from s2wrap.errors import S2WrapError
from s2wrap.images import Reading, find_images, load_image
from s2wrap.images.folders import is_hidden, is_picture

TEST_NAMES = ("val", "valid", "validation", "test")
"""Accepted names of the folder of test pictures beside `train`."""
FEWEST = 4
"""Fewest different pictures of a class: enough to split into training and test, and training again."""
IGNORED = 255
"""Value of mask pixels that do not count."""
FORMS = {
    "labelled": "CLASS/… (a folder a class)",
    "masked": "images/ and masks/",
    "measured": "images/ and targets/",
    "defective": "train/good/, test/ or test_public/, and ground_truth/ (as MVTec AD, MVTec AD 2, VisA)",
    "plain": "just pictures",
}
"""The forms of folders."""
DEFECT_TESTS = ("test", "test_public")
"""Names of the folder of flawless and defective pictures; MVTec AD 2's `test_private` have no masks."""


@dataclass
class Pictures:
    """Pictures with their folds, and with labels or masks if there are any.

    Attributes:
        paths: the files.
        contents: a hash of each picture's pixels; copies have the same.
        folds: which pictures train and which test.
        kind: the form of the folder, one of `FORMS`.
        classes: names of the classes; empty without labels.
        labels: (n,) class index of each picture; None without labels.
        masks: files of class numbers, one a picture, or of measurements, or of defects (None for a flawless picture);
            None where pictures have none.
        sizes: height and width in pixels of each picture.
        skipped: messages about the files that could not be read.
    """

    paths: list[Path]
    contents: list[str]
    folds: list[Fold]
    kind: str = "plain"
    classes: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    masks: list[Path | None] | None = None
    sizes: list[tuple[int, int]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def is_tested(self, index: int) -> bool:
        """Whether a picture is tested in a fold."""
        return any(index in fold.test for fold in self.folds)


@dataclass(frozen=True)
class _File:
    """A picture's file, with its class or mask."""

    path: Path
    kind: str = "plain"
    label: str | None = None
    mask: Path | None = None
    is_test: bool = False


def read_folder(
    folder: str | Path, *, skip_errors: bool = False, progress: Callable[[list[Any]], Iterable[Any]] = iter
) -> Pictures:
    """Return the pictures of a folder, after reading every file once to check and hash it.

    Args:
        folder: `CLASS/…` (a folder a class); `images/` and `masks/` (a PNG of class numbers of the same name and size
            for each picture; 255 does not count); `images/` and `targets/` (an array of numbers, `.npy`, or a PNG of 8
            or 16 bits; what is not above 0 was not measured); or just pictures. Each of these may be divided into
            `train/` and `val/` (or `test/`), which then make the only fold. Or `train/good/`, `test/KIND/` (or
            `test_public/`) and, beside or in that, `ground_truth/KIND/NAME_mask.png` (or `NAME.png`), as MVTec AD,
            MVTec AD 2 and VisA's one-class split have them; other folders of these are not read.
        skip_errors: leave out pictures and masks that cannot be read.
        progress: wraps the list of files that are read.

    Raises:
        S2WrapError: no pictures, one class, a class of less than four pictures, a picture in two classes or in both
            training and test; masks that are missing, of another size or without class numbers; files that cannot be
            read, unless they are skipped.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise S2WrapError(f"{folder}: there is no such folder")
    files = _list_files(folder)
    readable, contents, sizes, skipped = [], [], [], []
    for file in progress(files):
        try:
            content, size = _hash_file(file)
            contents.append(content)
            sizes.append(size)
            readable.append(file)
        except S2WrapError as error:
            skipped.append(str(error))
    if skipped and not skip_errors:
        raise S2WrapError(
            f"{len(skipped)} of {len(files)} pictures cannot be used: {'; '.join(skipped[:5])}"
            f"{'; …' * (len(skipped) > 5)}; leave them out with --skip-errors (skip_errors=True)"
        )
    divided = any(file.is_test for file in files)
    pictures = Pictures([file.path for file in readable], contents, [], files[0].kind, sizes=sizes, skipped=skipped)
    if files[0].kind in LOADERS:
        pictures.masks = [file.mask for file in readable]
    if files[0].label is not None:
        pictures.classes = tuple(sorted({file.label or "" for file in readable}))
        pictures.labels = np.array([pictures.classes.index(file.label or "") for file in readable])
    is_test = np.array([file.is_test for file in readable], dtype=bool)
    _check(folder, pictures, is_test, divided)
    if divided:
        pictures.folds = [Fold(np.flatnonzero(~is_test), np.flatnonzero(is_test))]
    else:
        pictures.folds = deal(pictures.labels, contents)
    return pictures


def _list_files(folder: Path) -> list[_File]:
    """Return the pictures' files, of training and then of test where the folder is divided."""
    if not (folder / "train").is_dir():
        if sets := [name for name in _folders(folder) if (folder / name / "train" / "good").is_dir()]:
            raise S2WrapError(f"{folder} is no set but holds some: {', '.join(sets)}; give one: {folder / sets[0]}")
        return _list_part(folder)
    if _folders(folder / "train") == ["good"]:
        return _list_defects(folder)
    others = [name for name in TEST_NAMES if (folder / name).is_dir()]
    if len(others) != 1:
        raise S2WrapError(
            f"{folder} has train/ and {', '.join(f'{name}/' for name in others) or 'nothing to test'}; have just "
            f"one of {', '.join(f'{name}/' for name in TEST_NAMES)}"
        )
    train, test = _list_part(folder / "train"), _list_part(folder / others[0])
    if train[0].kind != test[0].kind:
        raise S2WrapError(
            f"{folder}: train/ and {others[0]}/ are laid out differently: {FORMS[train[0].kind]}, and "
            f"{FORMS[test[0].kind]}; both need classes, or masks"
        )
    return train + [replace(file, is_test=True) for file in test]


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def _list_part(folder: Path) -> list[_File]:
    if (folder / "images").is_dir() and (folder / "masks").is_dir():
        return _list_pairs(folder, "masks", "masked", "mask", (".png",))
    if (folder / "images").is_dir() and (folder / "targets").is_dir():
        return _list_pairs(folder, "targets", "measured", "target", (".npy", ".png"))
    entries = [entry for entry in sorted(folder.iterdir()) if not is_hidden(entry.name)]
    loose = [entry for entry in entries if is_picture(entry.name) and entry.is_file()]
    classes = [entry for entry in entries if entry.is_dir()]
    if loose and classes:
        raise S2WrapError(
            f"{folder} has pictures beside folders, such as {loose[0].name} and {classes[0].name}/; put each picture "
            f"into the folder of its class, or all into one. {_wanted()}"
        )
    if not classes:
        return [_File(path) for path in loose or find_images([folder])]  # find_images raises where there is none
    return [_File(path, "labelled", folder.name) for folder in classes for path in find_images([folder])]


def _list_pairs(folder: Path, name: str, kind: str, what: str, endings: Sequence[str]) -> list[_File]:
    """Return the pictures of `images/`, each with the file of the same name in another folder."""
    images = find_images([folder / "images"])
    stems = [folder / name / path.relative_to(folder / "images") for path in images]
    found = [[stem.with_suffix(ending) for ending in endings if stem.with_suffix(ending).is_file()] for stem in stems]
    if missing := [stem.with_suffix(endings[-1]) for stem, files in zip(stems, found, strict=True) if not files]:
        raise S2WrapError(f"{len(missing)} of {len(images)} pictures have no {what}: there is no {missing[0]}")
    if len({files[0] for files in found}) < len(found):
        raise S2WrapError(f"{folder / 'images'}: two pictures differ in their endings only, and share a {what}")
    return [_File(path, kind, mask=files[0]) for path, files in zip(images, found, strict=True)]


def _list_defects(folder: Path) -> list[_File]:
    """Return flawless pictures for training, and for test flawless and defective ones with their masks."""
    tests = [folder / name for name in DEFECT_TESTS if (folder / name).is_dir()]
    truths = [part / "ground_truth" for part in (folder, *tests) if (part / "ground_truth").is_dir()]
    if len(tests) != 1 or len(truths) != 1:
        found = ", ".join(f"{path.relative_to(folder)}/" for path in (folder / "train" / "good", *tests, *truths))
        raise S2WrapError(f"{folder} has {found}; it needs one folder of tests and one ground_truth/. {_wanted()}")
    files = [_File(path, "defective") for path in find_images([folder / "train" / "good"])]
    for kind in _folders(tests[0]):
        for path in find_images([tests[0] / kind]) if kind != "ground_truth" else ():
            masks = [truths[0] / kind / f"{path.stem}{ending}.png" for ending in ("_mask", "")]
            mask = None if kind == "good" else next(filter(Path.is_file, masks), masks[0])
            if mask is not None and not mask.is_file():
                raise S2WrapError(f"{path} has no mask: there is no {mask}, nor {masks[1].name}")
            files.append(_File(path, "defective", mask=mask, is_test=True))
    if len({file.mask is None for file in files if file.is_test}) < 2:
        raise S2WrapError(f"{tests[0]} needs both good/ and defective pictures, in a folder of their kind")
    return files


def _wanted() -> str:
    return f"Forms of a folder are: {'; '.join(FORMS.values())}"


def _hash_file(file: _File) -> tuple[str, tuple[int, int]]:
    """Return the hash of a picture's pixels, and its height and width.

    Raises:
        S2WrapError: the picture, or the file beside it, cannot be used.
    """
    image = load_image(file.path, Reading(value_range=(0, 1)))  # as they are, whatever a model takes them for
    if file.mask is not None:
        mask = LOADERS[file.kind](file.mask)
        if mask.shape != image.shape[1:]:
            raise S2WrapError(
                f"{file.mask}: {mask.shape[0]}×{mask.shape[1]} pixels, but its picture has "
                f"{image.shape[1]}×{image.shape[2]}"
            )
        if file.kind == "masked" and (mask == IGNORED).all():
            raise S2WrapError(f"{file.mask}: every pixel is {IGNORED}, which does not count")
        if file.kind != "masked" and not (mask > 0).any():
            raise S2WrapError(f"{file.mask}: no pixel is above 0: nothing was measured, or nothing is defective")
    content = hashlib.sha256(str(tuple(image.shape)).encode() + image.numpy().tobytes()).hexdigest()
    return content, (image.shape[1], image.shape[2])


def load_mask(path: Path) -> np.ndarray:
    """Return the class numbers (height, width) of a mask, uint8; for palette images their indices."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in ("L", "P", "1"):
                raise S2WrapError(f"{path}: a mask of mode {image.mode}; use grey (8 bits) or a palette: class numbers")
            return np.array(image, dtype=np.uint8)
    except S2WrapError:
        raise
    except Exception as error:  # PIL's decoders raise many kinds of errors for damaged files
        raise S2WrapError(f"{path}: the mask cannot be read ({type(error).__name__})") from error


def load_target(path: Path) -> np.ndarray:
    """Return measurements (height, width), float64; 0 where there is none."""
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path, formats=["PNG"]) as image:
                values = np.asarray(image)
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        raise S2WrapError(f"{path}: the target cannot be read ({type(error).__name__})") from error
    if values.ndim != 2 or values.dtype.kind not in "uif":
        raise S2WrapError(f"{path}: a target of shape {values.shape} and {values.dtype}; give numbers (height, width)")
    return np.where(np.isfinite(values) & (values > 0), values, 0).astype(np.float64)


LOADERS: dict[str, Callable[[Path], np.ndarray]] = {
    "masked": load_mask,
    "measured": load_target,
    "defective": load_mask,
}
"""What reads the files beside pictures, by form."""


def _check(folder: Path, pictures: Pictures, is_test: np.ndarray, divided: bool) -> None:
    """Raise S2WrapError for too few classes or pictures, or a picture in two classes, or in training and test."""
    if len(pictures.classes) == 1:
        raise S2WrapError(
            f"{folder} has one class, {pictures.classes[0]!r}: there is nothing to tell apart; give a folder for each "
            f"of two classes or more, or put pictures without classes beside each other in one folder. {_wanted()}"
        )
    groups = pictures.labels if pictures.labels is not None else np.zeros(len(is_test), dtype=int)
    for label in range(max(1, len(pictures.classes))):
        for side, wanted in (("training", FEWEST), ("test", 1)) if divided else (("all", FEWEST),):
            members = (groups == label) & (True if side == "all" else is_test == (side == "test"))
            different = len({pictures.contents[i] for i in np.flatnonzero(members)})
            if different < wanted:
                what = f"class {pictures.classes[label]!r}" if pictures.classes else "the folder"
                where = "" if side == "all" else f" for {side}"
                raise S2WrapError(
                    f"{folder}: {what} has {different} different pictures{where} that can be read; it needs "
                    f"{wanted} or more: add some, or take it out"
                )
    firsts: dict[str, int] = {}
    for index, content in enumerate(pictures.contents):
        first = firsts.setdefault(content, index)
        twins = f"{pictures.paths[first]} and {pictures.paths[index]} are the same picture"
        if groups[first] != groups[index]:
            raise S2WrapError(f"{twins} under two classes; leave it in one")
        if is_test[first] != is_test[index]:
            raise S2WrapError(
                f"{twins} in training and test: a score on it would be a memory, not a skill; take it out of one"
            )
