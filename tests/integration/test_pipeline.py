"""python -m pytest tests/integration/test_pipeline.py

The main job as a person runs it, in processes of its own, made small (preset=smoke).
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from s3_servers import KEY_ID, SECRET, only_credentials, s3_client
from safetensors.torch import save_file

from nnce_dist.data.images import encode_png
from nnce_dist.data.pack import pack
from nnce_dist.data.source import Source, labelled

REPOSITORY = Path(__file__).parents[2]
PIPELINE = [sys.executable, "pipelines/imagenet64.py", "preset=smoke"]
QUICK = 5.0  # seconds in which bad input must be answered, on an idle machine
SLACK = 4.0  # this test may share its cores


def run(*words: str) -> subprocess.CompletedProcess:
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*PIPELINE, *words], cwd=REPOSITORY, env=settings, capture_output=True, text=True, timeout=300
    )


def shards(folder: Path, size: int = 64, num_classes: int = 8, count: int = 64) -> str:
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count))
    pictures = [labelled(str(n), encode_png(pixels), n % num_classes) for n, pixels in enumerate(noise)]
    return pack(Source(pictures, "noise", num_classes), folder, 32)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory) -> dict[str, list[str]]:
    """Bad input by name: the words on the command line."""
    folder = tmp_path_factory.mktemp("wrong")
    good = shards(folder / "good")
    (folder / "empty.tar").touch()
    save_file({"model.x": torch.zeros(2)}, folder / "other.safetensors")
    return {
        "missing": [f"data.train={folder}/none-{{0..3}}.tar", f"data.val={good}"],
        "empty": [f"data.train={folder}/empty.tar", f"data.val={good}"],
        "size": [f"data.train={shards(folder / 'large', 96)}", f"data.val={good}"],
        "classes": [f"data.train={good}", f"data.val={good}", "data.num_classes=3"],
        "weights": [f"teacher.weights={folder}/other.safetensors"],
        "several": ["run.sed=1", "run.seed=x", "objective.noise_magnitude=nan"],
        "bucket": [
            "data.train=s3://nobody/{0..1}.tar",
            f"data.val={good}",
            "data.s3.endpoint_url=http://127.0.0.1:9",
            "data.s3.timeout=2",
        ],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing", ["none-0.tar"]),
        ("empty", ["empty"]),
        ("size", ["96", "data.resize"]),
        ("classes", ["data.num_classes"]),
        ("weights", ["another architecture", "missing", "unexpected"]),
        ("several", ["nearest: 'run.seed'", "run.seed=x", "NaN"]),
        ("bucket", ["s3://nobody"]),
    ],
)
def test_bad_input_is_one_line_each_and_exit_code_2_before_anything_starts(wrong, tmp_path, name, says):
    start = time.monotonic()
    done = run(*wrong[name], f"run.dir={tmp_path}")
    assert time.monotonic() - start < QUICK * SLACK
    assert done.returncode == 2, done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines()), done.stderr
    assert all(part in done.stderr for part in says), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_dry_run_shows_the_plan_and_starts_nothing(tmp_path):
    done = run("--dry-run", f"run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "2 trials (m1, m100)" in " ".join(done.stdout.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_ends_the_run_with_one_line(tmp_path):
    done = run("workers.runtime=local", "teacher.optimiser.lr=1e30", f"run.dir={tmp_path}")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert "'denoiser' is not finite" in line and "lower the learning rate" in line
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_failed_trial_disturbs_no_other_and_is_tried_again(tmp_path):
    folder = tmp_path / "smoke"
    obstacle = folder / "ten_step" / "m100" / "checkpoints"
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()  # a file where a folder is to be made
    words = ["workers.runtime=local", "evaluation.draws=1", f"run.dir={tmp_path}"]
    first = run(*words)
    assert first.returncode == 1
    assert "best noise magnitude: m1 " in first.stdout and " failed " in first.stdout
    errors = [line for line in first.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: ten_step m100: FileExistsError: ")
    assert "FileExistsError" in (folder / "report.html").read_text()
    assert "Traceback" in (obstacle.parent / "error.txt").read_text() and "Traceback" not in first.stderr
    finished = {path.parent.name for path in folder.rglob("result.json")}
    assert finished == {"teacher", "m1", "one_step", "data", "untuned", "euler", "heun"}
    obstacle.unlink()
    again = run(*words)
    assert again.returncode == 0, again.stderr
    assert (obstacle.parent / "result.json").exists() and not (obstacle.parent / "error.txt").exists()
    assert " failed " not in again.stdout


@pytest.mark.slow
def test_the_job_ends_with_its_table_and_report_and_a_second_start_shows_them(tmp_path):
    words = ["workers.runtime=local", f"run.dir={tmp_path}"]
    first = run(*words)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "smoke"
    assert str(folder / "report.html") in first.stdout.splitlines()[-1].replace("\n", "")
    results = {path.parent.name: json.loads(path.read_text()) for path in folder.rglob("result.json")}
    assert set(results) >= {"teacher", "m1", "m100", "one_step", "untuned", "euler", "heun", "data"}
    for name in ("m1", "m100", "one_step", "untuned"):
        assert len(results[name]["figures"]["fd_shapes@32"]) == 2, name
    modified = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    again = run(*words)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")} == modified
    table = first.stdout[first.stdout.index("Held-out data") :]
    assert again.stdout[again.stdout.index("Held-out data") :] == table
    changed = run(*words, "run.seed=5")
    assert changed.returncode == 2 and "run.seed: 0 there, 5 now" in changed.stderr


@pytest.mark.slow
def test_shards_on_s3_give_the_result_of_shards_on_disk_and_no_key_is_told(tmp_path, moto):
    pattern = {part: shards(tmp_path / part) for part in ("train", "val")}
    endpoint = f"http://127.0.0.1:{moto}"
    common = ["workers.runtime=local", "sweep.noise_magnitudes=[100]", f"run.dir={tmp_path}/runs"]
    with only_credentials():
        client = s3_client(endpoint)
        client.create_bucket(Bucket="pipeline")
        for part in pattern:
            for path in (tmp_path / part).glob("*.tar"):
                client.upload_file(str(path), "pipeline", f"{part}/{path.name}")
        remote = {part: f"s3://pipeline/{part}/{Path(p).name}" for part, p in pattern.items()}
        for name, where in (("disk", pattern), ("s3", remote)):
            words = [f"run.name={name}", f"data.train={where['train']}", f"data.val={where['val']}"]
            done = run(*common, *words, f"data.s3.endpoint_url={endpoint}", f"data.cache_dir={tmp_path}/{name}")
            assert done.returncode == 0, done.stderr
    disk, s3 = (tmp_path / "runs" / name for name in ("disk", "s3"))
    jobs = ["teacher", "ten_step/m100", "one_step"]
    for job in jobs:
        assert (disk / job / "weights.safetensors").read_bytes() == (s3 / job / "weights.safetensors").read_bytes(), job
    figures = [json.loads((run / "ten_step/m100/result.json").read_text())["figures"] for run in (disk, s3)]
    assert figures[0] == figures[1]
    written = [path.read_bytes() for path in s3.rglob("*") if path.is_file()] + [(done.stdout + done.stderr).encode()]
    assert len(written) > 20 and not any(key.encode() in text for text in written for key in (KEY_ID, SECRET))
