"""Arrays where a session takes tensors: one clear error. Other tests run with checks of types, which complain first."""

import numpy as np
import pytest
import tiny_graphs

from s2wrap import S2WrapError
from s2wrap.export.session import open_session


def test_a_session_takes_tensors_only(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    running = open_session(tiny_graphs.products(tmp_path / "tiny.onnx"), kind="onnx")
    with pytest.raises(S2WrapError, match="images must be a torch.Tensor; received ndarray"):
        running.run({"images": np.zeros((1, 16, 64), np.float16)})
