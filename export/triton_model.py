"""What Triton's python backend runs: an exported file, for pictures of any size.

A model folder's `model.py` imports `TritonPythonModel` from here; the server's Python needs s2wrap and the library
that runs the file. Tensors come and go by DLPack: under NumPy 2 the backend's own arrays may hold wrong values.
"""

import importlib
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from einops import rearrange
from torch import Tensor

from s2wrap.errors import S2WrapError, first_line, printable
from s2wrap.export.engine import load
from s2wrap.export.graph import tensors_of
from s2wrap.export.options import Output
from s2wrap.features import Features
from s2wrap.images import Reading, decode_image, silence_decoders
from s2wrap.images.convert import to_channels


class TritonPythonModel:
    """A model of Triton's python backend; the backend calls these methods by their names.

    Requests of one call share batches, of at most what the file takes. One that cannot be answered gets an error, and
    the others their features.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Open the file in the version's folder.

        Args:
            args: what the backend says of the model: its config, folder, version and device.
        """
        silence_decoders()
        self.backend: Any = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        (manifest,) = folder.glob("*.json")
        on_gpu = args["model_instance_kind"] == "GPU"
        self.engine = load(
            manifest.with_suffix(""), device=f"cuda:{args['model_instance_device_id']}" if on_gpu else None
        )
        self.reading = Reading(
            max_pixels=int(config["parameters"]["max_pixels"]["string_value"]),
            value_range=self.engine.input.value_range,
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request: features, or why there are none."""
        try:
            return self._together(requests)
        except Exception:  # one of them fails by its values, or all are too many for the memory
            return [self._alone(request) for request in requests]

    def _together(self, requests: list[Any]) -> list[Any]:
        """Responses of requests that share batches. Raises whatever fails beyond reading one picture."""
        failed: dict[int, Exception] = {}
        owners: list[int] = []
        features: dict[int, list[Features]] = defaultdict(list)
        encoded = self.engine.encode(self._readable(requests, owners, failed))
        for owner, each in zip(owners, encoded, strict=True):
            features[owner].append(each)
        return [
            self._error(failed[number]) if number in failed else self._answer(request, features[number])
            for number, request in enumerate(requests)
        ]

    def _alone(self, request: object) -> Any:
        """The response to one request."""
        try:
            return self._answer(request, self.engine.encode(self._read(request)))
        except Exception as error:  # whatever it is, the server lives on
            return self._error(error)

    def _readable(self, requests: list[Any], owners: list[int], failed: dict[int, Exception]) -> Iterator[Tensor]:
        """Pictures (c, height, width) one after the other, so that memory holds few; notes whose they are."""
        for number, request in enumerate(requests):
            try:
                pictures = self._read(request)
            except Exception as error:
                failed[number] = error
                continue
            for picture in pictures:
                owners.append(number)
                yield picture

    def _read(self, request: object) -> list[Tensor]:
        """The pictures (c, height, width) of a request.

        Raises:
            S2WrapError: neither images nor pictures or both, bytes that are no picture, or one that is too large.
        """
        images, files = (self._input(request, name) for name in ("images", "pictures"))
        if (images is None) == (files is None):
            raise S2WrapError("a request needs images (pixels) or pictures (the bytes of a file), and not both")
        channels = self.engine.input.channels
        if images is None:
            assert files is not None
            contents = [row.numpy().tobytes() for row in files]
            return [to_channels(decode_image(each, "the picture", self.reading), channels, "it") for each in contents]
        if not images.is_floating_point():
            images = rearrange(images, "b h w c -> b c h w")
        self.reading.check_size("images", (images.shape[2], images.shape[3]), 0)
        return list(images)

    def _input(self, request: object, name: str) -> Tensor | None:
        """An input of a request; None if it has none of the name."""
        tensor = self.backend.get_input_tensor_by_name(request, name)
        return None if tensor is None else torch.from_dlpack(tensor)

    def _answer(self, request: Any, features: list[Features]) -> Any:
        """The response with the outputs that a request asks for."""
        parts = [outputs_of(each, self.engine.manifest) for each in features]
        tensors = []
        for name in request.requested_output_names():
            rows = [part[name].cpu() for part in parts]
            shapes = dict.fromkeys(tuple(row.shape[1:]) for row in rows)
            if len(shapes) > 1:
                raise S2WrapError(
                    f"the pictures of this request have {name} of shapes {' and '.join(map(str, shapes))}, which make "
                    f"no tensor; send each in a request of its own"
                )
            tensors.append(self.backend.Tensor.from_dlpack(name, torch.cat(rows)))
        return self.backend.InferenceResponse(output_tensors=tensors)

    def _error(self, error: Exception) -> Any:
        """The response that says why there are no features."""
        text, code = first_line(error), self.backend.TritonError.INTERNAL
        if isinstance(error, S2WrapError):
            text, code = str(error), self.backend.TritonError.INVALID_ARG
        return self.backend.InferenceResponse(output_tensors=[], error=self.backend.TritonError(printable(text), code))


def outputs_of(features: Features, manifest: dict[str, Any]) -> dict[str, Tensor]:
    """The outputs of the python backend by name: those of the file; for the backbone alone pooled too.

    bfloat16 becomes float32, which holds the same values and which NumPy has.
    """
    names = [port["name"] for port in manifest["outputs"]]
    kinds: list[Output] = list(dict.fromkeys(name.partition("_")[0] for name in names))
    if manifest["part"] == "tiles":
        kinds = [kind for kind in get_args(Output) if kind in kinds or kind == "pooled"]
    outputs = {}
    for kind in kinds:
        tensors = tensors_of(features, kind)
        for number, tensor in enumerate(tensors):
            wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            outputs[kind if len(tensors) == 1 else f"{kind}_{number}"] = wide.contiguous()
    return outputs
