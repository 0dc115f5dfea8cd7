"""A server of features: the values are those of the model, bad requests are told why, and it ends without a trace."""

import asyncio
import http.client
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import types
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pages
import pytest
import torch
from PIL import Image
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save as write_tensors

import s2wrap
from s2wrap import S2WrapError
from s2wrap.errors import MissingExtraError
from s2wrap.serve import ServeOptions
from s2wrap.serve.answers import join_pictures, parse_names, write_answer
from s2wrap.serve.bodies import RefusedError, pictures_of, split_parts
from s2wrap.serve.build import application
from s2wrap.serve.options import parse_settings
from s2wrap.serve.page import first_page
from s2wrap.serve.replica import encode_all
from s2wrap.serve.source import Source, arrays_of, describe, look_at

SPEC = "timm:test_vit@1,2"
MULTIPART = "multipart/form-data; boundary=limit"
QUEUE = 60
BATCH = 4


class Server:
    """`s2wrap serve` in a process of its own."""

    def __init__(self, *arguments, folder):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "s2wrap", "serve", *map(str, arguments), "--port", str(self.port)]
        self.errors = (folder / "stderr").open("w+")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment, cwd=folder
        )
        self.line = self.process.stdout.readline()
        if not self.line:
            self.process.wait(30)
            self.errors.seek(0)
            pytest.fail(f"no server started: {self.errors.read()}")

    def ask(self, path, body=None, *, method=None, timeout=60, **headers):
        """The status, the body and the headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, body, names)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content, answer.headers

    def features(self, body, query="", **headers):
        """The arrays of an answer."""
        status, content, _ = self.ask(f"/features{query}", body, **headers)
        assert status == 200, content
        return read_tensors(content)

    def refusal(self, body, path="/features", **headers):
        """The status and the sentence of an answer that is an error; the server still answers after it."""
        status, content, _ = self.ask(path, body, **headers)
        assert self.ask("/health")[0] == 200
        return status, json.loads(content)["error"]

    def family(self):
        """The processes of the server, by their names."""
        rows = [line.split(None, 2) for line in run("ps", "-eo", "pid,ppid,args").splitlines()[1:]]
        members = {self.process.pid}
        while True:
            more = {int(pid) for pid, parent, _ in rows if int(parent) in members} - members
            if not more:
                return {int(pid): name for pid, _, name in rows if int(pid) in members}
            members |= more

    def end(self, number):
        """Send a signal to the server, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def running(pids):
    """Those of some processes that have not ended within some seconds."""
    for _ in range(50):
        left = [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
        if not left:
            break
        time.sleep(0.2)
    return left


def picture(width, height, kind="PNG", seed=0):
    """A picture of noise as the content of a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def png_header(width, height):
    """A small file that says that it is a PNG of this size."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def multipart(*contents):
    parts = [
        f'--limit\r\nContent-Disposition: form-data; name="file"; filename="{number}.png"\r\n\r\n'.encode() + content
        for number, content in enumerate(contents)
    ]
    return b"\r\n".join([*parts, b"--limit--\r\n"])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return s2wrap.load(SPEC, pretrained=False)


@pytest.fixture(scope="module")
def about(model):
    return look_at(model)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("ray.serve", reason="needs the [serve] extra")
    limits = {"max-megabytes": 2, "max-pixels": 1_000_000, "max-pictures": 5, "max-queued": QUEUE, "batch": BATCH}
    flags = [word for name, value in limits.items() for word in (f"--{name}", value)]
    started = Server(SPEC, "--random-weights", *flags, "--timeout", 12, folder=tmp_path_factory.mktemp("server"))
    yield started
    if started.process.poll() is None:
        started.end(signal.SIGTERM)


def values(model, content):
    """The features of a picture by the model itself, which reads it with Pillow."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    with torch.inference_mode():
        return model.encode([image])[0]


def close(array, tensor):
    return array.shape == tuple(tensor.shape) and np.abs(array - tensor.numpy()).max() <= 1e-5


# A running server


def test_a_line_says_where_it_serves_what(server):
    assert server.line.startswith(f"http://127.0.0.1:{server.port} serves {SPEC} on cpu")
    assert "Ctrl-C" in server.line


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_features_over_http_are_those_of_the_model(server, model, kind):
    content = picture(130, 90, kind)
    expected = values(model, content)
    answer = server.features(content, "?features=spatial,prefix&features=tokens&features=pooled,mean,cls,cls%2Bmean")
    assert set(answer) == {"spatial", "prefix", "tokens", "pooled", "mean", "cls", "cls+mean"}
    for name in ("spatial", "prefix", "tokens", "pooled"):
        assert close(answer[name], getattr(expected, name))
    assert close(answer["mean"], expected.pooled)
    assert close(answer["cls"], expected.prefix[:, 0])
    assert close(answer["cls+mean"], torch.cat([expected.prefix[:, 0], expected.pooled], dim=1))
    assert list(server.features(content)) == ["pooled"]
    assert list(server.features(content, "?features=cls+mean")) == ["cls+mean"]  # + is a space in a query


def test_json_holds_the_same_values(server, model):
    content = picture(50, 60)
    for query, headers in (("?format=json", {}), ("", {"Accept": "application/json"})):
        status, answer, about = server.ask(f"/features{query}", content, **headers)
        assert (status, about["content-type"]) == (200, "application/json")
        answer = json.loads(answer)["pooled"]
        assert answer["shape"] == [1, 128]
        assert close(np.array(answer["values"], np.float32), values(model, content).pooled)
    assert server.ask("/features", content, Accept="*/*")[2]["content-type"] == "application/x-safetensors"


def test_several_pictures_are_answered_in_their_order(server, model):
    contents = [picture(40 + 30 * number, 100, seed=number) for number in range(3)]
    answer = server.features(multipart(*contents), Content_Type=MULTIPART)
    assert close(answer["pooled"], torch.cat([values(model, content).pooled for content in contents]))


@pytest.mark.parametrize("write", [lambda array: write_tensors({"images": array}), npy])
def test_arrays_are_taken_in_both_orders_and_as_normalised_floats(server, model, write):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 70, 90, 3), dtype=np.uint8)
    expected = torch.cat([features.pooled for features in model.encode(list(pixels))])
    assert close(server.features(write(pixels))["pooled"], expected)
    first = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    assert close(server.features(write(first))["pooled"], expected)
    normalised = (first / 255 - 0.5).astype(np.float32) / 0.5
    assert close(server.features(write(normalised))["pooled"], expected)
    if write is not npy:  # one .npy of three sides is a picture's file
        assert close(server.features(write(normalised[0]))["pooled"], expected[:1])


def test_64_requests_of_mixed_sizes_at_once_are_all_answered_and_right(server, model):
    contents = [picture(20 + 7 * number, 200 - 2 * number, seed=number) for number in range(64)]
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda content: server.features(content, "?features=spatial"), contents))
    wrong = [
        number
        for number, (answer, content) in enumerate(zip(answers, contents, strict=True))
        if not close(answer["spatial"], values(model, content).spatial)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "the body is empty"),
        (b"no picture at all", 400, "not a picture"),
        (np.random.default_rng(0).bytes(5000), 400, "not a picture"),
        (picture(90, 90)[:2000], 400, "cut short"),
        (picture(90, 90, "JPEG")[:2000], 400, "cut short"),
        (png_header(20_000, 20_000), 400, "pixels"),
        (png_header(1200, 1200), 400, "max_pixels=1000000"),
        (picture(1, 50), 400, "at least 2"),
        (bytes(2_000_001), 413, "2 megabytes"),
        (npy(np.zeros((1, 9, 9, 3), bool)), 400, "array of numbers"),
        (npy(np.zeros((1, 9, 9, 4), np.uint8)), 400, "(batch, 3, height, width)"),
        (npy(np.zeros((0, 9, 9, 3), np.uint8)), 400, "empty batch"),
        (npy(np.zeros((6, 9, 9, 3), np.uint8)), 413, "5 pictures"),
        (npy(np.zeros((1, 9, 9, 3), np.uint8))[:-1], 400, "array of numbers"),
        (npy(np.full((1, 3, 9, 9), np.nan, np.float32)), 400, "NaN"),
        (npy(np.full((1, 3, 9, 9), 200, np.float32)), 400, "normalised"),
        (write_tensors({"a": np.zeros((1, 3, 9, 9), np.int64)}), 400, "torch.int64"),
        (write_tensors({"a": np.zeros((1, 3, 9, 9)), "b": np.zeros((1, 3, 9, 9))}), 400, "2 tensors"),
        (write_tensors({"a": np.zeros((1, 3, 9, 9))})[:-3], 400, "safetensors"),
    ],
)
def test_a_bad_body_is_refused_with_a_sentence(server, body, status, words):
    found, sentence = server.refusal(body)
    assert (found, sentence.count("\n")) == (status, 0)
    assert words in sentence


def test_bad_parts_are_refused_and_the_part_is_named(server):
    good = picture(30, 30)
    for body, status, words in (
        (multipart(good, b"no picture"), 400, "1.png: not a picture"),
        (multipart(*[good] * 6), 413, "5 pictures"),
        (multipart(*[picture(600, 900, "JPEG")] * 2), 413, "1000000 pixels together"),
        (multipart(good)[:-12], 400, "cut short"),
        (multipart(good, b""), 400, "part 1"),
        (b"--limit--", 400, "no parts"),
    ):
        found, sentence = server.refusal(body, Content_Type=MULTIPART)
        assert (found, words in sentence) == (status, True), sentence
    assert server.refusal(b"x", Content_Type="multipart/form-data")[0] == 400
    assert server.refusal(good, Content_Encoding="gzip")[0] == 415


def test_unknown_features_formats_addresses_and_methods_are_refused(server):
    good = picture(30, 30)
    assert "ask for spatial" in server.refusal(good, "/features?features=pooled,nothing")[1]
    assert "no embedding" in server.refusal(good, "/features?features=joint")[1]
    assert server.refusal(good, "/features?format=xml")[0] == 400
    assert server.refusal(None, "/nowhere")[0] == 404
    assert server.refusal(None)[0] == 405
    assert server.refusal(good, "/model")[0] == 405


def test_a_body_that_says_that_it_is_large_is_refused_before_it_comes(server):
    with half_sent(server, 10**12) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_never_comes_whole_is_refused_in_time(server):
    with half_sent(server) as connection:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 408
        assert b"12 seconds" in answer.read()


def test_clients_that_leave_do_no_harm(server):
    content = picture(200, 200)
    for _ in range(20):
        with half_sent(server, len(content)) as connection:
            connection.sendall(content[1:])
    assert server.ask("/features", content)[0] == 200


def test_a_full_queue_is_answered_503_at_once_and_empties_again(server):
    """On a busy machine the requests that fill it arrive late: then they are given longer, and sent anew."""
    for settle in (0.5, 2, 5):
        held = [half_sent(server) for _ in range(2 * BATCH + QUEUE)]
        try:
            time.sleep(settle)
            start = time.perf_counter()
            status, _, headers = server.ask("/features", picture(30, 30), timeout=20)
            took = time.perf_counter() - start
        finally:
            for connection in held:
                connection.close()
        if status == 503:
            break
        time.sleep(1)
    assert (status, headers["retry-after"]) == (503, "1")
    assert took < 5  # the model is held for twelve
    end = time.monotonic() + 10
    while server.ask("/features", picture(30, 30))[0] == 503 and time.monotonic() < end:
        time.sleep(0.2)
    assert server.ask("/features", picture(30, 30))[0] == 200


def half_sent(server, length=1000):
    """A connection on which a request has begun, whose body is not sent but for its first byte."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(f"POST /features HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n".encode() + b"\x89")
    return connection


def test_the_server_says_what_it_is(server, model):
    facts = json.loads(server.ask("/model")[1])
    assert (facts["spec"], facts["kind"], facts["device"]) == (SPEC, "torch", "cpu")
    assert facts["input"]["mean"] == list(model.input.mean)
    assert facts["features"]["spatial"] == {"spatial": [1, 128, 10, 10]}
    assert facts["limits"]["max_pictures"] == 5
    assert json.loads(server.ask("/health")[1]) == {"status": "ready"}
    assert server.ask("/-/healthz")[0] == 200


def test_openapi_describes_the_requests(server):
    api = json.loads(server.ask("/openapi.json")[1])
    assert set(api["paths"]) == {"/features", "/health", "/model", "/metrics"}
    post = api["paths"]["/features"]["post"]
    assert set(post["requestBody"]["content"]) == {"image/*", "multipart/form-data", "application/x-safetensors"}
    assert {"200", "400", "413", "503"} <= set(post["responses"])
    assert b"swagger" in server.ask("/docs")[1]


def test_the_first_page_says_how_it_is_called(server, tmp_path, monkeypatch):
    status, content, headers = server.ask("/", Host="example.org:81")
    text = content.decode()
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "http://example.org:81/features" in text
    assert 'name="viewport"' in text
    assert "color-scheme" in text
    assert "src=" not in text  # nothing is loaded
    text = server.ask("/")[1].decode()
    code = text.split("From Python</h2>\n<pre>")[1].split("</pre>")[0]
    (tmp_path / "photo.jpg").write_bytes(picture(40, 40, "JPEG"))
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code, namespace)
    assert namespace["features"]["pooled"].shape == (1, 128)


