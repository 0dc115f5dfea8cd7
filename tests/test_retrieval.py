import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from s2wrap.compare.tasks.retrieval import retrieve


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 60)
    return rng.normal(size=(60, 12)) + 2.5 * np.eye(12)[labels], labels


def test_the_figures_are_those_of_scikit_learn(data):
    vectors, labels = data
    found = retrieve(vectors, labels, [str(number) for number in range(60)])
    precisions, firsts = [], []
    for number in range(60):
        others = np.delete(np.arange(60), number)
        cosines = vectors[others] @ vectors[number] / np.linalg.norm(vectors[others], axis=1)
        precisions.append(average_precision_score(labels[others] == labels[number], cosines))
        nearest = KNeighborsClassifier(1, metric="cosine").fit(vectors[others], labels[others])
        firsts.append(nearest.predict(vectors[[number]])[0] == labels[number])
    assert found["mAP"].value == pytest.approx(np.mean(precisions))
    assert found["recall@1"].value == pytest.approx(np.mean(firsts))
    assert found["mAP"].pictures == 60
    assert 0.25 < found["mAP"].value < found["recall@1"].value < 1


def test_copies_of_a_picture_are_not_found_and_count_once_each(data):
    vectors, labels = data
    contents = [str(number) for number in range(60)]
    before = retrieve(vectors, labels, contents)
    doubled = retrieve(np.tile(vectors, (2, 1)), np.tile(labels, 2), contents * 2)
    assert doubled["recall@1"].value == before["recall@1"].value
    assert retrieve(3 * vectors, labels, contents)["mAP"].value == before["mAP"].value
