"""Advise in sentences: which models are better by more than the noise, at what cost, and what is undecided."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from s2wrap.compare.comparison import Row, unit_of
from s2wrap.compare.score import LEVEL
from s2wrap.compare.ways import LARGER, PATCH, PLAIN, SCALES, short_names, split_name, way_of, weights_of

FEWEST = 20
"""Fewest test pictures for a verdict; resamples of fewer are too much alike to show the noise."""
CHEAPER = 0.95
"""Costs within five percent of each other count as equal."""
MOST_TIMES = 100
"""Beyond so many times the pictures, a difference counts as one that pictures will not decide."""


def judge(rows: Sequence[Row], measure: str, pictures: str) -> tuple[list[str], list[str]]:
    """Return sentences on which models are better in a measure, and on each pair of several scales and a rival.

    Every difference is judged by its interval over resampled pictures. The intervals of all m pairs hold together with
    95 %, since the best model is chosen on the same pictures: each has the level 1 − 0.05 / m (Bonferroni).

    Args:
        rows: models with a score in the measure.
        measure: name of the score that decides.
        pictures: description of the test pictures.
    """
    if len(rows) < 2:
        return [f"Only {row.spec} has such a score: there is nothing to judge it by." for row in rows], []
    if (tested := rows[0].scores[measure].pictures) < FEWEST:
        more = f"{FEWEST - tested} more pictures"
        return [f"Undecided, {measure}: {tested} pictures were tested, too few to tell noise; add {more}."], []
    names = dict(zip((row.spec for row in rows), short_names([row.spec for row in rows]), strict=True))
    best = max(rows, key=lambda row: (row.scores[measure].value, -row.cost.multiply_adds))
    count = len(rows) * (len(rows) - 1) // 2
    level = _level(len(rows))
    pairs = [(pair[2], *_judge_pair(*pair, measure, level, names)) for pair in scaled_pairs(rows)]
    verdict = [
        _describe_best(best, [row for row in rows if row is not best], measure, level, names),
        *_summarise_pairs(measure, Counter((rival, result) for rival, result, _ in pairs)),
        f"Judged on {pictures}. Intervals are over resampled pictures, and so wide that those of all {count} pairs of "
        f"models hold together with {100 * LEVEL:.0f} %. What other training pictures would change is not in them.",
    ]
    return verdict, [sentence for *_, sentence in pairs]


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


def _judge_pair(
    one: Row, other: Row, rival: str, measure: str, level: float, names: Mapping[str, str]
) -> tuple[str, str]:
    """Return whether several scales are "better" or "worse" than a rival by more than the noise, or "undecided".

    The second text is a sentence with the figures and the conclusion.
    """
    difference = one.scores[measure].difference(other.scores[measure], level)
    result = "better" if difference[1] > 0 else "worse" if difference[2] < 0 else "undecided"
    share = one.cost.multiply_adds / other.cost.multiply_adds
    cheaper, dearer = share <= CHEAPER, share >= 1 / CHEAPER
    if result == "better":
        conclusion = "Several scales are better" + (", and cheaper" if cheaper else ", and cost more" if dearer else "")
    elif result == "worse":
        costs = "and costs more" if cheaper else "and simply wins: it costs less" if dearer else "at the same cost"
        conclusion = f"{rival[0].upper()}{rival[1:]} is better, {costs}"
    else:
        costs = "several scales cost less" if cheaper else f"{rival} costs less" if dearer else "at the same cost"
        conclusion = f"Undecided, {costs}; {more_pictures(difference, one.scores[measure].pictures)}"
    value, low, high = (_signed(measure, number) for number in difference)
    unit = " points" if unit_of(measure).sign == "%" else ""
    return result, (
        f"{names[one.spec]} against {rival}, {names[other.spec]}: {measure} {value}{unit} ({low} to {high}) at "
        f"{_times(share)} the multiply-adds{_time_ratio(one, other)}. {conclusion}."
    )


def more_pictures(difference: tuple[float, float, float], pictures: int) -> str:
    """Return how many more pictures would decide a difference, if it stays as it is.

    An interval shrinks with the root of the number of pictures.

    Args:
        difference: its value, and the ends of its interval.
        pictures: how many were tested.

    >>> more_pictures((0.02, -0.02, 0.06), 100)
    'about 300 more pictures would decide, if the difference stays so'
    """
    value, low, high = difference
    margin = (high - low) / 2
    if abs(value) * MOST_TIMES**0.5 <= margin:
        return f"not even {MOST_TIMES} times as many pictures would decide"
    more = pictures * ((margin / abs(value)) ** 2 - 1)
    return f"about {float(f'{max(more, 1):.1g}'):,.0f} more pictures would decide, if the difference stays so"


def recommend(rows: Sequence[Row], measures: Sequence[str], options: Mapping[str, object]) -> list[str]:
    """Return a sentence with the one command to go on with: [] without scores.

    That is the cheapest model of those that no other is shown to beat in any of the measures; where there is none, in
    the first of them.

    Args:
        rows: all models.
        measures: the measures that decide.
        options: of all models, as for `s2wrap.load`.
    """
    scored = [row for row in rows if all(measure in row.scores for measure in measures)]
    if len(scored) < 2 or not measures:
        return []
    if any(scored[0].scores[measure].pictures < FEWEST for measure in measures):
        return [f"Next: the same comparison with at least {FEWEST} pictures that are tested."]
    level = _level(len(scored))
    unbeaten = [[row for row in scored if not _beaten(row, scored, measure, level)] for measure in measures]
    chosen = [row for row in unbeaten[0] if all(row in others for others in unbeaten)]
    where = " or ".join(measures) if chosen else measures[0]
    best = min(chosen or unbeaten[0], key=lambda row: row.cost.multiply_adds)
    spec, own = split_name(best.spec)
    flags = "".join(f" {_flag(name, value)}" for name, value in {**options, **own}.items())
    return [
        f"Next: s2wrap features PICTURES --model {spec}{flags} --output features.parquet: "
        f"the cheapest of the models that no other is shown to beat in {where}."
    ]


def _beaten(row: Row, rows: Sequence[Row], measure: str, level: float) -> bool:
    return any(other.scores[measure].difference(row.scores[measure], level)[1] > 0 for other in rows)


def _flag(name: str, value: object) -> str:
    """Return an option as a flag of the command line."""
    from s2wrap.cli.model import flag_name

    if isinstance(value, bool):
        on, off = flag_name(name).split("/")
        return on if value else off
    return f"{flag_name(name)} {','.join(map(str, value)) if isinstance(value, tuple | list) else value}"


def _level(count: int) -> float:
    """Return the level of each interval at which those of all pairs of models hold together (Bonferroni)."""
    return 1 - (1 - LEVEL) / (count * (count - 1) // 2)


def _summarise_pairs(measure: str, counts: Counter[tuple[str, str]]) -> list[str]:
    """Return a sentence on how often several scales are better or worse than each kind of rival; [] without rivals."""
    texts = [
        f"against {rival} " + ", ".join(f"{word} in {counts[rival, word]}" for word in ("better", "worse", "undecided"))
        for rival in dict.fromkeys(rival for rival, _ in counts)
    ]
    return [f"Several scales, {measure} beyond the noise: {'; '.join(texts)}."] if texts else []


def _describe_best(best: Row, others: list[Row], measure: str, level: float, names: Mapping[str, str]) -> str:
    text = f"Best {measure}: {names[best.spec]}, {_value(best, measure)} at {_giga(best)} multiply-adds."
    tied = [row for row in others if best.scores[measure].difference(row.scores[measure], level)[1] <= 0]
    if not tied:
        return f"{text} Its lead over every other is larger than the noise."
    text += f" Undecided against {', '.join(names[row.spec] for row in tied)}."
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
    return unit_of(measure).text(row.scores[measure].value)


def _signed(measure: str, difference: float) -> str:
    factor, _, digits = unit_of(measure)
    return f"{round(factor * difference, digits) + 0.0:+.{digits}f}".replace("-", "−")


def _times(share: float) -> str:
    return f"{float(f'{share:.2g}'):g} times"


def _giga(row: Row) -> str:
    return f"{float(f'{row.cost.multiply_adds / 1e9:.3g}'):g} G"
