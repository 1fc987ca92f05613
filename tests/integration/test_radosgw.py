"""What a real server says when it refuses.  Run: pytest tests/integration/test_radosgw.py

What the store does with it otherwise is tested on both kinds of server by test_s3.py and test_store.py.
"""

import datetime

import botocore.auth
import pytest
from faulty_store import FaultyStore
from s3_servers import OTHER_KEY_ID, OTHER_SECRET, only_credentials, s3_client

from nnce_dist.config.schema import S3
from nnce_dist.data.store import open_store

pytestmark = pytest.mark.slow

ASK = {
    "PutObject": lambda store, folder: store.put(f"{folder}/a", b"new"),
    "DeleteObject": lambda store, folder: store.delete(f"{folder}/a"),
    "ListBucket": lambda store, folder: store.objects(folder),
    "GetObject": lambda store, folder: store.peek(f"{folder}/a", 1),
}


@pytest.fixture(scope="module")
def proxy(radosgw):
    """The gateway with an object of ours, behind a proxy that counts."""
    with FaultyStore(radosgw) as proxy:
        with only_credentials():
            client = s3_client(proxy.url)
            client.create_bucket(Bucket="private")
            client.put_object(Bucket="private", Key="set/a", Body=b"content")
        yield proxy


def refusal(proxy, action):
    """The line for an action that is refused."""
    proxy.fail("nothing", 0)
    store = open_store(["s3://private/set/a"], S3(endpoint_url=proxy.url, timeout=30, addressing="path"))
    with pytest.raises(PermissionError) as caught:
        ASK[action](store, "s3://private/set")
    assert proxy.requests == 1
    line = str(caught.value)
    assert "\n" not in line and f"s3:{action} on bucket 'private', key 'set" in line and proxy.url in line
    return line


@pytest.mark.parametrize("action", ASK)
def test_what_belongs_to_somebody_else_is_denied_at_once(proxy, action):
    with only_credentials(OTHER_KEY_ID, OTHER_SECRET):
        assert "denied (AccessDenied)" in refusal(proxy, action)


def test_wrong_keys_are_told_from_missing_rights(proxy):
    with only_credentials(OTHER_KEY_ID, "a typing mistake"):
        assert "denied (SignatureDoesNotMatch)" in refusal(proxy, "GetObject")
    with only_credentials("NOBODY", OTHER_SECRET):
        assert "denied (InvalidAccessKeyId)" in refusal(proxy, "GetObject")


def test_a_clock_that_is_off_is_named(proxy, monkeypatch):
    now = botocore.auth.get_current_datetime
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: now() - datetime.timedelta(hours=1))
    with only_credentials():
        assert "RequestTimeTooSkewed" in (line := refusal(proxy, "GetObject")) and "clock" in line


def test_nothing_was_changed_by_refused_requests(proxy):
    with only_credentials():
        store = open_store(["s3://private/set/a"], S3(endpoint_url=proxy.url, addressing="path"))
        assert store.read("s3://private/set/a") == b"content" and len(store.objects("s3://private/set")) == 1
