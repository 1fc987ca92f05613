"""The command line: a pipeline's own (`python pipelines/NAME.py [--dry-run] [a.b=c ...]`) and `nnce`.

Exit codes: 0 done, 1 a job failed, 2 bad input, 130 or 143 stopped by a signal after saving.
"""

import argparse
import errno
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

BAD_INPUT = 2


def fail(message: str, code: int) -> int:
    """Prints one line a problem on standard error; gives the exit code back."""
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return code


def _pipeline_arguments(file: Path, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python {os.path.relpath(file)}",
        description=description,
        epilog=f"Presets: {os.path.relpath(file.parent / 'presets')}. Every key: nnce_dist/config/schema.py.",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the resolved plan and start nothing")
    parser.add_argument("--config", action="store_true", help="print the resolved configuration and start nothing")
    parser.add_argument("--verbose", action="store_true", help="show Ray's own messages too")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. preset=smoke run.seed=1")
    return parser


def run_pipeline(file: str, default_preset: str, description: str = "") -> int:
    """Runs the pipeline whose file is given; its presets lie beside it. Returns the exit code."""
    path = Path(file).resolve()
    arguments = _pipeline_arguments(path, description).parse_intermixed_args()
    overrides = [*arguments.overrides, *(["run.verbose=true"] if arguments.verbose else [])]
    from .config.load import ConfigError, load, to_yaml
    from .config.paths import make_absolute

    try:
        config = load(overrides, path.parent / "presets", default_preset)
    except ConfigError as error:
        return fail(str(error), BAD_INPUT)
    make_absolute(config)
    if arguments.config:
        print(to_yaml(config), end="")
        return 0
    return _guarded_pipeline(lambda: _run(config, arguments.dry_run))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without looks for garbage: among the many objects that imports make these take a sixth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _run(config, dry_run: bool) -> int:
    with _uncollected():
        from rich.console import Console

        from .stages import pipeline, plan, preflight

    console = Console(highlight=False)
    preflight.check(config)
    plan.show(config, console, estimated=dry_run)
    if not dry_run:
        pipeline.run(config, sys.argv, console)
    return 0


def _guarded_pipeline(run: Callable[[], int]) -> int:
    """As `_guarded`; knows how training ends."""
    with _uncollected():
        from .data.bad_samples import BadDataError
        from .stages.jobs import JobsFailedError
        from .training.checkpoint import CheckpointError
        from .training.step import NonFiniteError
        from .training.stopping import Stopped

    try:
        return _guarded(run, JobsFailedError, NonFiniteError, BadDataError, CheckpointError)
    except Stopped as stopped:
        return fail(str(stopped), stopped.exit_code)


def _guarded(run: Callable[[], int], *failures: type[Exception]) -> int:
    """Runs and turns every expected failure into one line and its exit code; `failures` are not the input's fault."""
    try:
        return run()
    except KeyboardInterrupt:
        return fail("interrupted; run the same command again to continue", 130)
    except failures as error:
        return fail(str(error), 1)
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return fail(f"{error}; make room and run the same command again to continue", 1)
        return fail(str(error), BAD_INPUT)


def _convert(arguments: argparse.Namespace) -> int:
    from .convert import convert

    return _guarded(lambda: print(convert(arguments.source, arguments.target, arguments.sha256)) or 0)


def _pack(arguments: argparse.Namespace) -> int:
    from .data.parallel import WorkerDiedError

    return _guarded(lambda: _packed(arguments), WorkerDiedError)


def _packed(arguments: argparse.Namespace) -> int:
    from .data.pack import pack
    from .data.sources import open_source
    from .metrics.line import ProgressLine

    if Path(arguments.out).absolute().is_relative_to(Path(arguments.source).absolute()):
        raise ValueError(f"{arguments.out}: lies within the source {arguments.source}; pack into another folder")
    source = open_source(arguments.source, arguments.labels, _s3(arguments), arguments.processes)
    if source.left_out:
        print(f"left out: {source.left_out}", file=sys.stderr)
    with ProgressLine("pack", "images", len(source.samples)) as line:
        pattern = pack(
            source,
            arguments.out,
            arguments.shard_size,
            arguments.size,
            arguments.processes,
            _s3(arguments),
            line.show,
        )
    print(f"data.train='{pattern}' data.num_classes={source.num_classes}")
    return 0


def _index(arguments: argparse.Namespace) -> int:
    from .data.parallel import WorkerDiedError

    return _guarded(lambda: _indexed(arguments), WorkerDiedError)


def _indexed(arguments: argparse.Namespace) -> int:
    from .data.set_index import store_set
    from .data.sidecar import add_indexes
    from .data.store import expand, open_store
    from .metrics.line import ProgressLine

    sets, settings = [expand(pattern) for pattern in arguments.urls], _s3(arguments)
    urls = list(dict.fromkeys(url for one in sets for url in one))
    with ProgressLine("index", "shards", len(urls)) as line:
        had = add_indexes(urls, settings, arguments.processes, line.show)
    for one in sets:
        store_set(one, open_store(one, settings))
    for url in had:
        print(f"{url}: its index is there and valid")
    print(f"{len(urls) - len(had)} shards indexed, {len(had)} had a valid index")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from .stages.compare import compare

    return _guarded(lambda: compare(arguments.runs, arguments.out, Console(highlight=False)) and 0)


def _s3(arguments: argparse.Namespace):
    from .config.schema import S3

    return S3(arguments.endpoint_url, arguments.profile, arguments.addressing)


def _at_least(low: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < low:
            raise ValueError
        return int(text)

    number.__name__ = f"number from {low}"  # argparse says: invalid ... value
    return number


def _add_data_commands(commands) -> None:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--processes", type=_at_least(1), default=len(os.sched_getaffinity(0)), help="all cores")
    shared.add_argument("--endpoint-url", default="", help="of an S3-compatible store; AWS if not given")
    shared.add_argument("--profile", default="", help="of the standard credential chain")
    shared.add_argument("--addressing", default="auto", choices=("auto", "path", "virtual"))
    packing = commands.add_parser("pack", parents=[shared], help="pictures to shards; goes on where it was stopped")
    packing.add_argument("source", help="image folder, .npz files or their folder, or a shard pattern")
    packing.add_argument("out", help="folder or s3://bucket/prefix")
    packing.add_argument("--shard-size", type=_at_least(1), default=1000, help="pictures in a shard (1000)")
    packing.add_argument("--size", type=_at_least(1), default=0, help="resize to so many pixels a side, centre crop")
    packing.add_argument("--labels", type=Path, help="CSV 'file,class' or JSON {'labels': [[file, number], ...]}")
    packing.set_defaults(run=_pack)
    indexing = commands.add_parser("index", parents=[shared], help="adds the index to shards made elsewhere")
    indexing.add_argument("urls", nargs="+", metavar="url", help="shard or pattern: a-{000..016}.tar, s3://b/a.tar.gz")
    indexing.set_defaults(run=_index)


def main() -> int:
    """The `nnce` command."""
    parser = argparse.ArgumentParser(prog="nnce", description="Tools around density-ratio training runs.")
    commands = parser.add_subparsers(required=True, metavar="command")
    converting = commands.add_parser("convert", help="an EDM pickle to safetensors, without executing any of it")
    converting.add_argument("source", type=Path, help="edm-*.pkl")
    converting.add_argument("target", type=Path, help="*.safetensors")
    converting.add_argument("--sha256", help="digest that the pickle must have")
    converting.set_defaults(run=_convert)
    comparing = commands.add_parser("compare", help="trials of several runs: a table, a page, figures")
    comparing.add_argument("runs", nargs="+", type=Path, metavar="run", help="the folder of a run")
    comparing.add_argument("--out", type=Path, default=Path("compare"), help="folder for what is written (compare)")
    comparing.set_defaults(run=_compare)
    _add_data_commands(commands)
    arguments = parser.parse_args()
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
