"""The report of a sweep over settings: pytest tests/unit/test_sweep_report.py"""

import io
import math
import re
import shutil

import numpy as np
import pytest
import sweep_example
from matplotlib.figure import Figure
from rich.console import Console
from sweep_example import LR, M

from nnce_dist.report.effects import effects, grouped, shares
from nnce_dist.report.figures import LIGHT
from nnce_dist.report.parallel_figure import parallel_panel
from nnce_dist.report.scale import scale
from nnce_dist.report.setting_figures import View, series, setting_panels, setting_scale
from nnce_dist.report.sweep_figures import effect_panel, learning, level, segments_panel
from nnce_dist.report.sweep_page import lead
from nnce_dist.report.sweep_table import SHOWN, copies_table, ordered, rungs_table, trials_table
from nnce_dist.report.trials import SweepData, TrialRow
from nnce_dist.stages import report
from nnce_dist.stages.sweep_results import sweep_data


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict:
    """Configuration, folder and results of a sweep of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    return {kind: sweep_example.run(kind, folder) for kind in sweep_example.WORDS}


@pytest.fixture(scope="module")
def sweeps(runs) -> dict[str, SweepData]:
    return {kind: sweep_data(*made) for kind, made in runs.items()}


def row(name: str, settings: dict, value: float | None, **more) -> TrialRow:
    return TrialRow(name, **{"state": "finished", "settings": settings, "metric": "loss", "value": value} | more)


def drawn(panel):
    """The axes after the panel was drawn on them."""
    axes = Figure().add_subplot()
    panel.draw(axes, LIGHT)
    return axes


# ---- the whole report ------------------------------------------------------------------------------------------------


def test_the_report_of_a_halved_sweep_shows_what_became_of_all_and_the_terminal_ends_with_the_best(runs, sweeps):
    config, root, results = runs["asha"]
    said = io.StringIO()
    page = report.write(config, root, results, 12.0, Console(file=said, width=100)).read_text()
    lines, best = said.getvalue().splitlines(), sweeps["asha"].best[0]
    assert lines[-1] == f"report: {root / 'report.html'}" and lines[-2] == f"best: preset={root / 'best.yaml'}"
    assert any(line.startswith(best.name) and f"{best.settings[M]:.4g}" in line for line in lines)
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        *("What failed", "Trials", "Settings", "What matters", "Rungs", "Density ratio", "Training"),
        "How this was made",
    ]
    failed = page[page.index("What failed") : page.index("<h2>Trials")]
    assert "trial-003" in failed and "lower the learning rate" in failed and "trial-004" not in failed
    pictures = {path.stem for path in (root / "figures").iterdir()}
    assert pictures >= {"selection_by_noise_magnitude", "selection_by_lr", "selection_by_network", "effects"}
    assert page.count("<img ") == len(pictures) and "http:" not in page and "<script" not in page
    assert 0 < page.count("<tr><th scope='row'>trial-") + page.count("class=best><th scope='row'>trial-") <= SHOWN
    assert lead(sweeps["asha"]) in page and "density-ratio, all trials" in page


def test_a_sweep_of_which_every_trial_failed_has_a_report(runs, tmp_path):
    config, root, results = sweep_example.run("random", tmp_path)
    shutil.rmtree(root / "density_ratio")  # so that there are no curves to draw
    broken = [{k: v for k, v in one.items() if k not in ("figures", "selection")} for one in results]
    broken = [one | {"error": "it broke", "value": None} for one in broken]
    page = report.write(config, root, broken, 1.0, Console(file=io.StringIO())).read_text()
    assert "No trial was trained to its end" in page and f"{len(results)} failed" in page
    assert not (root / "best.yaml").exists()


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_trials_are_listed_from_the_best_settings_to_the_failed_and_no_more_than_twenty():
    rows = [
        row("failed", {"lr": 9, "run.seed": 0}, None, state="failed", error="it broke"),
        row("far", {"lr": 8, "run.seed": 0}, 0.2, state="stopped", samples=64),
        row("near", {"lr": 7, "run.seed": 0}, 0.1, state="stopped", samples=16),
        *(row(f"lucky{s}", {"lr": 1, "run.seed": s}, value) for s, value in enumerate([0.1, 0.9])),
        *(row(f"good{s}", {"lr": 2, "run.seed": s}, 0.3) for s in range(2)),
    ]
    names = [trial.name for trial in ordered(rows)]
    assert names == ["good0", "good1", "lucky0", "lucky1", "far", "near", "failed"]
    many = SweepData([row(f"t{n}", {"lr": n}, float(n)) for n in range(30)])
    assert trials_table(many).count("<th scope='row'>") == SHOWN and ">t19<" in trials_table(many)


def test_a_rung_tells_how_many_came_went_on_and_stopped(sweeps):
    rows = re.findall(r"<tr><th scope='row'>([\d,]+)</th>(.*?)</tr>", rungs_table(sweeps["asha"]))
    cells = [[first, *re.findall("<td>(.*?)</td>", rest)] for first, rest in rows]
    trials = sweeps["asha"].trials
    assert [row[0] for row in cells] == ["256", "1,024", "4,096"]
    came, on, stopped, lost = (int(cell) for cell in cells[0][1:])
    assert came == len(trials) == on + stopped + lost and lost == 2 and str(on) == cells[1][1]
    assert int(cells[2][1]) == sum(trial.state == "finished" for trial in trials)


def test_every_copy_of_a_population_is_named_with_its_source(sweeps):
    table = copies_table(sweeps["pbt"])
    copies = [one for one in sweeps["pbt"].outcomes if one.source is not None]
    assert copies and table.count("<tr><th scope='row'>") == len(copies)
    one = copies[0]
    assert (
        f"<td>trial-{one.trial:03d}</td><td>trial-{one.source:03d}</td><td>noise_magnitude {one.point[M]:.4g}" in table
    )


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sweep_example.WORDS)
def test_every_picture_of_every_strategy_can_be_drawn(sweeps, kind):
    sweep = sweeps[kind]
    found = [*setting_panels(sweep), parallel_panel(sweep, "selection"), segments_panel(sweep, "selection")]
    found.append(effect_panel(effects(sweep), "selection"))
    shown = [panel for panel in found if panel]
    names = {panel.name for panel in shown}
    assert len(names) == len(shown) and "selection_by_noise_magnitude" in names
    assert ("selection_by_samples" in names) == (kind in ("asha", "pbt"))
    assert ("parallel_coordinates_by_selection" in names) == (kind != "grid")
    assert all(drawn(panel).has_data() for panel in shown)


def view(sweep: SweepData, key: str, name: str = "selection") -> View:
    return View(sweep, key, setting_scale(sweep, key), name, lambda trial: trial.value)


def test_a_u_curve_has_the_mean_and_the_spread_over_seeds_at_each_value(sweeps):
    (panel,) = [one for one in setting_panels(sweeps["grid"]) if one.name == "selection_by_noise_magnitude"]
    axes = drawn(panel)
    (curve,) = axes.containers
    at_100 = [t.value for t in sweeps["grid"].trials if t.settings[M] == 100]
    assert len(at_100) == 3 and list(curve.lines[0].get_xdata())[:4] == [0, 1, 2, 3]  # decades; the last is infinity
    assert curve.lines[0].get_ydata()[2] == pytest.approx(np.mean(at_100))
    (bars,) = curve.lines[2]
    low, high = bars.get_segments()[2][:, 1]
    assert high - low == pytest.approx(2 * np.std(at_100, ddof=1))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "10", "100", "1000", "\N{INFINITY}"]


def test_stopped_and_failed_trials_are_told_from_finished_ones(sweeps):
    sweep = sweeps["asha"]
    (panel,) = [one for one in setting_panels(sweep) if one.name == "selection_by_noise_magnitude"]
    marks = {line.get_marker(): line for line in drawn(panel).lines if line.get_marker() in ("x", "*")}
    hollow = [line for line in drawn(panel).lines if line.get_markerfacecolor() == "none"]
    states = [trial.state for trial in sweep.trials]
    assert len(hollow[0].get_xdata()) == states.count("stopped")
    assert len(marks["x"].get_xdata()) == states.count("failed") + states.count("diverged") == 2
    assert marks["*"].get_ydata() == pytest.approx([sweep.best[0].value])
    assert "stopped early" in panel.caption and "diverged or failed" in panel.caption


def test_lines_join_trials_whose_other_settings_are_equal():
    cells = [(m, lr) for m in (1, 10, 100) for lr in (0.1, 0.2)]
    trials = [row(f"t{n}", {M: m, LR: lr, "run.seed": s}, 1.0) for s in (0, 1) for n, (m, lr) in enumerate(cells)]
    assert {label: len(group) for label, group in series(trials, M).items()} == {"lr 0.1": 6, "lr 0.2": 6}
    random = [row(f"t{n}", {M: n + 1.5, LR: n / 7}, 1.0) for n in range(9)]
    assert list(series(random, M)) == [""]  # no two trials share what is not M


@pytest.mark.parametrize(
    ("values", "logarithmic", "kind", "ticks"),
    [
        ([1, 10, 100, math.inf], False, "log", ["1", "10", "100", "\N{INFINITY}"]),
        ([0.0, 0.25, 0.5], False, "linear", ["0", "0.25", "0.5"]),
        ([0.0011, 0.0032, 0.0093, 0.006, 0.005, 0.008, 0.0012], True, "log", ["0.002", "0.005"]),
        ([2, 3, 4], False, "linear", ["2", "3", "4"]),
        (["karras", "var"], False, "words", ["karras", "var"]),
        ([[32, 64], [64], [32, 64]], False, "words", ["[32, 64]", "[64]"]),
        ([True, False], False, "words", ["true", "false"]),
        ([5.0], False, "linear", ["5"]),
        ([1.5 * 10**n for n in range(9)], False, "log", ["10", "1000", "$10^{5}$", "$10^{7}$"]),
    ],
)
def test_an_axis_suits_its_values(values, logarithmic, kind, ticks):
    found = scale(values, logarithmic)
    assert (found.kind, [words for _, words in found.ticks(5)]) == (kind, ticks)
    assert all(0 <= found.share(value) <= 1 for value in values)


def test_curves_are_told_by_m_or_by_the_first_number_that_varies(sweeps):
    assert level(sweeps["random"].trials) == M
    other = [row(f"t{n}", {"kind": "a", LR: n / 10, M: 5.0}, 1.0, records=[{"samples_seen": 1}]) for n in range(3)]
    assert level(other) == LR and [curve.level for curve in learning(SweepData(other))] == [0, 0.1, 0.2]
    assert len(learning(sweeps["asha"])) == len(sweeps["asha"].trials)


# ---- effects ---------------------------------------------------------------------------------------------------------


def test_the_share_is_that_of_an_analysis_of_variance():
    ranks, groups = np.array([[1.0, 2.0, 3.0, 6.0]]), np.array([0, 0, 1, 1])
    between = 2 * (1.5 - 3) ** 2 + 2 * (4.5 - 3) ** 2
    assert shares(ranks, groups) == pytest.approx([between / ((ranks - 3) ** 2).sum()])


def test_numbers_fall_into_bins_of_equal_size_and_words_stay_apart():
    assert np.bincount(grouped([x**3 for x in range(40)])).tolist() == [8] * 5
    assert grouped(["a", "b", "a", True]).tolist() == [0, 1, 0, 2]
    assert len(set(grouped([1, 2, 3] * 10))) == 3


def test_a_u_shape_counts_noise_does_not_and_few_trials_say_nothing():
    random = np.random.default_rng(3)
    points = [{M: m, LR: lr} for m, lr in zip(10 ** random.uniform(0, 4, 60), random.uniform(size=60), strict=True)]
    trials = [row(f"t{n}", one, (math.log10(one[M]) - 2) ** 2) for n, one in enumerate(points)]
    first, second = effects(SweepData(trials))
    assert first.key == M and first.share > 0.8 > first.chance  # of which a correlation sees nothing
    assert second.key == LR and second.share < second.chance
    assert effects(SweepData(trials[:7])) == []


def test_effects_of_a_halved_sweep_are_taken_where_all_trials_came_and_seeds_are_no_more_evidence(sweeps):
    found = {effect.key: effect for effect in effects(sweeps["asha"])}
    assert found[M].share > found[M].chance and "run.seed" not in found
    doubled = [row(f"t{n}", {LR: n % 24, "run.seed": n // 24}, float(n % 24 in (3, 7))) for n in range(48)]
    assert effects(SweepData(doubled)) == effects(SweepData(doubled[:24]))
