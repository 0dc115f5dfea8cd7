"""Quality on labelled pictures: the accuracy of simple classifiers on frozen feature vectors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from s2wrap.compare.folds import Fold, inner_folds
from s2wrap.compare.score import Score, mean_score
from s2wrap.compare.tasks.base import Task

STRENGTHS = tuple(10.0 ** np.arange(-3, 5))
"""Candidate values of C times the mean squared length of a vector, from a constant guess to hardly any penalty."""
NEIGHBOURS = (1, 3, 5, 10, 20)
"""Candidate values of k for k-NN, as far as there are pictures."""


class Classification(Task):
    """The task: simple classifiers of a vector a picture, see `classify`."""

    forms = ("labelled",)

    def score(self, spec: str) -> dict[str, Score]:
        """As `Task.score`."""
        from threadpoolctl import threadpool_limits

        pictures = self.bench.pictures
        with threadpool_limits(1):  # threads slow down many small fits
            return classify(self.bench.vectors(spec), pictures.labels, pictures.folds, pictures.contents)


def classify(
    vectors: ArrayLike, labels: ArrayLike | None, folds: Sequence[Fold], contents: Sequence[str]
) -> dict[str, Score]:
    """Return the accuracy of each classifier on the test pictures, by the classifier's name.

    "accuracy" is a linear probe (logistic regression with an L2 penalty), "k-NN" a vote of the nearest neighbours by
    cosine. C and k are chosen by cross-validation among the training pictures of a fold. Channels are standardised by
    the pictures that a classifier is fitted to, and C is relative to the vectors' squared length, so that repeated
    channels change nothing: models of different widths are regularised alike.

    Args:
        vectors: (n, d), one a picture; any finite numbers.
        labels: (n,) class numbers.
        folds: which pictures train and which test; each is tested at most once.
        contents: (n) a hash of each picture; copies have the same.
    """
    vectors, labels = np.asarray(vectors, dtype=np.float64), np.asarray(labels)
    correct = {name: np.zeros(len(labels)) for name in ("accuracy", "k-NN")}
    for fold in folds:
        task = _make_task(vectors, labels, fold)
        train = vectors[fold.train], labels[fold.train]
        inner = [_make_task(*train, part) for part in inner_folds(fold, labels, contents)]
        counts = [count for count in NEIGHBOURS if count <= min(len(part.train_labels) for part in inner)]
        for name, fit, options in (("accuracy", _fit_logistic, STRENGTHS), ("k-NN", _fit_nearest, counts)):
            correct[name][fold.test] = _is_correct(fit, _best_option(fit, options, inner), task)
    tested = np.sort(np.concatenate([fold.test for fold in folds]))
    return {name: mean_score(values[tested]) for name, values in correct.items()}


@dataclass(frozen=True)
class _Task:
    """Standardised vectors to train on (n, d) and to test on (m, d), with their labels (n,) and (m,)."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def _make_task(vectors: np.ndarray, labels: np.ndarray, fold: Fold) -> _Task:
    train, test = _standardise(vectors[fold.train], vectors[fold.test])
    return _Task(train, labels[fold.train], test, labels[fold.test])


def _standardise(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardise both by the mean and deviation of the training vectors, and project them onto the span of those.

    The projection is exact: a linear classifier with an L2 penalty and the order of cosines are the same in any
    rotation, and components outside the span of the training vectors have no weight and no part in inner products.
    """
    from sklearn.preprocessing import StandardScaler

    scaler: Any = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    if train.shape[0] >= train.shape[1]:
        return train, test
    span = np.linalg.qr(train.T)[0]
    return train @ span, test @ span


def _is_correct(fit: Callable[..., Any], option: float, task: _Task) -> np.ndarray:
    """Return for each test picture whether the fitted classifier is correct: (m,)."""
    return fit(option, task).predict(task.test) == task.test_labels


def _best_option(fit: Callable[..., Any], options: Sequence[float], tasks: Sequence[_Task]) -> float:
    """Return the option with the most correct predictions over all tasks; of equals, the first."""
    return max(options, key=lambda option: sum(_is_correct(fit, option, task).sum() for task in tasks))


def _fit_logistic(strength: float, task: _Task) -> Any:
    from sklearn.linear_model import LogisticRegression

    squared_length = np.square(task.train).sum(axis=1).mean() or 1.0
    return LogisticRegression(C=strength / squared_length, tol=1e-5, max_iter=10_000).fit(task.train, task.train_labels)


def _fit_nearest(count: int, task: _Task) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(count, metric="cosine").fit(task.train, task.train_labels)
