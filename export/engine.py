"""One face at run time: images in, `Features` out, whatever runs the file."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from s2wrap.backbones import Backbone
from s2wrap.backbones.probe import Layout
from s2wrap.errors import S2WrapError
from s2wrap.export.engine_session import cuda_device
from s2wrap.export.library import TITLES, load_library
from s2wrap.export.manifest import features_from, plan_from, read_manifest, real_path
from s2wrap.export.session import Session, open_session
from s2wrap.features import Features
from s2wrap.images import as_image
from s2wrap.policies import Pair
from s2wrap.resample import resize
from s2wrap.scales import Scale
from s2wrap.wrapper import MultiScale, Normalise


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    cuda_graph: bool = False,
    runtime_cache: str | Path | None = None,
    eager: bool = False,
    **options: Any,
) -> "Engine":
    """An exported file, ready to be called as the wrapped model is.

    The manifest beside the file is checked before the file is opened: engines carry code, so use files that you trust.

    Args:
        path: an .onnx, .plan, .engine or .rtx file that s2wrap exported.
        device: where it runs: by default the CPU for .onnx, the current CUDA device for engines.
        cuda_graph: record the GPU's work once for every batch size, and replay it (engines).
        runtime_cache: a file that keeps the kernels that TensorRT-RTX compiles, for the next start.
        eager: TensorRT-RTX compiles its fastest kernels at once, not while it runs: for timing.
        **options: for a file with the backbone alone (`--tiles`): scales, fit, overlap, fuse and so on, as for
            `MultiScale`, in place of those of the export.

    Raises:
        MissingExtraError: the library that runs such files is not installed.
        S2WrapError: a file without its manifest, damaged, or for another version or GPU.
    """
    path = real_path(path)
    manifest = read_manifest(path)
    check_machine(path, manifest, device)
    special: dict[str, Any] = {"cuda_graph": cuda_graph}
    if runtime_cache is not None:
        special["runtime_cache"] = Path(runtime_cache)
    if eager and manifest["kind"] == "tensorrt_rtx":
        special["eager"] = True
    if manifest.get("build", {}).get("version_compatible"):
        special["host_code"] = True
    session = open_session(path, kind=manifest["kind"], device=device, **special)
    return Engine(session, manifest, **options)


class Engine:
    """An exported file with the face of the wrapped model. May be called from several threads.

    Attributes:
        manifest: what it is, as `FILE.json` says.
        session: what runs it: `session.run({"images": tensor})` gives the outputs by name.
        device: where it runs.
        model: for a file with the backbone alone, the `MultiScale` around it; else None.
    """

    def __init__(self, session: Session, manifest: dict[str, Any], **options: Any):
        """The face of a session; `load` makes both."""
        self.session, self.manifest, self.device = session, manifest, session.device
        self.image_hw: tuple[int, int] = manifest["image_hw"]
        self.normalise = Normalise(manifest["mean"], manifest["std"]).to(session.device)
        self.plan = plan_from(manifest)
        self.model: MultiScale | None = None
        if manifest["part"] == "tiles":
            given: dict[str, Any] = (manifest["wrapper"] or {}) | options
            if "scales" not in given:
                raise S2WrapError(f"{session.path.name} was exported with a policy of your own; give scales= and it")
            scales = [Scale(**scale) if isinstance(scale, dict) else scale for scale in given.pop("scales")]
            given |= {"tile_batch": options.get("tile_batch", manifest["batch"][2])}
            self.model = MultiScale(SessionBackbone(session, manifest), scales, **given).to(session.device)
        elif options:
            raise S2WrapError(
                f"{', '.join(options)}: {session.path.name} is one graph, whose scales and fusion are fixed; export "
                f"the backbone alone (--tiles) to choose them later"
            )

    def __call__(self, images: Any, **options: Any) -> Features:
        """The features of a batch of images.

        Args:
            images: a tensor or array: normalised floats (b, 3, height, width), or uint8 RGB, (b, 3, height, width) or
                (b, height, width, 3). On the engine's device they are read in place; others are copied there. One
                graph takes the image size that it was exported for; the backbone alone takes any.
            **options: `select` and `by`, as for `MultiScale.forward`, with the backbone alone.

        Raises:
            S2WrapError: another shape or type.
        """
        images = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
        if not isinstance(images, Tensor) or images.ndim != 4:
            what = tuple(images.shape) if isinstance(images, Tensor) else f"a {type(images).__name__}"
            raise S2WrapError(f"images are {what}; give a tensor or an array (batch, 3, height, width)")
        pixels_last = images.dtype == torch.uint8 and images.shape[3] == 3 and images.shape[1] != 3
        images = images.to(self.device, non_blocking=True)
        images = rearrange(images, "b h w c -> b c h w") if pixels_last else images
        if self.model is not None:
            with torch.no_grad():
                return self.model(images, **options)
        if options:
            raise S2WrapError(f"{', '.join(options)}: one graph runs all tiles; export the backbone alone (--tiles)")
        if images.shape[1] != 3 or tuple(images.shape[2:]) != self.image_hw or len(images) == 0:
            raise S2WrapError(
                f"images have shape {tuple(images.shape)}; {self.session.path.name} takes (batch, 3, "
                f"{self.image_hw[0]}, {self.image_hw[1]}): use encode() for pictures of any size, or export the "
                f"backbone alone (--tiles)"
            )
        tensors = run_in_batches(self.session, self._as_input(images))
        return features_from(self.manifest, tensors, self.plan)

    def encode(self, images: Iterable[Any], **options: Any) -> list[Features]:
        """The features of pictures of any sizes, one `Features` (of a batch of one) each.

        Args:
            images: paths, PIL images, arrays or tensors, as for `MultiScale.encode`. One graph sees them stretched to
                the size that it was exported for.
            **options: as for a call.

        Raises:
            S2WrapError: a picture that cannot be read; a graph whose scales keep the aspect, which no stretched picture
                has.
        """
        if self.model is not None:
            with torch.no_grad():
                return self.model.encode(images, **options)
        wrapper = self.manifest["wrapper"]  # None where a policy of one's own chose the tiles
        fits = {scale["fit"] for scale in wrapper["scales"]} if wrapper else {"aspect"}
        if fits != {"stretch"}:
            raise S2WrapError(
                f"{self.session.path.name} is for images of {self.image_hw[0]}×{self.image_hw[1]} pixels and "
                f"fit={'/'.join(sorted(fits))}: stretching pictures would undo that; export the backbone alone "
                f"(--tiles)"
            )
        answers: list[Features] = []
        pictures = ((self._stretched(image), (image.shape[1], image.shape[2])) for image in map(as_image, images))
        while batch := list(islice(pictures, self.tile_batch_for(1, self.device))):
            stretched, sizes = zip(*batch, strict=True)
            answers += map(_on_picture, self(torch.cat(stretched), **options), sizes)
        return answers

    def tile_batch_for(self, count: int, device: torch.device) -> int:
        """The most tiles, or images of one graph, in one call of the file, for that many images on a device."""
        if self.model is not None:
            return self.model.tile_batch_for(count, device)
        return self.manifest["batch"][2]

    def _stretched(self, image: Tensor) -> Tensor:
        """An image (3, h, w) as a batch of one of the graph's size."""
        if tuple(image.shape[1:]) == self.image_hw:
            return image[None]
        resized = resize(self._checked(image[None].to(self.device)), self.image_hw)
        pixels = self.manifest["pixels"] == "uint8"
        return resized.round().clamp(0, 255).to(torch.uint8) if pixels else resized

    def _as_input(self, images: Tensor) -> Tensor:
        """Images (b, 3, h, w) as the graph takes them."""
        images = self._checked(images)
        return rearrange(images, "b c h w -> b h w c") if self.manifest["pixels"] == "uint8" else images.float()

    def _checked(self, images: Tensor) -> Tensor:
        """Normalised images, or pixels for a graph that normalises itself."""
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise S2WrapError(f"images are {images.dtype}; give uint8 RGB in 0…255 or normalised floating values")
        if self.manifest["pixels"] == "uint8":
            if images.dtype != torch.uint8:
                raise S2WrapError(
                    f"images are {images.dtype}; {self.session.path.name} takes uint8 RGB in 0…255 and normalises it"
                )
            return images
        if images.dtype == torch.uint8 and not self.normalise.known:
            raise S2WrapError("images are uint8, but the export knows no mean and std; give normalised floats")
        return self.normalise(images)


