"""A model or an exported file behind HTTP, on Ray Serve: pictures in, features out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
