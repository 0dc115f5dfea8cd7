"""Exported files at run time: images in, `Features` out, whatever library runs the file."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from s2wrap.backbones.base import Backbone
from s2wrap.backbones.probe import Layout
from s2wrap.errors import S2WrapError
from s2wrap.export.aot_session import check_package_here
from s2wrap.export.engine_session import cuda_device
from s2wrap.export.graph import PIXEL_DTYPES
from s2wrap.export.library import TITLES, load_library
from s2wrap.export.manifest import (
    features_from,
    input_from,
    options_from,
    plan_from,
    read_manifest,
    view_of,
)
from s2wrap.export.session import Session, open_session
from s2wrap.features import Features
from s2wrap.geometry import Geometry
from s2wrap.images import as_batch, as_image, as_pictures
from s2wrap.inputs import ValueCheck
from s2wrap.plan import Plan
from s2wrap.policies import Pair
from s2wrap.resample import resize
from s2wrap.wrapper import MultiScale


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    cuda_graph: bool = False,
    runtime_cache: str | Path | None = None,
    eager: bool = False,
    threads: int | None = None,
    **options: object,
) -> "Engine":
    """An exported file as an object that is called as the wrapped model is.

    The manifest beside the file is checked before the file is opened. Engines and packages contain
    code: use files that you trust.

    Args:
        path: an .onnx, .plan, .engine, .rtx or .pt2 file that s2wrap exported.
        device: where it runs: by default the CPU for .onnx, the current CUDA device for engines, what it was compiled
            for of a .pt2.
        cuda_graph: capture a CUDA graph for every batch size, and replay it (engines).
        runtime_cache: a file that keeps the kernels that TensorRT-RTX compiles, for the next start.
        eager: TensorRT-RTX compiles its fastest kernels at once, not while it runs: for timing.
        threads: how many threads of the CPU ONNX Runtime uses in one operator; by default one a core (.onnx).
            A .pt2 uses those of PyTorch, `torch.set_num_threads`.
        **options: for a file of the backbone alone (`--tiles`): scales, fit, overlap, fuse and other `Options`, in
            place of those of the export.

    Raises:
        MissingExtraError: the library that runs such files is not installed.
        S2WrapError: a file without its manifest, damaged, or for another version or GPU; options that cannot be.
    """
    path = Path(path)
    manifest = read_manifest(path)
    check_machine(path, manifest, device)
    session_options: dict[str, Any] = {"cuda_graph": cuda_graph, "threads": threads}
    if runtime_cache is not None:
        session_options["runtime_cache"] = Path(runtime_cache)
    if eager and manifest["kind"] == "tensorrt_rtx":
        session_options["eager"] = True
    if manifest.get("build", {}).get("version_compatible"):
        session_options["host_code"] = True
    session = open_session(path, kind=manifest["kind"], device=device, **session_options)
    return Engine(session, manifest, **options)


class Engine:
    """An exported file, called as the wrapped model is. May be called from several threads.

    Pickled, it is its file's path and its options: another process, such as a worker, opens the file again.

    Attributes:
        manifest: what it is, as `FILE.json` says.
        session: what runs it: `session.run({"images": tensor})` gives the outputs by name.
        device: where it runs.
        input: what the exported model takes.
        image_hw: height and width of the images that the file takes, or of its tiles.
        model: for a file of the backbone alone, the `MultiScale` around it; else None.
        plan: for one graph, where its tiles lie; else None.
    """

    def __init__(self, session: Session, manifest: dict[str, Any], **options: object):
        """An engine around a session; `load` makes both."""
        self.session, self.manifest, self.device, self._options = session, manifest, session.device, options
        self.image_hw: Pair = manifest["image_hw"]
        self.input = input_from(manifest)
        self.model: MultiScale | None = None
        self.plan: Plan | None = None
        if manifest["part"] == "tiles":
            chosen = options_from(manifest, {"tile_batch": manifest["batch"][2]} | options)
            self.model = MultiScale(SessionBackbone(session, manifest), chosen)
            return
        if options:
            raise S2WrapError(
                f"{', '.join(options)}: {session.path.name} is one graph, whose scales and fusion are fixed; export "
                f"the backbone alone (--tiles) to choose them later"
            )
        self.plan = plan_from(manifest)
        self._geometry = tuple(Geometry(**facts) for facts in manifest["geometry"])
        self._check_values = ValueCheck(self.input, self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.session.path.absolute(), self.session.reopen, self.manifest["sha256"], self._options)

    def __call__(self, images: Any, **options: Any) -> Features:
        """The features of a batch of images.

        Args:
            images: as for `MultiScale.forward`: a tensor (b, c, height, width) of floats as the model takes them, or of
                uint8 or uint16; the same as an array, or integers (b, height, width, c); or one picture. On the
                engine's device tensors are read in place; others are copied there. One graph takes the image size that
                it was exported for; the backbone alone takes any.
            **options: `select` and `by`, as for `MultiScale.forward`, with the backbone alone.

        Raises:
            S2WrapError: another shape or type, or values that cannot be right.
        """
        images = self._batch(images)
        if self.model is not None:
            with torch.no_grad():
                return self.model(images, **options)
        if options:
            raise S2WrapError(f"{', '.join(options)}: one graph runs all tiles; export the backbone alone (--tiles)")
        self._check(images)
        if (images.shape[2], images.shape[3]) != self.image_hw:
            raise S2WrapError(
                f"images have shape {tuple(images.shape)}; {self.session.path.name} takes (batch, "
                f"{self.input.channels}, {self.image_hw[0]}, {self.image_hw[1]}): use encode() for pictures of any "
                f"size, or export the backbone alone (--tiles)"
            )
        return self._run(self._as_graph_takes(images))

    def encode(self, images: Any, **options: Any) -> list[Features]:
        """The features of pictures of any sizes, one `Features` (of a batch of one) each.

        Args:
            images: as for `MultiScale.encode`. One graph sees them stretched to the size that it was exported for.
            **options: as for a call.

        Raises:
            S2WrapError: a picture that cannot be read; a graph whose scales keep the aspect, which no stretched picture
                has.
        """
        if self.model is not None:
            with torch.no_grad():
                return self.model.encode(images, **options)
        if options:
            raise S2WrapError(f"{', '.join(options)}: one graph runs all tiles; export the backbone alone (--tiles)")
        fits = {scale["fit"] for scale in self.manifest["options"]["scales"]} - {"stretch"}
        if fits:
            raise S2WrapError(
                f"{self.session.path.name} is for images of {self.image_hw[0]}×{self.image_hw[1]} pixels and "
                f"fit={'/'.join(sorted(fits))}: stretching pictures would undo that; export the backbone alone "
                f"(--tiles)"
            )
        answers: list[Features] = []
        pictures = self._read(as_pictures(images))
        while batch := list(islice(pictures, self.tile_batch_for(1, self.device))):
            stretched, sizes = zip(*batch, strict=True)
            answers += map(_on_picture, self._run(torch.cat(stretched)), sizes)
        return answers

    def tile_batch_for(self, count: int, device: torch.device) -> int:
        """The most tiles, or images of one graph, in one call of the file, for that many images on a device."""
        if self.model is not None:
            return self.model.tile_batch_for(count, device)
        return self.manifest["batch"][2]

    @property
    def lacks_cls(self) -> str:
        """Why the first prefix token of its features is no CLS token; empty if it is."""
        if self.model is not None:
            return self.model.lacks_cls
        if not any(port["name"].startswith("prefix") for port in self.manifest["outputs"]):
            return f"{self.session.path.name} has no output prefix, and so no CLS token"
        return self.manifest["backbone"].get("lacks_cls", "")

    @property
    def _name(self) -> str:
        return self.manifest["backbone"]["name"]

    def _batch(self, images: object) -> Tensor:
        """What a call was given as a batch (b, c, h, w) on the engine's device."""
        if isinstance(images, np.ndarray) and images.ndim == 4:
            images = torch.from_numpy(images)
        elif not isinstance(images, Tensor):
            images = as_batch(images, self.input.channels, self.input.value_range)
        images, channels = images.to(self.device, non_blocking=True), self.input.channels
        last = images.ndim == 4 and not images.is_floating_point() and images.shape[3] == channels != images.shape[1]
        return rearrange(images, "b h w c -> b c h w") if last else images

    def _read(self, images: Iterable[object]) -> Iterable[tuple[Tensor, Pair]]:
        """Pictures as batches of one as the graph takes them, each with its own height and width."""
        for number, source in enumerate(images):
            try:
                image = as_image(source, self.input.channels, self.input.value_range)[None].to(self.device)
                self._check(image)
                yield self._as_graph_takes(self._stretched(image)), (image.shape[2], image.shape[3])
            except S2WrapError as error:
                raise S2WrapError(f"image {number}: {error}") from error

    def _check(self, images: Tensor) -> None:
        """Raise S2WrapError for images (b, c, h, w) that the model would refuse."""
        self.input.check(images, self._name)
        wanted = PIXEL_DTYPES[self.manifest["pixels"]]
        if not wanted.is_floating_point and images.dtype != wanted:
            raise S2WrapError(
                f"images are {images.dtype}; {self.session.path.name} takes {self.manifest['pixels']} pixels and "
                f"normalises them"
            )
        self._check_values(images)

    def _stretched(self, images: Tensor) -> Tensor:
        """Images at the size of the graph; integers are rounded."""
        if (images.shape[2], images.shape[3]) == self.image_hw:
            return images
        if self.manifest["pixels"] == "float32":
            images = self._as_floats(images)
        resized = resize(images.float(), self.image_hw, interpolation=self.input.interpolation)
        if images.is_floating_point():
            return resized
        largest = torch.iinfo(images.dtype).max
        return resized.round().clamp(0, largest).to(images.dtype)

    def _as_graph_takes(self, images: Tensor) -> Tensor:
        """Checked images (b, c, h, w) as the graph takes them."""
        if self.manifest["pixels"] == "float32":
            return self._as_floats(images)
        return rearrange(images, "b c h w -> b h w c")

    def _as_floats(self, images: Tensor) -> Tensor:
        """Images as floats for a graph that takes these: normalised, unless it normalises `value_range` itself."""
        if self.input.value_range is None:
            return self.input.normalise(images).float()
        if images.dtype == torch.uint8:
            low, high = self.input.value_range
            return images.float() / 255 * (high - low) + low
        return images.float()

    def _run(self, images: Tensor) -> Features:
        """The features of images as the graph takes them."""
        assert self.plan is not None
        features = features_from(self.manifest, run_in_batches(self.session, images))
        return replace(features, view=view_of(self.plan, features.maps, self._geometry))


