"""python -m pytest tests/unit/test_plan.py

What is known of a sweep before it starts: what it will take, and what is wrong with it.
"""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from nnce_dist.cli import run_pipeline
from nnce_dist.config.load import ConfigError, load
from nnce_dist.config.schema import Config
from nnce_dist.metrics.jsonl import read
from nnce_dist.stages import plan, preflight, rehearsal, step_time, sweep_preflight
from nnce_dist.stages.estimate import Estimate
from nnce_dist.stages.jobs import run_job
from nnce_dist.stages.search import trial_points
from nnce_dist.stages.step_time import Step
from nnce_dist.stages.trials import payload
from nnce_dist.stages.units import device_time, duration, in_units, money
from nnce_dist.training.runtime import LocalRuntime

PIPELINES = Path(__file__).parents[2] / "pipelines"
M = "sweep.space.objective.noise_magnitude=loguniform(1,1e4)"
ASHA = ("sweep.strategy=asha", "sweep.trials=16", "sweep.seeds=[]", "sweep.per_process=1", M)


@pytest.fixture
def configured(tmp_path):
    def make(*words: str, preset: str = "density-ratio-smoke") -> Config:
        return load([f"run.dir={tmp_path}", *words], PIPELINES / "presets", preset)

    return make


def rows(config: Config) -> dict[str, str]:
    return dict(plan.plan(config, estimated=True))


@pytest.fixture
def two_seconds(monkeypatch):
    monkeypatch.setattr(step_time, "measured", lambda config, stage: Step(2.0, "measured on paper"))


def test_the_plan_of_a_space_says_what_the_sweep_will_take(configured, two_seconds, tmp_path):
    judged = ("sweep.mode=max", "sweep.metric=ratio/log_ratio_data")
    config = configured(*ASHA, "sweep.price_per_hour=30", "workers.count=2", *judged)
    found = rows(config)
    assert "density_ratio" not in found  # the trials over M: they are not what is trained
    assert found["sweep"] == "density_ratio: 16 trials, asha; the highest ratio/log_ratio_data is best"
    assert found["space"] == "objective.noise_magnitude: loguniform(1,1e4)"
    assert found["rungs"] == "expected trials: 16 at 16 samples, 4 at 64 samples, 1 at 128 samples"
    samples = 16 * 16 + 4 * 48 + 1 * 64
    assert found["sweep samples"] == f"about {samples} instead of 2,048 (saves 75%); batch 16"
    assert Estimate.of(config).hours(samples) == pytest.approx(samples / 16 * 2.0 * 2 / 3600)
    assert found["sweep time"].startswith("about 2.1 device-minutes instead of 8.5 device-minutes of training; ")
    assert found["sweep time"].endswith("2.0 s a step, measured on paper")
    assert found["sweep price"] == "about 1.07 instead of 4.27, at 30 an hour"
    assert not list(tmp_path.iterdir())


def test_the_plan_of_a_packed_search_knows_of_its_blocks_its_steps_and_its_disk(configured, two_seconds, tmp_path):
    packed = configured(*ASHA, "sweep.per_process=8")
    found, alone = rows(packed), Estimate.of(configured(*ASHA))
    assert found["rungs"] == "expected trials: 16 at 16 samples, 4 at 64 samples, 1 at 128 samples"
    assert found["sweep time"].endswith("; trials that share a process take less")
    assert Estimate.of(packed).disk_bytes == (16 * 2 + 2 * 16) * alone.checkpoint_bytes
    batches = configured(*ASHA, "sweep.strategy=tpe", "sweep.per_process=8", "sweep.batch=3")
    assert Estimate.of(batches).together == 3
    folder = tmp_path / "density-ratio-smoke" / "density_ratio" / "trial-000"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"samples_seen": 8, "images_per_second": 32}) + "\n")
    assert Estimate.of(batches).step.seconds == pytest.approx(16 / 32 / 3)
    assert Estimate.of(packed).step.seconds == pytest.approx(16 / 32 / 8)


def test_hundreds_of_hours_are_told_in_hours(configured, monkeypatch):
    monkeypatch.setattr(step_time, "measured", lambda config, stage: Step(7200.0, "measured on paper"))
    assert rows(configured(*ASHA))["sweep time"].startswith("about 64.0 device-hours instead of 256.0 device-hours of")


