"""python -m pytest tests/integration/test_prometheus.py"""

import json
import math
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from nnce_dist.metrics.jsonl import JsonlSink
from nnce_dist.metrics.monitor import Monitor
from nnce_dist.metrics.recorder import Recorder


def scrape(url):
    """{(sample name, labels as sorted pairs): value} of an endpoint."""
    with urllib.request.urlopen(url, timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def trial_writes(run_dir, trial, noise_magnitude, positions):
    """What a trial's process does: records into its own directory."""
    constants = {"run": "r", "stage": "ten-step", "trial": trial, "samples_total": 64}
    sink = JsonlSink(run_dir / "trials" / trial / "metrics.jsonl")
    recorder = Recorder(constants | {"noise_magnitude": noise_magnitude}, batch=8, sinks=[sink])
    recorder.resume(0)
    for position in positions:
        recorder.observe("value", {"loss": torch.full((8,), 1.5), "ratio_noise": torch.ones(8), "new": torch.ones(8)})
        recorder.flush(position, skipped_steps=1, **{"evaluation/fd_shapes@2k": 3.25})
    recorder.close()


def labels(trial, **more):
    return tuple(sorted({"run": "r", "stage": "ten-step", "trial": trial, **more}.items()))


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.2)
    raise TimeoutError("the condition did not come true in time")


def test_one_endpoint_shows_every_trial_live(tmp_path):
    trial_writes(tmp_path, "m-1", 1.0, [8])
    with Monitor(tmp_path) as monitor:
        assert monitor.url.startswith("http://127.0.0.1:")
        assert scrape(monitor.url)["nnce_samples_seen_total", labels("m-1")] == 8
        trial_writes(tmp_path, "inf", math.inf, [8, 16])
        new = "nnce_samples_seen_total", labels("inf")
        values = wait_for(lambda: values if (values := scrape(monitor.url)).get(new) == 16 else None)
        url = monitor.url
    assert values[new] == 16  # a total, not a sum of totals
    assert values["nnce_noise_magnitude", labels("inf")] == math.inf
    assert values["nnce_skipped_steps_total", labels("inf")] == 1
    assert values["nnce_loss", labels("m-1", network="value")] == 1.5
    assert values["nnce_ratio_noise", labels("m-1", network="value")] == 1
    assert values["nnce_observation", labels("m-1", observation="value/new")] == 1
    assert values["nnce_evaluation", labels("m-1", figure="fd_shapes@2k")] == 3.25
    assert values["nnce_images_per_second", labels("m-1")] > 0
    assert 0 < values["nnce_goodput", labels("m-1")] <= 1
    assert values["nnce_useful_seconds_total", labels("inf")] > 0
    assert abs(values["nnce_started_timestamp_seconds", labels("inf")] - time.time()) < 60
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=2)  # the port is free again


def test_a_taken_port_is_one_clear_line_and_ends_nothing(tmp_path, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Monitor(tmp_path, port=port) as monitor:
            assert monitor.url == ""
    (line,) = caplog.messages
    assert f"metrics.port={port}: cannot listen" in line and "or 0 for a free one; going on without" in line


def prometheus_program():
    """A Prometheus server's path, where one is installed or NNCE_PROMETHEUS names one."""
    return os.environ.get("NNCE_PROMETHEUS") or shutil.which("prometheus")


@pytest.mark.slow
@pytest.mark.skipif(not prometheus_program(), reason="no prometheus on PATH and NNCE_PROMETHEUS is not set")
def test_a_prometheus_server_scrapes_the_endpoint(tmp_path):
    trial_writes(tmp_path / "run", "m-10", 10.0, [8])
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with Monitor(tmp_path / "run") as monitor:
        target = monitor.url.removeprefix("http://").removesuffix("/metrics")
        job = {"job_name": "nnce", "scrape_interval": "1s", "static_configs": [{"targets": [target]}]}
        (tmp_path / "prometheus.yml").write_text(json.dumps({"scrape_configs": [job]}))
        options = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
        with (tmp_path / "log").open("w") as log:
            server = subprocess.Popen(
                [prometheus_program(), *options, f"--web.listen-address={address}"], stdout=log, stderr=log
            )
        try:
            query = urllib.parse.quote('nnce_samples_seen_total{trial="m-10"}')

            def answer():
                try:
                    with urllib.request.urlopen(f"http://{address}/api/v1/query?query={query}", timeout=5) as response:
                        return json.load(response)["data"]["result"]
                except OSError:
                    return None

            (series,) = wait_for(answer, seconds=60)
        finally:
            server.terminate()
            server.wait(timeout=20)
    assert series["value"][1] == "8" and series["metric"]["stage"] == "ten-step"


@pytest.mark.skipif(not prometheus_program(), reason="no prometheus on PATH and NNCE_PROMETHEUS is not set")
def test_the_shipped_scrape_configuration_is_valid():
    promtool = Path(prometheus_program()).with_name("promtool")
    configuration = Path(__file__).parents[2] / "infra" / "prometheus.yml"
    done = subprocess.run([promtool, "check", "config", configuration], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
