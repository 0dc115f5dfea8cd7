"""Get features of pictures from a model on Triton Inference Server that `s2wrap export --triton` has written.

    pip install "s2wrap[triton]" && python demos/triton_client.py PHOTOS --model dinov2_s14 --output out.safetensors

What the model takes (files of pictures; or image size, uint8 pixels or normalised floats, the largest batch) is read
from the server.
"""

import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from einops import rearrange
from rich.console import Console
from rich.progress import track

from s2wrap.errors import MissingExtraError, S2WrapError, first_line
from s2wrap.files import disk_errors, whole_file
from s2wrap.images import as_image, find_images
from s2wrap.inputs import ModelInput
from s2wrap.resample import resize

IN_FLIGHT = 4
"""Most requests at the same time, so that reading, sending and computing overlap."""
TIMEOUT = 300
"""Seconds to wait for a response."""
GRACE = 5
"""Seconds after which a response is given up that the connection should have given up already."""
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Served:
    """A model on a server.

    Attributes:
        client: the connection to the server.
        name: the model's name on the server.
        input: the name of its input: "pictures" takes the bytes of a file (1, n), of a picture of any size.
        dtype: "UINT8" or "UINT16": pixels (b, height, width, c); "FP32": images (b, c, height, width), normalised or in
            the model's value range.
        image_hw: height and width of the images that it takes, in pixels.
        largest: the largest batch.
        known: what the model takes: channels, mean, std and value range.
        spec: the model's name for `s2wrap.load`; None where it has none.
        timeout: seconds to wait for a response.
    """

    client: Any
    name: str
    input: str
    dtype: str
    image_hw: tuple[int, int]
    largest: int
    known: ModelInput
    spec: str | None = None
    timeout: float = TIMEOUT

    @property
    def takes_files(self) -> bool:
        """Whether it is sent files as they are: the python backend reads them."""
        return self.input == "pictures"


def main(
    photos: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    *,
    model: Annotated[str, typer.Option(help="The model's name on the server.")],
    url: Annotated[str, typer.Option(help="The server's gRPC address.")] = "localhost:8001",
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures in a request (default: its most).")] = None,
    output: Annotated[Path | None, typer.Option(help="A .safetensors file for the features.")] = None,
    in_flight: Annotated[int, typer.Option(min=1, help="Most requests at the same time.")] = IN_FLIGHT,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a response.")] = TIMEOUT,
) -> None:
    """Send pictures to a server, print the shapes of their features, and write them if asked to."""
    try:
        run(photos, model, url, batch, output, in_flight, timeout)
    except S2WrapError as error:
        print(f"triton_client: {error}", file=sys.stderr)
        sys.exit(2)


def run(
    photos: list[Path],
    model: str,
    url: str,
    batch: int | None,
    output: Path | None,
    in_flight: int = IN_FLIGHT,
    timeout: float = TIMEOUT,
) -> None:
    """Do the work of `main`. Raises S2WrapError for wrong arguments, an unsuitable model or a failing server."""
    if output and output.suffix != ".safetensors":
        raise S2WrapError(f"cannot write {output}: the ending must be .safetensors")
    files, served = find_images(photos), replace(connect(url, model), timeout=timeout)
    if served.takes_files and (batch or 1) > 1:
        raise S2WrapError(
            f"--batch {batch}: {model} takes one file a request, and batches requests itself; leave it out"
        )
    size = 1 if served.takes_files else min(batch or served.largest, served.largest)
    tracked = track(files, description=f"{model} at {url}", console=Console(stderr=True), transient=True)
    start = time.perf_counter()
    pictures = (prepare(as_image(file, served.known.channels), served) for file in tracked)
    requests = whole_files(tracked) if served.takes_files else batches(pictures, size)
    responses: list[Arrays] = []
    try:
        responses.extend(infer(served, requests, in_flight))
    except S2WrapError as error:
        if served.takes_files:  # whose requests have no other name
            raise S2WrapError(f"{files[len(responses)]}: {error}") from error
        raise
    seconds = time.perf_counter() - start
    features = joined(responses)
    for name, array in features.items():
        print(f"{name} {array.shape}")
    print(f"{len(files)} pictures, {len(files) / seconds:.1f} a second with reading them, in batches of {size}")
    if output:
        write(features, files, served, output)
        print(f"wrote {output}")


def connect(url: str, model: str) -> Served:
    """Return the model on the server. Raises S2WrapError without server or model, or for an unsuitable model."""
    try:
        from tritonclient import grpc
        from tritonclient.utils import InferenceServerException
    except ImportError as error:
        raise MissingExtraError("tritonclient[grpc]", "triton") from error
    client = grpc.InferenceServerClient(url)
    try:
        client.is_server_live(client_timeout=10)
    except InferenceServerException as error:
        raise S2WrapError(
            f"no server answers at {url} ({error.message()}); give the address of its gRPC port"
        ) from error
    try:
        answer: Any = client.get_model_config(model, client_timeout=10)
        config = answer.config
    except InferenceServerException as error:
        raise S2WrapError(f"{url} has no model {model!r} that is ready: {error.message()}") from error
    if "s2wrap" not in config.parameters:
        raise S2WrapError(f"{model} at {url} is no model of s2wrap; lay one there with s2wrap export --triton")
    manifest = json.loads(config.parameters["s2wrap"].string_value)
    known, (height, width) = ModelInput.from_json(manifest["input"]), manifest["image_hw"]
    port = next((port for port in config.input if port.name == "pictures"), config.input[0])
    dtype = {2: "UINT8", 3: "UINT16", 11: "FP32"}[port.data_type]
    largest = max(1, config.max_batch_size)
    served = Served(client, model, port.name, dtype, (height, width), largest, known, manifest["spec"])
    if not served.takes_files:
        check_prepares(f"{model} at {url}", manifest, known)
    return served


