"""Reading of pictures: ordinary files, TIFFs with bands, medical pictures, arrays, and windows of large scenes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
