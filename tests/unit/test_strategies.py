"""python -m pytest tests/unit/test_strategies.py

Strategies decide on the history alone: whoever comes first, and whenever the sweep is killed, the same survive.
"""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnce_dist.sweep.history import History, Outcome
from nnce_dist.sweep.space import parse, points, stream
from nnce_dist.sweep.strategies import Halving, Population, Whole, expected_at, generations, misfits, perturbed, rungs
from nnce_dist.sweep.suggestions import Suggested

SPACE = {"m": parse("loguniform(1, 1e4)"), "kind": parse("choice(a, b)"), "k": parse("integer(1, 9)")}
POINTS = points(SPACE, 23, seed=5)
RUNGS = rungs(100, 3, 2700, 10)


def value(segment) -> float | None:
    """A learning curve: better with samples, worst far from m = 100; every ninth trial fails at its second segment."""
    if segment.trial % 9 == 4 and segment.samples > 500:
        return None
    return abs(math.log(segment.point["m"] / 100)) + 100 / segment.samples + 0.01 * segment.trial


def outcome(segment) -> Outcome:
    got = value(segment)
    error = "" if got is not None else "broken"
    return Outcome(segment.trial, segment.samples, segment.point, got, segment.source, error)


def run(strategy, order: random.Random, workers: int = 1, kills: float = 0.0, path=None, mode="min") -> dict:
    """Trains up to `workers` segments at a time, which end in any order; what was at work at a kill is forgotten."""
    make, history, at_work = strategy, History(path, mode), []
    strategy = make()
    while True:
        waiting = [one for one in strategy.segments(history) if one not in at_work]
        at_work += waiting[: workers - len(at_work)]
        if not at_work:
            return dict(history)
        history.add(outcome(at_work.pop(order.randrange(len(at_work)))))
        if order.random() < kills:
            strategy, history, at_work = make(), History(path, mode), []