def test_the_code_of_the_how_to_page_runs(server, tmp_path, monkeypatch):
    """The page's server is at port 8000, and of another model: shapes are remarks there."""
    page = pages.ROOT / "docs" / "pages" / "how-to" / "serve.md"
    text = page.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "photos/0.jpg", "photos/1.jpg"):
        (tmp_path / name).write_bytes(picture(160, 120, "JPEG"))
    monkeypatch.chdir(tmp_path)
    namespace, compared = {"__name__": "page"}, 0
    for kind, block in pages.runnable_blocks(text):
        if kind == "python":
            compared += pages.run_block(block, namespace, "serve.md")
        elif shutil.which("curl"):
            for line in pages.shell_lines(f"```sh\n{block}```"):
                run("sh", "-c", line.replace("curl ", "curl --fail --silent "))
    assert compared == 2
    if shutil.which("curl"):
        assert read_tensors((tmp_path / "features.safetensors").read_bytes())["cls"].shape == (2, 128)


def test_metrics_count_requests_pictures_and_errors_and_requests_share_batches(server):
    server.refusal(b"no picture")
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(server.features, [picture(300, 300)] * 24))
    wanted = {
        "s2wrap_pictures_total": 24,
        "serve_num_http_requests_total": 25,
        "serve_num_http_error_requests_total": 1,
        "serve_http_request_latency_ms_count": 25,
        "serve_batches_processed_total": 1,
    }
    for _ in range(40):  # Ray collects them every few seconds
        text = server.ask("/metrics")[1].decode()
        counts = dict.fromkeys(wanted, 0.0)
        for line in text.splitlines():
            if (name := line.partition("{")[0].removeprefix("ray_")) in wanted:
                counts[name] += float(line.rpartition(" ")[2])
        if all(counts[name] >= count for name, count in wanted.items()):
            break
        time.sleep(1)
    assert all(counts[name] >= count for name, count in wanted.items()), counts
    assert counts["serve_batches_processed_total"] < 0.8 * counts["s2wrap_pictures_total"]