def test_strategies_that_stop_nobody_train_all_samples(configured, two_seconds):
    population = rows(configured(*ASHA, "sweep.strategy=pbt", "sweep.interval=32"))
    assert population["generations"] == "4, of 32 samples" and population["sweep samples"] == "2,048; batch 16"
    grid = ("sweep.space.objective.noise_magnitude=grid(1,10,100)", "sweep.seeds=[3,4]")
    found = rows(configured(*grid))
    assert found["sweep samples"] == "768; batch 16" and found["space"].endswith("run.seed: grid(3,4)")
    lengths = rows(configured(*grid, "sweep.space.density_ratio.training.samples=grid(16,64)"))
    assert lengths["sweep samples"] == f"{6 * 16 + 6 * 64}; batch 16"


def test_a_swept_batch_is_reckoned_in_samples_of_the_step_that_was_measured(configured, two_seconds, tmp_path):
    words = ("sweep.space.density_ratio.training.batch=grid(32,8,64)", "sweep.seeds=[]", "sweep.per_process=1")
    config = configured(*words)  # whose own batch, 16, no trial has
    found, seconds = rows(config), 3 * 128 / 32 * 2.0
    assert Estimate.of(config).hours(3 * 128) == pytest.approx(seconds / 3600)
    assert found["sweep samples"] == "384; batch grid(32,8,64)"
    measured = "2.0 s a step of 32 samples, measured on paper; a trial of the first of 3 kinds"
    assert found["sweep time"] == f"{seconds:.1f} device-seconds of training; {measured}"
    for number, speed in enumerate((64, 32, 128)):  # samples a second, whatever the trial's batch
        folder = tmp_path / "density-ratio-smoke" / "density_ratio" / f"trial-00{number}"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"samples_seen": 8, "images_per_second": speed}) + "\n")
    assert Estimate.of(config).hours(384) == pytest.approx(384 / 64 / 3600)


def test_the_plan_shows_the_seeds_that_trials_have(configured, two_seconds):
    config = configured("sweep.space.run.seed=grid(7,8,9)", "sweep.seeds=[0,1]")
    assert rows(config)["space"] == "run.seed: grid(7,8,9)"
    assert [point["run.seed"] for point in trial_points(config)] == [7, 8, 9]


def test_the_plan_shows_the_data_and_the_networks_that_trials_have(configured, two_seconds):
    plain = rows(configured("density_ratio.network=mlp", "density_ratio.width=1024"))
    assert plain["data"] == "shift against N(0, I) in 2 dimensions, KL 1 nats, 64 a side; 64 to measure"
    assert plain["network"] == "mlp, 2 hidden layers of 1,024"
    words = {
        "family": "grid(shift,scale)",
        "dim": "grid(2,4)",
        "num_samples": "grid(0,64)",
        "network": "grid(linear,mlp)",
    }
    swept = rows(
        configured("sweep.seeds=[]", *(f"sweep.space.density_ratio.{key}={text}" for key, text in words.items()))
    )
    assert swept["data"].startswith(
        "grid(shift,scale) against N(0, I) in grid(2,4) dimensions, KL 1 nats, grid(0,64) a side"
    )
    assert swept["network"] == "grid(linear,mlp), 2 hidden layers of 64"


def test_the_sweep_over_m_is_estimated_too(configured, two_seconds):
    found = rows(configured(preset="smoke"))
    assert found["sweep samples"] == "64; batch 8" and found["sweep time"].startswith("16.0 device-seconds")
    assert found["ten_step"].startswith("2 trials")
    assert "sweep time" not in dict(plan.plan(configured(preset="smoke")))  # only a dry run takes the time


def test_records_of_the_run_are_better_than_a_measurement(configured, two_seconds, tmp_path):
    config = configured(*ASHA)
    folder = tmp_path / "density-ratio-smoke" / "density_ratio" / "trial-000"
    folder.mkdir(parents=True)
    lines = [{"samples_seen": 32 * n, "images_per_second": 16 / seconds} for n, seconds in enumerate((0.5, 0.1, 0.3))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = Estimate.of(config).step
    assert found == Step(pytest.approx(0.3), "the median of 3 records of this run", measured=False)
    packed = configured("sweep.strategy=random", "sweep.trials=4", "sweep.seeds=[]", M)  # 4 trials share a step
    assert Estimate.of(packed).step.seconds == pytest.approx(0.3 / 4)
    assert rows(packed)["sweep time"].endswith("records of this run")


def test_what_an_earlier_start_has_done_is_not_to_be_done_again(configured, two_seconds, tmp_path):
    config = configured("sweep.space.objective.noise_magnitude=grid(1,10)", "sweep.seeds=[]", "sweep.per_process=1")
    assert "done already" not in rows(config)
    for number, samples in enumerate((128, 64)):
        folder = tmp_path / "density-ratio-smoke" / "density_ratio" / f"trial-00{number}"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"samples_seen": samples, "images_per_second": 32}) + "\n")
    (folder.parent / "trial-000" / "result.json").write_text("{}")
    assert rows(config)["done already"] == "1 of 2 trials and 192 samples; 2.0 device-seconds are left"


