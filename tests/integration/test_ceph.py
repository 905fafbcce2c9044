"""The laws of storage on a Ceph RADOS Gateway: persistent, signatures checked, uploads as a strict
server takes them.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from cluster.errors import PlainError, UsageError
from cluster.shards.index import open_shard_set
from cluster.shards.verify import verify_shard_set
from cluster.storage import files
from cluster.storage.preflight import check_readable, check_writable
from tests.cluster.storage import test_files, test_preflight, test_s3
from tests.support.ceph_gateway import CephGateway
from tests.support.faulty_s3 import FaultyS3

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
FOLDERS = itertools.count()
STREAM = """
import json, sys
from cluster.compute.session import connect
from cluster.shards.index import open_shard_set
from cluster.loading.stream import Stream
address, uri = sys.argv[1:]
connect(address)
shard_set = open_shard_set(uri)
options = {"batches": [4, 4], "canvases": [(64, 96)], "seed": 0}
ids = []
for rank in range(2):
    for batch in Stream(shard_set, rank=rank, **options).epoch(0, [(0, shard_set.num_rows)]):
        ids += [int(image_id) for image_id in batch.image_ids]
print(json.dumps(ids))
"""


@pytest.fixture(scope="module")
def gateway() -> Iterator[CephGateway]:
    # Not below pytest's folders: the path of a socket has room for about 100 characters.
    with (
        tempfile.TemporaryDirectory(prefix="rr-ceph-") as folder,
        CephGateway(f"{folder}/ceph") as started,
    ):
        client(started).create_bucket(Bucket="laws")
        yield started


def client(gateway: CephGateway) -> Any:
    keys = {
        "aws_access_key_id": gateway.environment["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": gateway.environment["AWS_SECRET_ACCESS_KEY"],
    }
    return boto3.client("s3", endpoint_url=gateway.url, region_name="us-east-1", **keys)


@pytest.fixture
def bucket(gateway: CephGateway, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh folder in a bucket of the gateway, which AWS_* names for this test. Fresh buckets
    would cost two seconds each.
    """
    for name, value in gateway.environment.items():
        monkeypatch.setenv(name, value)
    for name in (
        "AWS_PROFILE",
        "AWS_SESSION_TOKEN",
        "AWS_ENDPOINT_URL_S3",
        "AWS_REQUEST_CHECKSUM_CALCULATION",
    ):
        monkeypatch.delenv(name, raising=False)
    return f"s3://laws/{next(FOLDERS)}"


@pytest.fixture
def root(bucket: str) -> str:
    return bucket


clock, behind = test_s3.clock, test_s3.behind

test_what_is_written_is_read = test_files.test_what_is_written_is_read
test_large_file = test_files.test_large_file
test_listing = test_files.test_listing_is_recursive_sorted_and_filtered
test_missing_file = test_files.test_missing_file
test_folders_go_up_and_down = test_files.test_folders_go_up_and_down
test_delete_folder_takes_that_folder_alone = test_files.test_delete_folder_takes_that_folder_alone
test_checks_pass_and_leave_no_file = test_preflight.test_checks_pass_and_leave_no_file
test_preflight_names_a_missing_folder = test_preflight.test_preflight_names_a_missing_folder
# These go through the proxy, with their signatures.
test_a_read_is_whole = test_s3.test_a_read_is_whole_whatever_happens_on_the_way
test_a_range_is_whole = test_s3.test_a_range_is_whole_whatever_happens_on_the_way
test_an_upload_arrives_whole = test_s3.test_an_upload_arrives_whole
test_a_listing_is_whole = test_s3.test_a_listing_is_whole
test_a_deletion_whose_answer_is_lost_is_done = test_s3.test_a_deletion_whose_answer_is_lost_is_done
test_folders_through_faults = test_s3.test_folders_go_up_and_down_through_one_fault_in_five
test_an_object_deleted_while_it_is_open_is_missing = (
    test_s3.test_an_object_deleted_while_it_is_open_is_missing
)

PREFLIGHTS = test_preflight.PREFLIGHTS


