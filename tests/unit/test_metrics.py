"""python -m pytest tests/unit/test_metrics.py"""

import io
import json
import logging
import math
import re
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nnce_dist.data import counters
from nnce_dist.metrics import jsonl
from nnce_dist.metrics.follower import Follower
from nnce_dist.metrics.jsonl import JsonlSink
from nnce_dist.metrics.names import DATA, METRICS, lookup
from nnce_dist.metrics.progress import PlainLines, progress_lines
from nnce_dist.metrics.recorder import Recorder, Sink
from nnce_dist.metrics.table import LiveTable

IDENTITY = {"run": "r", "stage": "ten-step", "trial": "m-10"}


class Kept(Sink):
    """Keeps what it is given."""

    def __init__(self):
        self.records = []

    def write(self, record):
        self.records.append(record)


class Full(Sink):
    """Fails like a full disk."""

    def write(self, record):
        raise OSError("No space left on device")


class Ranks:
    """Sums tensors over threads that stand for ranks, and counts the calls of one of them."""

    def __init__(self, size):
        self._barrier, self._parts, self.calls = threading.Barrier(size, timeout=10), {}, 0

    def all_reduce(self, rank):
        def reduce(tensor):
            self.calls += rank == 0
            self._parts[rank] = tensor.clone()
            self._barrier.wait()
            total = sum(self._parts.values())
            self._barrier.wait()
            tensor.copy_(total)

        return reduce


def test_means_over_ranks_and_micro_batches_equal_the_mean_over_samples():
    torch.manual_seed(0)
    losses, norms = torch.randn(10), torch.rand(10)
    shares = [[slice(0, 3), slice(3, 7)], [slice(7, 10)]]  # unequal on purpose
    totals = [{"cache_hits": 3, "wait_seconds": 0.5}, {"cache_hits": 4, "wait_seconds": 0.25}]
    ranks, results = Ranks(2), {}

    def work(rank):
        recorder = Recorder(IDENTITY, 10, all_reduce=ranks.all_reduce(rank), totals=lambda: totals[rank])
        for part in shares[rank]:
            recorder.observe("value", {"loss": losses[part], "norm": norms[part]})
        results[rank] = recorder.flush(10)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for rank in range(2):
        assert results[rank]["value/loss"] == pytest.approx(losses.double().mean().item(), rel=1e-12)
        assert results[rank]["value/norm"] == pytest.approx(norms.double().mean().item(), rel=1e-12)
        assert results[rank]["data/cache_hits"] == 7 and results[rank]["data/wait_seconds"] == 0.75
    assert ranks.calls == 1  # one message for everything


