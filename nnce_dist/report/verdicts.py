"""What holds and what does not: sentences computed from the figures, with the differences they rest on."""

import math
from dataclasses import dataclass
from typing import Literal

from .data import SamplerResult, best_tuned, decimals, describe_magnitude, find_metric, mean_sd, tuned_rows
from .kinds import Measure, measures

Outcome = Literal["holds", "unclear", "fails"]
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
HELD = "\N{GREEK SMALL LETTER GAMMA}(M+1)/M held fixed"
TUNING, MAGNITUDES = "Tuning", "Noise magnitude"
TEACHER_ACCURACY = 0.9  # what a usable teacher on the made pictures reaches


@dataclass(frozen=True)
class Verdict:
    """One claim, whether the figures bear it out, and the figures."""

    topic: str
    outcome: Outcome
    sentence: str
    measure: str = ""  # what the comparison was made on: FD, class accuracy


def advantage(better: list[float], worse: list[float], sign: int) -> tuple[float, float]:
    """By how much the first beats the second, and the spread of that.

    Draw i of both used the same noise, or seed i the same vectors, so the differences are taken draw by draw; rows with
    different numbers of draws are compared by their means, and the spreads add in quadrature. The spread is NaN for a
    single draw.
    """
    if len(better) == len(worse):
        return mean_sd(sign * (a - b) for a, b in zip(better, worse, strict=True))
    (a, sd_a), (b, sd_b) = mean_sd(better), mean_sd(worse)
    return sign * (a - b), math.hypot(sd_a, sd_b)


def judge(difference: float, spread: float) -> Outcome:
    """A difference counts when it is larger than its spread; of a single draw nothing can be said."""
    if math.isnan(spread) or abs(difference) <= spread:
        return "unclear"
    return "holds" if difference > 0 else "fails"


def compare(
    topic: str, first: SamplerResult, second: SamplerResult, measure: Measure, name: str, other: str
) -> Verdict | None:
    """Whether `first` (called `name`) beats `second` (called `other`); None where one was not measured."""
    if measure.metric not in first.figures or measure.metric not in second.figures:
        return None
    a, b = first.figures[measure.metric], second.figures[measure.metric]
    difference, spread = advantage(a, b, measure.kind.sign)
    digits = decimals((measure.kind.factor * value for value in (*a, *b)), [measure.kind.factor * spread])
    fine = max(digits, decimals([measure.kind.factor * difference]) - 1)  # a difference far below the values
    values = f"({measure.show(mean_sd(a)[0], digits)} against {measure.show(mean_sd(b)[0], digits)})"
    spread_shown = "" if math.isnan(spread) else f" {PLUS_MINUS} {measure.show(spread, fine)}"
    single = " in a single draw" if math.isnan(spread) else ""
    by = f"{measure.show(abs(difference), fine)}{spread_shown}{measure.kind.unit}{single}"
    outcome = judge(difference, spread)
    sentence = {
        "holds": f"{name} beats {other} on {measure.kind.label} by {by} {values}.",
        "fails": f"{name} is worse than {other} on {measure.kind.label} by {by} {values}.",
        "unclear": f"{name} and {other} cannot be told apart on {measure.kind.label}: they differ by {by} {values}.",
    }[outcome]
    return Verdict(topic, outcome, sentence, measure.kind.label)


def _called(row: SamplerResult) -> str:
    return f"\N{LEFT DOUBLE QUOTATION MARK}{row.name}\N{RIGHT DOUBLE QUOTATION MARK}"


def against_baselines(rows: list[SamplerResult], best: SamplerResult, found: list[Measure]) -> list[Verdict | None]:
    """The tuned sampler at its best M against every sampler of equal cost that was not tuned with the ratio."""
    name = f"The sampler tuned at M = {describe_magnitude(best.noise_magnitude)}"
    others = [row for row in rows if row.group in ("untuned", "baseline", "control")]
    return [compare(TUNING, best, row, measure, name, _called(row)) for measure in found for row in others]


def over_magnitudes(rows: list[SamplerResult], measure: Measure, held: bool) -> list[Verdict | None]:
    """The best M above 1 against plain NCE (M = 1) and NWJ (M = inf)."""
    swept = tuned_rows(rows, measure.metric, held)
    between = [row for row in swept if 1 < row.noise_magnitude < math.inf]
    best = best_tuned(between, measure.metric, held)
    if best is None:
        return []
    name = f"M = {describe_magnitude(best.noise_magnitude)}{f', with {HELD},' if held else ''}"
    ends = {1: "plain NCE (M = 1)", math.inf: f"NWJ (M = {describe_magnitude(math.inf)})"}
    pairs = [(row, ends[row.noise_magnitude]) for row in swept if row.noise_magnitude in ends]
    return [compare(MAGNITUDES, best, row, measure, name, end) for row, end in pairs]


def one_step(rows: list[SamplerResult], found: list[Measure]) -> list[Verdict | None]:
    """Every one-step sampler against the teacher at its full number of steps, and against the untuned sampler."""
    others = [row for row in rows if row.group in ("teacher", "untuned")]
    pairs = [(row, other) for row in rows if row.group == "one_step" for other in others]
    return [compare("One step", row, other, m, _called(row), _called(other)) for m in found for row, other in pairs]


def teacher_accuracy(rows: list[SamplerResult]) -> list[Verdict]:
    """Whether the teacher's samples show the class that was asked for."""
    metric = find_metric(rows, "class_accuracy")
    teachers = [row for row in rows if row.group == "teacher" and metric in row.figures][:1]
    means = [mean_sd(row.figures[metric])[0] for row in teachers]
    return [
        Verdict(
            "Teacher",
            "holds",
            f"The teacher's class accuracy, {mean:.1%}, is above the {TEACHER_ACCURACY:.0%} asked of it.",
        )
        if mean > TEACHER_ACCURACY
        else Verdict(
            "Teacher",
            "fails",
            f"The teacher's class accuracy, {mean:.1%}, is below the {TEACHER_ACCURACY:.0%} asked of it.",
        )
        for mean in means
    ]


def verdicts(rows: list[SamplerResult]) -> list[Verdict]:
    """Every claim that the run's figures can settle, in the order in which a reader asks."""
    found = measures(rows)
    if not found:
        return []
    best = best_tuned(rows, found[0].metric)
    claims = [
        *teacher_accuracy(rows),
        *(against_baselines(rows, best, found) if best else []),
        *over_magnitudes(rows, found[0], held=False),
        *over_magnitudes(rows, found[0], held=True),
        *one_step(rows, found),
    ]
    return [claim for claim in claims if claim is not None]
