"""What the figures say, in words: who is better, by more than the noise, and at what cost."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from s2wrap.compare.comparison import INFORMATION, Row
from s2wrap.compare.score import LEVEL
from s2wrap.compare.ways import LARGER, PATCH, PLAIN, SCALES, short_names, way_of, weights_of

FEWEST = 20
"""Tested pictures below which resamples are too much alike to tell noise."""
CHEAPER = 0.95
"""Costs within five percent of each other are called the same."""


@dataclass(frozen=True)
class Judgement:
    """What is to be said: of all models, and of each pair."""

    verdict: list[str]
    pairs: list[str]


def judge(rows: Sequence[Row], measure: str, pictures: str, crossings: Sequence[str] = ()) -> Judgement:
    """What the scores in this measure say.

    Every difference is judged by its interval over resampled pictures, at 95 % for all pairs of models together (which
    of them is best is found on the same pictures): for m pairs each interval is one of 1 − 0.05 / m (Bonferroni).

    Args:
        rows: models that have such a score.
        measure: the score that decides.
        pictures: what was tested, in words.
        crossings: what is to be said of curves.
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
        _about_best(best, [row for row in rows if row is not best], measure, level, names),
        *_summary(pairs),
        *crossings,
        f"Judged on {pictures}. Intervals are over resampled pictures, and so wide that those of all {count} pairs of "
        f"models hold together with {100 * LEVEL:.0f} %. What other training pictures would change is not in them.",
    ]
    return Judgement(verdict, [pair.sentence() for pair in pairs])


def scaled_pairs(rows: Sequence[Row]) -> list[tuple[Row, Row, str]]:
    """Every model at several scales beside what the same compute could be spent on, and what that is.

    A larger input or a smaller patch is one only if it costs more than the same weights at one scale.
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
    """The models of which none that costs no more scores as much or more; cheapest first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (cost(row), -row.scores[measure].value)):
        if not front or row.scores[measure].value > front[-1].scores[measure].value:
            front.append(row)
    return front


@dataclass(frozen=True)
class _Pair:
    """A model at several scales, and what the same compute could be spent on."""

    one: Row
    other: Row
    what: str
    measure: str
    level: float
    names: Mapping[str, str]

    @property
    def difference(self) -> tuple[float, float, float]:
        """How much better several scales are, and between what that lies."""
        return self.one.scores[self.measure].difference(self.other.scores[self.measure], self.level)

    @property
    def result(self) -> str:
        """Whether several scales are "better" or "worse" by more than the noise, or there is "no difference"."""
        _, low, high = self.difference
        return "better" if low > 0 else "worse" if high < 0 else "no difference"

    def sentence(self) -> str:
        """The figures, and what follows from them."""
        share = self.one.cost.multiply_adds / self.other.cost.multiply_adds
        difference, low, high = (_signed(self.measure, value) for value in self.difference)
        unit = "" if self.measure == INFORMATION else " points"
        return (
            f"{self.names[self.one.spec]} against {self.what}, {self.names[self.other.spec]}: {difference}{unit} "
            f"({low} to {high}) at {_times(share)} the multiply-adds{_as_long(self.one, self.other)}. "
            f"{self._follows(share)}."
        )

    def _follows(self, share: float) -> str:
        cheaper, dearer = share <= CHEAPER, share >= 1 / CHEAPER
        if self.result == "better":
            return "Several scales are better" + (", and cheaper" if cheaper else ", and cost more" if dearer else "")
        if self.result == "worse":
            wins = (
                ", and costs more"
                if cheaper
                else ", and simply wins: it costs less"
                if dearer
                else ", at the same cost"
            )
            return f"{self.what[0].upper()}{self.what[1:]} is better{wins}"
        if dearer:
            return f"No difference beyond the noise: several scales buy nothing that {self.what} does not have for less"
        return "No difference beyond the noise, " + ("and several scales cost less" if cheaper else "at the same cost")


def _summary(pairs: Sequence[_Pair]) -> list[str]:
    """How often several scales are better or worse than each kind of rival."""
    said = []
    for what in dict.fromkeys(pair.what for pair in pairs):
        counts = Counter(pair.result for pair in pairs if pair.what == what)
        said.append(
            f"against {what} better in {counts['better']}, worse in {counts['worse']}, no difference in "
            f"{counts['no difference']}"
        )
    return [f"Several scales, beyond the noise: {'; '.join(said)}."] if said else []


def _about_best(best: Row, others: list[Row], measure: str, level: float, names: Mapping[str, str]) -> str:
    text = f"Best {measure}: {names[best.spec]}, {_value(best, measure)} at {_work(best)} multiply-adds."
    tied = [row for row in others if best.scores[measure].difference(row.scores[measure], level)[1] <= 0]
    if not tied:
        return f"{text} Its lead over every other is larger than the noise."
    text += f" Its lead is not larger than the noise over {', '.join(names[row.spec] for row in tied)}."
    cheapest = min([best, *tied], key=lambda row: row.cost.multiply_adds)
    if cheapest is best:
        return f"{text} It is the cheapest of these."
    share = cheapest.cost.multiply_adds / best.cost.multiply_adds
    return (
        f"{text} The cheapest of these is {names[cheapest.spec]}: {_value(cheapest, measure)} at {_work(cheapest)}, "
        f"{_times(share)} the multiply-adds of the best."
    )


def _as_long(one: Row, other: Row) -> str:
    """How many times as long it takes on the first backend that timed both."""
    for backend, figures in one.timings.items():
        theirs = other.timings.get(backend, {})
        if "median_ms" in figures and "median_ms" in theirs:
            return f" and {_times(figures['median_ms'] / theirs['median_ms'])} the time ({backend})"
    return ""


def _value(row: Row, measure: str) -> str:
    value = row.scores[measure].value
    return f"{value:.3f}" if measure == INFORMATION else f"{100 * value:.1f} %"


def _signed(measure: str, difference: float) -> str:
    value, digits = (difference, 3) if measure == INFORMATION else (100 * difference, 1)
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def _times(share: float) -> str:
    return f"{float(f'{share:.2g}'):g} times"


def _work(row: Row) -> str:
    return f"{float(f'{row.cost.multiply_adds / 1e9:.3g}'):g} G"
