import shutil

import numpy as np
import pytest
from PIL import Image

from s2wrap import S2WrapError
from s2wrap.compare.data import load_mask, load_target, read_folder


def picture(path, seed, hw=(40, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)).save(path)
    return path


def classes(folder, count=6, names=("cat", "dog"), seed=0):
    for number, name in enumerate(names):
        for i in range(count):
            picture(folder / name / f"{i}.png", seed + 100 * number + i)
    return folder


def masked(folder, count=6, seed=0):
    for i in range(count):
        picture(folder / "images" / f"{i}.png", seed + i)
        (folder / "masks").mkdir(exist_ok=True)
        mask = np.random.default_rng(i).integers(0, 3, (40, 50), dtype=np.uint8)
        mask[0, 0] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    return folder


def test_folders_are_classes_and_each_picture_is_tested_once(tmp_path):
    pictures = read_folder(classes(tmp_path, names=("dog", "cat", "bird")))
    assert pictures.kind == "labelled"
    assert pictures.classes == ("bird", "cat", "dog")
    assert [pictures.classes[label] for label in pictures.labels] == [path.parent.name for path in pictures.paths]
    tested = np.concatenate([fold.test for fold in pictures.folds])
    assert sorted(tested) == list(range(18))
    for fold in pictures.folds:
        assert not set(fold.train) & set(fold.test)
        assert set(fold.train) | set(fold.test) == set(range(18))


def test_a_pair_of_folders_is_one_fold(tmp_path):
    classes(tmp_path / "train", 5)
    classes(tmp_path / "val", 2, seed=1000)
    pictures = read_folder(tmp_path)
    (fold,) = pictures.folds
    assert {pictures.paths[i].parts[-3] for i in fold.train} == {"train"}
    assert {pictures.paths[i].parts[-3] for i in fold.test} == {"val"}
    assert (len(fold.train), len(fold.test)) == (10, 4)


def test_masks_and_plain_pictures_are_told_by_the_folder(tmp_path):
    pictures = read_folder(masked(tmp_path / "a"))
    assert pictures.kind == "masked"
    assert [path.stem for path in pictures.masks] == [path.stem for path in pictures.paths]
    assert load_mask(pictures.masks[0]).max() == 255
    for i in range(6):
        picture(tmp_path / "b" / f"{i}.png", i)
    assert read_folder(tmp_path / "b").kind == "plain"


def test_copies_of_a_picture_stay_in_one_fold_whatever_their_file(tmp_path):
    classes(tmp_path, 10)
    for i in range(9):
        Image.open(tmp_path / "cat" / "0.png").save(tmp_path / "cat" / f"copy{i}.webp", lossless=True)
    pictures = read_folder(tmp_path)
    copies = {i for i, path in enumerate(pictures.paths) if path.stem.startswith("copy") or path.name == "0.png"}
    copies &= {i for i, path in enumerate(pictures.paths) if path.parent.name == "cat"}
    assert len(copies) == 10
    assert [len(copies & set(fold.test)) for fold in pictures.folds].count(10) == 1


def test_classes_may_be_links_and_hidden_folders_are_none(tmp_path):
    classes(tmp_path / "elsewhere", names=("cat", "dog"))
    classes(tmp_path / "data", names=("cat", ".ipynb_checkpoints"))
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere" / "dog", target_is_directory=True)
    pictures = read_folder(tmp_path / "data")
    assert pictures.classes == ("cat", "dog")
    assert len(pictures.paths) == 12


def test_two_readings_are_the_same(tmp_path):
    one, two = (read_folder(classes(tmp_path)) for _ in range(2))
    assert one.contents == two.contents
    assert all(np.array_equal(a.test, b.test) for a, b in zip(one.folds, two.folds, strict=True))