def _reopen(path: Path, reopen: Callable[[], Session], sha256: str, options: dict[str, Any]) -> Engine:
    """The engine that was pickled, in another process; S2WrapError if its file is another one now."""
    manifest = read_manifest(path)
    if manifest["sha256"] != sha256:
        raise S2WrapError(f"{path} is another file than when the engine was pickled; load it again")
    check_machine(path, manifest, None)
    return Engine(reopen(), manifest, **options)


def _on_picture(features: Features, image_hw: Pair) -> Features:
    """The features of a picture of this size that was stretched, placed on the picture itself."""
    if features.view is None:
        return features
    geometry = tuple(replace(geometry, image_hw=image_hw) for geometry in features.geometry)
    view = replace(features.view, plan=replace(features.plan, image_hw=image_hw), geometry=geometry)
    return replace(features, view=view)


class SessionBackbone(Backbone):
    """The backbone in a file with `part` "tiles"; `MultiScale` does the rest."""

    def __init__(self, session: Session, manifest: dict[str, Any]):
        about = manifest["backbone"]
        layouts = tuple(Layout(**layout) for layout in about["layouts"])
        super().__init__(about["name"], input_from(manifest), layouts)
        self.session, self.manifest, self.layers = session, manifest, about["layers"]

    def forward(self, tiles: Tensor) -> Features:
        """As `Backbone.forward`."""
        return features_from(self.manifest, run_in_batches(self.session, tiles.float()))

    @property
    def convolutional(self) -> bool:
        """As the exported backbone says."""
        return self.manifest["backbone"]["convolutional"]

    @property
    def refuses_other_sizes(self) -> str:
        """Why tiles have one size: the file was made for it."""
        return "the file holds the backbone for tiles of this size"

    @property
    def lacks_cls(self) -> str:
        """As the exported backbone says."""
        return super().lacks_cls or self.manifest["backbone"].get("lacks_cls", "")

    @property
    def device(self) -> torch.device:
        """Where the file runs."""
        return self.session.device


