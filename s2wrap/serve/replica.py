"""A replica of a server: a process that holds the model, reads requests and answers them."""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.features import Features
from s2wrap.images import silence_decoders
from s2wrap.serve.answers import join_pictures, write_answer
from s2wrap.serve.bodies import RefusedError, pictures_of, read_body
from s2wrap.serve.options import ServeOptions
from s2wrap.serve.source import Source, arrays_of, describe, look_at

READERS = 4
"""The most pictures that are decoded at the same time, which bounds the memory of decoders."""
Answer = Features | Tensor
Encode = Callable[[list[Tensor]], Sequence[Answer]]


class Replica:
    """A model that answers requests, whose pictures share batches.

    Args:
        source: what is served.
        options: how.
    """

    def __init__(self, source: Source, options: ServeOptions):
        silence_decoders()
        self.source, self.options = source, options
        self.model = source.open(options.cpus or 1)
        self.about = look_at(self.model)
        self.facts = describe(source, self.model, self.about) | {"limits": _limits(options)}
        self.computing = ThreadPoolExecutor(1, "model")  # batches run one after the other
        self.reading = ThreadPoolExecutor(min(READERS, os.cpu_count() or 1), "reader")
        self.arriving = 0  # requests that are being read
        self.free = asyncio.Event()  # the model is: what came while it computed is sent to it together
        self.free.set()
        self.encode = self._batched(self.model.encode)
        self.embed = self._batched(getattr(self.model, "encode_image", self.model.encode))
        self._count_pictures = _counter("s2wrap_pictures", "Pictures that were answered with features.")

    def __serve_build_asgi_app__(self) -> Any:
        """The web application, which Ray Serve asks for once the replica is made."""
        from s2wrap.serve.web import make_app

        return make_app(self)

    async def answer(self, request: Any, names: list[str], *, as_json: bool) -> bytes:
        """The body of the answer to a request.

        Args:
            request: of Starlette.
            names: the features to send.
            as_json: as JSON, not as safetensors.

        Raises:
            S2WrapError: pictures that cannot be read, or that the model refuses.
            RefusedError: a request beyond the limits, of size or of time.
        """
        stage = (408, "the body has not arrived whole")
        try:
            async with asyncio.timeout(self.options.timeout):
                self.arriving += 1
                try:
                    body = await read_body(request.stream(), request.headers, self.options)
                    stage = (504, "there is no answer yet")
                    content_type = request.headers.get("content-type", "")
                    pictures = await self._read(pictures_of, body, content_type, self.about, self.options)
                finally:
                    self.arriving -= 1
                del body
                parts = await self._encode(pictures, names)
                content = await self._read(_written, parts, names, as_json)
        except TimeoutError as error:
            raise RefusedError(stage[0], f"{stage[1]} after {self.options.timeout} seconds, the time limit") from error
        self._count_pictures.inc(len(pictures))
        return content

    async def _encode(self, pictures: list[Tensor], names: list[str]) -> list[tuple[Any, Any]]:
        """The features and the embedding of every picture, each None where it was not asked for."""
        parts: list[list[Any]] = []
        await self.free.wait()
        for batched in (self.encode, self.embed):
            batched.set_batch_wait_timeout_s(self.options.wait_ms / 1000 if self.arriving else 0)
        for encode, wanted in ((self.encode, set(names) - {"joint"}), (self.embed, "joint" in names)):
            answers = await asyncio.gather(*map(encode, pictures)) if wanted else [None] * len(pictures)
            for number, answer in enumerate(answers):
                if isinstance(answer, S2WrapError):
                    raise S2WrapError(f"picture {number}: {answer}") from answer
                if isinstance(answer, Exception):
                    raise answer
            parts.append(list(answers))
        return list(zip(*parts, strict=True))

    def _batched(self, encode: Encode) -> Any:
        """A function of one picture that waits for others, and encodes them together; it returns errors."""
        from ray import serve

        @serve.batch(max_batch_size=self.options.batch, batch_wait_timeout_s=self.options.wait_ms / 1000)
        async def encode_batch(pictures: list[Tensor]) -> list[Any]:
            self.free.clear()
            try:
                return await asyncio.get_running_loop().run_in_executor(self.computing, encode_all, encode, pictures)
            finally:
                self.free.set()

        return encode_batch

    async def _read(self, function: Callable[..., Any], *arguments: object) -> Any:
        """The value of a function that runs beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.reading, function, *arguments)


def encode_all(encode: Encode, pictures: list[Tensor]) -> list[Any]:
    """The answers to a batch of pictures; where it fails, each is tried alone, and errors are returned in their place.

    >>> encode_all(lambda pictures: [picture.reshape(2) for picture in pictures], [torch.zeros(1, 2), torch.zeros(3)])
    [tensor([0., 0.]), RuntimeError("shape '[2]' is invalid for input of size 3")]
    """
    try:
        with torch.inference_mode():
            return list(encode(pictures))
    except Exception as error:
        if len(pictures) == 1:
            return [error]
        return [answer for picture in pictures for answer in encode_all(encode, [picture])]


def _written(parts: list[tuple[Any, Any]], names: list[str], as_json: bool) -> bytes:
    arrays = [arrays_of(features, embedding, names) for features, embedding in parts]
    return write_answer(join_pictures(arrays), as_json=as_json)


def _limits(options: ServeOptions) -> dict[str, int]:
    names = ("batch", "wait_ms", "max_queued", "max_megabytes", "max_pixels", "max_pictures", "timeout")
    return {name: getattr(options, name) for name in names}


def _counter(name: str, text: str) -> Any:
    """A counter among Ray's metrics."""
    from ray.util.metrics import Counter

    return Counter(name, description=text)