def test_unreadable_files_are_all_named_and_left_out_only_when_asked(tmp_path):
    classes(tmp_path)
    (tmp_path / "cat" / "bad.jpg").write_bytes(b"no picture")
    (tmp_path / "dog" / "cut.png").write_bytes((tmp_path / "dog" / "0.png").read_bytes()[:2000])
    with pytest.raises(S2WrapError, match="2 of 14 pictures cannot be used") as error:
        read_folder(tmp_path)
    assert "bad.jpg" in str(error.value)
    assert "cut.png" in str(error.value)
    assert "--skip-errors" in str(error.value)
    pictures = read_folder(tmp_path, skip_errors=True)
    assert len(pictures.paths) == len(pictures.labels) == 12
    assert len(pictures.skipped) == 2


def leak(folder):
    classes(folder / "train", 5)
    classes(folder / "val", 2, seed=1000)
    Image.open(folder / "train" / "cat" / "1.png").save(folder / "val" / "cat" / "other.bmp")


def same_under_two(folder):
    classes(folder)
    Image.open(folder / "cat" / "1.png").save(folder / "dog" / "twin.png")


def other_size(folder):
    masked(folder)
    Image.fromarray(np.zeros((40, 49), dtype=np.uint8)).save(folder / "masks" / "3.png")


def colour_mask(folder):
    masked(folder)
    picture(folder / "masks" / "3.png", 0)


def no_mask(folder):
    masked(folder)
    (folder / "masks" / "3.png").unlink()


def beside(folder):
    classes(folder)
    picture(folder / "stray.png", 7)


def two_tests(folder):
    for name in ("train", "val", "test"):
        classes(folder / name, 5)


def mixed(folder):
    classes(folder / "train", 5)
    for i in range(5):
        picture(folder / "val" / f"{i}.png", i)


def unknown_class(folder):
    classes(folder / "train", 5)
    classes(folder / "val", 2, names=("cat", "cow"), seed=1000)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "no picture in"),
        (lambda folder: classes(folder, names=("cat",)), "one class, 'cat'"),
        (lambda folder: classes(folder, count=2), "class 'cat' has 2 different pictures that can be read; it needs 4"),
        (leak, r"1\.png and .*other\.bmp are the same picture in training and test"),
        (same_under_two, "are the same picture under two classes"),
        (other_size, r"3\.png: 40×49 pixels, but its picture has 40×50"),
        (colour_mask, "a mask of mode RGB; use grey"),
        (no_mask, r"1 of 6 pictures have no mask: there is no .*3\.png"),
        (beside, r"has pictures beside folders, such as stray\.png and cat/"),
        (two_tests, "has train/ and val/, test/; have just one of"),
        (lambda folder: classes(folder / "train"), "has train/ and nothing to test"),
        (mixed, "are laid out differently"),
        (unknown_class, "class 'cow' has 0 different pictures for training"),
    ],
)
def test_wrong_folders_are_told(tmp_path, make, words):
    make(tmp_path)
    with pytest.raises(S2WrapError, match=words):
        read_folder(tmp_path)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(S2WrapError, match="there is no such folder"):
        read_folder(tmp_path / "none")


def measured(folder, count=6, ending=".npy"):
    for i in range(count):
        picture(folder / "images" / f"{i}.jpg", i)
        (folder / "targets").mkdir(exist_ok=True)
        values = np.random.default_rng(i).integers(0, 60_000, (40, 50))
        if ending == ".npy":
            np.save(folder / "targets" / f"{i}.npy", values.astype(np.float32))
        else:
            Image.fromarray(values.astype(np.uint16)).save(folder / "targets" / f"{i}.png")
    return folder


def defective(folder, test="test", truth="ground_truth", ending="_mask.png"):
    for i in range(5):
        picture(folder / "train" / "good" / f"{i}.png", i)
        picture(folder / test / "good" / f"{i}.png", 100 + i)
        picture(folder / test / "hole" / f"{i}.bmp", 200 + i)
        (folder / truth / "hole").mkdir(parents=True, exist_ok=True)
        mask = np.zeros((40, 50), dtype=np.uint8)
        mask[3:9, 4:20] = 255
        Image.fromarray(mask).save(folder / truth / "hole" / f"{i}{ending}")
    return folder