def run_in_batches(session: Session, images: Tensor) -> dict[str, Tensor]:
    """The outputs of a file for any number of images, run in batches of at most MAX; the last is repeated up to MIN."""
    (port,), (low, _, high) = session.inputs, session.batch or (1, 1, len(images))
    parts: list[dict[str, Tensor]] = []
    for part in images.split(high):
        missing = max(0, low - len(part))
        filled = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
        outputs = session.run({port.name: filled})
        parts.append({name: tensor[: len(part)] for name, tensor in outputs.items()} if missing else outputs)
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def check_machine(path: Path, manifest: dict[str, Any], device: str | torch.device | None) -> None:
    """Raise S2WrapError for a file that another version built, or for another device, before it is opened."""
    build, kind = manifest.get("build"), manifest["kind"]
    if build is None or kind == "onnx":
        return
    if kind == "aotinductor":
        check_package_here(path, build, device)
        return
    installed, built = load_library(kind).__version__, build["version"]
    newer = _numbers(installed) >= _numbers(built) and _numbers(installed)[0] <= _numbers(built)[0] + 1
    if installed != built and not (build.get("version_compatible") and newer):
        raise S2WrapError(
            f"{path} was built by {TITLES[kind]} {built}, but {installed} is installed, which cannot run it; install "
            f"{kind}=={built}, or export again"
        )
    device = cuda_device(path, device)
    major, minor = torch.cuda.get_device_capability(device)
    here, gpu = f"{major}.{minor}", torch.cuda.get_device_name(device)
    wanted = build.get("compute_capability")
    if wanted and wanted != here and not (build.get("hardware_compatibility") == "ampere_plus" and major >= 8):
        raise S2WrapError(
            f"{path} was built on {build['gpu']} (compute capability {wanted}) and runs on that generation only; this "
            f"is {gpu} ({here}): export again here, or with --hardware-compatible"
        )
    targets: Sequence[str] = build.get("targets", ())
    if targets and "default" not in targets and f"sm{major}{minor}" not in targets:
        raise S2WrapError(f"{path} was built for {', '.join(targets)}; this is {gpu} (sm{major}{minor}): export again")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3])
