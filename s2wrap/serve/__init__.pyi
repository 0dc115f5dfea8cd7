from .build import application
from .options import ServeOptions

__all__ = ["ServeOptions", "application"]
