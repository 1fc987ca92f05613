"""What a report says about a sweep over settings, or about trials of several runs: its sections, and its lead."""

from pathlib import Path

from .effects import LEAST, comparable, effects
from .figures import curve_panels, ratio_panels
from .page import note, panels, section
from .parallel_figure import parallel_panel
from .scale import show
from .setting_figures import setting_panels
from .sweep_figures import effect_panel, learning, level, segments_panel
from .sweep_table import MOST_COPIES, SHOWN, copies_table, counts, of_each_run, rungs_table, trials_table
from .trials import SEED, SweepData, mean_score, short_names

FLATTERED = "The best settings{whose} have the {better} {metric}. That flatters it a little{figures}."
UNSEEN = "; the figures beside it were measured on draws that the choice did not see"


def lead(sweep: SweepData) -> str:
    """The sweep in a sentence or two."""
    total = f"{len(sweep.trials)} trials: {counts(sweep.trials)}."
    if not sweep.best:
        return f"No trial was trained to its end. {total}" if sweep.strategy else total
    first, names = sweep.best[0], short_names(sweep.keys)
    settings = ", ".join(f"{names[key]} {show(value)}" for key, value in first.settings.items() if key != SEED)
    repeats = f" in the mean over {len(sweep.best)} trials" if len(sweep.best) > 1 else f" ({first.name})"
    value = mean_score(sweep.best) * (1 if first.mode == "min" else -1)
    return f"The best settings, {settings}, reach {first.metric} {show(value)}{repeats}. {total}"


def sections(sweep: SweepData, pictures: Path) -> list[str]:
    """Tables and pictures; each picture is also written to the folder `pictures`."""
    return [
        _trials(sweep),
        _settings(sweep, pictures),
        _what_matters(sweep, pictures),
        _decisions(sweep, pictures),
        *_learning(sweep, pictures),
    ]


def _trials(sweep: SweepData) -> str:
    compared = sweep.trials and sweep.trials[0].run
    whose, shown = " of each run" if compared else "", len(of_each_run(sweep, SHOWN))
    more = f"{shown} of {len(sweep.trials)} trials, the best{whose}; all are in the .csv file beside this page."
    said = [more] if len(sweep.trials) > shown else []
    if sweep.best:
        first = sweep.best[0]
        figures = UNSEEN if first.figures and not first.metric.startswith("evaluation/") else ""
        better = "highest" if first.mode == "max" else "lowest"
        said.append(FLATTERED.format(whose=whose, better=better, metric=first.metric, figures=figures))
    return section("Trials", *map(note, said), trials_table(sweep)) if sweep.trials else ""


def _settings(sweep: SweepData, pictures: Path) -> str:
    parallel = [panel for metric in sweep.metrics if (panel := parallel_panel(sweep, metric))]
    return section("Settings", panels(setting_panels(sweep), pictures), panels(parallel, pictures))


def _what_matters(sweep: SweepData, pictures: Path) -> str:
    if len(sweep.metrics) > 1 or len(sweep.keys) < 2:
        return ""
    judged = comparable(sweep)
    if len(judged) < LEAST:
        return section("What matters", note(f"{len(judged)} settings say nothing about that; it takes {LEAST}."))
    first = min((one.samples for one in sweep.outcomes), default=0)
    when = f"after {first:,} samples, where all trials came" if sweep.segmented else "at the end"
    said = [f"From {len(judged)} different settings, {when}; failed trials are left out, diverged ones are the worst."]
    if sweep.strategy == "tpe":
        said.append("Later trials were drawn where earlier ones did well, so shares are rough.")
    panel = effect_panel(effects(sweep), sweep.metrics[0])
    return section("What matters", note(" ".join(said)), panels([panel], pictures)) if panel else ""


def _decisions(sweep: SweepData, pictures: Path) -> str:
    panel = segments_panel(sweep, sweep.metrics[0]) if sweep.trials else None
    if panel is None:
        return ""
    pictured = panels([panel], pictures)
    if sweep.strategy == "asha":
        return section("Rungs", rungs_table(sweep), pictured)
    copies = sum(one.source is not None for one in sweep.outcomes)
    more = f", of which the last {MOST_COPIES} are here; all are in sweep.jsonl" if copies > MOST_COPIES else ""
    return section("Who copied whom", note(f"{copies} copies{more}."), copies_table(sweep), pictured)


def _learning(sweep: SweepData, pictures: Path) -> list[str]:
    curves, key = learning(sweep), level(sweep.trials)
    told = f"The colour follows {key}. " if key else ""
    said = f"{told}Curves of trials that were stopped early, diverged or failed end where these did."
    shown = {"Density ratio": ratio_panels(curves), "Training": curve_panels(curves)}
    return [section(title, note(said), panels(found, pictures)) for title, found in shown.items() if found]
