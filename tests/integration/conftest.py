"""One Ray on this machine for all tests that need one: starting it costs 20 CPU-seconds."""

import os
from pathlib import Path

import processes
import pytest


@pytest.fixture(scope="session")
def ray_session():
    """A Ray with 2 CPUs; gives the folder with its files and token."""
    with processes.ray_environment() as settings:
        before = {name: os.environ.get(name) for name in (*settings, "RAY_ADDRESS")}
        os.environ.update(settings)
        os.environ.pop("RAY_ADDRESS", None)
        from nnce_dist.on_ray import environment  # imports Ray, which the settings must precede

        try:
            with environment.session(num_cpus=2):
                yield Path(settings["RAY_TMPDIR"])
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