@PREFLIGHTS
@pytest.mark.parametrize("place", ["laws", "never-made"])
@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "AWS_SECRET_ACCESS_KEY",
            "knows the access key, but the secret is wrong; check AWS_SECRET_ACCESS_KEY",
        ),
        ("AWS_ACCESS_KEY_ID", "does not know this access key; check AWS_ACCESS_KEY_ID"),
    ],
)
def test_wrong_credentials_are_not_called_a_missing_bucket(
    bucket: str,
    check: Callable[[str], None],
    place: str,
    name: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, "somethingelse")
    with pytest.raises(UsageError, match=f"^s3://{place}/key: http://.* {line}$"):
        check(f"s3://{place}/key")


@PREFLIGHTS
def test_a_missing_bucket(bucket: str, gateway: CephGateway, check: Callable[[str], None]) -> None:
    with pytest.raises(
        UsageError,
        match=(
            f"there is no bucket 'never-made' at {gateway.url}; create it or check its name and"
            " AWS_ENDPOINT_URL$"
        ),
    ):
        check("s3://never-made/key")


def test_a_wrong_secret_in_the_middle_of_a_run(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_bytes(f"{bucket}/key", b"x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "somethingelse")
    # HEAD and GET are answered with a bare 403.
    for operation in (files.read_bytes, files.exists):
        with pytest.raises(
            PlainError,
            match=(
                "but the secret is wrong; check AWS_SECRET_ACCESS_KEY; then run the command again$"
            ),
        ):
            operation(f"{bucket}/key")


def test_missing_rights_to_list_and_to_write_have_different_errors(
    bucket: str, gateway: CephGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_bytes(f"{bucket}/key", b"x")
    for user in ("reader", "stranger"):
        gateway.add_user(user, f"{user}key", f"{user}secret")
    everything = ["arn:aws:s3:::laws", "arn:aws:s3:::laws/*"]
    reads = {
        "Effect": "Allow",
        "Principal": {"AWS": ["arn:aws:iam:::user/reader"]},
        "Action": ["s3:ListBucket", "s3:GetObject"],
        "Resource": everything,
    }
    client(gateway).put_bucket_policy(
        Bucket="laws", Policy=json.dumps({"Version": "2012-10-17", "Statement": [reads]})
    )

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "readerkey")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "readersecret")
    check_readable(f"{bucket}/key")
    assert files.read_bytes(f"{bucket}/key") == b"x"
    with pytest.raises(
        UsageError,
        match=(
            f"the bucket can be listed but not written: {gateway.url} denies access; check the AWS_"
            " credentials"
        ),
    ):
        check_writable(bucket)

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "strangerkey")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "strangersecret")
    with pytest.raises(
        UsageError,
        match=(
            f"^{bucket}/key: {gateway.url} denies access; check the AWS_ credentials and their"
            " rights to 'laws'$"
        ),
    ):
        check_readable(f"{bucket}/key")


def test_a_checksum_that_the_gateway_does_not_support_is_explained(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What pyarrow does by itself; the other tests show that it is switched off where nobody asks
    # for it.
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    with pytest.raises(
        UsageError,
        match=(
            "does not accept checksums after the body of an upload; set"
            " AWS_REQUEST_CHECKSUM_CALCULATION=when_required$"
        ),
    ):
        check_writable(bucket)


def test_prepare_and_streaming_survive_one_fault_in_fifty(
    bucket: str,
    ray_cluster: str,
    gateway: CephGateway,
    small_coco: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """prepare, verify and stream an epoch on the shared Ray cluster, whose nodes have the gateway's
    keys; each driver brings the endpoint.
    """
    files.upload_folder(str(small_coco), f"{bucket}/coco")
    with FaultyS3(gateway.url, errors=0.02, latency=0.005) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        sources = [
            "--annotations",
            f"{bucket}/coco/annotations/instances_train.json",
            "--images",
            f"{bucket}/coco/images/train",
        ]
        options = [
            "--output",
            f"{bucket}/shards",
            "--row_group_rows",
            "5",
            "--ray.address",
            ray_cluster,
        ]
        drive("-m", "pipelines.prepare", *sources, *options)
        shard_set = open_shard_set(f"{bucket}/shards")
        verify_shard_set(shard_set)
        ids = json.loads(drive("-c", STREAM, ray_cluster, f"{bucket}/shards").splitlines()[-1])
    images = json.loads((small_coco / "annotations/instances_train.json").read_text())["images"]
    assert sorted(ids) == sorted(image["id"] for image in images)
    assert proxy.faults > 0


def drive(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
