"""State in sentences which models are better, by more than the noise, and at what cost."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from s2wrap.compare.comparison import Row, unit_of
from s2wrap.compare.score import LEVEL
from s2wrap.compare.ways import LARGER, PATCH, PLAIN, SCALES, short_names, way_of, weights_of

FEWEST = 20
"""Fewest test pictures for a verdict; resamples of fewer are too much alike to show the noise."""
CHEAPER = 0.95
"""Costs within five percent of each other count as equal."""


@dataclass(frozen=True)
class Judgement:
    """Sentences on all models, and on each pair of a model at several scales and a rival."""

    verdict: list[str]
    pairs: list[str]


def judge(rows: Sequence[Row], measure: str, pictures: str) -> Judgement:
    """Return sentences on which models are better in a measure.

    Every difference is judged by its interval over resampled pictures. The intervals of all m pairs hold together with
    95 %, since the best model is chosen on the same pictures: each has the level 1 − 0.05 / m (Bonferroni).

    Args:
        rows: models with a score in the measure.
        measure: name of the score that decides.
        pictures: description of the test pictures.
    """
    if len(rows) < 2:
        return Judgement([f"Only {row.spec} has such a score: there is nothing to judge it by." for row in rows], [])
    if (tested := rows[0].scores[measure].pictures) < FEWEST:
        return Judgement([f"No verdict: {tested} pictures were tested, and fewer than {FEWEST} tell no noise."], [])
    names = dict(zip((row.spec for row in rows), short_names([row.spec for row in rows]), strict=True))
    best = max(rows, key=lambda row: (row.scores[measure].value, -row.cost.multiply_adds))
    rivals = scaled_pairs(rows)
    count = len(rows) * (len(rows) - 1) // 2
    level = 1 - (1 - LEVEL) / count
    pairs = [_Pair(*rival, measure, level, names) for rival in rivals]
    verdict = [
        _describe_best(best, [row for row in rows if row is not best], measure, level, names),
        *_summarise_pairs(pairs),
        f"Judged on {pictures}. Intervals are over resampled pictures, and so wide that those of all {count} pairs of "
        f"models hold together with {100 * LEVEL:.0f} %. What other training pictures would change is not in them.",
    ]
    return Judgement(verdict, [pair.sentence() for pair in pairs])


def scaled_pairs(rows: Sequence[Row]) -> list[tuple[Row, Row, str]]:
    """Return every model at several scales with each rival for the same compute, and the kind of rival.

    A larger input or a smaller patch is a rival only if it costs more than the same weights at one scale.
    """
    pairs: list[tuple[Row, Row, str]] = []
    plain = {weights_of(row.spec): row.cost.multiply_adds for row in rows if way_of(row.spec) == PLAIN}
    for one in rows:
        if way_of(one.spec) != SCALES:
            continue
        for other in rows:
            same, way = weights_of(one.spec) == weights_of(other.spec), way_of(other.spec)
            if same and way == PLAIN:
                pairs.append((one, other, "one scale"))
            elif same and way in (LARGER, PATCH) and other.cost.multiply_adds > plain.get(weights_of(other.spec), 0):
                pairs.append((one, other, way))
            elif not same and way == PLAIN and other.cost.parameters > one.cost.parameters:
                pairs.append((one, other, "the larger model"))
    return pairs


def pareto_front(rows: Sequence[Row], measure: str, cost: Callable[[Row], float]) -> list[Row]:
    """Return the models that no other beats or equals in score at no more cost, the cheapest first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (cost(row), -row.scores[measure].value)):
        if not front or row.scores[measure].value > front[-1].scores[measure].value:
            front.append(row)
    return front


