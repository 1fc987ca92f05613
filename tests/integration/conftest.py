"""One Ray on this machine for all tests that need one: starting it costs 20 CPU-seconds."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_session():
    """A Ray with 2 CPUs whose files and token lie in a folder of its own, gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="nr-", dir="/tmp"))  # short: unix sockets allow 107 characters
    settings = {
        "RAY_TMPDIR": str(home),
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "RAY_AUTH_MODE": "token",
        "PYTHONPATH": str(Path(__file__).parent),  # workers import the functions of the tests
    }
    before = {name: os.environ.get(name) for name in (*settings, "RAY_ADDRESS")}
    os.environ.update(settings)
    os.environ.pop("RAY_ADDRESS", None)
    from nnce_dist.on_ray import environment  # imports Ray, which the settings must precede

    try:
        with environment.session(num_cpus=2):
            yield home
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(home, ignore_errors=True)