@pytest.mark.parametrize("ending", [".npy", ".png"])
def test_measurements_stand_beside_pictures_as_arrays_or_as_16_bits(tmp_path, ending):
    pictures = read_folder(measured(tmp_path, ending=ending))
    assert pictures.kind == "measured"
    assert pictures.sizes == [(40, 50)] * 6
    expected = np.random.default_rng(2).integers(0, 60_000, (40, 50))
    assert np.array_equal(load_target(pictures.masks[2]), expected)
    assert len(pictures.folds) == 5
    np.save(tmp_path / "x.npy", np.array([[np.nan, -1, 2.5]]))
    assert load_target(tmp_path / "x.npy").tolist() == [[0, 0, 2.5]]


def test_flawless_pictures_train_and_defective_ones_are_tested_with_their_masks(tmp_path):
    pictures = read_folder(defective(tmp_path))
    assert pictures.kind == "defective"
    (fold,) = pictures.folds
    assert {pictures.paths[i].parts[-3:-1] for i in fold.train} == {("train", "good")}
    assert len(fold.test) == 10
    for index in fold.test:
        kind = pictures.paths[index].parent.name
        assert (pictures.masks[index] is None) == (kind == "good")
    assert pictures.masks[-1].name == "4_mask.png"


def test_the_sets_of_mvtec_ad_2_and_visa_are_read_by_their_own_names(tmp_path):
    as_mvtec_ad = read_folder(defective(tmp_path / "mvtec"))
    visa = defective(tmp_path / "visa", ending=".png")
    second = defective(tmp_path / "mvtec2", "test_public", "test_public/ground_truth")
    picture(second / "validation" / "good" / "0.png", 300)  # for a threshold
    picture(second / "test_private" / "0.png", 301)  # without masks
    picture(second / "test_private_mixed" / "0.png", 302)
    for folder in (visa, second):
        pictures = read_folder(folder)
        assert pictures.kind == "defective"
        assert pictures.contents == as_mvtec_ad.contents
        assert [mask and mask.stem[0] for mask in pictures.masks] == [m and m.stem[0] for m in as_mvtec_ad.masks]
        assert all(mask is None or load_mask(mask).sum() == 255 * 6 * 16 for mask in pictures.masks)


def without_ground_truth(folder):
    shutil.rmtree(defective(folder) / "ground_truth")


def without_a_mask(folder):
    (defective(folder) / "ground_truth" / "hole" / "2_mask.png").unlink()


def two_ground_truths(folder):
    defective(defective(folder), "test_public", "test_public/ground_truth")


def sets_of_parts(folder):
    for name in ("bottle", "cable"):
        defective(folder / name)


def without_good(folder):
    shutil.rmtree(defective(folder) / "test" / "good")


def flawless_mask(folder):
    Image.new("L", (50, 40)).save(defective(folder) / "ground_truth" / "hole" / "2_mask.png")


def no_target(folder):
    (measured(folder) / "targets" / "3.npy").unlink()


def colour_target(folder):
    np.save(measured(folder) / "targets" / "3.npy", np.ones((40, 50, 3)))


def images_alone(folder):
    for i in range(5):
        picture(folder / "images" / f"{i}.png", i)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (without_ground_truth, r"has train/good/, test/; it needs one .* one ground_truth/\. Forms .*as MVTec AD"),
        (two_ground_truths, r"has train/good/, test/, test_public/, ground_truth/, test_public/ground_truth/;"),
        (sets_of_parts, r"is no set but holds some: bottle, cable; give one: .*bottle"),
        (without_a_mask, r"hole/2\.bmp has no mask: there is no .*2_mask\.png, nor 2\.png"),
        (without_good, "needs both good/ and defective pictures"),
        (flawless_mask, r"2_mask\.png: no pixel is above 0"),
        (no_target, r"1 of 6 pictures have no target: there is no .*3\.png"),
        (colour_target, r"3\.npy: a target of shape \(40, 50, 3\)"),
        (images_alone, "has one class, 'images': .* Forms of a folder are: CLASS/"),
    ],
)
def test_forms_that_are_not_whole_say_what_is_missing_and_what_is_wanted(tmp_path, make, words):
    make(tmp_path)
    with pytest.raises(S2WrapError, match=words):
        read_folder(tmp_path)
