from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from s2wrap.compare.folds import Fold, deal, inner_folds
from s2wrap.compare.score import Score
from s2wrap.compare.tasks import classification as module
from s2wrap.compare.tasks.classification import classify


def pictures(count=90, classes=3, width=200, apart=3.0, seed=0):
    """Vectors around a mean of each class, their classes, and contents that all differ."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    means = rng.normal(size=(classes, width)) * apart / np.sqrt(width)
    return means[labels] + rng.normal(size=(count, width)), labels, [str(number) for number in range(count)]


@pytest.fixture
def right_of(monkeypatch):
    """`classify`, but what is right of each tested picture in place of scores."""
    monkeypatch.setattr(module, "mean_score", lambda parts: Score(0.0, np.array(parts), np.array(parts)))
    return lambda *args, **options: {name: score.samples for name, score in classify(*args, **options).items()}


@pytest.mark.parametrize("width", [8, 200])
def test_probes_are_those_of_a_grid_search_over_the_whole_pipeline(right_of, width):
    """Without a rotation, all by scikit-learn. Shares of inner folds of 16 pictures are exact: equals stay equal."""
    vectors, labels, contents = pictures(count=72, classes=4, width=width)
    folds = deal(labels, contents, 3)
    expected = {"accuracy": np.zeros(72), "k-NN": np.zeros(72)}
    for fold in folds:
        splits = [(part.train, part.test) for part in inner_folds(fold, labels, contents)]
        linear = LogisticRegression(tol=1e-7, max_iter=10_000)
        strengths = [strength / width for strength in module.STRENGTHS]
        for name, model, options in (
            ("accuracy", linear, {"logisticregression__C": strengths}),
            ("k-NN", KNeighborsClassifier(metric="cosine"), {"kneighborsclassifier__n_neighbors": [1, 3, 5, 10, 20]}),
        ):
            search = GridSearchCV(make_pipeline(StandardScaler(), model), options, cv=splits)
            search.fit(vectors[fold.train], labels[fold.train])
            expected[name][fold.test] = search.predict(vectors[fold.test]) == labels[fold.test]
    found = right_of(vectors, labels, folds, contents)
    assert 0.4 < expected["accuracy"].mean() < 0.95
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_two_gaussians_are_told_apart_as_well_as_bayes_can():
    rng = np.random.default_rng(0)
    labels = np.arange(3000) % 2
    vectors = rng.normal(size=(3000, 6)) + np.where(labels, 0.5, -0.5)[:, None]
    fold = Fold(np.arange(1500), np.arange(1500, 3000))
    best = norm.cdf(np.sqrt(6) / 2)
    found = classify(vectors, labels, [fold], list(map(str, range(3000))))
    noise = np.sqrt(best * (1 - best) / 1500)
    assert abs(found["accuracy"].value - best) < 3 * noise
    assert best - 0.05 < found["k-NN"].value < best + 3 * noise


def test_random_labels_give_chance():
    vectors, labels, contents = pictures(count=600, width=400, apart=0)
    fold = Fold(np.arange(300), np.arange(300, 600))
    for name, score in classify(vectors, labels, [fold], contents).items():
        assert abs(score.value - 1 / 3) < 3 * np.sqrt(2 / 9 / 300), name


def fitted(monkeypatch, fold, labels, contents):
    """Numbers of the pictures that any scikit-learn estimator was fitted to; the first channel tells them.

    Two channels: there is no rotation, and standardised rows are known by their bytes.
    """
    vectors = np.stack([np.arange(len(labels)), np.random.default_rng(0).normal(size=len(labels))], axis=1)
    numbers, seen = {}, set()
    fit, transform = StandardScaler.fit, StandardScaler.transform

    def spied_fit(self, rows, *args, **options):
        seen.update(rows[:, 0].astype(int).tolist())
        return fit(self, rows, *args, **options)

    def spied_transform(self, rows, *args, **options):
        found: Any = transform(self, rows, *args, **options)
        numbers.update({row.tobytes(): int(number) for row, number in zip(found, rows[:, 0], strict=True)})
        return found

    def spy(estimator):
        original = estimator.fit

        def spied(self, rows, answers):
            seen.update(numbers[row.tobytes()] for row in rows)
            return original(self, rows, answers)

        monkeypatch.setattr(estimator, "fit", spied)

    monkeypatch.setattr(StandardScaler, "fit", spied_fit)
    monkeypatch.setattr(StandardScaler, "transform", spied_transform)
    spy(LogisticRegression)
    spy(KNeighborsClassifier)
    classify(vectors, labels, [fold], contents)
    return seen


@pytest.mark.parametrize("number", range(5))
def test_no_tested_picture_reaches_a_fit(monkeypatch, number):
    _, labels, contents = pictures(count=60, classes=2)
    fold = deal(labels, contents)[number]
    assert fitted(monkeypatch, fold, labels, contents) == set(fold.train)


@pytest.mark.parametrize("fault", ["scaler", "classifier"])
def test_the_spy_would_see_a_tested_picture(monkeypatch, fault):
    _, labels, contents = pictures(count=60, classes=2)
    (fold, *_) = deal(labels, contents)
    if fault == "scaler":
        standardised = module._standardise
        everything = lambda train, test: (  # noqa: E731
            standardised(np.concatenate([train, test]), train)[1],
            standardised(np.concatenate([train, test]), test)[1],
        )
        monkeypatch.setattr(module, "_standardise", everything)
    if fault == "classifier":
        task = module._make_task

        def swapped(vectors, labels, fold):
            return task(vectors, labels, Fold(np.concatenate([fold.train, fold.test]), fold.test))

        monkeypatch.setattr(module, "_make_task", swapped)
    assert fitted(monkeypatch, fold, labels, contents) & set(fold.test)


def test_what_is_said_of_a_picture_does_not_depend_on_the_others_that_are_tested(right_of):
    vectors, labels, contents = pictures()
    (fold, *_) = deal(labels, contents)
    before = right_of(vectors, labels, [fold], contents)
    half = len(fold.test) // 2
    vectors[fold.test[half:]] = 1e6
    after = right_of(vectors, labels, [fold], contents)
    for name in before:
        np.testing.assert_array_equal(before[name][:half], after[name][:half], err_msg=name)


def test_channels_told_twice_or_constant_or_in_other_units_change_nothing(right_of):
    vectors, labels, contents = pictures(width=40)
    folds = deal(labels, contents)[:2]
    told = np.concatenate([vectors, 1000 * vectors + 7, np.full((90, 3), 2.0)], axis=1)
    one, other = right_of(vectors, labels, folds, contents), right_of(told, labels, folds, contents)
    assert list(one) == ["accuracy", "k-NN"]
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_two_runs_are_equal():
    vectors, labels, contents = pictures(count=60)
    folds = deal(labels, contents, 2)
    one, other = classify(vectors, labels, folds, contents), classify(vectors, labels, folds, contents)
    for name in one:
        assert one[name].value == other[name].value
        np.testing.assert_array_equal(one[name].samples, other[name].samples)


def test_a_score_is_over_all_tested_pictures_in_their_order():
    vectors, labels, contents = pictures(apart=2, width=10)
    folds = deal(labels, contents, 3)
    found = classify(vectors, labels, folds, contents)
    turned = classify(vectors, labels, folds[::-1], contents)
    assert found["accuracy"].pictures == 90
    np.testing.assert_array_equal(found["accuracy"].samples, turned["accuracy"].samples)
    assert classify(vectors, labels, folds[:1], contents)["k-NN"].pictures == len(folds[0].test)
