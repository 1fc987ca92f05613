"""S3 servers that tests start on 127.0.0.1, and the credentials to ask them with."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest

KEY_ID, SECRET = "AKIACANARYCANARY0000", "canary/secret+canary/secret+canary/secre"  # must never be seen in a message
OTHER_KEY_ID, OTHER_SECRET = "OTHER", "of somebody else"


@contextmanager
def only_credentials(key_id: str = KEY_ID, secret: str = SECRET) -> Iterator[None]:
    """This key in the environment, and no other source of credentials."""
    ours = {
        "AWS_ACCESS_KEY_ID": key_id,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in ours.items():
            patch.setenv(name, value)
        yield


def s3_client(endpoint_url: str):
    """A client with the credentials of now: boto3's own session keeps those of the first test that used it."""
    return boto3.Session().client("s3", endpoint_url=endpoint_url)


@contextmanager
def moto_server() -> Iterator[int]:
    """The port of a server that accepts every key; its objects lie in memory, shared by all such servers."""
    from moto.server import ThreadedMotoServer  # takes a second, which tests without a server need not wait

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()
