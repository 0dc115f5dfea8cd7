"""Every option of a server, once: its type, its default and a sentence of help."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from s2wrap.errors import S2WrapError
from s2wrap.options import Checked, LoadOptions, make_options, option_types

MEGABYTE = 10**6


@dataclass(frozen=True, kw_only=True)
class ServeOptions(Checked):
    """How a model is served: where, by how many replicas, in which batches, within which limits.

    Raises:
        S2WrapError: a number that is too small, or a number of replicas beside bounds of it.
    """

    device: Annotated[
        str | None, "Where to run: cpu, mps, or cuda, a GPU for each replica (default: cpu; cuda for a TensorRT file)."
    ] = None
    num_replicas: Annotated[int, "Processes that hold the model."] = 1
    max_replicas: Annotated[
        int | None, "Instead of num_replicas: start replicas under load, and stop them after it, up to this number."
    ] = None
    min_replicas: Annotated[int, "The fewest replicas, with max_replicas."] = 1
    cpus: Annotated[
        int | None, "CPU cores of each replica (default: those of this machine, shared out; 1 on a cluster)."
    ] = None
    batch: Annotated[int, "The most pictures in a batch, which holds those of several requests."] = 8
    wait_ms: Annotated[
        int, "Milliseconds for which a batch waits for more pictures, while there are other requests."
    ] = 5
    max_queued: Annotated[int, "The most requests that wait; further ones are answered 503 at once."] = 64
    max_megabytes: Annotated[int, "The largest body of a request."] = 64
    max_pixels: Annotated[int, "The most pixels of the pictures of a request together."] = 50_000_000
    max_pictures: Annotated[int, "The most pictures of a request."] = 64
    timeout: Annotated[int, "Seconds for a request; then it is answered 408 or 504."] = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"wait_ms": 0}
        for name, hint in option_types(type(self)).items():
            value = getattr(self, name)
            if hint is int or (hint == int | None and value is not None):
                low = least.get(name, 1)
                if isinstance(value, bool) or not isinstance(value, int) or value < low:
                    raise S2WrapError(f"{name}={value!r}; give a whole number, {low} or more")
        if self.max_replicas is None:
            if self.min_replicas != 1:
                raise S2WrapError(f"min_replicas={self.min_replicas} has no effect without max_replicas; give it too")
        elif self.num_replicas != 1:
            raise S2WrapError(
                f"num_replicas={self.num_replicas} and max_replicas={self.max_replicas}; give one of them: a fixed "
                f"number, or the largest"
            )
        elif self.max_replicas < self.min_replicas:
            raise S2WrapError(
                f"min_replicas={self.min_replicas} and max_replicas={self.max_replicas}; give the smaller number first"
            )

    @property
    def most_replicas(self) -> int:
        """The most replicas at a time."""
        return self.max_replicas or self.num_replicas

    @property
    def max_ongoing(self) -> int:
        """The most requests that a replica works at: those of a batch, and of the next."""
        return 2 * self.batch


def parse_settings(settings: Mapping[str, object]) -> tuple[str, ServeOptions, dict[str, Any]]:
    """What `application` was given: what to serve, the options of the server, and those of the model.

    Args:
        settings: `spec`, and options by name. Text is read as flags are, as `serve run` gives nothing else.

    Raises:
        S2WrapError: no `spec`, an unknown option, a value that cannot be.
    """
    spec = settings.get("spec")
    if not isinstance(spec, str) or not spec:
        raise S2WrapError(f"spec={spec!r}; give spec=FAMILY:NAME@SCALES, or spec=FILE of an exported file")
    server, model = {}, {}
    for name, value in settings.items():
        if name == "spec":
            continue
        if name in option_types(LoadOptions):
            model[name] = parse_option(name, value, LoadOptions)
        else:
            server[name] = parse_option(name, value, ServeOptions) if name in option_types(ServeOptions) else value
    return spec, make_options(ServeOptions, "application()", server), model


def parse_option(name: str, value: object, kind: type) -> Any:
    """The value of an option from its text; other values, and text that cannot be read, are returned as they are.

    >>> parse_option("num_replicas", "2", ServeOptions), parse_option("pretrained", "false", LoadOptions)
    (2, False)
    """
    from s2wrap.cli.model import read_option

    hint = str(option_types(kind)[name])
    if not isinstance(value, str):
        return value
    if "bool" in hint and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if "int" in hint and re.fullmatch(r"-?\d+", value):
        return int(value)
    return read_option(name, value, kind)
