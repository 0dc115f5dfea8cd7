"""`FeatureTransformer`: a wrapped model as a transformer of scikit-learn, from pictures to vectors."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.extraction.pooling import VECTORS, check_vector
from s2wrap.factory import load, wrap
from s2wrap.features import Features
from s2wrap.wrapper import MultiScale

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
except ImportError as error:
    raise MissingExtraError("scikit-learn", "compare") from error

KEPT_MODELS = 4
"""Models made by name that a process keeps, for clones and for the folds of a search."""
_MODELS: "OrderedDict[str, MultiScale]" = OrderedDict()
_LOCK = threading.Lock()


class FeatureTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Pictures in, a vector a picture out: in a Pipeline, in GridSearchCV, cloned and pickled as any transformer.

    It learns nothing: `fit` only checks the parameters. A model made by name is kept in the process, so that clones
    with equal parameters share it; pickles hold the parameters alone.

    Args:
        model: `FAMILY:NAME[.TAG][@SCALES]` or a saved folder, as for `s2wrap.load`; or whatever `s2wrap.wrap` takes,
            or a wrapped model, which clones copy.
        scales: as for `s2wrap.wrap`; None takes those of `model`, or scale 1.
        vector: "mean" (of the map), "cls", "cls+mean", or "joint" (the embedding beside text, of open_clip).
        options: further options of `load` or `wrap`, such as {"fuse": "detail"}.
        device: where it computes, such as "cuda"; None leaves the model where it is.

    Raises:
        S2WrapError: when it fits or transforms: what `load` and `wrap` refuse, a vector that the model has not.

    >>> import numpy as np
    >>> pictures = list(np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), dtype=np.uint8))
    >>> transformer = FeatureTransformer("timm:test_vit", scales=(1, 2), options={"pretrained": False})
    >>> transformer.fit_transform(pictures).shape
    (2, 128)
    """

    def __init__(
        self,
        model: object = "sample:dinov2_s14",
        *,
        scales: Any = None,
        vector: str = "mean",
        options: Mapping[str, Any] | None = None,
        device: str | None = None,
    ):
        self.model, self.scales, self.vector, self.options, self.device = model, scales, vector, options, device

    def fit(self, X: object = None, y: object = None) -> "FeatureTransformer":  # noqa: N803 (scikit-learn's name)
        """Check the parameters; the pictures `X` and labels `y` are not looked at."""
        self.wrapped()
        return self

    def transform(self, X: Iterable[object]) -> np.ndarray:  # noqa: N803 (scikit-learn's name)
        """The vectors (n, d) of pictures, float32.

        Args:
            X: paths, PIL images, arrays (height, width, c) or tensors, of any sizes, as for `model.encode`.
        """
        model = self.wrapped()
        with model.backbone.evaluating(), torch.inference_mode():
            if self.vector == "joint":
                return model.encode_image(list(X)).float().cpu().numpy()
            vectors = [_vector(self.vector, features) for features in model.encode(X)]
        return np.stack(vectors) if vectors else np.empty((0, self._n_features_out), np.float32)

    def wrapped(self) -> MultiScale:
        """The wrapped model that it computes with."""
        if self.vector not in VECTORS:
            raise S2WrapError(f"vector={self.vector!r} is none; use one of {', '.join(VECTORS)}")
        options = dict(self.options or {})
        if isinstance(self.model, str | Path):
            model = _loaded(str(self.model), self.scales, options, self.device)
        elif isinstance(self.model, MultiScale):
            if given := [*options, *(["scales"] if self.scales is not None else [])]:
                raise S2WrapError(f"{', '.join(given)} for a model that is wrapped already; give model.backbone.model")
            model = self.model
        else:
            model = wrap(self.model, (1,) if self.scales is None else self.scales, **options)
        check_vector(model, self.vector)
        return model if self.device is None else model.to(self.device)

    @property
    def _n_features_out(self) -> int:
        """Columns of the result: what `get_feature_names_out` of scikit-learn counts."""
        model = self.wrapped()
        if self.vector == "joint":
            black = torch.zeros(1, model.input.channels, *model.image_hw, device=model.device)
            return model.encode_image(black).shape[1]
        channels = sum(channels for channels, _, _ in model.map_shapes(model.image_hw))
        return 2 * channels if self.vector == "cls+mean" else channels

    def __sklearn_is_fitted__(self) -> bool:
        """It needs no fit."""
        return True

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn may assume of it: pictures in, no fit needed."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        return tags


def _loaded(spec: str, scales: Any, options: dict[str, Any], device: str | None) -> MultiScale:
    """The model of a name; kept until it is the oldest of several."""
    key = repr((spec, scales, sorted(options.items()), device, _written(spec), _written(options.get("checkpoint"))))
    with _LOCK:
        if key not in _MODELS:
            model = load(spec, scales=scales, **options)
            while len(_MODELS) >= KEPT_MODELS:
                _MODELS.popitem(last=False)
            _MODELS[key] = model
        return _MODELS[key]


def _written(path: Any) -> tuple[int, int] | None:
    """Which file or folder lies at a path, and since when: others once a model is saved anew; None without one."""
    try:
        found = Path(path).stat()
    except (OSError, TypeError, ValueError):
        return None
    return found.st_ino, found.st_mtime_ns


def _vector(kind: str, features: Features) -> np.ndarray:
    """The vector of one picture."""
    return VECTORS[kind](features)["vector"].cpu().numpy()
