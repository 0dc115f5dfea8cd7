"""Search for the models that fit a budget: sizes of a family, scales and larger inputs."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from s2wrap.backbones import parse_spec
from s2wrap.backbones.registry import FAMILIES, Spec
from s2wrap.compare.families import family_of
from s2wrap.cost import count_cost
from s2wrap.errors import S2WrapError
from s2wrap.factory import load, wrap
from s2wrap.options import Options, option_types
from s2wrap.policies import Pair
from s2wrap.scales import parse_scales

LADDER = ("1", "1,1.5", "1,2", "1,3", "1,2,3", "1,2,3,4", "1.5:whole", "2:whole", "3:whole")
"""Scales that are tried with every backbone."""
UNITS = {"m": 1e6, "g": 1e9, "t": 1e12}


def parse_budget(text: str) -> float:
    """Return the multiply-adds of a text such as "20GMAC"."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([mgt])macs?\s*", text.lower())
    if match is None or float(match[1]) <= 0:
        raise S2WrapError(f"budget {text!r} is not understood; write the multiply-adds of an image, such as 20GMAC")
    return float(match[1]) * UNITS[match[2]]


def propose(
    specs: Sequence[str],
    budget: str,
    *,
    image_hw: Pair | None = None,
    progress: Callable[[list[str]], Iterable[str]] = iter,
    **options: Any,
) -> dict[str, int]:
    """Return the specs of models that cost no more than a budget, with their multiply-adds, the most expensive first.

    Every named backbone, and each other size of its family, is tried at the scales of `LADDER` (whole scales only
    where the backbone accepts other input sizes) and at the named scales. Weights are random: nothing is downloaded.

    Args:
        specs: model specs; their scales are tried too.
        budget: multiply-adds for one image, such as "20GMAC".
        image_hw: height and width of the image in pixels, the same for all; by default of the largest scale of the
            first spec.
        progress: wraps the list of backbones that are tried.
        **options: passed on for every model, as to `s2wrap.load`.

    Raises:
        S2WrapError: a spec with options of its own; or no model fits: the error names the cheapest.
    """
    limit, costs = parse_budget(budget), dict[str, int]()
    options = {key: value for key, value in options.items() if key != "checkpoint"} | {"pretrained": False}
    of_model = {key: value for key, value in options.items() if key in option_types(Options)}
    stretched = options.get("fit", "stretch") == "stretch"  # otherwise the cost depends on the image's shape too
    if isinstance(specs, str) or not specs:
        raise S2WrapError(f"propose() takes a list of models, not {specs!r}; give one spec or more")
    if own := [spec for spec in specs if len(spec.split()) > 1]:
        raise S2WrapError(
            f"{own[0]!r} has options of its own, and budgets are for models of equal ones; leave them out"
        )
    parsed = [parse_spec(spec) for spec in specs]
    image_hw = image_hw or load(specs[0], **options).image_hw
    ladder = [parse_scales(scales.split(",")) for scales in LADDER]
    for name in progress(list(dict.fromkeys(sibling for spec in parsed for sibling in siblings(spec)))):
        plain = load(f"{name}@1", **options)
        cost, own_hw = count_cost(plain, image_hw).multiply_adds, plain.backbone.image_hw
        costs[f"{name}@1"] = cost
        for scales in [spec.scales for spec in parsed if spec.backbone == name] + ladder:
            times = sum(scale.box_hw(own_hw)[0] ** 2 for scale in scales) / own_hw[0] ** 2
            refused = plain.backbone.refuses_other_sizes and any(scale.whole for scale in scales)
            spec = f"{name}@{','.join(map(str, scales))}"
            if spec not in costs and not refused and not (stretched and times * cost > 1.05 * limit):
                costs[spec] = count_cost(wrap(plain.backbone, scales, **of_model), image_hw).multiply_adds
    fitting = {spec: costs[spec] for spec in sorted(costs, key=lambda spec: -costs[spec]) if costs[spec] <= limit}
    if not fitting:
        nearest = min(costs, key=lambda spec: costs[spec])
        raise S2WrapError(
            f"nothing fits a budget of {limit / 1e9:.3g} G multiply-adds; the nearest is {nearest} with "
            f"{costs[nearest] / 1e9:.3g} G"
        )
    return fitting


def siblings(spec: Spec) -> list[str]:
    """Return the specs of all sizes of a backbone's family, with the options of the spec, its own first."""
    family = family_of(spec.family, spec.name)
    names = [spec.name] + [name for name in FAMILIES[spec.family].names() if family_of(spec.family, name) == family]
    same_tagging = [name for name in names if ("." in name) == ("." in spec.name)]
    return [Spec(spec.family, name, (), spec.size, spec.patch).backbone for name in dict.fromkeys(same_tagging)]