def test_a_replica_that_is_killed_is_replaced(server, model):
    (replica,) = [pid for pid, name in server.family().items() if "ServeReplica" in name]
    os.kill(replica, signal.SIGKILL)
    content = picture(60, 60)
    for _ in range(60):
        time.sleep(0.5)
        if server.ask("/features", content)[0] == 200:
            break
    assert close(server.features(content)["pooled"], values(model, content).pooled)
    assert [pid for pid, name in server.family().items() if "ServeReplica" in name] != [replica]


def test_a_taken_port_is_one_error(server):
    command = [sys.executable, "-m", "s2wrap", "serve", SPEC, "--random-weights", "--port", str(server.port)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert f"port {server.port} of 127.0.0.1 is taken" in ended.stderr


def test_ctrl_c_ends_it_without_leaving_a_process(server):
    family = server.family()
    assert len(family) > 4
    assert server.end(signal.SIGINT) == 130
    assert running(family) == []
    assert server.process.stdout.read() == ""
    with pytest.raises(ConnectionRefusedError):
        server.ask("/health")


def test_an_exported_file_is_served_and_sigterm_ends_it_when_it_has_answered(tmp_path, model):
    pytest.importorskip("ray.serve", reason="needs the [serve] extra")
    import s2wrap.export

    path = tmp_path / "model.onnx"
    s2wrap.export.export(model, path, image_hw=(160, 160), batch=(1, 4, 8))
    server = Server("model.onnx", "--json", folder=tmp_path)
    facts = json.loads(server.line + "".join(iter(server.process.stdout.readline, "}\n")) + "}")
    assert facts["address"] == f"http://127.0.0.1:{server.port}"
    assert (facts["kind"], facts["file"]) == ("onnx", "model.onnx")
    engine = s2wrap.export.load(path)
    contents = [picture(160, 160, seed=number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda content: server.features(content, "?features=spatial,prefix"), contents))
    for answer, content in zip(answers, contents, strict=True):
        by_engine = engine.encode([Image.open(io.BytesIO(content))])[0]
        assert close(answer["spatial"], by_engine.spatial)
        assert close(answer["prefix"], by_engine.prefix)
        assert close(answer["spatial"], values(model, content).spatial)
    family = server.family()
    with half_sent(server, len(contents[0])) as connection:
        time.sleep(0.5)
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(server.end, signal.SIGTERM)
            time.sleep(1)
            connection.sendall(contents[0][1:])
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            assert code.result() == 0
    assert running(family) == []


# Its parts


def test_a_model_that_cannot_be_made_is_one_line(tmp_path):
    pytest.importorskip("ray.serve", reason="needs the [serve] extra")
    from commands import run as command

    assert command("serve", "timm:no_such_model@1,2") == 2
    assert command("serve", tmp_path / "missing.onnx") == 2
    assert command("serve", SPEC, "--device", "cuda:1") == 2
    assert command("serve", SPEC, "--batch", "0") == 2


def test_a_replica_that_cannot_be_made_is_one_error_with_its_cause(tmp_path):
    pytest.importorskip("ray.serve", reason="needs the [serve] extra")
    code = """
from s2wrap.cli import main
from s2wrap.serve.source import Source
Source.check = lambda source: None  # what no check finds
main()
"""
    words = ["serve", "timm:no_such_model@1", "--port", "8499"]
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "timm:no_such_model@1 could not be started" in ended.stderr
    assert "no_such_model" in ended.stderr.partition("started")[2]


def test_a_failure_of_the_server_itself_is_a_sentence_too(about, model):
    fastapi = pytest.importorskip("fastapi", reason="needs the [serve] extra")
    from s2wrap.serve.web import make_app

    async def fails(*arguments, **options):
        raise RuntimeError("secret")

    replica = types.SimpleNamespace(about=about, facts=describe(Source(SPEC, {}), model, about), answer=fails)
    app = make_app(replica)
    assert isinstance(app, fastapi.FastAPI)
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/features", "query_string": b"", "headers": []}
    with pytest.raises(RuntimeError, match="secret"):  # for the log
        asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"]) == {"error": "the server failed (RuntimeError); its log says more"}


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"s2wrap\[serve\]"):
        application({"spec": SPEC})


