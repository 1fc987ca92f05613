"""What a report is about, in words: samplers of pictures, or estimates of a density ratio."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Subject:
    """The words that differ from subject to subject."""

    thing: str  # what a row of the table is
    repeats: str  # what the spread of a figure is over
    how_judged: str
    chosen_apart: str
    how_measured: str


SAMPLERS = Subject(
    thing="Sampler",
    repeats="evaluation draws",
    how_judged="Computed from the figures below. A difference counts when it is larger than its standard deviation "
    "over the evaluation draws, taken draw by draw, because all samplers share their noise. That spread is of sampling "
    "from one training run, not of repeated training.",
    chosen_apart="The best M was chosen on a draw of its own, which none of these figures saw.",
    how_measured="A figure's full name says which network's features and how many images it rests on; only figures of "
    "the same name compare. Images are rounded to 8 bits as 127.5 x + 128, clipped and truncated.",
)
RATIOS = Subject(
    thing="Estimate",
    repeats="training seeds",
    how_judged="Computed from the figures below. A difference counts when it is larger than its standard deviation "
    "over the seeds, taken seed by seed, because all magnitudes share a seed's vectors, their order and the first "
    "weights.",
    chosen_apart="The best M was chosen on held-out vectors that none of these figures saw: by the error of ln r where "
    "the truth is known, by cross-entropy where it is not.",
    how_measured="A figure's full name says on how many held-out vectors of each side it rests. Logarithms are "
    "natural; errors of ln r are root mean squares against the true ratio, in nats.",
)
