"""Wrapped models as files that other runtimes read. Install with: pip install "s2wrap[export]".

The public names are those of `__init__.pyi`, each imported when it is first used, as in `s2wrap` itself.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