def test_settings_of_serve_run_are_read_as_text():
    spec, options, model = parse_settings(
        {"spec": SPEC, "num_replicas": "3", "batch": 2, "pretrained": "false", "mean": "0.5,0.5,0.5", "fuse": "detail"}
    )
    assert (spec, options) == (SPEC, ServeOptions(num_replicas=3, batch=2))
    assert model == {"pretrained": False, "mean": (0.5, 0.5, 0.5), "fuse": "detail"}
    for settings, words in (
        ({}, "spec=None"),
        ({"spec": SPEC, "replicas": "2"}, "did you mean num_replicas"),
        ({"spec": SPEC, "num_replicas": "two"}, "whole number"),
        ({"spec": SPEC, "num_replicas": 2, "max_replicas": 3}, "one of them"),
        ({"spec": SPEC, "min_replicas": 2}, "max_replicas"),
    ):
        with pytest.raises(S2WrapError, match=words):
            parse_settings(settings)


def test_replicas_autoscaling_and_gpus_are_asked_of_ray():
    pytest.importorskip("ray.serve", reason="needs the [serve] extra")

    def deployed(**settings):
        return application({"spec": SPEC, **settings})._bound_deployment

    fixed = deployed(num_replicas=3, device="cuda", cpus=2)
    assert fixed._deployment_config.num_replicas == 3
    assert fixed.ray_actor_options | {"num_gpus": 1, "num_cpus": 2} == fixed.ray_actor_options
    scaled = deployed(min_replicas=2, max_replicas=5)._deployment_config.autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas) == (2, 5)
    with pytest.raises(S2WrapError, match="use cuda"):
        deployed(device="cuda:1")


