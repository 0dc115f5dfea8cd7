import sys

import pytest

import s2wrap
from s2wrap import S2WrapError
from s2wrap.compare.latency import check_backends, time_models


def timed(backends, specs=("timm:test_vit@1", "timm:test_vit@1,2")):
    models = {spec: s2wrap.load(spec, pretrained=False) for spec in specs}

    told = []
    found = time_models(models, backends, (160, 160), batch=2, seconds=0.05, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1
    return found


def test_every_model_is_timed_on_every_backend():
    found = timed(("eager", "onnx"))
    for figures in found.values():
        assert list(figures) == ["eager", "onnx"]
        for each in figures.values():
            assert 0 < each["median_ms"] <= each["p90_ms"] <= each["p99_ms"]
            assert each["runs"] >= 10
            assert each["images_per_second"] > 0


def test_a_backend_that_is_not_installed_is_an_empty_column_with_its_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    found = timed(("eager", "tensorrt-rtx", "cuda-graph"), specs=("timm:test_vit@1",))["timm:test_vit@1"]
    assert "median_ms" in found["eager"]
    assert "tensorrt_rtx" in found["tensorrt-rtx"]["reason"]
    assert "pip install" in found["tensorrt-rtx"]["reason"]
    assert "CUDA graphs need a GPU" in found["cuda-graph"]["reason"]


def test_an_unknown_backend_is_told():
    with pytest.raises(S2WrapError, match="backend 'tf' is unknown; use some of eager, compile"):
        check_backends(("eager", "tf"))


@pytest.mark.gpu
def test_a_gpu_times_its_own_ways():
    model = s2wrap.load("timm:test_vit@1,2", pretrained=False).to("cuda")
    backends = ("eager", "compile", "cuda-graph")
    found = time_models({"one": model}, backends, (160, 160), batch=2, seconds=0.1, progress=lambda done: None)
    assert all("median_ms" in figures for figures in found["one"].values())
