"""Search for the models that fit a budget: sizes of a family, scales and larger inputs."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from s2wrap.backbones import parse_spec
from s2wrap.backbones.registry import FAMILIES, Spec
from s2wrap.compare.families import family_of
from s2wrap.compare.latency import time_models
from s2wrap.cost import count_cost
from s2wrap.errors import S2WrapError
from s2wrap.factory import load, wrap
from s2wrap.options import Options, option_types
from s2wrap.policies import Pair
from s2wrap.scales import Scale, parse_scales
from s2wrap.wrapper import MultiScale

LADDER = ("1", "1,1.5", "1,2", "1,3", "1,2,3", "1,2,3,4", "1.5:whole", "2:whole", "3:whole")
"""Scales that are tried with every backbone."""
FAR = 2
"""Models whose estimated time exceeds the budget by more than this factor are not timed."""
UNITS = {"mmac": 1e6, "gmac": 1e9, "tmac": 1e12, "ms": 1.0, "s": 1e3}
"""Accepted units in multiply-adds, or in milliseconds for a time."""


@dataclass(frozen=True)
class Budget:
    """The most that one image may cost: an amount of milliseconds (timed), or of multiply-adds."""

    amount: float
    timed: bool

    def text(self, amount: float) -> str:
        """Return an amount with its unit."""
        return f"{amount:.3g} ms" if self.timed else f"{amount / 1e9:.3g} G multiply-adds"


def parse_budget(text: str) -> Budget:
    """Return the budget that a text such as "20GMAC" or "15ms" names."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([mgt]macs?|ms|s)\s*", text.lower())
    if match is None or float(match[1]) <= 0:
        raise S2WrapError(f"budget {text!r} is not understood; write multiply-adds or a time, such as 20GMAC or 15ms")
    unit = match[2].removesuffix("s") if "mac" in match[2] else match[2]
    return Budget(float(match[1]) * UNITS[unit], unit in ("ms", "s"))


@dataclass(frozen=True)
class Candidate:
    """A model and its cost for one image in multiply-adds, and in milliseconds where it was timed."""

    spec: str
    multiply_adds: int
    milliseconds: float | None = None

    def cost(self, budget: Budget) -> float:
        """Return the cost in the unit of a budget; infinity where it was not timed."""
        return (self.milliseconds or float("inf")) if budget.timed else self.multiply_adds


def propose(
    specs: Sequence[str],
    budget: str,
    *,
    backend: str = "eager",
    seconds: float = 1.0,
    image_hw: Pair | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
    **options: Any,
) -> list[Candidate]:
    """Return the models that cost no more than a budget, the most expensive first.

    Every named backbone, and each other size of its family, is tried at the scales of `LADDER` (whole scales only
    where the backbone accepts other input sizes) and at the named scales. Weights are random: nothing is downloaded.

    Args:
        specs: model specs; their scales are tried too.
        budget: multiply-adds or a time for one image, such as "20GMAC" or "15ms".
        backend: the backend that is timed, if the budget is a time.
        seconds: how long each model is timed, with ten runs at least.
        image_hw: height and width of the image in pixels, the same for all; by default of the largest scale of the
            first spec.
        device: the device that the models run on.
        progress: wraps the list of backbones that are tried.
        **options: passed on for every model, as to `s2wrap.load`.

    Raises:
        S2WrapError: no model fits; the error names the cheapest.
    """
    limit, candidates = parse_budget(budget), []
    options = {key: value for key, value in options.items() if key != "checkpoint"} | {"pretrained": False}
    parsed = [parse_spec(spec) for spec in specs]
    image_hw = image_hw or load(specs[0], **options).image_hw
    ladder = [parse_scales(scales.split(",")) for scales in LADDER]
    for name in progress(list(dict.fromkeys(sibling for spec in parsed for sibling in siblings(spec)))):
        named = [spec.scales for spec in parsed if spec.backbone == name]
        models = _load_in_reach(name, [*named, *ladder], limit, image_hw, device, options)
        costs = {spec: count_cost(model, image_hw).multiply_adds for spec, model in models.items()}
        times = _time_in_reach(models, costs, limit, image_hw, backend, seconds) if limit.timed else {}
        candidates += [Candidate(spec, cost, times.get(spec)) for spec, cost in costs.items()]
    candidates.sort(key=lambda candidate: candidate.cost(limit), reverse=True)
    fitting = [candidate for candidate in candidates if candidate.cost(limit) <= limit.amount]
    if not fitting:
        nearest = candidates[-1]
        raise S2WrapError(
            f"nothing fits a budget of {limit.text(limit.amount)}; the nearest is {nearest.spec} with "
            f"{limit.text(nearest.cost(limit))}"
        )
    return fitting


def siblings(spec: Spec) -> list[str]:
    """Return the specs of all sizes of a backbone's family, with the options of the spec, its own first."""
    family = family_of(spec.family, spec.name)
    names = [spec.name] + [name for name in FAMILIES[spec.family].names() if family_of(spec.family, name) == family]
    same_tagging = [name for name in names if ("." in name) == ("." in spec.name)]
    return [Spec(spec.family, name, (), spec.size, spec.patch).backbone for name in dict.fromkeys(same_tagging)]


def _load_in_reach(
    name: str,
    scale_lists: Iterable[tuple[Scale, ...]],
    budget: Budget,
    image_hw: Pair,
    device: str | torch.device,
    options: dict[str, Any],
) -> dict[str, MultiScale]:
    """Return one backbone at scale 1 and at all scales that may fit, by spec."""
    plain = load(f"{name}@1", **options).to(device)
    of_model = {key: value for key, value in options.items() if key in option_types(Options)}
    models, plain_cost = {f"{name}@1": plain}, count_cost(plain, image_hw).multiply_adds
    stretched = options.get("fit", "stretch") == "stretch"  # otherwise the cost depends on the image's shape too
    for scales in dict.fromkeys(scale_lists):
        spec = f"{name}@{','.join(map(str, scales))}"
        image_pixels = plain.backbone.image_hw[0] ** 2
        pixels = sum(scale.box_hw(plain.backbone.image_hw)[0] ** 2 for scale in scales) / image_pixels
        if spec in models or (stretched and not budget.timed and pixels * plain_cost > 1.05 * budget.amount):
            continue
        if not any(scale.whole for scale in scales) or not plain.backbone.refuses_other_sizes:
            models[spec] = wrap(plain.backbone, scales, **of_model).to(device)
    return models


def _time_in_reach(
    models: dict[str, MultiScale], costs: dict[str, int], budget: Budget, image_hw: Pair, backend: str, seconds: float
) -> dict[str, float]:
    """Return the milliseconds of the models that may fit, by spec, estimated from the first one's time."""

    def median_ms(specs: list[str]) -> dict[str, float]:
        some = {spec: models[spec] for spec in specs}
        quiet: Any = {"batch": 1, "seconds": seconds, "progress": lambda done: None}
        timings = time_models(some, [backend], image_hw, **quiet) if some else {}
        for spec, figures in timings.items():
            if "reason" in figures[backend]:
                raise S2WrapError(f"{spec} cannot be timed with backend {backend!r}: {figures[backend]['reason']}")
        return {spec: figures[backend]["median_ms"] for spec, figures in timings.items()}

    first, *others = models
    times = median_ms([first])
    most = FAR * budget.amount / times[first] * costs[first]
    return times | median_ms([spec for spec in others if costs[spec] < most])
