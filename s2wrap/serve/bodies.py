"""Bodies of requests → pictures, within limits."""

import tokenize
from collections.abc import AsyncIterable, Iterator
from email import message_from_bytes
from email.message import Message
from io import BytesIO
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.images import Reading, decode_image
from s2wrap.images.convert import to_channels
from s2wrap.inputs import ValueCheck
from s2wrap.serve.options import MEGABYTE, ServeOptions
from s2wrap.serve.source import About

TAKEN = "send a picture, several as multipart/form-data, or an array as safetensors or .npy"


class RefusedError(S2WrapError):
    """A request that is answered with an error.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


async def read_body(chunks: AsyncIterable[bytes], headers: Any, options: ServeOptions) -> bytes:
    """The body of a request.

    Args:
        chunks: of the body, as they arrive.
        headers: of the request, by name in small letters.
        options: the limits.

    Raises:
        RefusedError: a body that is too large, which is told before all of it has come; an empty or compressed one.
    """
    most = options.max_megabytes * MEGABYTE
    too_large = RefusedError(413, f"the body has more than {options.max_megabytes} megabytes, the most that is taken")
    if (coding := headers.get("content-encoding", "identity")) != "identity":
        raise RefusedError(415, f"the body is in the coding {coding[:40]!r}; send it without")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > most:
        raise too_large
    parts, size = [], 0
    async for chunk in chunks:
        size += len(chunk)
        if size > most:
            raise too_large
        parts.append(chunk)
    if size == 0:
        raise RefusedError(400, f"the body is empty; {TAKEN}")
    return b"".join(parts)


UNREADABLE = (ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError, tokenize.TokenError)
"""What NumPy raises for the header of an .npy file that is damaged, as it reads it as Python."""


def pictures_of(body: bytes, content_type: str, about: About, options: ServeOptions) -> list[Tensor]:
    """The pictures of a request, each (channels, height, width), as `encode` takes them.

    Args:
        body: of the request.
        content_type: its header; only multipart is told by it, everything else by its first bytes.
        about: the model for which they are.
        options: the limits.

    Raises:
        S2WrapError: no picture, a damaged one, one of another shape, type or values than the model takes.
        RefusedError: too many pictures, too many pixels.
    """
    reading = Reading(max_pixels=options.max_pixels, value_range=about.input.value_range)
    pictures: list[Tensor] = []
    pixels = 0
    for name, content in split_parts(body, content_type, options.max_pictures):
        for picture in _pictures_of_part(content, name, about, reading):
            pictures.append(picture)
            pixels += picture.shape[1] * picture.shape[2]
            if len(pictures) > options.max_pictures:
                raise _too_many(options.max_pictures)
            if pixels > options.max_pixels:
                raise RefusedError(
                    413, f"the pictures have more than {options.max_pixels} pixels together, the most that are taken"
                )
    check_values = ValueCheck(about.input, about.name)
    for number, picture in enumerate(pictures):
        try:
            about.input.check(picture[None], about.name)
            check_values(picture[None])
        except S2WrapError as error:
            raise S2WrapError(f"picture {number}: {error}") from error
    return pictures


def split_parts(body: bytes, content_type: str, most: int) -> Iterator[tuple[str, bytes]]:
    """The name and content of every part of a multipart body; the whole body for other types.

    Raises:
        RefusedError: more than `most` parts, none, or a body that does not end as multipart does.
    """
    header = Message()
    header["content-type"] = content_type.replace("\n", " ").replace("\r", " ")
    if header.get_content_maintype() != "multipart":
        yield "the body", body
        return
    boundary = header.get_boundary()
    if not boundary:
        raise RefusedError(400, "the body is multipart, and its Content-Type names no boundary; send it with one")
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"), most + 2)
    if len(parts) > most + 1:
        raise _too_many(most)
    if not parts or not parts[-1].startswith(b"--"):
        raise RefusedError(400, "the multipart body is cut short; send it whole")
    if len(parts) == 1:
        raise RefusedError(400, f"the multipart body has no parts; {TAKEN}")
    for number, part in enumerate(parts[:-1]):
        head, blank, content = part.partition(b"\r\n\r\n")
        if not blank or not content:
            raise RefusedError(400, f"part {number} of the multipart body is empty; send a picture in each")
        name = message_from_bytes(head.lstrip()).get_filename() or f"part {number}"
        yield str(name)[:100], content


def _pictures_of_part(content: bytes, name: str, about: About, reading: Reading) -> list[Tensor]:
    """The pictures in one part: those of an array, or the one of a picture's file."""
    if content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8:
        return pictures_of_array(_safetensor(content, name), about)
    if content.startswith(b"\x93NUMPY") and (array := _batch_of_numpy(content, name)) is not None:
        return pictures_of_array(array, about)
    picture = decode_image(content, name, reading)
    return [to_channels(picture, about.input.channels, name)]


def pictures_of_array(array: Tensor, about: About) -> list[Tensor]:
    """The pictures of an array, (b, c, height, width), (b, height, width, c), or one without b.

    Raises:
        S2WrapError: another shape; `encode` would refuse other things.
    """
    channels, shape = about.input.channels, tuple(array.shape)
    batch = array[None] if array.ndim == 3 else array
    if batch.ndim != 4 or channels not in (batch.shape[1], batch.shape[3]):
        raise S2WrapError(
            f"the array has shape {shape}; give (batch, {channels}, height, width) or (batch, height, width, "
            f"{channels})"
        )
    if batch.shape[1] != channels:
        batch = rearrange(batch, "b h w c -> b c h w")
    about.input.check(batch, about.name)
    return list(batch)


def _safetensor(content: bytes, name: str) -> Tensor:
    """The only tensor in the bytes of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise S2WrapError(f"{name} begins as safetensors do, and cannot be read: {str(error)[:200]}") from error
    if len(tensors) != 1:
        raise S2WrapError(f"{name} holds {len(tensors)} tensors; send one, with all pictures")
    return next(iter(tensors.values()))


def _batch_of_numpy(content: bytes, name: str) -> Tensor | None:
    """The batch (four sides) of an .npy file; None for other arrays, which are read as pictures are."""
    from numpy.lib import format as npy

    stream = BytesIO(content)
    try:
        version = npy.read_magic(stream)
        shape, _, dtype = npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)
        if len(shape) != 4:
            return None
        if (
            dtype.kind not in "uif"
            or int(np.prod(shape, dtype=object)) * dtype.itemsize != len(content) - stream.tell()
        ):
            raise ValueError(f"an array {shape} of {dtype} in {len(content)} bytes")
        stream.seek(0)
        array = np.load(stream, allow_pickle=False)
        return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
    except UNREADABLE as error:
        raise S2WrapError(f"{name} is no array of numbers that can be read: {str(error)[:200]}") from error


def _too_many(most: int) -> RefusedError:
    return RefusedError(413, f"the request has more than {most} pictures, the most that are taken; send several")
