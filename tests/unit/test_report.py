"""The report of a run: pytest tests/unit/test_report.py"""

import base64
import io
import math
import re
from dataclasses import replace

import pytest
import report_example
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from report_example import ACCURACY, FD
from rich.console import Console

from nnce_dist.report.data import Curve, ReportData, SamplerResult, best_tuned, decimals, find_metric, mean_sd
from nnce_dist.report.figures import (
    LIGHT,
    apart,
    curve_panels,
    magnitude_panels,
    ratio_panels,
    with_effective_sample_size,
)
from nnce_dist.report.grids import grid
from nnce_dist.report.html import duration, lead, write_report
from nnce_dist.report.subject import RATIOS
from nnce_dist.report.table import html_table, terminal_table
from nnce_dist.report.verdicts import advantage, judge, verdicts


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> ReportData:
    whole = report_example.example(tmp_path_factory.mktemp("grids"))
    return replace(whole, curves=whole.curves[:1])


@pytest.fixture(scope="module")
def written(data, tmp_path_factory):
    return write_report(data, tmp_path_factory.mktemp("run"))


def panels(data: ReportData) -> list:
    return magnitude_panels(data.rows) + ratio_panels(data.curves) + curve_panels(data.curves)


def embedded(page: str) -> list[bytes]:
    return [base64.b64decode(picture) for picture in re.findall(r"data:image/png;base64,([^\"]+)", page)]


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing(written):
    page = written.read_text(encoding="utf-8")
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert not re.search(r"https?:|\bsrc=[\"']//", page)
    addresses = re.findall(r"\b(?:src|srcset|href)=[\"']([^\"']*)", page)
    assert addresses and all(address.startswith("data:") for address in addresses)


def test_every_figure_is_embedded_for_both_grounds_and_lies_beside_the_page(data, written):
    pictures = embedded(written.read_text(encoding="utf-8"))
    grids = [row.grid.read_bytes() for row in data.rows if row.grid]
    assert len(pictures) == 2 * len(panels(data)) + len(grids)
    assert all(Image.open(io.BytesIO(picture)).format == "PNG" for picture in pictures)
    assert all(picture in pictures for picture in grids)
    beside = {path.name: path.read_bytes() for path in (written.parent / "figures").iterdir()}
    assert set(beside) == {f"{panel.name}.png" for panel in panels(data)}
    assert all(picture in pictures for picture in beside.values())


def test_the_page_names_everything_needed_to_repeat_the_run(data, written):
    page = written.read_text(encoding="utf-8")
    for word in (
        data.manifest["command"],
        "0123456789abcdef",
        "torch 2.13.0",
        "4 min 44 s",
        "ten-step, m100",
        "name: imagenet64",
    ):
        assert word in page
    for row in data.rows:
        assert page.count(row.name) >= 1


def test_headings_form_an_outline(written):
    levels = [int(level) for level in re.findall(r"<h([1-6])", written.read_text(encoding="utf-8"))]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