@pytest.mark.parametrize("ends", [b"\r\n", b"\n\r\n", b"\x00", b"--", b"\r\n--limi"])
def test_parts_are_the_bytes_that_were_sent(ends):
    contents = [ends + b"content" + ends, b"x" + ends]
    assert list(split_parts(multipart(*contents), MULTIPART, 2)) == [("0.png", contents[0]), ("1.png", contents[1])]
    assert list(split_parts(ends, "image/png", 1)) == [("the body", ends)]


def test_grey_models_take_grey_pictures(model, about):
    from dataclasses import replace

    grey = replace(about, input=replace(about.input, channels=1, mean=(0.5,), std=(0.5,)))
    content = io.BytesIO()
    Image.radial_gradient("L").save(content, "PNG")
    (found,) = pictures_of(content.getvalue(), "", grey, ServeOptions())
    assert found.shape == (1, 256, 256)
    with pytest.raises(S2WrapError, match="grey"):
        pictures_of(picture(9, 9), "", grey, ServeOptions())
    with pytest.raises(RefusedError):
        pictures_of(picture(9, 9), "", about, ServeOptions(max_pixels=82, max_pictures=1)) and pictures_of(
            multipart(picture(9, 9), picture(9, 9)), MULTIPART, about, ServeOptions(max_pixels=82)
        )


