"""Quality on labelled pictures: how often simple classifiers on frozen vectors are right."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2wrap.compare.folds import Fold, check_folds, inner_folds
from s2wrap.compare.score import Score, mean_score
from s2wrap.errors import S2WrapError

STRENGTHS = tuple(10.0 ** np.arange(-3, 5))
"""What C times the squared length of a vector is tried at: from guessing by frequency to where nothing changes more."""
FEW_SHOT_STRENGTH = 1.0
"""The same, where there are too few pictures to choose by."""
NEIGHBOURS = (1, 3, 5, 10, 20)
"""What k of k-NN is tried at, as far as there are pictures."""
DRAWS = 10
"""Times that the pictures of a few-shot classifier are drawn."""


def classify(
    vectors: Any,
    labels: Any,
    folds: Sequence[Fold],
    contents: Sequence[str],
    *,
    shots: tuple[int, ...] = (1, 5),
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> dict[str, Score]:
    """The share of tested pictures that each classifier is right about, by its name.

    "accuracy" is a linear probe (logistic regression with an L2 penalty), "k-NN" a vote of the nearest by cosine, and
    "1-shot" is the linear probe on one picture a class. What they need to know beyond that (C, k) is chosen among the
    training pictures of a fold. Channels are standardised by the pictures that a classifier is fitted to, and C is
    relative to the vectors' squared length, so that channels told twice change nothing: models of different widths
    are regularised alike.

    Args:
        vectors: (n, d), one a picture; any finite numbers.
        labels: (n,) class numbers.
        folds: which pictures train and which test; each is tested at most once.
        contents: (n) a hash of each picture; copies have the same.
        shots: pictures a class of the few-shot classifiers; those that the rarest class cannot give are left out. Each
            is fitted to ten draws, the same for every model; of a picture counts the share of draws that were right.
        progress: wraps the list of folds.

    Raises:
        S2WrapError: a picture trains and is tested; one class, or a class with less than two different pictures to
            train; vectors that are not finite; lengths that differ.
    """
    vectors, labels = np.asarray(vectors, dtype=np.float64), np.asarray(labels)
    _check(vectors, labels, folds, contents)
    if min(shots, default=1) < 1:
        raise S2WrapError(f"shots={shots} asks for classifiers that saw nothing; use numbers from 1, such as (1, 5)")
    rarest = min(np.unique(labels[fold.train], return_counts=True)[1].min() for fold in folds)
    names = ["accuracy", "k-NN", *(f"{shot}-shot" for shot in shots if shot <= rarest)]
    right = {name: np.zeros(len(labels)) for name in names}
    for number, fold in enumerate(progress(list(folds))):
        task = _task(vectors, labels, fold)
        inner = [_task(vectors[fold.train], labels[fold.train], part) for part in inner_folds(fold, labels, contents)]
        counts = [count for count in NEIGHBOURS if count <= min(len(part.answers) for part in inner)]
        right["accuracy"][fold.test] = _right(_logistic, _best(_logistic, STRENGTHS, inner), task)
        right["k-NN"][fold.test] = _right(_nearest, _best(_nearest, counts, inner), task)
        for shot in shots:
            if shot <= rarest:
                right[f"{shot}-shot"][fold.test] = _few_shot(vectors, labels, fold, number, shot)
    tested = np.sort(np.concatenate([fold.test for fold in folds]))
    return {name: mean_score(values[tested]) for name, values in right.items()}


def draw(labels: np.ndarray, fold: Fold, shot: int, seed: tuple[int, int]) -> np.ndarray:
    """Training pictures of a fold, `shot` of each class, class by class; whatever the model.

    Args:
        labels: (n,) class numbers of all pictures.
        fold: whose `train` is drawn from.
        shot: pictures a class.
        seed: numbers of the fold and of the draw.

    >>> draw(np.array([0, 0, 0, 1, 1, 1]), Fold(np.arange(6), np.arange(0)), 2, (0, 0)).shape
    (4,)
    """
    rng = np.random.default_rng(seed)
    known = labels[fold.train]
    drawn = [rng.choice(fold.train[known == label], shot, replace=False) for label in np.unique(known)]
    return np.concatenate(drawn)


@dataclass(frozen=True)
class _Task:
    """What trains (n, d) and what is tested (m, d), standardised, with their classes."""

    train: np.ndarray
    answers: np.ndarray
    test: np.ndarray
    truth: np.ndarray


def _task(vectors: np.ndarray, labels: np.ndarray, fold: Fold) -> _Task:
    train, test = _standardised(vectors[fold.train], vectors[fold.test])
    return _Task(train, labels[fold.train], test, labels[fold.test])


def _standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both by the mean and deviation of what trains, in as few dimensions as that spans.

    Exact: a linear classifier with an L2 penalty and the order of cosines are the same in any rotation, and what lies
    outside the span of the training vectors has no weight and no part in an inner product with them.
    """
    from sklearn.preprocessing import StandardScaler

    scaler: Any = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    if train.shape[0] >= train.shape[1]:
        return train, test
    span = np.linalg.qr(train.T)[0]
    return train @ span, test @ span


