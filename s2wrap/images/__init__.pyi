from .convert import as_batch, as_image, as_pictures
from .folders import SUFFIXES, find_images
from .options import Reading, WindowOptions
from .read import decode_image, load_image, silence_decoders
from .scene import open_scene

__all__ = [
    "SUFFIXES",
    "Reading",
    "WindowOptions",
    "as_batch",
    "as_image",
    "as_pictures",
    "decode_image",
    "find_images",
    "load_image",
    "open_scene",
    "silence_decoders",
]