def test_the_joint_embedding_is_that_of_the_model():
    import open_clip

    sizes = {"layers": 2, "width": 64, "head_width": 32}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1}
    tower = open_clip.CLIP(embed_dim=48, vision_cfg=sizes | {"patch_size": 16, "image_size": 64}, text_cfg=text).eval()
    open_clip.set_model_preprocess_cfg(tower, {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"})
    model = s2wrap.wrap(tower, scales=(1, 2))
    assert look_at(model).features["joint"] == {"joint": [1, 48]}
    pixels = torch.randint(0, 256, (2, 3, 80, 90), dtype=torch.uint8)
    answers = encode_all(model.encode_image, list(pixels))
    joined = join_pictures([arrays_of(None, answer, ["joint"]) for answer in answers])
    assert close(read_tensors(write_answer(joined, as_json=False))["joint"], model.encode_image(pixels).detach())


def test_models_of_several_maps_send_all_of_them_and_no_tokens():
    model = s2wrap.load(SPEC, pretrained=False, fuse="pyramid")
    about = look_at(model)
    assert about.default == "mean"
    assert set(about.features["spatial"]) == {"spatial_0", "spatial_1"}
    with pytest.raises(S2WrapError, match="2 maps"):
        parse_names(["tokens"], about)
    page = first_page(describe(Source(SPEC, {}), model, about), "http://a/")
    assert "spatial_1" in page
    assert "features=mean" in page


def test_the_page_shows_no_markup_of_a_name(model, about):
    facts = describe(Source(SPEC, {}), model, about) | {"spec": "<script>"}
    assert "<script>" not in first_page(facts, "http://a/?<b>")
    assert "<b>" not in first_page(facts, "http://a/?<b>")


if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__))]))