def test_the_disk_holds_what_every_trial_keeps(configured):
    keeps = Estimate.of(configured(*ASHA, "density_ratio.training.keep_last=3"))
    assert keeps.disk_bytes == (16 * 3 + 1) * keeps.checkpoint_bytes
    few = Estimate.of(configured(*ASHA, "density_ratio.training.keep_bytes=1"))
    assert few.disk_bytes == 17 * few.checkpoint_bytes
    assert Estimate.of(configured(*ASHA, "sweep.checkpoint_bytes=50000")).disk_bytes == 50_000


def test_the_largest_of_the_networks_is_what_the_disk_must_hold(configured, two_seconds):
    grid = ("sweep.space.density_ratio.width=grid(8,512,16)", "sweep.seeds=[0,1]", "density_ratio.network=mlp")
    several = configured(*grid)
    large = Estimate.of(configured("density_ratio.width=512", "density_ratio.network=mlp"))
    assert Estimate.of(several).checkpoint_bytes == large.checkpoint_bytes > 3_000_000
    assert "a trial of the first of 3 kinds" in rows(several)["sweep time"]
    assert "kinds" not in rows(configured(*ASHA))["sweep time"]


def test_numbers_are_told_in_units_of_their_size():
    assert [in_units(number) for number in (0, 1536, 2**41)] == ["0 bytes", "1.5 KiB", "2.0 TiB"]
    hours = (1e-3, 0.5, 3, 1e4)
    assert [device_time(number) for number in hours] == [
        *("3.6 device-seconds", "30.0 device-minutes", "3.0 device-hours", "10,000.0 device-hours")
    ]
    assert [duration(number) for number in (0.0012, 7.25)] == ["1.2 ms", "7.2 s"]
    assert [money(number) for number in (0.001, 1234.5)] == ["less than 0.01", "1,234.50"]


@pytest.mark.parametrize(("preset", "stage"), [("smoke", "teacher"), ("smoke", "ten_step"), ("smoke", "one_step")])
def test_a_stage_is_measured_without_data_or_folders(configured, monkeypatch, tmp_path, preset, stage):
    monkeypatch.setattr(step_time, "BOUND", 0.1)
    found = step_time.measured(configured(preset=preset), stage)
    assert 1e-4 < found.seconds < 60 and "measured on" in found.how
    assert not list(tmp_path.iterdir())


def test_what_takes_too_long_is_not_measured_and_says_so(configured, monkeypatch):
    monkeypatch.setattr(step_time, "PATIENCE", -1.0)
    found = step_time.measured(configured(), "density_ratio")
    assert found.seconds is None and "a step takes more than -1 s" in found.how
    huge = step_time.measured(configured("workers.gpus=0", preset="paper-teacher"), "teacher")
    assert huge.seconds is None and "4.4 GiB is too large" in huge.how
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpus = step_time.measured(configured(preset="paper-teacher"), "teacher")
    assert gpus.seconds is None and "this machine has none" in gpus.how


def test_a_step_too_large_to_measure_lies_on_the_line_of_smaller_ones():
    assert step_time._at(128, {4: 1.0, 16: 2.0}) == pytest.approx(2 + 112 / 12)
    assert step_time._at(128, {4: 1.0, 16: 0.9}) == pytest.approx(0.9)  # noise does not make it faster
    assert step_time._at(8, {1: 0.5}) == pytest.approx(4.0)


def test_the_names_that_are_known_before_are_those_that_training_records(configured, tmp_path):
    config = configured()
    run_job(payload(config, tmp_path, "density_ratio", "a"), LocalRuntime("cpu"))
    records = [one for one in read(tmp_path / "density_ratio" / "a" / "metrics.jsonl") if "samples_seen" in one]
    recorded = {key for key in records[-1] if "/" in key and not key.startswith("data/")}
    assert recorded == set(rehearsal.recorded_names(config, "density_ratio"))
    assert "generator/loss" in rehearsal.recorded_names(
        configured(preset="paper-one-step"), "one_step"
    )  # frozen at first


def test_a_metric_that_is_never_reported_is_refused_with_the_known_ones(configured):
    sweep_preflight.metric(configured(*ASHA, "sweep.metric=ratio/loss"))
    with pytest.raises(ValueError, match="never reports it; nearest: 'ratio/loss'; there are: selection, ratio/grad"):
        preflight.check(configured(*ASHA, "sweep.metric=ratio/los"))