def _on_picture(features: Features, image_hw: Pair) -> Features:
    """The features of a picture of this size that was stretched, placed on the picture itself."""
    if features.view is None:
        return features
    geometry = tuple(replace(geometry, image_hw=image_hw) for geometry in features.geometry)
    view = replace(features.view, plan=replace(features.plan, image_hw=image_hw), geometry=geometry)
    return replace(features, view=view)


class SessionBackbone(Backbone):
    """The backbone of a file with `part` "tiles": `MultiScale` does the rest around it."""

    def __init__(self, session: Session, manifest: dict[str, Any]):
        nn.Module.__init__(self)
        about = manifest["backbone"]
        self.session, self.manifest, self.name = session, manifest, about["name"]
        self.image_hw = about["image_hw"]
        self.mean, self.std, self.interpolation = manifest["mean"], manifest["std"], about["interpolation"]
        self.layouts = tuple(Layout(**layout) for layout in about["layouts"])
        self.layout, self.layers, self.model = self.layouts[0], None, None
        self.refuses_other_sizes = "the file holds the backbone for tiles of this size"

    def forward(self, tiles: Tensor) -> Features:
        """As `Backbone.forward`."""
        return features_from(self.manifest, run_in_batches(self.session, tiles.float()), None)

    @property
    def convolutional(self) -> bool:
        """False: tiles have one size here, whatever the network is."""
        return False

    @property
    def device(self) -> torch.device:
        """Where the file runs."""
        return self.session.device


def run_in_batches(session: Session, images: Tensor) -> dict[str, Tensor]:
    """The outputs of a file for any number of images: in batches of at most MAX; too few are repeated up to MIN."""
    (port,), (low, _, high) = session.inputs, session.batch or (1, 1, len(images))
    parts: list[dict[str, Tensor]] = []
    for part in images.split(high):
        missing = max(0, low - len(part))
        filled = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
        answer = session.run({port.name: filled})
        parts.append({name: tensor[: len(part)] for name, tensor in answer.items()} if missing else answer)
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def check_machine(path: Path, manifest: dict[str, Any], device: str | torch.device | None) -> None:
    """Raise S2WrapError for an engine of another TensorRT version, or for another GPU, before it is opened."""
    build, kind = manifest.get("build"), manifest["kind"]
    if build is None or kind == "onnx":
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