def _right(fit: Callable[..., Any], option: float, task: _Task) -> np.ndarray:
    """Whether a classifier is right about each tested picture: (m,)."""
    return fit(option, task).predict(task.test) == task.truth


def _best(fit: Callable[..., Any], options: Sequence[float], tasks: Sequence[_Task]) -> float:
    """The option that is right most often; of several, the first."""
    return max(options, key=lambda option: sum(_right(fit, option, task).sum() for task in tasks))


def _few_shot(vectors: np.ndarray, labels: np.ndarray, fold: Fold, number: int, shot: int) -> np.ndarray:
    """The share of draws that were right about each picture that the fold tests."""
    parts = [Fold(draw(labels, fold, shot, (number, time)), fold.test) for time in range(DRAWS)]
    return np.mean([_right(_logistic, FEW_SHOT_STRENGTH, _task(vectors, labels, part)) for part in parts], axis=0)


def _logistic(strength: float, task: _Task) -> Any:
    from sklearn.linear_model import LogisticRegression

    squared_length = np.square(task.train).sum(axis=1).mean() or 1.0
    return LogisticRegression(C=strength / squared_length, tol=1e-5, max_iter=10_000).fit(task.train, task.answers)


def _nearest(count: int, task: _Task) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(count, metric="cosine").fit(task.train, task.answers)


def _check(vectors: np.ndarray, labels: np.ndarray, folds: Sequence[Fold], contents: Sequence[str]) -> None:
    """Raise S2WrapError where nothing can be learnt, or what is learnt would not count."""
    if vectors.ndim != 2 or not len(vectors) == len(labels) == len(contents):
        raise S2WrapError(
            f"vectors {vectors.shape} with {len(labels)} labels and {len(contents)} contents; give one row (n, d), one "
            f"label and one hash a picture"
        )
    if len(broken := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
        raise S2WrapError(
            f"the vectors of {len(broken)} pictures hold NaN or infinite values, such as that of picture {broken[0]}; "
            f"leave them out, or use a model whose features are finite"
        )
    if len(names := np.unique(labels)) < 2:
        raise S2WrapError(f"all pictures are of class {names.tolist()}; a classifier needs two classes or more")
    check_folds(folds, contents)
    for number, fold in enumerate(folds):
        for label in np.unique(labels[np.concatenate([fold.train, fold.test])]):
            different = {contents[index] for index in fold.train[labels[fold.train] == label]}
            if len(different) < 2:
                raise S2WrapError(
                    f"class {label} has {len(different)} different pictures to train in fold {number}; C and k are "
                    f"chosen among those that train, which takes two or more: add pictures, or leave the class out"
                )