def check_prepares(model: str, manifest: dict[str, Any], known: ModelInput) -> None:
    """Raise S2WrapError for a model whose images this client cannot prepare."""
    if manifest["part"] != "model":
        raise S2WrapError(
            f"{model} takes tiles, not pictures; export the whole model for it, or use --triton-backend python"
        )
    if known.channels not in (1, 3):
        raise S2WrapError(f"{model} takes images of {known.channels} channels, which pictures do not have")
    if not known.normalises:
        raise S2WrapError(
            f"{model} takes normalised images, but its mean and std are unknown; give them to wrap(), and export again"
        )
    if any(scale["fit"] != "stretch" for scale in manifest["options"]["scales"]):
        raise S2WrapError(f"{model} does not take stretched pictures; export the whole model with --fit stretch")


def whole_files(files: Iterable[Path]) -> Iterator[np.ndarray]:
    """Yield the bytes (1, n) of each file, for a model that reads them itself."""
    for file in files:
        yield np.fromfile(file, np.uint8)[None]


def prepare(image: torch.Tensor, served: Served) -> np.ndarray:
    """A picture (c, height, width) in 0…255 as the model takes it: resized, with values of its type and range."""
    resized = resize(image[None].float(), served.image_hw, interpolation=served.known.interpolation)
    pixels = resized[0].clamp(0, 255)
    if served.dtype == "UINT8":
        return rearrange(pixels.round().byte(), "c h w -> h w c").numpy()
    dtype = torch.uint16 if served.dtype == "UINT16" else torch.float32
    bounds = served.known.range_of(dtype)
    if bounds is None:
        mean, std = served.known.mean_std("cpu")
        return ((pixels / 255 - mean) / std).numpy()
    values = pixels / 255 * (bounds[1] - bounds[0]) + bounds[0]
    return rearrange(values.round().to(dtype), "c h w -> h w c").numpy() if dtype == torch.uint16 else values.numpy()


def batches(pictures: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield batches of `size` pictures; the last may have fewer."""
    while batch := list(itertools.islice(pictures, size)):
        yield np.stack(batch)


def infer(served: Served, requests: Iterable[np.ndarray], in_flight: int = IN_FLIGHT) -> Iterator[Arrays]:
    """Yield the features of every request, in order, with a few of them at the same time."""
    waiting: deque[Future[Arrays]] = deque()
    for batch in requests:
        if len(waiting) == in_flight:
            yield answer_of(waiting.popleft(), served)
        waiting.append(send(served, batch))
    while waiting:
        yield answer_of(waiting.popleft(), served)


def answer_of(future: Future[Arrays], served: Served) -> Arrays:
    """The features that a future of `send` holds. Raises S2WrapError if there are none in time."""
    try:
        return future.result(served.timeout + GRACE)
    except TimeoutError as error:
        raise S2WrapError(f"{served.name} did not answer in {served.timeout:g} seconds; raise --timeout") from error


def send(served: Served, batch: np.ndarray) -> Future[Arrays]:
    """Send a request, and return a future of its features in float32, whatever the model's precision.

    The future gets a result or an exception, whatever comes back: nobody sees what a callback raises.
    """
    from tritonclient import grpc

    future: Future[Arrays] = Future()
    what = f"a batch of {len(batch)}"

    def receive(result: Any, error: Exception | None) -> None:
        if error is not None:
            future.set_exception(S2WrapError(f"{served.name} failed on {what}: {error}"))
            return
        try:
            names = [tensor.name for tensor in result.get_response().outputs]
            future.set_result({name: result.as_numpy(name).astype(np.float32) for name in names})
        except Exception as failure:
            text = f"the answer of {served.name} on {what} cannot be read ({first_line(failure)})"
            future.set_exception(S2WrapError(text))

    tensor = grpc.InferInput(served.input, list(batch.shape), served.dtype)
    tensor.set_data_from_numpy(np.ascontiguousarray(batch))
    served.client.async_infer(served.name, [tensor], receive, client_timeout=served.timeout)
    return future


def joined(responses: list[Arrays]) -> Arrays:
    """The features of all pictures by name; as NAME.0, NAME.1, … where they differ in shape, as maps with `pad` do."""
    features: Arrays = {}
    for name in responses[0]:
        arrays = [response[name] for response in responses]
        if len({array.shape[1:] for array in arrays}) == 1:
            features[name] = np.concatenate(arrays)
        else:
            features |= {f"{name}.{number}": array for number, array in enumerate(arrays)}
    return features


def write(features: Arrays, files: list[Path], served: Served, output: Path) -> None:
    """Write a file like `s2wrap features` does: the arrays, the pictures' names, and the model's spec."""
    from safetensors.numpy import save_file

    facts = {"files": json.dumps([str(file) for file in files]), "spec": str(served.spec)}
    with whole_file(output) as draft, disk_errors(output):
        save_file({name: np.ascontiguousarray(array) for name, array in features.items()}, draft, facts)


if __name__ == "__main__":
    typer.run(main)