@dataclass(frozen=True)
class _Pair:
    """A model at several scales, and a rival that spends the same compute in another way."""

    one: Row
    other: Row
    rival: str
    measure: str
    level: float
    names: Mapping[str, str]

    @property
    def difference(self) -> tuple[float, float, float]:
        """How much better several scales are, and the ends of that difference's interval."""
        return self.one.scores[self.measure].difference(self.other.scores[self.measure], self.level)

    @property
    def result(self) -> str:
        """Whether several scales are "better" or "worse" by more than the noise, or there is "no difference"."""
        _, low, high = self.difference
        return "better" if low > 0 else "worse" if high < 0 else "no difference"

    def sentence(self) -> str:
        """Return a sentence with the figures and the conclusion."""
        share = self.one.cost.multiply_adds / self.other.cost.multiply_adds
        difference, low, high = (_signed(self.measure, value) for value in self.difference)
        unit = " points" if unit_of(self.measure).sign == "%" else ""
        return (
            f"{self.names[self.one.spec]} against {self.rival}, {self.names[self.other.spec]}: {difference}{unit} "
            f"({low} to {high}) at {_times(share)} the multiply-adds{_time_ratio(self.one, self.other)}. "
            f"{self._conclusion(share)}."
        )

    def _conclusion(self, share: float) -> str:
        cheaper, dearer = share <= CHEAPER, share >= 1 / CHEAPER
        if self.result == "better":
            return "Several scales are better" + (", and cheaper" if cheaper else ", and cost more" if dearer else "")
        if self.result == "worse":
            costs = "and costs more" if cheaper else "and simply wins: it costs less" if dearer else "at the same cost"
            return f"{self.rival[0].upper()}{self.rival[1:]} is better, {costs}"
        if dearer:
            no_gain = f"several scales buy nothing that {self.rival} does not have for less"
            return f"No difference beyond the noise: {no_gain}"
        return "No difference beyond the noise, " + ("and several scales cost less" if cheaper else "at the same cost")


def _summarise_pairs(pairs: Sequence[_Pair]) -> list[str]:
    """Return a sentence on how often several scales are better or worse than each kind of rival; [] without rivals."""
    texts = []
    for rival in dict.fromkeys(pair.rival for pair in pairs):
        counts = Counter(pair.result for pair in pairs if pair.rival == rival)
        better, worse, equal = (counts[result] for result in ("better", "worse", "no difference"))
        texts.append(f"against {rival} better in {better}, worse in {worse}, no difference in {equal}")
    return [f"Several scales, beyond the noise: {'; '.join(texts)}."] if texts else []


def _describe_best(best: Row, others: list[Row], measure: str, level: float, names: Mapping[str, str]) -> str:
    text = f"Best {measure}: {names[best.spec]}, {_value(best, measure)} at {_giga(best)} multiply-adds."
    tied = [row for row in others if best.scores[measure].difference(row.scores[measure], level)[1] <= 0]
    if not tied:
        return f"{text} Its lead over every other is larger than the noise."
    text += f" Its lead is not larger than the noise over {', '.join(names[row.spec] for row in tied)}."
    cheapest = min([best, *tied], key=lambda row: row.cost.multiply_adds)
    if cheapest is best:
        return f"{text} It is the cheapest of these."
    share = cheapest.cost.multiply_adds / best.cost.multiply_adds
    return (
        f"{text} The cheapest of these is {names[cheapest.spec]}: {_value(cheapest, measure)} at {_giga(cheapest)}, "
        f"{_times(share)} the multiply-adds of the best."
    )


def _time_ratio(one: Row, other: Row) -> str:
    """Return the ratio of their times on the first backend that timed both, in words; "" if none did."""
    for backend, figures in one.timings.items():
        other_figures = other.timings.get(backend, {})
        if "median_ms" in figures and "median_ms" in other_figures:
            return f" and {_times(figures['median_ms'] / other_figures['median_ms'])} the time ({backend})"
    return ""


def _value(row: Row, measure: str) -> str:
    factor, sign, digits = unit_of(measure)
    return f"{factor * row.scores[measure].value:.{digits}f} {sign}".rstrip()


def _signed(measure: str, difference: float) -> str:
    factor, _, digits = unit_of(measure)
    return f"{round(factor * difference, digits) + 0.0:+.{digits}f}".replace("-", "−")


def _times(share: float) -> str:
    return f"{float(f'{share:.2g}'):g} times"


def _giga(row: Row) -> str:
    return f"{float(f'{row.cost.multiply_adds / 1e9:.3g}'):g} G"
