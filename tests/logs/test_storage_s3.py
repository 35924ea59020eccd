"""Logs behind a URL are read as those on the disk: the same checks, the same samples, one line where they cannot be reached."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest

from hap.errors import ConfigError, DataError
from hap.logs import contract
from hap.logs.simulator import simulate
from hap.params import Params
from hap.samples.collect import collect_day
from hap.samples.replay import logged_requests
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY

NEXT_DAY = FIRST_DAY + dt.timedelta(days=1)


@pytest.fixture(scope="module")
def bucket(logged_workspace: Workspace) -> Iterator[str]:
    """The logged workspace's logs in a bucket of a local S3 server."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            environment.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        files = s3fs.S3FileSystem()
        files.mkdir("traffic")
        files.put(str(logged_workspace.root / "logs"), "traffic/logs", recursive=True)
        yield "s3://traffic/logs"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def behind(params: Params, url: str) -> Params:
    return params.model_copy(update={"logs": params.logs.model_copy(update={"path": url})})


def workspace(root: Path) -> Workspace:
    ws = Workspace(root)
    ws.state.mkdir(parents=True)
    return ws


def test_a_day_behind_a_url_gives_the_same_samples_and_stays_closed(
    bucket: str, logged_workspace: Workspace, default_params: Params, tmp_path: Path
) -> None:
    far = collect_day(workspace(tmp_path / "far"), behind(default_params, bucket), FIRST_DAY)
    near = collect_day(logged_workspace, default_params, FIRST_DAY)
    assert far.samples_hash == near.samples_hash
    assert far.id == near.id
    assert collect_day(Workspace(tmp_path / "far"), behind(default_params, bucket), FIRST_DAY) == far, "a closed day stays closed"


def test_days_and_requests_are_found_there(bucket: str, default_params: Params, tmp_path: Path) -> None:
    assert contract.logged_days(bucket) == [FIRST_DAY, NEXT_DAY]
    ws = workspace(tmp_path / "ws")
    assert len(list(logged_requests(ws, behind(default_params, bucket), FIRST_DAY, 3))) == 3


def test_a_day_that_is_not_there_is_told_with_the_days_that_are(bucket: str) -> None:
    with pytest.raises(DataError, match=f"no logs for the day 2027-05-05.*{FIRST_DAY} to {NEXT_DAY}"):
        contract.read_paths(bucket, "requests", dt.date(2027, 5, 5))


def test_a_bucket_that_does_not_exist_is_one_line(bucket: str) -> None:
    with pytest.raises(DataError) as refused:
        contract.read_paths("s3://nowhere/logs", "requests", FIRST_DAY)
    assert "s3://nowhere/logs" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_truncated_file_behind_a_url_is_named(bucket: str, default_params: Params, tmp_path: Path) -> None:
    import s3fs

    files = s3fs.S3FileSystem()
    files.copy("traffic/logs", "traffic/broken", recursive=True)
    victim = f"traffic/broken/candidates/day={FIRST_DAY}/part-0.parquet"
    files.pipe_file(victim, files.cat_file(victim)[:5000])
    with pytest.raises(DataError, match=r"part-0\.parquet: unreadable or truncated file"):
        collect_day(workspace(tmp_path / "ws"), behind(default_params, "s3://traffic/broken"), FIRST_DAY)


def test_logs_are_never_written_behind_a_url(bucket: str, default_params: Params) -> None:
    with pytest.raises(ConfigError, match="never written"):
        simulate(bucket, FIRST_DAY, 1, 50, 1, default_params.features)


def test_a_protocol_that_nothing_reaches_is_one_line() -> None:
    with pytest.raises(ConfigError, match="nosuch://bucket/logs cannot be reached"):
        contract.logged_days("nosuch://bucket/logs")


def test_a_file_that_another_process_brings_is_seen_at_once(bucket: str, default_params: Params) -> None:
    import boto3

    client = boto3.client("s3")
    assert "growing" not in str(contract.logged_days(bucket.replace("logs", "growing")))
    listed = client.list_objects_v2(Bucket="traffic", Prefix="logs/")["Contents"]
    for entry in listed:
        client.copy_object(Bucket="traffic", Key=entry["Key"].replace("logs/", "growing/", 1), CopySource=f"traffic/{entry['Key']}")
    grown = contract.logged_days(bucket.replace("logs", "growing"))
    assert FIRST_DAY in grown and grown == contract.logged_days(bucket)
