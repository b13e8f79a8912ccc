"""Inputs from URLs: read once, resumed from the copy, their secrets in no file, and each fault one clear line."""

from __future__ import annotations

import io
import json
import os
import subprocess
from threading import Event
from typing import TYPE_CHECKING

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from batchrun.errors import InputError
from batchrun.files.urls import public_url
from batchrun.prompts.sources import find_sources, iter_source
from tests.support.claims import assert_adds_up
from tests.support.command import BATCHRUN, ENVIRONMENT, assert_one_clear_line, batchrun
from tests.support.rehearsal import read_lines
from tests.support.waiting import wait_for
from tests.support.web import serving_files

if TYPE_CHECKING:
    from pathlib import Path

CSV = b"id,prompt\n" + b"".join(b"r%d,so it goes\n" % n for n in range(1, 2001))
FEW = b"id,prompt\na,x\nb,y\n"


def run(folder: Path, *arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    return batchrun("run", *arguments, "-e", "local", "--worker", "echo", cwd=folder, **environ)


def resume(folder: Path, state: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return batchrun("resume", state, "--worker", "echo", cwd=folder, **environ)


def read(url: str) -> list[bytes]:
    return [line.raw for source in find_sources([url]) for line in iter_source(source, io.BytesIO())]


def test_a_remote_table_is_read_once_and_a_changed_one_is_told(tmp_path: Path):
    with serving_files(r_csv=FEW) as web:
        url = f"{web.url}/r.csv"
        assert run(tmp_path, url, "--limit", "1").returncode == 0
        assert len(web.seen) == 1
        assert run(tmp_path, url).returncode == 0
        assert [line["id"] for line in read_lines(tmp_path / "r.results.jsonl")] == ["a", "b"]
        assert {line["source"]["file"] for line in read_lines(tmp_path / "r.results.jsonl")} == {url}
        web.files["/r.csv"], web.etag = FEW + b"c,z\n", '"two"'
        again = run(tmp_path, url)
        assert again.returncode == 0
        assert f"{url} has changed since it was read: the run continues with the copy" in again.stderr
        assert "has changed" in resume(tmp_path, "r.results.jsonl.state").stderr
    away = resume(tmp_path, "r.results.jsonl.state")
    assert away.returncode == 0
    assert "the run continues with its copy" in away.stderr
    assert len(read_lines(tmp_path / "r.results.jsonl")) == 2
    assert_adds_up(tmp_path / "r.results.jsonl.state")
    copy = next(tmp_path.glob("*.state.0-*.jsonl"))
    assert copy.stat().st_mode & 0o077 == 0
    copy.unlink()
    assert_one_clear_line(resume(tmp_path, "r.results.jsonl.state"), 2, "the copy of this input is missing")


def test_a_password_and_a_signature_are_in_no_file_and_no_message_and_a_new_signature_continues(tmp_path: Path):
    with serving_files(r_csv=FEW) as web:
        place = web.url.partition("//")[2]
        signed = f"http://someone:hunter2secret@{place}/r.csv?X-Amz-Signature=0123456789abcdef&id=7"
        done = run(tmp_path, signed, "--limit", "1")
        assert done.returncode == 0, done.stderr
        assert web.seen[0]["Authorization"].startswith("Basic ")
        assert web.seen[0]["path"].endswith("X-Amz-Signature=0123456789abcdef&id=7")
        anew = run(tmp_path, signed.replace("0123456789abcdef", "fedcba9876543210"))
        assert anew.returncode == 0, anew.stderr
        resumed = resume(tmp_path, "r.results.jsonl.state")
        assert resumed.returncode == 0, resumed.stderr
        web.status = 403
        refused = run(tmp_path, signed, "-o", "other.jsonl")
        assert_one_clear_line(refused, 2, "HTTP 403")
        web.status, web.files["/r.csv"] = 200, b"id,text\na,b\n"
        invalid = run(tmp_path, signed, "-o", "other.jsonl")
        assert_one_clear_line(invalid, 2, "row 1: no prompt in the line")
    assert len(read_lines(tmp_path / "r.results.jsonl")) == 2
    said = "".join(done.stdout + done.stderr for done in (done, anew, resumed, refused, invalid))
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for secret in ("hunter2", "0123456789abcdef", "fedcba9876543210"):
        assert secret not in said
        assert secret.encode() not in written
    assert public_url(signed).encode() in written


def test_a_password_is_not_sent_on_to_another_host(tmp_path: Path):
    with serving_files(r_csv=FEW) as web, serving_files() as first:
        first.location = f"{web.url}/r.csv"
        place = first.url.partition("//")[2]
        assert len(read(f"http://someone:hunter2@{place}/r.csv")) == 2
    assert "Authorization" in first.seen[0]
    assert "Authorization" not in web.seen[0]


@pytest.mark.parametrize("etag", ['"one"', None, 'W/"weak"'])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off_is_continued_only_where_that_gives_the_same_file(etag: str | None, ranges: bool):
    with serving_files(r_csv=CSV) as web:
        web.etag, web.ranges, web.cut_after = etag, ranges, 10_000
        if etag == '"one"' and ranges:
            assert len(read(f"{web.url}/r.csv")) == 2000
            assert len(web.seen) == 4
            return
        with pytest.raises(InputError, match=r"the download ended after 10,000 of 3\d,\d+ bytes"):
            read(f"{web.url}/r.csv")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("{web}/none.csv", "/none.csv: HTTP 404"),
        ("http://127.0.0.1:1/r.csv", "http://127.0.0.1:1/r.csv: [Errno 111] Connection refused"),
        ("https://no-such-host.invalid/r.csv", "https://no-such-host.invalid/r.csv: [Errno -"),
        ("ftp://example.com/r.csv", "inputs cannot be read from ftp://"),
        ("https:///r.csv", "not a complete URL"),
        ("http://[::1/r.csv", "not a complete URL"),
    ],
)
def test_a_url_that_cannot_be_read_is_one_clear_line_and_nothing_is_left(tmp_path: Path, url: str, words: str):
    with serving_files(r_csv=FEW) as web:
        assert_one_clear_line(run(tmp_path, url.replace("{web}", web.url), "-o", "out.jsonl"), 2, words)
    assert list(tmp_path.iterdir()) == []


