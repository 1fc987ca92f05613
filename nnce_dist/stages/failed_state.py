"""What stays of a trial that failed, for the next start, where the checkpoints of all trials have a budget."""

import shutil
from pathlib import Path

from ..config.schema import Config
from ..config.sweep_checks import adaptive, trials_stage, waits
from ..training import checkpoint
from ..training.mirror import FOLDER
from .folder import ERROR, PACKS, budgeted, release


def release_failed(config: Config, folder: Path, stage: str) -> None:
    """Lets go of a failed trial's checkpoints but for the newest; of that, too, where the budget has no room for it.

    Trials that wait to go on have a place for theirs in any case, but a pack of such trials has none; and all have one
    where all may run at a time.
    """
    if not budgeted(config, stage) or not config.sweep.concurrent or (waits(config) and stage != PACKS):
        return
    if waits(config):
        release(config, folder, stage)
        return
    newest = max(checkpoint.committed(folder / FOLDER), default=None)
    if newest is None or _taken(config, folder, stage, newest) > config.sweep.checkpoint_bytes:
        release(config, folder, stage)
        return
    for path in (folder / FOLDER).iterdir():
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)


def _taken(config: Config, folder: Path, stage: str, newest: Path) -> int:
    """Bytes, with this trial's newest checkpoint: of trials at work, as many as may be, and of others that failed."""
    one, training = checkpoint.size(newest), getattr(config, trials_stage(config)).training
    members = 1 if stage == PACKS else config.sweep.per_process  # with checkpoints of their own
    kept = one if stage == PACKS and adaptive(config) else training.keep_bytes
    at_work = config.sweep.concurrent * members * (kept + one)
    failed = (error.parent for error in folder.parent.glob(f"*/{ERROR}") if error.parent != folder)
    return (
        one + at_work + sum(checkpoint.size(path) for other in failed for path in checkpoint.committed(other / FOLDER))
    )
