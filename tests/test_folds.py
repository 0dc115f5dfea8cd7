import numpy as np
import pytest

from s2wrap import S2WrapError
from s2wrap.compare.folds import deal, inner_folds


def test_classes_are_spread_evenly():
    labels = np.repeat([0, 1], [30, 10])
    for fold in deal(labels, [str(i) for i in range(40)]):
        assert np.bincount(labels[fold.test]).tolist() == [6, 2]


def test_there_are_no_more_folds_than_the_rarest_class_has_different_pictures():
    contents = [*"abcdefgh", "x", "x", "y", "z"]
    assert len(deal([0] * 8 + [1] * 4, contents)) == 3


def test_inner_folds_hold_training_pictures_only():
    labels, contents = np.arange(40) % 2, [str(i) for i in range(40)]
    for fold in deal(labels, contents):
        for inner in inner_folds(fold, labels, contents):
            assert not set(inner.train) & set(inner.test)
            assert sorted([*inner.train, *inner.test]) == list(range(len(fold.train)))


def test_each_picture_is_tested_once_and_copies_stay_together():
    contents = [str(i % 17) for i in range(40)]
    for labels in (None, np.array([int(content) % 2 for content in contents])):
        folds = deal(labels, contents)
        assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(40))
        for fold in folds:
            assert sorted([*fold.train, *fold.test]) == list(range(40))
            assert not {contents[i] for i in fold.train} & {contents[i] for i in fold.test}


def test_one_picture_cannot_be_dealt():
    with pytest.raises(S2WrapError, match="1 different pictures of a class cannot be dealt"):
        deal([0, 0, 1], ["a", "b", "c"])
