"""Pictures on a server that fails now and then, in the ways that servers do: none is lost, none is wrong."""

import functools
import io
import itertools
import json
import socket
import threading
import time
from collections import Counter
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

import s2wrap
from s2wrap import S2WrapError
from s2wrap.extraction import addresses
from s2wrap.extraction.run import extract_features

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
SPEC = "timm:test_vit@1"
COUNT, FEW = 120, 5


def denied(code):
    return 403, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()


WAYS = {
    "short": lambda status, body: (status, body[: len(body) * 2 // 3]),
    "empty": lambda status, body: (status, b""),
    "page": lambda status, body: (200, b"<html><body>We are back soon</body></html>"),
    "clock": lambda status, body: denied("RequestTimeTooSkewed"),
    "token": lambda status, body: denied("ExpiredToken"),
    "missing": lambda status, body: (404, b"<Error><Code>NoSuchKey</Code><Message>no</Message></Error>"),
    "error": lambda status, body: (500, b"<Error><Code>InternalError</Code></Error>"),
    "busy": lambda status, body: (503, b"<Error><Code>SlowDown</Code></Error>"),
    "cut": None,
    "reset": None,
    "other bytes": lambda status, body: (status, bytes(len(body) // 2) + body[len(body) // 2 :]),
}


class Proxy(BaseHTTPRequestHandler):
    """Hands requests on to S3, and spoils answers for pictures: one in ten, or all of some keys."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self):
        server, body = self.server, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = HTTPConnection(*server.s3)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        status, content, way = answer.status, answer.read(), None
        if self.command == "GET" and ".png" in self.path and "list-type" not in self.path:
            with server.lock:
                way = server.way(self.path.rpartition("/")[2])
            server.spoilt[way] += way is not None
        if way == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
            self.close_connection = True
            return
        length = answer.headers.get("Content-Length", len(content)) if self.command == "HEAD" else len(content)
        if way is not None and way != "cut":
            status, content = WAYS[way](status, content)
            length = len(content)
        self.send_response(status)
        for name, value in answer.headers.items():
            checksum = name.lower().startswith("x-amz-checksum") or name.lower() == "content-md5"
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date") and not (
                way and checksum
            ):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if way == "cut" else content)
            self.close_connection = self.close_connection or way == "cut"


for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
    setattr(Proxy, f"do_{method}", Proxy.answer)


@pytest.fixture(scope="module")
def bucket():
    """A bucket behind the proxy, with pictures; the proxy, and what a picture holds by its name."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(port=0)
    moto.start()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    proxy.s3, proxy.lock, proxy.way, proxy.spoilt = (
        moto.get_host_and_port(),
        threading.Lock(),
        lambda _: None,
        Counter(),
    )
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("ACCESS_KEY_ID", "x"),
            ("SECRET_ACCESS_KEY", "x"),
            ("DEFAULT_REGION", "us-east-1"),
            ("MAX_ATTEMPTS", "1"),
        ):
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # which may have the address of another test's server
        files, pixels = fsspec.filesystem("s3"), np.random.default_rng(0)
        files.mkdir("shaky")
        for number in range(COUNT):
            stream = io.BytesIO()
            Image.fromarray(pixels.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(stream, "PNG")
            files.pipe(f"shaky/photos/{number:03d}.png", stream.getvalue())
            if number < FEW:
                files.pipe(f"shaky/few/{number:03d}.png", stream.getvalue())
        yield proxy
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    proxy.shutdown()
    moto.stop()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return s2wrap.load(SPEC, pretrained=False)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)


def extract(model, output, source="s3://shaky/few", **options):
    options = {"spec": SPEC, "options": {}, "workers": 0} | options
    return extract_features([source], output, load=lambda: model, **options)


def vectors(output):
    store = s2wrap.open(output)
    return {path: store[path]["vector"] for path in store.paths}


@pytest.fixture(scope="module")
def expected(bucket, model, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out.parquet"
    bucket.way = lambda _: None
    assert extract(model, output).rows == FEW
    return vectors(output)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, vector in expected.items():
        torch.testing.assert_close(found[path], vector, atol=1e-5, rtol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_answer_in_ten_fails_in_every_way_and_every_picture_is_there(bucket, model, tmp_path, workers):
    numbers, ways = itertools.count(1), itertools.cycle(WAYS)
    bucket.spoilt.clear()
    folder, bucket.way = "s3://shaky/photos", lambda _: None
    assert extract(model, tmp_path / "expected.parquet", folder).rows == COUNT
    bucket.way = lambda _: next(ways) if next(numbers) % 10 == 0 else None
    for _ in range(3):  # where one fails in every attempt, the same command tries it again
        outcome = extract(model, tmp_path / "out.parquet", folder, workers=workers)
        if not outcome.failed:
            break
    assert outcome.rows == COUNT
    assert_same(vectors(tmp_path / "out.parquet"), vectors(tmp_path / "expected.parquet"))
    assert {way for way, count in bucket.spoilt.items() if count} == WAYS.keys()


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_fails_once_is_asked_for_again(bucket, model, expected, tmp_path, way):
    spoilt = set()

    def once(key):
        if key in ("001.png", "004.png") and key not in spoilt:
            spoilt.add(key)
            return way
        return None

    bucket.way = once
    outcome = extract(model, tmp_path / "out.parquet")
    assert (outcome.rows, outcome.failed, len(spoilt)) == (FEW, 0, 2)
    assert_same(vectors(tmp_path / "out.parquet"), expected)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "other bytes"])
def test_an_answer_that_always_fails_is_one_failure_that_the_next_run_tries_again(
    bucket, model, expected, tmp_path, way
):
    bucket.way = lambda key: way if key == "001.png" else None
    errors = tmp_path / "errors.jsonl"
    outcome = extract(model, tmp_path / "out.parquet", errors=errors)
    (failure,) = map(json.loads, errors.read_text().splitlines())
    assert (outcome.rows, outcome.failed) == (FEW - 1, 1)
    assert failure["path"] == "s3://shaky/few/001.png"
    assert failure["try_again"], failure
    bucket.way = lambda _: None
    assert extract(model, tmp_path / "out.parquet", errors=errors).failed == 0
    assert errors.read_text() == ""
    assert_same(vectors(tmp_path / "out.parquet"), expected)


def test_a_picture_that_is_damaged_on_the_server_is_not_fetched_for_ever(bucket, model, expected, tmp_path):
    asked = Counter()
    bucket.way = lambda key: asked.update([key])
    files = fsspec.filesystem("s3")
    files.pipe("shaky/few/damaged.png", files.cat("shaky/few/001.png")[:500])
    try:
        asked.clear()
        for _ in range(2):
            assert extract(model, tmp_path / "out.parquet").failed == 1
        assert asked["damaged.png"] == 2  # it came out the same
    finally:
        files.rm("shaky/few/damaged.png")


def test_a_server_that_is_gone_stops_the_run_which_goes_on_later(bucket, model, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("s2wrap.extraction.run.GONE", 2)
    monkeypatch.setattr(addresses, "TRIES", 1)
    bucket.way = lambda key: "cut" if key >= "002.png" else None
    with pytest.raises(S2WrapError, match="cannot be reached .*the same command again goes on from here") as raised:
        bucket.way = lambda key: "cut" if key >= "002.png" or lost.append(key) or len(lost) > 3 else None
        lost = []
        extract(model, tmp_path / "out.parquet")
    assert "nor what was read before" in str(raised.value)
    bucket.way = lambda _: None
    assert extract(model, tmp_path / "out.parquet").failed == 0
    assert_same(vectors(tmp_path / "out.parquet"), expected)


@pytest.mark.parametrize(
    "key", ["a::b.png", "x.png?versionId=abc.png", "odd/memory://x.png", "deep//below/y.png", "ü %41+&.png", "#.png"]
)
def test_a_key_of_any_kind_costs_itself_at_most(bucket, model, expected, tmp_path, key):
    bucket.way = lambda _: None
    files = fsspec.filesystem("s3")
    client = files.s3
    put = functools.partial(fsspec.asyn.sync, files.loop, client.put_object, Bucket="shaky")
    put(Key=f"few/{key}", Body=files.cat("shaky/few/001.png"))
    try:
        for _ in range(2):  # and at every resume
            outcome = extract(model, tmp_path / "out.parquet")
            assert outcome.rows + outcome.failed == FEW + 1
            assert outcome.failed <= 1
        found = vectors(tmp_path / "out.parquet")
        if outcome.failed == 0:
            (other,) = found.keys() - expected.keys()
            torch.testing.assert_close(found[other], expected["s3://shaky/few/001.png"], atol=1e-5, rtol=0)
        print(key, outcome.failed)
    finally:
        fsspec.asyn.sync(files.loop, client.delete_object, Bucket="shaky", Key=f"few/{key}")


def test_what_hangs_ends_after_a_stated_time(monkeypatch):
    monkeypatch.setattr(addresses, "LISTING_SECONDS", 0.2)
    monkeypatch.setattr(addresses, "ANSWER_SECONDS", 0.2)
    hanging = type("Hanging", (), {"unstrip_protocol": str})()
    for name in ("ls", "isdir", "exists", "cat_file", "info", "open", "glob"):
        setattr(hanging, name, lambda *_, **__: threading.Event().wait(5))
    monkeypatch.setattr(addresses, "_file_system", lambda address: (hanging, address))
    started = time.monotonic()
    for call in (
        addresses.kind,
        addresses.list_folder,
        addresses.expand,
        addresses.file_facts,
        lambda address: list(addresses.walk(address, s2wrap.images.folders.LeftOut())),
    ):
        with pytest.raises(S2WrapError, match="s3://x cannot be read: TimeoutError: no answer for"):
            call("s3://x")
    with pytest.raises(TimeoutError, match="no answer for"):
        addresses.fetch("s3://x")
    assert time.monotonic() - started < 4
