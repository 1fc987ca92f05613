"""python -m pytest tests/unit/test_config.py"""

import math
from pathlib import Path

import pytest

from nnce_dist.config.load import ConfigError, differences, from_dict, leaves, load, to_dict
from nnce_dist.config.paths import make_absolute
from nnce_dist.config.schema import Config
from nnce_dist.data.store import expand

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(list(overrides), PRESETS, "smoke")
    return caught.value.problems


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_is_valid_and_survives_a_round_trip(preset):
    needed = ["data.train=a.tar", "data.val=b.tar"] if preset == "photographs" else []
    config = load([f"preset={preset}", *needed], PRESETS, "laptop")
    assert from_dict(to_dict(config)) == config


def test_overrides_win_over_presets_and_keep_their_types():
    config = load(["run.seed=7", "objective.noise_magnitude=inf", "sweep.noise_magnitudes=[1,50]"], PRESETS, "smoke")
    assert config.run.seed == 7
    assert math.isinf(config.objective.noise_magnitude)
    assert config.sweep.noise_magnitudes == [1.0, 50.0]
    assert config.run.name == "smoke"  # from the preset


def test_shard_patterns_pass_through_whole():
    pattern = "s3://bucket/in64/train-{000000..001281}.tar"
    config = load([f"data.train={pattern}", "data.val=v.tar"], PRESETS, "smoke")
    assert config.data.train == pattern


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("objective.noise_magnitde=3", "nearest: 'objective.noise_magnitude'"),
        ("ten_step.num_stepz=1", "nearest: 'ten_step.num_steps'"),
        ("run.seed=many", "run.seed=many"),
        ("objective.noise_magnitude=nan", "NaN"),
        ("objective.noise_magnitude=0.5", "at least 1"),
        ("teacher.optimiser.lr=inf", "finite"),
        ("network.kind=unet", "choose one of patch_unet, ddpmpp, adm"),
        ("run.stages=[teachr]", "choose one of teacher, ten_step, one_step"),
        ("run.name=../../etc", "lower-case letters"),
        ("teacher.training.batch=0", "at least 1"),
        ("workers.count=0", "between 1 and 4096"),
        ("seed", "write key=value"),
        ("teacher.training.samples=65", "use 64"),
        ("workers.count=3", "cannot be shared equally"),
        ("workers.min=2", "workers.min=2 is more than workers.count=1"),
        ("data.train=x.tar", "data.val"),
        ("evaluation.features=inception", "evaluation.inception_weights"),
        ("objective.schedule.fractions=[0.5,0.2]", "must ascend"),
        ("objective.schedule.magnitudes=[0.5]", "at least 1"),
        ("preset=lapto", "nearest: 'laptop'"),
    ],
)
def test_each_mistake_is_named_with_what_to_do(override, says):
    found = problems(override)
    assert any(says in line for line in found), found


@pytest.mark.parametrize("endpoint", ["http://key:hidden@host:9", "https://key:/hidden@host", "http://host?k=hidden"])
def test_credentials_in_the_address_of_a_store_are_refused_and_not_repeated(endpoint):
    (line,) = problems(f"data.s3.endpoint_url={endpoint}")
    assert line.startswith("data.s3.endpoint_url must not hold credentials; use") and "hidden" not in line


@pytest.mark.parametrize(
    "address", ["http://key:hidden@host:9", "https://key:/hid@hidden@host", "http://a@host?k=hidden"]
)
@pytest.mark.parametrize(
    "setting",
    [
        "sweep.space.data.s3.endpoint_url={}",
        "sweep.space.data.s3.endpoint_url=grid({}",
        "sweep.space.data.s3.timeout=grid({})",
        "data.s3.endpoint_url:{}",
        "data.s3.endpoint_url=[{}]",
        "data.s3.endpoint_url={{a: {}",
        "data.s3.timeout={}",
        "run.mirror={}",
        "run.name={}",
        "data.on_error={}",
        "sweep.metric={}",
        "preset={}",
        "preset={}.yaml",
    ],
)
def test_no_message_repeats_a_secret_in_an_address(setting, address):
    lines = problems(setting.format(address))
    assert lines and not any("hid" in line for line in lines)


