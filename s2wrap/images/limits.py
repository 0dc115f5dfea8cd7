"""A picture file that is read within limits."""

import os
import time
from io import BufferedIOBase
from typing import Any, Protocol, runtime_checkable

from s2wrap.errors import S2WrapError
from s2wrap.images.options import Reading


@runtime_checkable
class Stream(Protocol):
    """A file that can be read, and sought in."""

    def read(self, size: int = -1, /) -> bytes:
        """Bytes from the current position."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move the position."""
        ...


class ReadOnlyFile(BufferedIOBase):
    """A file that is only read, whatever else it can do.

    Args:
        file: seekable.
    """

    def __init__(self, file: Stream):
        self.file = file
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        """Bytes from the current position; never more memory is asked for than there is of the file."""
        left = max(0, self.size - self.tell())
        return self.file.read(left if size is None or size < 0 else min(size, left))

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer from the current position; the number of bytes."""
        content = self.read(memoryview(buffer).nbytes)
        memoryview(buffer).cast("B")[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move the position."""
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        """The position."""
        return self.file.seek(0, os.SEEK_CUR)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True


class LimitedFile(ReadOnlyFile):
    """A file that can be read for some seconds of the processor, and that is not too large to be held.

    Args:
        file: seekable.
        name: of the picture.
        reading: its limits.

    Raises:
        S2WrapError: the file is larger than `max_memory`; or, by any method, the time is over.
    """

    def __init__(self, file: Stream, name: object, reading: Reading):
        super().__init__(file)
        self.name_of_picture, self.limit, self.started = name, reading.max_seconds, time.thread_time()
        if self.size > reading.max_memory:
            raise S2WrapError(f"{name}: a file of {self.size} bytes, more than max_memory={reading.max_memory}")

    def check_time(self) -> None:
        """Raise S2WrapError if the time is over."""
        if time.thread_time() - self.started > self.limit:
            raise S2WrapError(
                f"{self.name_of_picture}: not decoded after {self.limit:g} seconds of the processor; raise max_seconds"
            )

    def read(self, size: int | None = -1, /) -> bytes:
        """Bytes from the current position."""
        self.check_time()
        return super().read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move the position."""
        self.check_time()
        return super().seek(offset, whence)
