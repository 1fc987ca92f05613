"""What many tests share: one Ray, which takes 20 CPU-seconds to start, and the S3 servers."""

import os
from pathlib import Path

import processes
import pytest
import radosgw as ceph
from s3_servers import KEY_ID, OTHER_KEY_ID, OTHER_SECRET, SECRET, moto_server
from small_run import go_on_here


@pytest.fixture(scope="session")
def ray_session():
    """A Ray with 2 CPUs; gives the folder with its files and token."""
    with processes.ray_environment() as settings:
        settings["PATH"] = f"{settings['RAY_TMPDIR']}/bin:{os.environ['PATH']}"  # for programs that a test makes up
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


@pytest.fixture(scope="session")
def moto():
    """The port of an S3 server in this process, which accepts every key."""
    with moto_server() as port:
        yield port


@pytest.fixture(scope="session")
def radosgw(tmp_path_factory):
    """The port of a Ceph RADOS Gateway with two users."""
    if (program := ceph.program()) is None:
        pytest.skip("no radosgw on PATH and NNCE_RADOSGW is not set")
    users = {"ours": (KEY_ID, SECRET), "other": (OTHER_KEY_ID, OTHER_SECRET)}
    with ceph.radosgw_server(program, tmp_path_factory.mktemp("radosgw"), users) as port:
        yield port


@pytest.fixture(scope="module", params=["moto", pytest.param("radosgw", marks=pytest.mark.slow)])
def s3_port(request):
    """The port of each kind of server in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """The weights of the small run that nobody interrupts."""
    return go_on_here(tmp_path_factory.mktemp("uninterrupted"))