@pytest.mark.parametrize("address", ["s3://key:hidden@bucket/run", "s3://key:/hidden@bucket/run"])
def test_credentials_before_the_name_of_a_bucket_are_refused_and_not_repeated(address):
    (line,) = problems(f"run.mirror={address}")
    assert line.endswith("write s3://bucket/prefix") and "hidden" not in line
    for pattern in (address, f"{address}/a-{{0..1.tar"):
        with pytest.raises(ValueError, match="must not hold credentials") as caught:
            expand(pattern)
        assert "hidden" not in str(caught.value)
    with pytest.raises(ValueError, match="not from https: addresses"):
        expand("https://key:hidden@host/a-{0..1.tar")


def test_a_ramp_to_an_infinite_magnitude_is_refused_and_the_setting_named():
    ramp = "objective.schedule.kind=cosine"
    assert "a ramp ends at a finite M; change sweep.nwj" in problems(ramp, "sweep.nwj=true")[0]
    assert "objective.noise_magnitude" in problems(ramp, "objective.noise_magnitude=inf")[0]


def test_a_preset_may_leave_m_to_training_until_a_number_is_given(tmp_path):
    preset = tmp_path / "auto.yaml"
    lists = "sweep: {noise_magnitudes: [], nwj: false, held: false}"
    for objective in ("{noise_magnitude: auto}", "{schedule: {kind: auto}, noise_magnitude: 7}"):
        preset.write_text(f"objective: {objective}\n{lists}\n")
        words = [f"preset={preset}"]
        assert load(words, PRESETS, "smoke").objective.schedule.kind == "auto"
        given = load([*words, "objective.noise_magnitude=10"], PRESETS, "smoke").objective
        assert (given.schedule.kind, given.noise_magnitude) == ("constant", 10)
        again = [*words, "objective.noise_magnitude=10", "objective.noise_magnitude=auto"]
        assert load(again, PRESETS, "smoke").objective.schedule.kind == "auto"


def test_a_number_for_m_leaves_the_way_to_it_as_it_is():
    words = ["objective.schedule.kind=geometric", "objective.noise_magnitude=10"]
    assert load(words, PRESETS, "smoke").objective.schedule.kind == "geometric"


def test_every_worker_needs_a_micro_batch():
    (line,) = problems("workers.count=2", "teacher.training.micro_batch=16")
    assert line.endswith("choose teacher.training.micro_batch=8 or smaller")


def test_all_mistakes_are_listed_at_once():
    found = problems("run.sed=1", "run.seed=x", "objective.noise_magnitude=nan", "data.val=only.tar")
    assert len(found) == 4


def test_relative_paths_become_absolute_and_addresses_stay(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = load(
        ["data.train=s3://b/{0..1}.tar", "data.val=val/{0..1}.tar", "teacher.weights=shipped"], PRESETS, "smoke"
    )
    make_absolute(config)
    assert config.run.dir == f"{tmp_path}/runs"
    assert config.data.val == f"{tmp_path}/val/{{0..1}}.tar"
    assert (config.data.train, config.teacher.weights) == ("s3://b/{0..1}.tar", "shipped")
    assert config.data.cache_dir == ""


def test_differences_name_dotted_keys():
    old, new = to_dict(Config()), to_dict(load(["run.seed=3"], PRESETS, "smoke"))
    new |= {key: old[key] for key in old if key != "run"}
    new["run"] |= {key: old["run"][key] for key in old["run"] if key != "seed"}
    assert list(differences(old, new)) == [("run.seed", 0, 3)]


def test_every_setting_has_a_documented_line():
    source = (PRESETS.parents[1] / "nnce_dist" / "config" / "schema.py").read_text()
    for key, *_ in leaves(Config()):
        assert f"    {key.rsplit('.', 1)[-1]}: " in source
