"""What an image processor of transformers says of the images that a model takes."""

from typing import Any

import numpy as np

from s2wrap.options import BackboneOptions, Interpolation

INTERPOLATIONS: dict[Any, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers of those that s2wrap has."""


def processor_options(processor: object) -> BackboneOptions:
    """The size, mean, std and interpolation of an image processor; None where it does not say.

    A processor computes (pixel · rescale_factor − mean) ÷ std; here mean and std are those of values in 0…1.

    Args:
        processor: an image processor, or a processor of images and text, of transformers.
    """
    processor = getattr(processor, "image_processor", processor)
    size = getattr(processor, "crop_size", None) or getattr(processor, "size", None) or {}
    size = {"height": size, "width": size} if isinstance(size, int) else size
    height, width = (size.get(side) or size.get("shortest_edge") for side in ("height", "width"))
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if not getattr(processor, "do_normalize", True):
        mean, std = 0.0, 1.0
    largest = 255 * (getattr(processor, "rescale_factor", 1 / 255) if getattr(processor, "do_rescale", True) else 1)
    if getattr(processor, "rescale_offset", False) or mean is None or std is None:
        mean = std = None
    else:
        mean, std = ([value / largest for value in np.atleast_1d(values)] for values in (mean, std))
    return BackboneOptions(
        image_size=(height, width) if height and width else None,
        mean=mean,
        std=std,
        interpolation=INTERPOLATIONS.get(getattr(processor, "resample", None)),
    )
