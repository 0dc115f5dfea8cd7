"""A wrapped model in other libraries, one test a row of the table of docs/pages/how-to/integrations.md."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import s2wrap
from s2wrap.errors import S2WrapError

ROOT = Path(__file__).parent.parent
INTEGRATIONS = "needs the [integrations] extra"
SPEC = "timm:test_vit"
RANDOM = {"pretrained": False}


@pytest.fixture(scope="module")
def pictures():
    return list(np.random.default_rng(0).integers(0, 256, (6, 60, 80, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return s2wrap.load(SPEC, scales=(1, 2), pretrained=False)


@pytest.fixture(scope="module")
def expected(model, pictures):
    with torch.no_grad():
        return np.stack([model(picture).pooled[0].numpy() for picture in pictures])


def transformer(**parameters):
    pytest.importorskip("sklearn", reason="needs the [compare] extra")
    from s2wrap.sklearn import FeatureTransformer

    parameters = {"model": SPEC, "scales": (1, 2), "options": RANDOM} | parameters
    return FeatureTransformer(**parameters)


def test_a_transformer_gives_the_vectors_of_encode_for_pictures_of_every_kind(pictures, tmp_path):
    each = transformer()
    model = each.wrapped()
    paths = [tmp_path / f"{n}.png" for n in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    with torch.no_grad():
        found = model.encode(pictures)
    mean = np.stack([one.spatial[0].mean((1, 2)).numpy() for one in found])
    cls = np.stack([one.prefix[0, 0].numpy() for one in found])
    for kind in (pictures, paths, list(map(str, paths)), [Image.open(path) for path in paths], np.stack(pictures)):
        np.testing.assert_allclose(each.transform(kind), mean, atol=1e-6)
    wanted = {"mean": mean, "cls": cls, "cls+mean": np.concatenate([cls, mean], axis=1)}
    for vector, values in wanted.items():
        other = transformer(vector=vector)
        np.testing.assert_allclose(other.fit_transform(pictures), values, atol=1e-6)
        assert len(other.get_feature_names_out()) == values.shape[1]
    assert each.get_feature_names_out()[0] == "featuretransformer0"


def test_a_transformer_keeps_the_laws_of_scikit_learn(pictures):
    from sklearn.base import clone

    each = transformer()
    before = each.transform(pictures)
    parameters = each.get_params()
    again, copied = clone(each), pickle.loads(pickle.dumps(each))
    for other in (again, copied):
        assert other.get_params() == parameters
        assert other.wrapped() is each.wrapped()  # made once a process
        assert np.array_equal(other.transform(pictures), before)
    assert each.fit(pictures, [0] * 6) is each
    assert vars(each) == parameters
    assert len(pickle.dumps(each)) < 1000
    changed = again.set_params(scales=(1, 3), vector="cls")
    assert changed.transform(pictures[:2]).shape == (2, 128)
    assert changed.wrapped() is not each.wrapped()
    assert each.set_output(transform="pandas").transform(pictures).shape == (6, 128)


def test_a_transformer_reads_a_folder_anew_once_a_model_is_saved_there_again(pictures, tmp_path):
    each = transformer(model=tmp_path / "saved", scales=None, options=None)
    for _ in range(2):
        other = s2wrap.load(SPEC, scales=(1, 2), pretrained=False)
        other.save(tmp_path / "saved", overwrite=True)
        expected = np.stack([features.pooled[0].numpy() for features in other.encode(pictures)])
        np.testing.assert_allclose(each.transform(pictures), expected, atol=1e-6)


def test_a_transformer_takes_models_and_says_what_is_wrong(pictures, model, expected):
    np.testing.assert_allclose(transformer(model=model, scales=None, options=None).transform(pictures), expected)
    vit = model.backbone.model
    np.testing.assert_allclose(transformer(model=vit, options=None).transform(pictures), expected, atol=1e-6)
    with pytest.raises(S2WrapError, match="scales for a model that is wrapped already"):
        transformer(model=model, options=None).fit()
    with pytest.raises(S2WrapError, match=r"vector='max' is none; use one of mean, cls, cls\+mean, joint"):
        transformer(vector="max").fit()
    with pytest.raises(S2WrapError, match="no embedding in a space with text"):
        transformer(vector="joint").fit()
    assert transformer().transform([]).shape == (0, 128)


def test_a_grid_search_over_scales_has_the_scores_of_a_loop(pictures):
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline

    labels = [0, 1, 0, 1, 0, 1]
    pipeline = make_pipeline(transformer(), RidgeClassifier())
    grid = {"featuretransformer__scales": [(1,), (1, 2)]}
    search = GridSearchCV(pipeline, grid, cv=2, refit=False, error_score="raise").fit(pictures, labels)
    for scales, score in zip(grid["featuretransformer__scales"], search.cv_results_["mean_test_score"], strict=True):
        vectors = transformer(scales=scales).transform(pictures)
        assert score == cross_val_score(RidgeClassifier(), vectors, labels, cv=2).mean()


HASHES = """
import sys, timm, torch, s2wrap
from datasets.fingerprint import Hasher
def made(scales):
    torch.manual_seed(0)
    return s2wrap.wrap(timm.create_model("test_vit", num_classes=0), scales, fit="pad")
def hashed(model):
    def vectors(rows):
        return {"vector": model(rows["image"]).pooled}
    return Hasher.hash(model), Hasher.hash(vectors)