def test_what_users_write_is_shown_and_never_run(tmp_path):
    bad = "<script>alert('x')</script>"
    row = SamplerResult(bad, "teacher", {FD: [1.0, 2.0]})
    data = ReportData(bad, [row], manifest={"command": bad, bad: bad, "stage_seconds": {bad: 1}}, config=bad)
    page = write_report(data, tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page and page.count("&lt;script&gt;") >= 6


def test_a_run_without_results_still_has_a_page(tmp_path):
    page = write_report(ReportData("empty", []), tmp_path).read_text(encoding="utf-8")
    assert "Nothing has been measured" in page and "<table" not in page
    assert not list((tmp_path / "figures").iterdir())


def ratios(magnitudes: list[float]) -> list[SamplerResult]:
    """Estimates of a density ratio over M: the error is least in the middle; seed i shifts all alike."""

    def figures(place: int) -> dict[str, list[float]]:
        errors = [0.2 + 0.01 * (place - len(magnitudes) // 2) ** 2 + 0.02 * seed for seed in range(3)]
        return {"log_ratio_error_data@10k": errors, "kl_error@10k": errors, "cross_entropy@10k": errors}

    return [SamplerResult(f"M = {m:g}", "tuned", figures(i), noise_magnitude=m) for i, m in enumerate(magnitudes)]


def test_a_report_about_density_ratios_speaks_of_estimates_and_seeds(tmp_path):
    rows = ratios([1.0, 10.0, 100.0, 1000.0, math.inf])
    page = write_report(ReportData("ratio", rows, subject=RATIOS), tmp_path).read_text(encoding="utf-8")
    assert "<h2>Estimates</h2>" in page and "3 training seeds" in page and "nats" in page
    assert not any(word in page for word in ("Sampler", "Images", "Evaluations", "evaluation draws"))
    claims = verdicts(rows)
    assert [claim.outcome for claim in claims] == ["holds", "holds"]  # against NCE and NWJ, seed by seed
    assert (
        claims[0].sentence in lead(rows, claims)
        and "M = 100 beats plain NCE (M = 1) on the error of ln r by 0.04" in page
    )
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {f"{kind}_by_noise_magnitude" for kind in ("log_ratio_error_data", "kl_error", "cross_entropy")}


def test_sixty_four_magnitudes_are_not_all_named_below_their_axis():
    (panel, *_) = magnitude_panels(ratios([1.3**i for i in range(64)]))
    axes = Figure().add_subplot()
    panel.draw(axes, LIGHT)
    assert 5 <= len(axes.get_xticks()) <= 9


# ---- verdicts -------------------------------------------------------------------------------------------------------


def pair(tuned: list[float], untuned: list[float], metric: str = FD) -> list[SamplerResult]:
    return [
        SamplerResult("untuned", "untuned", {FD: [9.0] * len(untuned), metric: untuned}),
        SamplerResult("tuned", "tuned", {FD: [8.0] * len(tuned), metric: tuned}, noise_magnitude=10.0),
    ]


def only(rows: list[SamplerResult], measure: str = "FD"):
    (verdict,) = [v for v in verdicts(rows) if v.topic == "Tuning" and v.measure == measure]
    return verdict


def test_a_verdict_follows_the_figures():
    better = only(pair([5.0, 5.2, 5.1], [7.0, 7.2, 7.4]))
    assert better.outcome == "holds"
    assert better.sentence == (
        "The sampler tuned at M = 10 beats \N{LEFT DOUBLE QUOTATION MARK}untuned\N{RIGHT DOUBLE QUOTATION MARK} "
        "on FD by 2.10 \N{PLUS-MINUS SIGN} 0.17 (5.10 against 7.20)."
    )
    worse = only(pair([7.0, 7.2, 7.4], [5.0, 5.2, 5.1]))
    assert worse.outcome == "fails" and "is worse than" in worse.sentence and "by 2.10" in worse.sentence
    level = only(pair([5.0, 5.2, 5.4], [5.1, 5.1, 5.4]))
    assert level.outcome == "unclear" and "cannot be told apart" in level.sentence
    tiny = only(pair([125.701, 125.702], [125.703, 125.705]))
    assert tiny.outcome == "holds" and "by 0.0025 \N{PLUS-MINUS SIGN} 0.0007 (125.7 against 125.7)" in tiny.sentence


def test_higher_accuracy_is_better_and_shown_in_points():
    better = only(pair([0.95, 0.96, 0.94], [0.90, 0.90, 0.90], ACCURACY), "class accuracy")
    assert better.outcome == "holds" and "by 5.0 \N{PLUS-MINUS SIGN} 1.0 points (95.0 against 90.0)" in better.sentence
    assert only(pair([0.90] * 3, [0.95, 0.96, 0.94], ACCURACY), "class accuracy").outcome == "fails"


def test_differences_are_taken_draw_by_draw():
    """A spread that both samplers share does not blur their difference; unequal numbers of draws cannot be paired."""
    a, b = [1.0, 5.0, 9.0], [1.5, 5.5, 9.5]
    assert advantage(a, b, -1) == (0.5, 0.0)
    difference, spread = advantage(a, b[:2], -1)
    assert difference == pytest.approx(3.5 - 5.0) and spread == pytest.approx(math.hypot(4.0, math.sqrt(8)))
    assert judge(difference, spread) == "unclear"


def test_a_single_draw_settles_nothing():
    verdict = only(pair([5.0], [9.0]))
    assert (
        verdict.outcome == "unclear" and "they differ by 4.00 in a single draw (5.00 against 9.00)" in verdict.sentence
    )


def test_all_claims_of_a_full_run_and_their_reversal():
    rows = report_example.rows()
    claims = verdicts(rows)
    topics = [claim.topic for claim in claims]
    assert {topic: topics.count(topic) for topic in topics} == {
        "Teacher": 1, "Tuning": 8, "Noise magnitude": 3, "One step": 4
    }  # fmt: skip
    assert all(claim.outcome == "holds" for claim in claims if claim.topic in ("Teacher", "Tuning", "Noise magnitude"))
    assert lead(rows, claims).startswith("Tuned at M = 100, the sampler beats 4 of 4 baselines on FD and 4 of 4")
    spoilt = [
        replace(
            row,
            figures={
                name: [10 * v if "fd" in name else 0.5 * v for v in values] for name, values in row.figures.items()
            },
        )
        if row.group in ("tuned", "teacher")
        else row
        for row in rows
    ]
    reversed_claims = verdicts(spoilt)
    assert all(claim.outcome == "fails" for claim in reversed_claims if claim.topic in ("Teacher", "Tuning"))
    assert "beats 0 of 4 baselines on FD" in lead(spoilt, reversed_claims)


def test_a_sampler_chosen_on_another_draw_is_the_best_even_if_these_figures_favour_another():
    rows = report_example.rows()
    assert best_tuned(rows, FD).noise_magnitude == 100
    chosen = [replace(row, chosen=row.noise_magnitude == 10 and not row.held) for row in rows]
    assert best_tuned(chosen, FD).noise_magnitude == 10
    assert all("M = 10 " in claim.sentence for claim in verdicts(chosen) if claim.topic == "Tuning")


def test_magnitudes_are_compared_with_gamma_as_given_and_held():
    sentences = [claim.sentence for claim in verdicts(report_example.rows()) if claim.topic == "Noise magnitude"]
    assert sentences[0].startswith("M = 100 beats plain NCE (M = 1) on FD")
    assert sentences[1].startswith("M = 100 beats NWJ (M = \N{INFINITY}) on FD")
    assert sentences[2].startswith("M = 10, with \N{GREEK SMALL LETTER GAMMA}(M+1)/M held fixed, beats plain NCE")


# ---- table ----------------------------------------------------------------------------------------------------------


def test_the_table_shows_means_and_spreads_aligned():
    rows = [
        SamplerResult("a", "untuned", {FD: [10.0, 11.0, 12.0]}, 10),
        SamplerResult("b", "baseline", {FD: [9.123]}, 10),
        SamplerResult("c", "tuned", {}, 10, 5.0, note="diverged"),
    ]
    table = html_table(rows)
    assert "<td>11.0<span class='sd'>\N{PLUS-MINUS SIGN} 1.0</span></td>" in table
    assert "<td>9.1<span class='sd'></span></td>" in table
    assert "<td class='missing'>diverged</td>" in table


def test_a_figure_of_another_number_of_images_says_so():
    rows = [SamplerResult(name, "baseline", {FD: [2.0, 3.0]}) for name in "abc"]
    rows.append(SamplerResult("data", "data", {"fd_shapes@1k": [0.5]}))
    assert find_metric(rows, "fd") == FD
    assert "0.50<span class='sd'>@1k</span>" in html_table(rows)


def shown(rows: list[SamplerResult]) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(terminal_table(rows))
    return console.file.getvalue()


def test_the_terminal_shows_every_sampler_with_distance_and_accuracy():
    rows = report_example.rows()
    lines = shown(rows).splitlines()
    assert FD in lines[0] and f"{ACCURACY} %" in lines[0]
    for row, line in zip(rows, lines[1:], strict=True):
        mean, sd = mean_sd(next(values for name, values in row.figures.items() if name.startswith("fd_")))
        expected = f"{mean:.2f}" if math.isnan(sd) else f"{mean:.2f} +- {sd:.2f}"
        assert line.startswith(row.name) and expected in line


@pytest.mark.parametrize(
    ("values", "digits"), [([123.0, 150.0], 0), ([12.3], 1), ([3.1, 7.4], 2), ([0.011], 4), ([0.0], 1)]
)
def test_three_significant_digits(values, digits):
    assert decimals(values) == digits


def test_a_small_spread_gets_one_digit_more():
    assert decimals([125.0, 126.0], [0.4, 0.6]) == 1
    assert decimals([125.0, 126.0], [0.04]) == 1  # but not two
    assert decimals([7.4], [0.3]) == 2 and decimals([7.4], [math.nan, 0.0]) == 2


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.14, "3.1 s"), (59.4, "59 s"), (59.7, "1 min 00 s"), (284.2, "4 min 44 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


# ---- figures --------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-2, 2), max_size=8))
def test_labels_keep_their_order_and_distance(wanted):
    places = apart(wanted, 0.1)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gaps = [places[b] - places[a] for a, b in zip(order, order[1:], strict=False)]
    assert all(gap >= 0.1 - 1e-9 for gap in gaps)
    assert sum(places) == pytest.approx(sum(wanted), abs=1e-6)  # nobody is pushed away without need


def test_labels_with_room_stay_where_they_are():
    assert apart([0.5, 0.1, 0.9], 0.1) == pytest.approx([0.5, 0.1, 0.9])


def test_effective_sample_size_from_the_means():
    ratio = torch.tensor([0.5, 2.0, 1.0, 0.25])
    record = {
        "samples_seen": 4,
        "value/ratio_noise": float(ratio.mean()),
        "value/ratio_noise_squared": float(ratio.square().mean()),
    }
    curve = with_effective_sample_size(Curve("m1", "ten_step", [record, {"samples_seen": 8}]))
    samples, sizes = curve.series("value/effective_sample_size")
    assert samples == [4.0] and sizes == pytest.approx([float(ratio.sum() ** 2 / ratio.square().sum() / 4)])


def test_panels_exist_for_what_was_recorded_only():
    assert magnitude_panels([SamplerResult("teacher", "teacher", {FD: [1.0]})]) == []
    names = [panel.name for panel in ratio_panels(report_example.curves())]
    assert names == [
        f"ten_step_value_{name}"
        for name in ("log_ratio_data", "log_ratio_noise", "ratio_noise", "effective_sample_size", "saturated_noise")
    ]


def test_a_grid_holds_every_image_in_its_place():
    images = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    sheet = grid(images, columns=3)
    assert sheet.shape == (3, 2 * 4 + 2, 3 * 6 + 4)
    assert torch.equal(sheet[:, 6:10, 8:14], images[4]) and torch.equal(sheet[:, :4, 16:22], images[2])
    assert (sheet[:, 6:10, 16:] == 128).all()
    assert torch.equal(grid(torch.zeros(1, 3, 4, 4)), torch.full((3, 4, 4), 128, dtype=torch.uint8))