STRATEGIES = {
    "whole": lambda: Whole(POINTS, 2700),
    "asha": lambda: Halving(POINTS, RUNGS, 3),
    "pbt": lambda: Population(POINTS[:9], generations(500, 2700, 10), SPACE, seed=3),
    "tpe": lambda: Suggested(SPACE, 13, 4, 2700, seed=3),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_outcomes_are_those_of_one_worker_whatever_the_order_and_the_kills(name, tmp_path):
    pytest.importorskip("optuna") if name == "tpe" else None
    expected = run(STRATEGIES[name], random.Random(0))
    for seed, workers in enumerate((2, 5, 40)):
        assert run(STRATEGIES[name], random.Random(seed), workers) == expected
        assert run(STRATEGIES[name], random.Random(seed), workers, 0.3, tmp_path / f"{workers}.jsonl") == expected


PACKED = {
    "asha": lambda: Halving(POINTS, RUNGS, 3, 8),
    "pbt": lambda: Population(POINTS[:9], generations(500, 2700, 10), SPACE, seed=3, together=4),
    "tpe": lambda: Suggested(SPACE, 13, 5, 2700, seed=3, together=4),
}


def packed(make, order: random.Random, workers: int, kills: float, path=None) -> tuple[dict, dict]:
    """As `run`, but for whole cohorts: the outcomes, and the trials of every cohort that was begun."""
    strategy, history, at_work, begun = make(), History(path), [], {}
    while True:
        ready = {}
        for one in strategy.segments(history):
            ready.setdefault((one.samples, one.start, one.cohort), []).append(one)
        for key, members in ready.items():
            assert begun.setdefault(key, members) == members  # none of them was ready before the others
            if key not in at_work and len(at_work) < workers:
                at_work.append(key)
        if not at_work:
            return dict(history), {key: [one.trial for one in members] for key, members in begun.items()}
        for one in ready[at_work.pop(order.randrange(len(at_work)))]:
            history.add(outcome(one))
        if order.random() < kills:
            strategy, history, at_work = make(), History(path), []


@pytest.mark.parametrize("name", PACKED)
def test_cohorts_follow_from_decisions_and_never_from_timing_or_kills(name, tmp_path):
    pytest.importorskip("optuna") if name == "tpe" else None
    expected, begun = packed(PACKED[name], random.Random(0), 1, 0)
    assert expected == run(PACKED[name], random.Random(0))
    most = {"asha": 8, "pbt": 3, "tpe": 3}[name]  # the last two as even as they divide
    assert max(map(len, begun.values())) == most
    assert sorted(key for trials in begun.values() for key in trials) == sorted(trial for trial, _ in expected)
    for seed, workers in enumerate((2, 5)):
        kills = (0.4, tmp_path / f"{workers}.jsonl")
        assert packed(PACKED[name], random.Random(seed), workers, *kills) == (expected, begun)


def test_halving_judges_as_many_at_a_time_as_share_a_process():
    def ready_at_second_rung(together: int, done: int) -> int:
        history = History()
        for trial in range(done):
            history.add(Outcome(trial, RUNGS[0], POINTS[trial], float(trial)))
        segments = Halving(POINTS, RUNGS, 3, together).segments(history)
        return sum(one.start == RUNGS[0] for one in segments)

    assert ready_at_second_rung(1, 3) == 1 and ready_at_second_rung(2, 3) == 1
    assert ready_at_second_rung(8, 7) == 0 and ready_at_second_rung(8, 8) == 2


def test_halving_trains_a_third_of_each_rung_on_and_saves_most_of_the_samples():
    history = run(STRATEGIES["asha"], random.Random(0), 5)
    reached = [sorted(trial for trial, samples in history if samples == rung) for rung in RUNGS]
    assert reached[0] == list(range(23)) and RUNGS == [100, 300, 900, 2700]
    for earlier, later in zip(reached, reached[1:], strict=False):
        assert set(later) <= set(earlier) and 1 <= len(later) <= max(math.ceil(len(earlier) / 3) + 1, 1)
    scores = {trial: value_of.value for (trial, samples), value_of in history.items() if samples == 100}
    assert min(scores, key=scores.get) in reached[-1]
    spent = sum(rung * len(trials) for rung, trials in zip(RUNGS, reached, strict=True))
    assert spent < 0.3 * 23 * 2700


@given(st.integers(1, 30), st.floats(2, 5), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_halving_ends_with_a_whole_trial_unless_all_fail(number, reduction, order):
    history = run(lambda: Halving(POINTS[:number] * 1, RUNGS, reduction), order, workers=4)
    assert any(samples == 2700 for _, samples in history) or all(
        one.error for one in history.values() if one.samples > 500
    )


def test_a_high_value_is_good_when_the_mode_says_so():
    lows = {trial for trial, samples in run(STRATEGIES["asha"], random.Random(0)) if samples == 2700}
    highs = {trial for trial, samples in run(STRATEGIES["asha"], random.Random(0), mode="max") if samples == 2700}
    assert highs and not lows & highs
    history = History(mode="max")
    history.add(Outcome(0, 100, {}, math.inf))
    assert history.score(0, 100) == math.inf  # it diverged


def test_the_worst_of_a_population_go_on_as_changed_copies_of_the_best():
    history = run(STRATEGIES["pbt"], random.Random(0), 3)
    for samples, before in ((1000, 500), (1500, 1000)):
        copies = {trial: history[trial, samples].source for trial in range(9)}
        scores = {trial: history[trial, before].value for trial in range(9)}
        lost = sorted(trial for trial, score in scores.items() if score is None)
        ranked = sorted((trial for trial in scores if trial not in lost), key=scores.get)
        copied = {trial for trial, source in copies.items() if source is not None}
        assert copied >= set(lost) and len(copied) == 2 and {copies[t] for t in copied} <= set(ranked[:2])
        for trial in copied:
            assert history[trial, samples].point != history[copies[trial], before].point
            assert 1 <= history[trial, samples].point["m"] <= 1e4


def test_numbers_are_perturbed_by_a_fifth_or_drawn_anew():
    point, kept = {"m": 50.0, "kind": "a", "k": 5}, 0
    for number in range(400):
        changed = perturbed(point, SPACE, stream(0, number))
        kept += changed["m"] in (40.0, 60.0)
        assert changed["k"] in range(1, 10)
    assert 250 < kept < 350  # three quarters


def test_suggestions_find_the_best_magnitude_better_than_chance():
    pytest.importorskip("optuna")
    space = {"m": parse("loguniform(1, 1e4)")}

    def late_error(name):
        make = (lambda: Suggested(space, 40, 4, 2700, 1)) if name else lambda: Whole(points(space, 40, 1), 2700)
        tried = [one.point["m"] for (trial, _), one in sorted(run(make, random.Random(0)).items()) if trial >= 20]
        return sum(abs(math.log(m / 100)) for m in tried) / len(tried)

    assert late_error("tpe") < 0.6 * late_error("")


@pytest.mark.parametrize("name", STRATEGIES)
@given(st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_what_an_outage_took_is_tried_again_by_the_next_start(name, order):
    """Outages take a part of the segments of two starts; the third one meets none."""
    pytest.importorskip("optuna") if name == "tpe" else None
    undisturbed, history, points = run(STRATEGIES[name], random.Random(0)), History(), {}
    for risk in (0.4, 0.4, 0):
        plan = STRATEGIES[name]()
        history.forget_failures(plan.settled(history))
        while ready := plan.segments(history):
            one = order.choice(ready)
            key = one.trial, one.samples if name == "pbt" else 0  # a population's settings change as it goes on
            assert points.setdefault(key, (one.point, one.source)) == (one.point, one.source)
            lost = Outcome(one.trial, one.samples, one.point, None, one.source, "the disk is full")
            history.add(lost if order.random() < risk else outcome(one))
    found = history.asked_for(STRATEGIES[name]())
    if name in ("whole", "asha"):
        assert dict(found) == undisturbed
    replaced = 2700 if name == "pbt" else 0  # what failed in a generation before the last went on as a copy
    assert not [one for one in found.values() if one.error == "the disk is full" and one.samples >= replaced]


def test_a_population_may_vary_only_what_the_states_of_others_fit():
    fit = ["objective.noise_magnitude", "density_ratio.optimiser.lr", "one_step.generator.lr", "ten_step.tau1"]
    fit += ["teacher.p_mean", "objective.ratio_regularisation", "ten_step.value.lr", "ten_step.energy_weight"]
    assert not list(misfits({key: parse("loguniform(1,10)") for key in fit}))
    assert not list(misfits({"density_ratio.width": parse("grid(8,16)"), "run.seed": parse("grid(0,1)")}))
    others = ["density_ratio.width", "density_ratio.dim", "density_ratio.kl", "density_ratio.num_samples", "run.seed"]
    for key in (*others, "ten_step.num_steps", "ten_step.value_width", "network.num_blocks", "objective.kind"):
        (line,) = misfits({"density_ratio.optimiser.lr": parse("uniform(0,1)"), key: parse("choice(1,2)")})
        assert line.startswith(f"sweep.strategy=pbt: varies {key} in training")


def test_a_torn_last_line_is_forgotten_and_overwritten(tmp_path):
    path, first = tmp_path / "sweep.jsonl", Outcome(0, 10, {"m": 1.0}, 2.0)
    History(path).add(first)
    with open(path, "ab") as file:
        file.write(b'{"trial": 1, "sam')
    history = History(path)
    assert dict(history) == {(0, 10): first}
    history.add(Outcome(1, 10, {"m": 3.0}, math.inf))
    assert set(History(path)) == {(0, 10), (1, 10)} and History(path).score(1, 10) == math.inf


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("normal(0,1)", "write grid"),
        ("grid()", "holds no value"),
        ("uniform(2,1)", "the smaller one first"),
        ("loguniform(0,1)", "above 0"),
        ("integer(1,2.5)", "two whole numbers"),
        ("3", "write grid"),
    ],
)
def test_what_is_no_distribution_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        parse(text)


def test_values_are_numbers_words_or_lists():
    assert parse("grid(1, 1e4, inf, true, karras, [0.5, 1], 'a b')").values == (
        1,
        1e4,
        math.inf,
        True,
        "karras",
        [0.5, 1],
        "a b",
    )


def test_draws_lie_in_their_ranges_and_are_crossed_with_the_grids():
    space = {"m": parse("loguniform(1,1e4)"), "seed": parse("grid(0,1,2)"), "u": parse("uniform(-1,1)")}
    found = points(space, 200, seed=1)
    assert len(found) == 600 and [point["seed"] for point in found[:3]] == [0, 1, 2]
    assert len({point["m"] for point in found[:3]}) == 1  # the same draw with every seed
    below = sum(point["m"] < 100 for point in found) / 600
    assert all(1 <= point["m"] <= 1e4 and -1 <= point["u"] <= 1 for point in found) and 0.4 < below < 0.6
    assert points(space, 200, seed=1) == found != points(space, 200, seed=2)
    assert points(space, 3, seed=1) == found[:9]  # more draws leave the first as they are


@pytest.mark.parametrize(("trials", "reduction", "together"), [(64, 4, 1), (30, 3, 1), (5, 4, 1), (64, 4, 16)])
def test_as_many_trials_come_to_a_rung_as_the_plan_expects(trials, reduction, together):
    counts, draws = dict.fromkeys(RUNGS, 0), 60
    for number in range(draws):
        place, history = random.Random(number), History()
        scores = [place.random() for _ in range(trials)]
        strategy = Halving([{}] * trials, RUNGS, reduction, together)
        while ready := strategy.segments(history):
            for one in ready:
                history.add(Outcome(one.trial, one.samples, one.point, scores[one.trial]))
                counts[one.samples] += 1
    expected = expected_at(RUNGS, reduction, trials, together)
    for rung, count in counts.items():
        assert abs(count / draws - expected[rung]) < max(0.25 * expected[rung], 0.6), (rung, count / draws, expected)
