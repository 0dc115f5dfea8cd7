import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV

from s2wrap import S2WrapError
from s2wrap.compare.folds import Fold
from s2wrap.compare.tasks.regression import cell_means, regress

FOLDS = [Fold(np.arange(6), np.arange(6, 8)), Fold(np.arange(2, 8), np.arange(2))]
CONTENTS = list("abcdefgh")


@pytest.fixture
def data():
    """Maps of which one direction is the target, on the grid of the cells, and two more that are noise."""
    rng = np.random.default_rng(0)
    targets = [np.repeat(np.repeat(rng.uniform(1, 9, (5, 6)), 4, 0), 4, 1) for _ in range(8)]
    maps = []
    for target in targets:
        channels = rng.normal(size=(3, 5, 6))
        channels[0] += 0.5 * target[::4, ::4]
        maps.append(torch.from_numpy(channels).float())
    return maps, targets


def test_the_figures_are_those_of_scikit_learns_ridge_and_a_plain_loop(data):
    maps, targets = data
    found = regress(maps, targets, FOLDS, CONTENTS)
    right, squares, count = 0, 0.0, 0
    for fold in FOLDS:
        tokens = np.concatenate([maps[i].reshape(3, -1).T for i in fold.train])
        wanted = np.concatenate([targets[i][::4, ::4].ravel() for i in fold.train])
        ridge = RidgeCV(np.geomspace(1e-4, 1e2, 20)).fit(tokens, wanted)
        for i in fold.test:
            cells = torch.from_numpy(ridge.predict(maps[i].reshape(3, -1).T.numpy()).reshape(1, 1, 5, 6))
            fine = torch.nn.functional.interpolate(cells, (20, 24), mode="bilinear", align_corners=False)[0, 0].numpy()
            fine = fine.clip(wanted.min())
            right += int((np.maximum(fine / targets[i], targets[i] / fine) < 1.25).sum())
            squares += float(((fine - targets[i]) ** 2).sum())
            count += targets[i].size
    assert found["RMSE"].value == pytest.approx(np.sqrt(squares / count), rel=0.01)
    assert found["δ<1.25"].value == pytest.approx(right / count, abs=0.01)
    assert found["RMSE"].pictures == 4
    assert found["RMSE"].value < np.std(np.stack(targets))


def test_pixels_that_were_not_measured_do_not_count(data):
    maps, targets = data
    before = regress(maps, targets, FOLDS[:1], CONTENTS)
    holes = [target.copy() for target in targets]
    for each in holes:
        each[:4] = 0  # the first row of cells
    after = regress(maps, holes, FOLDS[:1], CONTENTS)
    assert after["RMSE"].value != before["RMSE"].value
    holes = [np.where(hole > 0, hole, 0) for hole in holes]
    lowered = [map_.clone() for map_ in maps]
    for map_ in lowered[:6]:
        map_[:, 0] = 1e6  # tokens without a target do not train
    assert regress(lowered, holes, FOLDS[:1], CONTENTS)["δ<1.25"].value == pytest.approx(after["δ<1.25"].value)
    with pytest.raises(S2WrapError, match="no cell of the training targets is measured"):
        regress(maps, [np.eye(20, 24) for _ in maps], FOLDS[:1], CONTENTS)


def test_cells_are_averaged_over_what_was_measured_where_half_was():
    target = np.array([[1.0, 3.0, 0.0, 5.0], [0.0, 2.0, 0.0, 0.0]])
    assert cell_means(target, (1, 2)).tolist() == [[[2.0, 0.0]]]
