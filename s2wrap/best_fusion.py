"""What `fuse="auto"` stands for: the fusion that won on tasks, for each kind of backbone.

`best_fusion.json` holds it, with what it was measured on; `benchmarks/best_fusion.py` writes that file.
"""

import json
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

from s2wrap.backbones.base import Backbone
from s2wrap.options import Options

FILE = "best_fusion.json"
Chosen = TypeVar("Chosen", bound=Options)


def settle_fusion(options: Chosen, backbone: Backbone) -> Chosen:
    """The same options, with fusion, norm and grid in place of "auto"; a grid that was asked for stays.

    Models, saved models, stores and manifests hold what it came to: another version may choose otherwise.

    >>> import timm
    >>> from s2wrap import wrap
    >>> options = wrap(timm.create_model("test_vit"), (1, 2), fuse="auto").options
    >>> options.fuse, options.norm, options.target_grid
    ('mean', 'l2', 'finest')
    """
    if options.fuse != "auto":
        return options
    best = best_fusions()["convolutional" if backbone.convolutional else "transformer"]["options"]
    return replace(options, **best | ({} if options.target_grid is None else {"target_grid": options.target_grid}))


@cache
def best_fusions() -> dict[str, Any]:
    """The file's content: by kind of backbone the options that won, the candidates' figures, and how they were made."""
    return json.loads((files("s2wrap") / FILE).read_text("utf-8"))