def test_what_the_data_side_counts_belongs_to_one_job():
    counters.add("fetched_bytes", 10)
    totals = counters.since_now()
    threads = [threading.Thread(target=counters.add, args=("fetched_bytes", 5)) for _ in range(20)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert totals() == {**dict.fromkeys(DATA, 0), "fetched_bytes": 100}
    with pytest.raises(KeyError):
        counters.add("no such total")


def test_flush_forgets_and_measures_the_speed_from_the_resumed_position():
    kept = Kept()
    recorder = Recorder(IDENTITY, batch=4, sinks=[kept])
    recorder.resume(100)
    recorder.observe("net", {"loss": torch.tensor([1.0, 3.0], requires_grad=True)})
    first = recorder.flush(104, skipped_steps=2)
    recorder.observe("net", {"loss": torch.tensor([5.0])})
    second = recorder.flush(108)
    assert (first["net/loss"], second["net/loss"], first["skipped_steps"]) == (2.0, 5.0, 2)
    assert first["steps"] == 26 and first["images_per_second"] * first["step_seconds"] == pytest.approx(4)
    assert kept.records[1:] == [first, second] and first["trial"] == "m-10"


def test_a_failing_sink_is_named_once_and_stops_nothing(caplog):
    kept = Kept()
    recorder = Recorder(IDENTITY, batch=1, sinks=[Full(), kept])
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            recorder.flush(step)
    assert len(kept.records) == 3
    assert [r.getMessage() for r in caplog.records] == [
        "metrics: Full failed and may miss records: No space left on device"
    ]


def write_history(path, positions):
    sink = JsonlSink(path)
    for position in positions:
        sink.write({"samples_seen": position})
    sink.close()


def test_a_resumed_run_counts_no_step_twice(tmp_path):
    path = tmp_path / "stage" / "metrics.jsonl"
    write_history(path, range(0, 100, 10))
    with path.open("ab") as file:
        file.write(b'{"samples_seen": 1')  # a crash in the middle of a write
    recorder = Recorder(IDENTITY, batch=10, sinks=[JsonlSink(path)])
    recorder.resume(40)
    for position in range(50, 120, 10):
        recorder.flush(position)
    recorder.close()
    assert [record["samples_seen"] for record in jsonl.read(path)] == list(range(0, 120, 10))


def test_goodput_counts_a_step_that_was_made_again_once_and_all_time_since_the_first_start(tmp_path, monkeypatch):
    wall = [1000.0]
    monkeypatch.setattr(time, "time", lambda: wall[0])
    monkeypatch.setattr(time, "perf_counter", lambda: wall[0])

    def start(samples_seen, positions):
        recorder = Recorder(IDENTITY, batch=10, sinks=[JsonlSink(tmp_path / "metrics.jsonl")])
        recorder.resume(samples_seen)
        for position in positions:
            wall[0] += 5 if position % 20 else 10 * (position - recorder._samples_seen) / 20
            recorder.flush(position)
        recorder.close()

    start(0, [])  # killed before its first line
    wall[0] += 20
    start(0, [20, 40, 60])  # killed at 65, after a checkpoint at 50
    wall[0] += 70
    start(50, [60, 80])
    lines = jsonl.training_records(tmp_path)
    assert [line["samples_seen"] for line in lines] == [20, 40, 60, 80]
    assert [line["useful_seconds"] for line in lines] == [10, 20, 30, 40]
    assert [line["goodput"] for line in lines] == [10 / 30, 20 / 40, 30 / 125, 40 / 135]
    wall[0] = 500.0  # the clock is set back
    start(80, [100])
    assert jsonl.training_records(tmp_path)[-1]["goodput"] == 1


def test_a_resumed_run_does_not_touch_history_before_its_position(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_history(path, [0, 10, 20])
    before = path.read_bytes()
    JsonlSink(path).resume(20)
    assert path.read_bytes() == before


def test_a_damaged_history_is_named_with_its_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"samples_seen": 1}\nrubbish\n{"samples_seen": 3}\n')
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 2")):
        jsonl.read(path)


def test_records_are_strict_json_and_infinities_come_back(tmp_path):
    record = {"noise_magnitude": math.inf, "a/loss": -math.inf, "b/loss": math.nan, "steps": 3, "stage": "s"}

    def refuse(word):
        raise AssertionError(word)

    json.loads(jsonl.encode(record), parse_constant=refuse)
    back = jsonl.decode(jsonl.encode(record))
    assert math.isnan(back.pop("b/loss")) and back == {k: v for k, v in record.items() if k != "b/loss"}


def test_writers_in_parallel_never_mix_their_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def write(writer):
        sink = JsonlSink(path)
        for number in range(200):
            sink.write({"writer": writer, "samples_seen": number, "padding": "x" * 300})
        sink.close()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    records = jsonl.read(path)
    for writer in range(4):
        assert [r["samples_seen"] for r in records if r["writer"] == writer] == list(range(200))


def test_the_follower_sees_every_trial_old_new_torn_and_cut_back(tmp_path):
    every, live = Kept(), Kept()
    write_history(tmp_path / "trials" / "a" / "metrics.jsonl", [10, 20])
    follower = Follower(tmp_path, [every], [live], interval=3600)
    write_history(tmp_path / "trials" / "b" / "metrics.jsonl", [10])
    with (tmp_path / "trials" / "a" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"samples_seen"')
        file.flush()
        follower.poll()
        assert [r["samples_seen"] for r in every.records] == [10, 20, 10]
        file.write(b": 30}\n")
    follower.poll()
    JsonlSink(tmp_path / "trials" / "a" / "metrics.jsonl").resume(10)
    follower.poll()
    write_history(tmp_path / "trials" / "a" / "metrics.jsonl", [20])
    follower.close()
    assert [r["samples_seen"] for r in every.records] == [10, 20, 10, 30, 20]
    assert [r["samples_seen"] for r in live.records] == [10, 30, 20]


def test_every_metric_has_a_proper_name_and_every_kind_of_key_is_exported():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"nnce(_[a-z]+)+", name) for name in names)
    assert all(metric.unit and metric.help for metric in METRICS)
    assert lookup("energy/loss")[1] == "energy"
    assert lookup("energy/something_new")[1] == "energy/something_new"
    assert lookup("evaluation/fd_shapes@2k")[1] == "fd_shapes@2k"
    assert lookup("a_stranger") is None


def test_restarts_are_counted_by_their_cause():
    metric, label = lookup("restarts/worker_died")
    assert (metric.name, label) == ("nnce_restarts", "worker_died")


def status(trial, seen, total=100):
    return {**IDENTITY, "trial": trial, "samples_seen": seen, "samples_total": total, "images_per_second": 5.0}


def on_paper(width: int = 200, height: int = 50) -> Console:
    return Console(record=True, width=width, height=height, file=io.StringIO())