"""


def test_the_fingerprint_of_a_data_set_is_that_of_equal_models_in_any_process_and_called_or_not():
    pytest.importorskip("datasets", reason=INTEGRATIONS)
    names = {}
    exec(HASHES, names)
    made, hashed = names["made"], names["hashed"]
    model = made((1, 2))
    first = hashed(model)
    assert hashed(made((1, 2))) == first
    for one, two in zip(first, hashed(made((1, 3))), strict=True):
        assert one != two
    with torch.inference_mode():
        model(torch.zeros(1, 3, 90, 70))
    model.encode([torch.zeros(3, 40, 50)])
    assert not model.backbone.refuses_other_sizes
    assert hashed(model) == first
    code = HASHES + "print(hashed(made((1, 2)))[0])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == first[0]


def test_a_data_set_maps_with_a_wrapped_model(pictures, model, expected, tmp_path):
    datasets = pytest.importorskip("datasets", reason=INTEGRATIONS)
    data = datasets.Dataset.from_dict({"image": [Image.fromarray(picture) for picture in pictures]})

    def vectors(rows):
        with torch.inference_mode():
            return {"vector": [features.pooled[0].numpy() for features in model.encode(rows["image"])]}

    first = data.map(vectors, batched=True, batch_size=4, cache_file_name=str(tmp_path / "a.arrow"))
    np.testing.assert_allclose(np.array(first["vector"]), expected, atol=1e-5)
    assert data.map(vectors, batched=True, batch_size=4)._fingerprint == first._fingerprint


class Classifier(nn.Module):
    """A linear classifier of the fused map, which is the output of a module: what grad-CAM looks at."""

    def __init__(self, model):
        super().__init__()
        torch.manual_seed(1)
        self.model, self.map, self.head = model, nn.Identity(), nn.Linear(model.num_features, 3)

    def forward(self, images):
        spatial = self.map(self.model(images).spatial.requires_grad_())
        return self.head(spatial.relu().mean((2, 3)))


def grad_cam(classifier, images, target):
    """By hand: each channel of the map weighted by the average gradient of the target."""
    with torch.no_grad():
        spatial = classifier.model(images).spatial
    weights = classifier.head.weight[target][None, :, None, None] * (spatial > 0)
    heat = (weights.mean((2, 3), keepdim=True) * spatial).sum(1).relu()
    return heat.detach() / spatial.shape[2] / spatial.shape[3]


def test_grad_cam_of_the_fused_map_is_that_by_hand(model):
    cam = pytest.importorskip("pytorch_grad_cam", reason=INTEGRATIONS)
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    classifier, images = Classifier(model).eval(), torch.randn(2, 3, 200, 260)
    with cam.GradCAM(classifier, [classifier.map]) as look:
        found = look(images, [ClassifierOutputTarget(1)] * 2)
    assert found.shape == (2, 200, 260)
    by_hand = scale_cam_image(1e6 * grad_cam(classifier, images, 1).numpy(), (260, 200))
    np.testing.assert_allclose(found, by_hand / by_hand.max((1, 2), keepdims=True), atol=1e-4)


def test_captum_attributes_to_the_fused_map_and_to_pixels(model):
    attr = pytest.importorskip("captum.attr", reason=INTEGRATIONS)
    classifier, images = Classifier(model).eval(), torch.randn(2, 3, 100, 100)
    heat = attr.LayerGradCam(classifier, classifier.map).attribute(images, target=2, relu_attributions=True)
    torch.testing.assert_close(heat[:, 0], grad_cam(classifier, images, 2), atol=1e-7, rtol=1e-4)
    found = attr.Saliency(classifier).attribute(images, target=2, abs=False)
    pixels = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier(pixels)[:, 2].sum(), pixels)
    torch.testing.assert_close(found, gradient)


def test_torch_hub_finds_the_entries(expected, pictures):
    torch.manual_seed(0)
    model = torch.hub.load(str(ROOT), "s2wrap", f"{SPEC}@1,2", source="local", pretrained=False)
    with torch.no_grad():
        np.testing.assert_allclose(model(pictures[0]).pooled[0], expected[0], atol=1e-6)
    wrapped = torch.hub.load(str(ROOT), "wrap", timm.create_model("test_vit"), scales=(1,), source="local")
    assert isinstance(wrapped, s2wrap.MultiScale)


def test_dask_maps_pictures(pictures, model, expected):
    bag = pytest.importorskip("dask.bag", reason=INTEGRATIONS)

    def vectors(part):
        with torch.inference_mode():
            return [features.pooled[0].numpy() for features in model.encode(part)]

    found = bag.from_sequence(pictures, npartitions=2).map_partitions(vectors).compute(scheduler="threads")
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-5)


def test_ray_data_maps_batches(pictures, model, expected, monkeypatch):
    ray = pytest.importorskip("ray", reason="needs the [ray] extra")

    class Encode:
        def __init__(self, model):
            self.model = model

        def __call__(self, batch):
            with torch.inference_mode():
                found = self.model.encode(list(batch["image"]))
            return {"vector": np.stack([features.pooled[0].numpy() for features in found])}

    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):  # a server of another test sets them for its own cluster
        monkeypatch.delenv(name, raising=False)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        data = ray.data.from_items([{"image": picture} for picture in pictures])
        one = ray.data.ActorPoolStrategy(size=1)
        rows = data.map_batches(Encode, fn_constructor_args=(model,), batch_size=3, compute=one).take_all()
    finally:
        ray.shutdown()
    found = np.stack([row["vector"] for row in rows])
    order = [int(np.abs(found - vector).sum(axis=1).argmin()) for vector in expected]  # Ray keeps no order
    assert sorted(order) == list(range(len(pictures)))
    np.testing.assert_allclose(found[order], expected, atol=1e-5)