def test_checkpoints_that_do_not_fit_are_refused(configured, monkeypatch):
    config = configured(*ASHA)
    preflight.check(config)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(120_000))
    with pytest.raises(ValueError, match=r"of 16 trials take 199.2 KiB, 117\.2 KiB are free; make room, set sweep.ch"):
        preflight.check(config)
    preflight.check(configured(*ASHA, "sweep.checkpoint_bytes=110000"))


@pytest.mark.parametrize(
    ("words", "who"),
    [(["sweep.noise_magnitudes=[1,3,10]"], "6 trials"), (["sweep.seeds=[]", "sweep.noise_magnitudes=[]"], "the trial")],
)
def test_checkpoints_of_trials_over_m_that_do_not_fit_are_refused_too(configured, monkeypatch, capsys, words, who):
    config = configured(*words, "sweep.per_process=1")
    preflight.check(config)
    needed = Estimate.of(config).disk_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(needed - 1))
    monkeypatch.setattr(
        "sys.argv", ["density_ratio.py", "preset=density-ratio-smoke", f"run.dir={config.run.dir}", *words]
    )
    assert run_pipeline(str(PIPELINES / "density_ratio.py"), "density-ratio") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the checkpoints of {who} take " in line and "make room, set sweep.checkpoint_bytes, or choose" in line
    preflight.check(configured(*words, "sweep.per_process=1", f"sweep.checkpoint_bytes={needed - 1}"))


def test_a_problem_that_several_looks_meet_is_told_once(configured, tmp_path):
    with pytest.raises(ValueError, match=r"^[^\n]*none.npz: no such file[^\n]*$"):
        preflight.check(configured(f"density_ratio.vectors={tmp_path}/none.npz"))


def test_suggestions_without_their_package_are_refused(configured, monkeypatch):
    config = configured(*ASHA, "sweep.strategy=tpe")
    monkeypatch.setattr(sweep_preflight, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package optuna: pip install 'nnce-dist\[tpe\]'"):
        preflight.check(config)


def test_trials_whose_settings_contradict_each_other_are_named(configured):
    words = ("sweep.strategy=random", "sweep.trials=20", "sweep.seeds=[]", "sweep.per_process=1")
    config = configured(*words, "sweep.space.density_ratio.training.batch=integer(16,128)")
    with pytest.raises(ValueError) as found:
        preflight.check(config)
    first, *_, last = str(found.value).splitlines()
    assert "trial-000 (density_ratio.training.batch=" in first and "is no multiple of" in first
    assert last == "sweep.space: 15 more trials like these"
    assert len(str(found.value).splitlines()) == 4


def test_settings_of_trials_go_together_or_not_whatever_they_are_without_the_space(configured):
    shapes = ("density_ratio.dim=5", "sweep.seeds=[]", "sweep.space.density_ratio.family=grid(shift,correlation)")
    preflight.check(configured(*shapes, "sweep.space.density_ratio.dim=grid(2,4)", "sweep.checkpoint_bytes=1000000"))
    with pytest.raises(ValueError) as found:
        preflight.check(configured(*shapes, "sweep.space.density_ratio.dim=grid(3,4)"))
    (line,) = str(found.value).splitlines()
    assert line.startswith("sweep.space: trial-002 (density_ratio.family=correlation, density_ratio.dim=3): ")
    odd = ("density_ratio.family=correlation", "density_ratio.dim=5", "sweep.seeds=[]")
    preflight.check(configured(*odd, "sweep.space.density_ratio.dim=grid(2,4)", "sweep.checkpoint_bytes=1000000"))
    with pytest.raises(ConfigError, match="density_ratio.dim=5: family=correlation is made of pairs"):
        configured(*odd, "sweep.space.density_ratio.width=grid(8,16)")  # no trial is without it


def test_ramps_of_a_space_do_not_meet_the_lists_of_m_in_whose_place_it_is(configured):
    ramp = ("sweep.seeds=[]", "sweep.nwj=true", "sweep.space.objective.schedule.kind=grid(constant,geometric,auto)")
    preflight.check(configured(*ramp))
    with pytest.raises(ValueError, match="trial-001 .*a ramp ends at a finite M; change objective.noise_magnitude"):
        preflight.check(configured(*ramp, "objective.noise_magnitude=inf"))


def test_bad_input_of_a_sweep_is_exit_code_2_and_leaves_nothing(monkeypatch, capsys, tmp_path):
    words = [*ASHA, "sweep.metric=loss", "preset=density-ratio-smoke", f"run.dir={tmp_path}", "workers.cpus=1e2"]
    monkeypatch.setattr("sys.argv", ["density_ratio.py", *words])
    assert run_pipeline(str(PIPELINES / "density_ratio.py"), "density-ratio") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") for line in lines)
    assert not list(tmp_path.iterdir())
