"""Several runs beside each other: pytest tests/unit/test_compare.py"""

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pandas
import pytest
import sweep_example
from rich.console import Console
from sweep_example import LR, M

from nnce_dist import cli
from nnce_dist.report import page
from nnce_dist.report.compare_page import lead
from nnce_dist.report.setting_figures import setting_panels
from nnce_dist.report.trial_csv import to_csv
from nnce_dist.stages.compare import compare, open_run, open_runs, together
from nnce_dist.stages.report import keep


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Pictures without content: test_sweep_report.py draws them, and a browser shows whole pages."""
    monkeypatch.setattr(page, "render", lambda panel, *themes: [panel.name.encode()] * len(themes))


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    """The folder of a finished sweep over M with three seeds."""
    return finished("grid", tmp_path_factory.mktemp("runs"))


def finished(kind: str, folder: Path, *more: str) -> Path:
    config, root, results = sweep_example.run(kind, folder, *more)
    keep(config, root, results)
    return root


def renamed(root: Path, figures: dict[str, str]) -> None:
    """Gives the figures of a finished run other names."""
    results = json.loads((root / "results.json").read_text())
    for one in results:
        if one.get("figures"):
            one["figures"] = {figures.get(name, name): values for name, values in one["figures"].items()}
    (root / "results.json").write_text(json.dumps(results))


def test_runs_are_shown_beside_each_other_with_the_settings_in_which_they_differ(grid, tmp_path):
    other = finished("grid", tmp_path, "density_ratio.kl=3", "workers.cpus=2", "run.name=far")
    for root in (grid, other):
        shutil.rmtree(root / "density_ratio", ignore_errors=True)  # so that there are no curves to draw
    said, out = io.StringIO(), tmp_path / "out"
    shown = compare([grid, other, grid], out, Console(file=said, width=120)).read_text()
    table = pandas.read_csv(out / "compare.csv")
    trials = {run: len(group) for run, group in table.groupby("run")}
    assert trials == {"grid": 15, "far": 15}  # a folder that is given twice is one run
    assert table.groupby("run")["density_ratio.kl"].unique().map(list).to_dict() == {"grid": [1], "far": [3]}
    assert "workers.cpus" not in table and "run.name" not in table  # these decide nothing
    assert "<th scope='row'>density_ratio.kl</th><td>1</td><td>3</td>" in shown
    assert shown.count("<h3>grid</h3>") == shown.count("<h3>far</h3>") == 1
    assert {"selection_by_noise_magnitude.png", "selection_by_kl.png"} <= {p.name for p in (out / "figures").iterdir()}
    lines = said.getvalue().splitlines()
    assert lines[-1] == f"comparison: {out / 'compare.html'}" and any(line.startswith("far trial-") for line in lines)


def test_runs_that_differ_in_their_seed_alone_repeat_each_other(tmp_path):
    space = [f"sweep.space.{M}=grid(1,10,100,1000)", "sweep.seeds=[]"]
    runs = [open_run(finished("grid", tmp_path, *space, f"run.seed={s}", f"run.name=seed{s}")) for s in (0, 1)]
    facts, sweep = together(runs)
    assert [fact.settings for fact in facts] == [{"run.seed": 0}, {"run.seed": 1}]
    (panel,) = [one for one in setting_panels(sweep) if one.name == "selection_by_noise_magnitude"]
    assert "means over seeds" in panel.caption and {trial.apart for trial in sweep.trials} == {""}
    assert lead(facts, sweep).startswith("The best settings of each run reach: seed0 0.3")


def test_figures_of_different_names_are_refused_a_common_column(grid, tmp_path):
    other = finished("grid", tmp_path, "density_ratio.test_samples=2000", "run.name=larger")
    renamed(other, {"kl_error@64": "kl_error@2k", "log_ratio_error_data@64": "log_ratio_error_data@2k"})
    _, sweep = together([open_run(grid), open_run(other)])
    assert sweep.metrics == ["selection (log_ratio_error_data@64)", "selection (log_ratio_error_data@2k)"]
    table = pandas.read_csv(io.StringIO(to_csv(sweep.trials)))
    for name in ("kl_error", "selection (log_ratio_error_data"):
        (first, second) = [column for column in table if column.startswith(name)]
        assert not (table[first].notna() & table[second].notna()).any() and table[second].notna().any()


def test_runs_of_one_name_are_told_apart_by_their_folders(grid, tmp_path):
    other = finished("grid", tmp_path)
    names = [run.name for run in open_runs([grid, other, grid])]
    assert len(set(names)) == len(names) == 2
    assert all(str(folder).endswith(name) for folder, name in zip((grid, other), names, strict=True))


def test_a_setting_that_only_one_run_varies_is_told_of_the_other_too(grid, tmp_path):
    _, sweep = together([open_run(grid), open_run(finished("pbt", tmp_path))])
    rates = {trial.settings[LR] for trial in sweep.trials if trial.run == "grid"}
    assert rates == {0.05} and len({trial.settings[LR] for trial in sweep.trials}) > 5
    assert len([trial for trial in sweep.best if trial.run == "grid"]) == 3


def test_a_folder_that_is_no_run_is_one_line_and_exit_code_2(grid, tmp_path, monkeypatch, capsys):
    running = tmp_path / "running"
    running.mkdir()
    (running / "config.yaml").write_bytes((grid / "config.yaml").read_bytes())
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "config.yaml").write_text("run: [")
    for folder, says in ((tmp_path, "no run"), (running, "has not come to its end"), (torn, "not the configuration")):
        monkeypatch.setattr(sys, "argv", ["nnce", "compare", str(grid), str(folder), "--out", str(tmp_path / "out")])
        assert cli.main() == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.match(rf"error: {folder}.*{says}", line), line
    assert not (tmp_path / "out").exists()
