"""The command line: a pipeline's own (`python pipelines/NAME.py [--dry-run] [a.b=c ...]`) and `nnce`.

Exit codes: 0 done, 1 a job failed, 2 bad input, 130 or 143 stopped by a signal after saving.
"""

import argparse
import os
import sys
from collections.abc import Callable
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
    return _guarded(lambda: _run(config, arguments.dry_run))


def _run(config, dry_run: bool) -> int:
    from rich.console import Console

    from .stages import pipeline, plan, preflight

    console = Console(highlight=False)
    preflight.check(config)
    plan.show(config, console)
    if not dry_run:
        pipeline.run(config, sys.argv, console)
    return 0


def _guarded(run: Callable[[], int]) -> int:
    """Runs and turns every expected failure into one line and its exit code."""
    from .stages.launch import JobsFailedError
    from .training.step import NonFiniteError
    from .training.stopping import Stopped

    try:
        return run()
    except Stopped as stopped:
        return fail(str(stopped), stopped.exit_code)
    except KeyboardInterrupt:
        return fail("interrupted; run the same command again to continue", 130)
    except (JobsFailedError, NonFiniteError) as error:
        return fail(str(error), 1)
    except (ValueError, OSError) as error:
        return fail(str(error), BAD_INPUT)


def _convert(arguments: argparse.Namespace) -> int:
    from .convert import convert

    return _guarded(lambda: print(convert(arguments.source, arguments.target, arguments.sha256)) or 0)


def main() -> int:
    """The `nnce` command."""
    parser = argparse.ArgumentParser(prog="nnce", description="Tools around density-ratio training runs.")
    commands = parser.add_subparsers(required=True, metavar="command")
    converting = commands.add_parser("convert", help="an EDM pickle to safetensors, without executing any of it")
    converting.add_argument("source", type=Path, help="edm-*.pkl")
    converting.add_argument("target", type=Path, help="*.safetensors")
    converting.add_argument("--sha256", help="digest that the pickle must have")
    converting.set_defaults(run=_convert)
    arguments = parser.parse_args()
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