def test_parquet_is_read_from_a_server_without_ranges(tmp_path: Path):
    pq.write_table(pa.table({"id": ["a", "b"], "prompt": ["x", "y"]}), tmp_path / "r.parquet")
    with serving_files(r_parquet=(tmp_path / "r.parquet").read_bytes()) as web:
        web.ranges = False
        assert [orjson.loads(line)["id"] for line in read(f"{web.url}/r.parquet?download=true")] == ["a", "b"]
        checked = batchrun("check", "--json", f"{web.url}/r.parquet", cwd=tmp_path)
    assert json.loads(checked.stdout)["rows"] == 2


def test_a_run_that_is_killed_while_it_copies_begins_again(tmp_path: Path):
    rows = b"id,prompt\n" + b"".join(b"r%d,%s\n" % (n, b"x" * 500) for n in range(8000))
    with serving_files(in_csv=rows) as web:
        web.gate = Event()
        command = [*BATCHRUN, "run", f"{web.url}/in.csv", "-e", "local", "--worker", "echo", "--limit", "3"]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
        wait_for(lambda: any(part.stat().st_size > 1_000_000 for part in tmp_path.glob("*.part")))
        process.kill()
        process.wait()
        web.gate.set()
        assert list(tmp_path.glob("*.state.0-*")) == []
        done = run(tmp_path, f"{web.url}/in.csv", "--limit", "3")
    assert done.returncode == 0, done.stderr
    assert len(read_lines(tmp_path / "in.results.jsonl")) == 3
    assert_adds_up(tmp_path / "in.results.jsonl.state")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory):
    """The environment of somebody who may read the bucket `data` of a real S3 server on loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    home = tmp_path_factory.mktemp("home")
    environ = {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "AKIASECRETOFMINE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMISECRETKEY",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(home / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "credentials"),
    }
    before = {name: os.environ.get(name) for name in environ}
    os.environ.update(environ)
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdir("data")
    files.pipe({"data/b.csv": FEW.replace(b"a,", b"c,").replace(b"b,", b"d,"), "data/a.csv": FEW})
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    try:
        yield environ
    finally:
        server.stop()


def test_a_pattern_in_a_bucket_is_run_in_name_order_and_resumed_without_the_network(tmp_path: Path, bucket: dict):
    done = run(tmp_path, "s3://data/*.csv", "-o", "out.jsonl", "-j", "1", "--limit", "3", **bucket)
    assert done.returncode == 0, done.stderr
    assert [line["id"] for line in read_lines(tmp_path / "out.jsonl")] == ["a", "b", "c"]
    away = {**bucket, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}
    resumed = resume(tmp_path, "out.jsonl.state", **away)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count("the run continues with its copy") == 2
    assert run(tmp_path, "s3://data/*.csv", "-o", "out.jsonl", **bucket).returncode == 0
    assert read_lines(tmp_path / "out.jsonl")[3]["source"] == {"file": "s3://data/b.csv", "line": 2}
    assert_adds_up(tmp_path / "out.jsonl.state")
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"AKIASECRET" not in written
    assert b"SECRETKEY" not in written


@pytest.mark.parametrize(
    ("url", "without", "words"),
    [
        ("s3://data/none.csv", (), "s3://data/none.csv: there is no such file, or no such bucket"),
        ("s3://no-such-bucket/a.csv", (), "s3://no-such-bucket/a.csv: there is no such file, or no such bucket"),
        ("s3://no-such-bucket/*.csv", (), "s3://no-such-bucket/*.csv: "),
        ("s3://data/a.csv", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "give credentials as for the aws command"),
    ],
)
def test_a_bucket_that_cannot_be_read_is_one_clear_line(tmp_path: Path, bucket: dict, url: str, without, words: str):
    environ = {name: value for name, value in bucket.items() if name not in without}
    assert_one_clear_line(run(tmp_path, url, "-o", "out.jsonl", **environ), 2, words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "library", "pip"), [("gs://b/a.csv", "gcsfs", "gcsfs"), ("az://b/a.csv", "adlfs", "adlfs")]
)
def test_a_library_that_is_not_there_is_named_with_how_to_get_it(tmp_path: Path, url: str, library: str, pip: str):
    assert_one_clear_line(run(tmp_path, url), 2, f"which needs {library}\n  -> pip install {pip}")
