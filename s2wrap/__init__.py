"""s2wrap: multi-scale features from any frozen vision backbone (Scaling on Scales, arXiv 2403.13043).

The public names are those of `__init__.pyi`, which type checkers read too. Each is imported when it is first used, so
that `s2wrap --help` and its options need no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
