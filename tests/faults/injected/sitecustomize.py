"""Faults from inside, in processes started with NNCE_FAULT="kind:word:word"; Python imports this file at its start.

ledger:FILE            writes the digest of every picture that the teacher's task is handed, mirrored or not
poison:POSITION        the first picture of the batch at this position is NaN, on the rank that has it
memory:N               the GPU's memory does not hold more than N pictures at a time
clock:POSITION:SECONDS from this position on the wall clock is so much off
version:NAME:WORD      this is the version that a library says it has
kill-in-save:N         SIGKILL at the N-th thing done to a file of a checkpoint
"""

import importlib.abc
import importlib.util
import os
import signal
import sys
import time

KIND, *WORDS = os.environ.get("NNCE_FAULT", "").split(":")


def ledger(batch, samples_seen):
    import hashlib

    pixels = batch.x.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    with open(WORDS[0], "a") as file:
        for picture in pixels:
            both = (picture.tobytes(), picture[:, ::-1].tobytes())
            file.write(min(hashlib.sha256(each).hexdigest() for each in both) + "\n")


def poison(batch, samples_seen):
    if samples_seen == int(WORDS[0]):
        batch.x[0] = float("nan")


def clock(batch, samples_seen):
    if samples_seen == int(WORDS[0]):
        right = time.time
        time.time = lambda: right() + float(WORDS[1])


class AtTask(importlib.abc.MetaPathFinder):
    """Wraps a method of the teacher's task once its module is imported."""

    def find_spec(self, name, path, target=None):
        if name != "nnce_dist.tasks.teacher":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), self.wrap(module.TeacherTask))
        return spec

    def wrap(self, task):
        raise NotImplementedError


class AtBatch(AtTask):
    """Calls a function with every batch that the task is handed."""

    def __init__(self, function):
        self.function = function

    def wrap(self, task):
        updates = task.updates

        def wrapped(task, batch, random, samples_seen, mean):
            self.function(batch, samples_seen)
            return updates(task, batch, random, samples_seen, mean)

        task.updates = wrapped


class AtLoss(AtTask):
    """Raises what torch raises when the GPU's memory does not hold the pictures of one backward pass."""

    def wrap(self, task):
        loss = task.loss

        def wrapped(task, pictures, labels, random):
            import torch

            if len(pictures) > int(WORDS[0]):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return loss(task, pictures, labels, random)

        task.loss = wrapped


class InSave:
    """An audit hook that counts what is done to files of checkpoints, reading left out."""

    def __init__(self):
        self.left = int(WORDS[0])

    def __call__(self, event, arguments):
        changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir") or (event == "open" and arguments[2] & 3)
        if changes and "checkpoints" in str(arguments[:2]):
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)


if KIND == "kill-in-save":
    sys.addaudithook(InSave())
elif KIND == "version":
    import importlib.metadata

    right = importlib.metadata.version
    importlib.metadata.version = lambda name: WORDS[1] if name == WORDS[0] else right(name)
elif KIND == "memory":
    sys.meta_path.insert(0, AtLoss())
elif KIND:
    sys.meta_path.insert(0, AtBatch({"ledger": ledger, "poison": poison, "clock": clock}[KIND]))
