"""What fits a budget: sizes of a family, scales, and larger inputs."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from s2wrap.backbones import Backbone, parse_spec
from s2wrap.backbones.registry import FAMILIES, Spec
from s2wrap.compare.families import family_of
from s2wrap.compare.latency import time_models
from s2wrap.cost import count_cost
from s2wrap.errors import S2WrapError
from s2wrap.plan import scale_size
from s2wrap.policies import Pair
from s2wrap.wrapper import MODEL_OPTIONS, MultiScale, load

LADDER = ("1", "1,1.5", "1,2", "1,3", "1,2,3", "1,2,3,4", "1.5:whole", "2:whole", "3:whole")
"""Scales that are tried with every backbone."""
FAR = 2
"""Models whose time is estimated at more than this many budgets are not timed."""
UNITS = {"mmac": 1e6, "gmac": 1e9, "tmac": 1e12, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Budget:
    """The most that an image may cost.

    Attributes:
        amount: multiply-adds or milliseconds.
        timed: whether it is milliseconds.
    """

    amount: float
    timed: bool

    def __str__(self) -> str:
        return f"{self.amount:g} ms" if self.timed else f"{self.amount / 1e9:g} G multiply-adds"


def parse_budget(text: str) -> Budget:
    """A budget from its text.

    >>> str(parse_budget("20GMAC")), str(parse_budget("15ms"))
    ('20 G multiply-adds', '15 ms')
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]+?)s?\s*", text.lower())
    unit = "ms" if text.lower().strip().endswith("ms") else found and found[2]
    if found is None or unit not in UNITS or float(found[1]) <= 0:
        raise S2WrapError(f"budget {text!r} is not understood; write multiply-adds or a time, such as 20GMAC or 15ms")
    return Budget(float(found[1]) * UNITS[unit], unit in ("ms", "s"))


@dataclass(frozen=True)
class Candidate:
    """A model, and what an image costs: multiply-adds, and milliseconds where the budget is a time."""

    spec: str
    multiply_adds: int
    milliseconds: float | None = None


def propose(
    specs: Sequence[str],
    budget: str | Budget,
    *,
    backend: str = "eager",
    seconds: float = 1.0,
    image_hw: Pair | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
    **options: Any,
) -> list[Candidate]:
    """Models that cost no more than a budget, dearest first.

    Of every backbone that is named, and of the other sizes of its family, the scales of `LADDER` are tried (those that
    run whole where the backbone takes other sizes), and the scales that were named. Weights are random: nothing is
    downloaded.

    Args:
        specs: models; their scales are tried too.
        budget: multiply-adds or a time for one image, such as "20GMAC" or "15ms".
        backend: what is timed, if the budget is a time.
        seconds: time of each, and ten runs at least.
        image_hw: height and width of the image in pixels, which matter unless it is stretched; each model's own by
            default.
        device: where models run.
        progress: wraps the list of backbones that are tried.
        **options: for every model, as for `s2wrap.load`.

    Raises:
        S2WrapError: nothing fits; the nearest that would is named.
    """
    budget = parse_budget(budget) if isinstance(budget, str) else budget
    parsed = [parse_spec(spec) for spec in specs]
    tried: list[Candidate] = []
    for name in progress(list(dict.fromkeys(each for spec in parsed for each in siblings(spec)))):
        named = [",".join(spec.scales) for spec in parsed if spec.backbone == name]
        models, costs = _candidates(name, (*named, *LADDER), budget, image_hw, device, options)
        times = _times(models, costs, budget, image_hw, backend, seconds) if budget.timed else {}
        tried += [Candidate(spec, costs[spec], times.get(spec)) for spec in costs]
    fitting = [each for each in tried if _amount(each, budget) <= budget.amount]
    if not fitting:
        nearest = min(tried, key=lambda each: _amount(each, budget))
        unit = "ms" if budget.timed else "G multiply-adds"
        amount = _amount(nearest, budget) / (1 if budget.timed else 1e9)
        raise S2WrapError(f"nothing fits a budget of {budget}; the nearest is {nearest.spec} with {amount:.3g} {unit}")
    return sorted(fitting, key=lambda each: _amount(each, budget), reverse=True)


def siblings(spec: Spec) -> list[str]:
    """The backbones of the same family of sizes that have names, with the options of the spec, itself first."""
    family = family_of(spec.family, spec.name)
    names = [spec.name] + [name for name in FAMILIES[spec.family].names() if family_of(spec.family, name) == family]
    alike = [name for name in names if ("." in name) == ("." in spec.name)]
    return [Spec(spec.family, name, (), spec.size, spec.patch).backbone for name in dict.fromkeys(alike)]


def _candidates(
    name: str,
    ladder: Iterable[str],
    budget: Budget,
    image_hw: Pair | None,
    device: str | torch.device,
    options: dict[str, Any],
) -> tuple[dict[str, MultiScale], dict[str, int]]:
    """One backbone at all scales that may fit, the plain one in any case, and their multiply-adds."""
    plain = load(f"{name}@1", **{"pretrained": False, **options}).to(device)
    models, least = {f"{name}@1": plain}, count_cost(plain, image_hw).multiply_adds
    stretched = options.get("fit", "stretch") == "stretch"  # else the image's shape counts
    for scales in dict.fromkeys(ladder):
        pixels = sum(_multiple(scale, plain.backbone) ** 2 for scale in scales.split(","))
        if scales == "1" or (stretched and not budget.timed and pixels * least > 1.05 * budget.amount):
            continue
        if "whole" not in scales or not plain.backbone.refuses_other_sizes:
            of_model = {key: value for key, value in options.items() if key in MODEL_OPTIONS}
            models[f"{name}@{scales}"] = MultiScale(plain.backbone, scales.split(","), **of_model).to(device)
    return models, {spec: count_cost(model, image_hw).multiply_adds for spec, model in models.items()}


def _times(
    models: dict[str, MultiScale],
    costs: dict[str, int],
    budget: Budget,
    image_hw: Pair | None,
    backend: str,
    seconds: float,
) -> dict[str, float]:
    """Milliseconds of those that may fit, as the first one's time and their multiply-adds tell."""
    first = next(iter(models))
    found = _medians({first: models[first]}, image_hw, backend, seconds)
    room = FAR * budget.amount / found[first]
    near = {spec: model for spec, model in models.items() if spec != first and costs[spec] / costs[first] < room}
    return found | _medians(near, image_hw, backend, seconds)


def _medians(models: dict[str, MultiScale], image_hw: Pair | None, backend: str, seconds: float) -> dict[str, float]:
    if not models:
        return {}
    sizes = {spec: image_hw or model.backbone.image_hw for spec, model in models.items()}
    timings = time_models(models, [backend], sizes, batch=1, seconds=seconds, progress=lambda done: None)
    for spec, figures in timings.items():
        if "reason" in figures[backend]:
            raise S2WrapError(f"{spec} cannot be timed with backend {backend!r}: {figures[backend]['reason']}")
    return {spec: figures[backend]["median_ms"] for spec, figures in timings.items()}


def _multiple(scale: str, backbone: Backbone) -> float:
    """A scale as a multiple of the backbone's own size."""
    return scale_size(scale.partition(":")[0], backbone.image_hw)[0] / backbone.image_hw[0]


def _amount(candidate: Candidate, budget: Budget) -> float:
    return (candidate.milliseconds or float("inf")) if budget.timed else candidate.multiply_adds