def test_plain_progress_is_rate_limited_and_says_what_is_left():
    console = on_paper()
    lines = PlainLines(console, interval=3600)
    for seen in (10, 20, 30, 100):
        lines.write({**status("m-10", seen), "noise_magnitude": 10.0})
    lines.write(status("m-1", 50))
    lines.write({"evaluation/fd": 3.0})
    first, last, other = console.export_text().splitlines()
    assert first.split() == ["ten-step", "m-10", "M=10", "10%", "5", "samples/s", "0:18", "left"]
    assert last.split()[3:] == ["100%", "5", "samples/s"] and other.split()[:3] == ["ten-step", "m-1", "50%"]


def test_progress_says_what_a_job_does_and_what_became_of_it():
    console = on_paper()
    lines = PlainLines(console, "selection", interval=3600)
    for record in (
        {**status("a", 100), "settings": "M=3"},
        {**IDENTITY, "trial": "a", "doing": "evaluating"},
        status("b", 10),
    ):
        lines.write(record)
    lines.write({**IDENTITY, "trial": "a", "event": "evaluated", "evaluation/selection": 3.0})
    lines.write({**IDENTITY, "trial": "a", "event": "copied"})
    assert [" ".join(line.split()[1:5]) for line in console.export_text().splitlines()] == [
        "a M=3 100% 5",
        "a M=3 evaluating",
        "b 10% 5 samples/s",
        "a M=3 evaluated, selection",
        "a M=3 copied",
    ]


def left_by(table: LiveTable, console: Console) -> list[list[str]]:
    """The words of every line: the table's head, jobs and counts."""
    table.close()
    return [line.split() for line in console.export_text().splitlines() if line.strip()]


def test_the_table_has_a_row_per_job_that_moves_with_its_records():
    console = on_paper()
    table = LiveTable(console, "net/loss")
    for seen, loss in ((10, 2.0), (60, 0.5)):
        table.write({**status("a", seen), "settings": "M=3 lr=0.1", "net/loss": loss})
    table.write({**status("b", 20), "noise_magnitude": 10.0})
    table.write({**IDENTITY, "trial": "c", "event": "failed: it broke"})
    head, a, b, c, counts = left_by(table, console)
    assert head == ["trial", "settings", "samples", "loss", "state", "left"]
    assert a == ["a", "M=3", "lr=0.1", "60", "60%", "0.5", "training", "0:08"]
    assert b == ["b", "M=10", "20", "20%", "training", "0:16"]
    assert c == ["c", "failed:", "it", "broke"]
    assert " ".join(counts) == "3 jobs: 2 training, 1 failed"


def test_the_table_fits_the_screen_and_shows_what_is_at_work_and_what_ended_last():
    console = on_paper(width=60, height=9)
    table = LiveTable(console)
    for number in range(300):
        table.write(status(f"trial-{number:03}", 10))
        if number > 1:
            table.write({**IDENTITY, "trial": f"trial-{number:03}", "event": "judged"})
    _, *jobs, counts = left_by(table, console)
    assert [job[0] for job in jobs] == ["trial-000", "trial-001", "trial-299", "trial-298", "trial-297"]
    assert " ".join(counts) == "300 jobs: 2 training, 298 judged"


def test_the_table_has_what_goes_on_again_among_what_is_at_work():
    console = on_paper()
    table = LiveTable(console)
    told = {
        "a": "failed: it broke",
        "b": "started again: a worker died",
        "c": "continuing at 1,024 of 2,048 samples from /runs/c/checkpoints/1024 (the newest of 2)",
        "d": "continuing at 512 of 2,048 samples from /runs/d/checkpoints/512 (the newest of 2, fetched from s3://b/p)",
        "e": "rolled back, at half the learning rate: a gradient is not finite; continuing at 64 of 128 samples",
        "f": "evaluated",
        "g": "not copied yet: the store does not answer",
    }
    for trial, event in told.items():
        table.write({**IDENTITY, "trial": trial, "event": event})
    _, *jobs, counts = left_by(table, console)
    assert "".join(job[0] for job in jobs) == "bcdegfa"  # those that ended come last, the newest first
    assert " ".join(counts) == (
        "7 jobs: 1 started again, 2 continuing, 1 rolled back, at half the learning rate, "
        "1 not copied yet, 1 evaluated, 1 failed"
    )


def test_the_table_is_drawn_in_place_on_a_terminal(tmp_path):
    with (tmp_path / "terminal").open("w") as file:
        display = progress_lines(Console(file=file, force_terminal=True, width=120))
        for trial, seen in (("a", 10), ("b", 20), ("a", 100)):
            display.write(status(trial, seen))
        display.close()
    screen = (tmp_path / "terminal").read_text()
    assert "trained" in screen and "20%" in screen and isinstance(display, LiveTable)
    assert isinstance(progress_lines(on_paper()), PlainLines)


def test_a_record_that_a_full_disk_refuses_is_named_and_ends_nothing(caplog):
    jsonl.append(Path("/dev/full"), {"stage": "teacher"})
    (said,) = [record.getMessage() for record in caplog.records]
    assert "JsonlSink failed" in said and "No space left on device" in said
