"""The python backend on a real Triton Inference Server, where there is one: see `SERVER`."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from skimage import data

import s2wrap
from s2wrap import S2WrapError
from s2wrap.export import export
from s2wrap.export.triton import write_repository
from s2wrap.images import decode_image

SERVER = "S2WRAP_TRITONSERVER"
"""The variable with the path of `tritonserver`. Without it, the server in an installed nvidia-pytriton is taken.

    python3.11 -m venv triton-venv && triton-venv/bin/pip install --no-deps nvidia-pytriton==0.7.0
    S2WRAP_TRITONSERVER=$(echo triton-venv/lib/python3*/site-packages/pytriton/tritonserver/bin/tritonserver) \
        pytest tests/test_tritonserver.py

Its python backend runs in the Python of the tests, which needs a shared libpython (`--enable-shared`), and glibc 2.35.
"""
START, ANSWER = 90, 60
"""Seconds to wait for the server, and for an answer."""
REQUESTS = 200
CLIENT = Path(__file__).parent.parent / "demos" / "triton_client.py"


def binary():
    """The path of tritonserver; skips without one."""
    if path := os.environ.get(SERVER):
        if not os.access(path, os.X_OK):
            pytest.skip(f"{SERVER}={path} is no program", allow_module_level=True)
        return Path(path)
    spec = importlib.util.find_spec("pytriton")
    found = [
        Path(place, "tritonserver", "bin", "tritonserver") for place in (spec and spec.submodule_search_locations) or ()
    ]
    if not any(path.is_file() for path in found):
        pytest.skip(
            f"needs tritonserver: give its path as {SERVER}, or install nvidia-pytriton (--no-deps)",
            allow_module_level=True,
        )
    return found[0]


if importlib.util.find_spec("tritonclient") is None:
    pytest.skip("needs the [triton] extra", allow_module_level=True)
TRITON = binary()


def libpython():
    """The folder of the shared library of this Python, which the backend's stub is linked with."""
    name = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
    places = [Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib"), Path(sys.base_prefix) / "lib"]
    places.append(places[0] / (sysconfig.get_config_var("MULTIARCH") or ""))
    return next((place for place in places if (place / name).exists()), None)


def backends(folder):
    """A folder of backends whose python backend has the stub of this Python's version, and this s2wrap."""
    files = TRITON.parent.parent / "backends" / "python"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    stub = TRITON.parent.parent / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not (files / "libtriton_python.so").is_file():
        pytest.skip(f"{TRITON} has no python backend in {files}")
    place = folder / "python"
    place.mkdir(parents=True)
    for file in files.iterdir():
        (place / file.name).symlink_to(file)
    if stub.is_file():
        (place / stub.name).unlink(missing_ok=True)
        (place / stub.name).symlink_to(stub)
    (place / "s2wrap").symlink_to(Path(s2wrap.__file__).parent)  # the backend has its own folder on its path
    return folder


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Running:
    """A server of a repository, which it polls."""

    def __init__(self, repository, work):
        self.log, ports = work / "log", free_ports(3)
        self.url = f"127.0.0.1:{ports[1]}"
        environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if place := libpython():
            environment["LD_LIBRARY_PATH"] = f"{place}:{os.environ.get('LD_LIBRARY_PATH', '')}"
        names = ("http-port", "grpc-port", "metrics-port")
        flags = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
        flags += [f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")]
        flags += ["--model-control-mode=poll", "--repository-poll-secs=1", "--exit-timeout-secs=10"]
        command = [TRITON, f"--model-repository={repository}", f"--backend-directory={backends(work / 'backends')}"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*command, *flags], stdout=log, stderr=log, env=environment)

    def alive(self):
        return self.process.poll() is None

    def count(self, words):
        return self.log.read_text(errors="replace").count(words)

    def wait(self, true, what):
        """Wait until something is so."""
        end = time.monotonic() + START
        while not true():
            if not self.alive() or time.monotonic() > end:
                pytest.fail(f"{what} did not come in {START} seconds: {self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)

    def stop(self):
        """End it as an operator does; True if it ended well."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40) == 0
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two wrapped models, one of which keeps the shape of pictures, and a repository of both."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    repository = folder / "repository"
    padded = s2wrap.load("timm:test_vit@1,2", pretrained=False, fit="pad")
    whole = s2wrap.load("timm:test_vit@1,2", pretrained=False)
    export(padded, folder / "tiles.onnx", tiles=True, batch=(1, 4, 8), verify=False)
    export(whole, folder / "whole.onnx", image_hw=(160, 200), batch=(1, 2, 4), pixels="uint8", verify=False)
    for name in ("tiles", "whole"):
        write_repository(folder / f"{name}.onnx", repository, backend="python", max_pixels=4_000_000)
    return {"tiles": padded, "whole": whole, "folder": folder, "repository": repository}


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    from tritonclient import grpc

    running = Running(models["repository"], tmp_path_factory.mktemp("server"))
    try:
        client = grpc.InferenceServerClient(running.url)
        running.wait(lambda: is_ready(client, "tiles") and is_ready(client, "whole"), "the server")
        yield running
    finally:
        ended = running.stop()
    assert ended, running.log.read_text(errors="replace")[-3000:]


def is_ready(client, model, version=""):
    from tritonclient.utils import InferenceServerException

    try:
        return client.is_model_ready(model, version, client_timeout=5)
    except InferenceServerException:
        return False


@pytest.fixture(scope="module")
def demo():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CLIENT.parent)
        yield importlib.import_module("triton_client")


def encoded(pixels, kind):
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def bomb(side):
    """A PNG of some hundred bytes whose header says that it is large."""
    content = bytearray(encoded(np.zeros((2, 2, 3), np.uint8), "PNG"))
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


def as_request(content):
    return np.frombuffer(content, np.uint8)[None]


@pytest.fixture(scope="module")
def cases(models):
    """Requests of every kind: model, input, type, array, and what PyTorch computes of it."""
    shots = (data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), data.astronaut()[:90, :400])
    small = [np.asarray(Image.fromarray(shot).reduce(2)) for shot in shots]
    found = []
    for kind in ("PNG", "JPEG"):
        for content in (encoded(pixels, kind) for pixels in small):
            picture = decode_image(content, "a photo")
            for model in ("tiles", "whole"):
                found.append(
                    (model, "pictures", "UINT8", as_request(content), features_of(models, model, picture[None]))
                )
    for batch in (1, 2, 3):
        pixels = np.stack(small[:1] * batch)[:, : 40 * batch] // batch
        features = features_of(models, "whole", torch.from_numpy(pixels).movedim(3, 1))
        found.append(("whole", "images", "UINT8", pixels, features))
        images = models["tiles"].input.normalise(torch.from_numpy(pixels).movedim(3, 1))
        found.append(("tiles", "images", "FP32", images.numpy(), features_of(models, "tiles", images)))
    return found


def features_of(models, name, images):
    """PyTorch's outputs by name of images (b, c, h, w), which a graph of one size sees stretched."""
    if name == "tiles":
        outputs = ("spatial", "prefix", "pooled")
    else:
        resized = torch.nn.functional.interpolate(images.float(), (160, 200), mode="bicubic", antialias=True)
        images, outputs = resized.round().clamp(0, 255).byte(), ("spatial", "prefix")
    with torch.no_grad():
        features = models[name](images)
    return {output: getattr(features, output).numpy() for output in outputs}


def bad_cases():
    """Requests that cannot be answered: model, input, type, array, and words of the error."""
    files = {
        "not a picture, or cut short": [b"", bytes(range(200)), b"\x89PNG\r\n\x1a\n"],
        "cut short": [encoded(data.chelsea(), "JPEG")[:5000], encoded(data.chelsea(), "PNG")[:5000]],
        "too large": [bomb(20_000)],
        "more than max_pixels=4000000": [bomb(4_000)],
        "each side needs at least 2": [encoded(np.zeros((1, 50, 3), np.uint8), "PNG")],
        "has 4 channels": [array_file(np.zeros((20, 20, 4), np.uint8))],
    }
    found = [
        (model, "pictures", "UINT8", as_request(content), words)
        for words, contents in files.items()
        for content in contents
        for model in ("tiles", "whole")
    ]
    nan, bright = np.full((1, 3, 60, 60), np.nan, np.float32), np.full((2, 3, 60, 60), 200, np.float32)
    found.append(("tiles", "images", "FP32", nan, "NaN or infinite"))
    found.append(("tiles", "images", "FP32", bright, "normalised ones of test_vit lie in"))
    found.append(("tiles", "images", "FP32", nan[:, :, :1], "each side needs at least 2"))
    found.append(("tiles", "images", "FP32", nan[:, :2], "unexpected shape"))
    found.append(("tiles", "images", "FP32", np.zeros((9, 3, 60, 60), np.float32), "batch-size must be <= 8"))
    found.append(("whole", "images", "FP32", nan, "data-type is 'FP32', but model 'whole' expects 'UINT8'"))
    found.append(("whole", "images", "UINT8", np.zeros((1, 2100, 2000, 3), np.uint8), "max_pixels=4000000"))
    found.append(("tiles", "pictures", "FP32", nan[0, 0, :1], "data-type is 'FP32'"))
    return found


def array_file(values):
    stream = BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def wrong(answer, features):
    """Whether an answer is not what PyTorch computes."""
    return answer.keys() != features.keys() or any(
        answer[name].shape != array.shape or np.abs(answer[name] - array).max() > 1e-4
        for name, array in features.items()
    )


class Sender:
    """Sends requests by the demo's client."""

    def __init__(self, demo, url, concurrency):
        self.demo, self.free = demo, threading.Semaphore(concurrency)
        self.served = {name: demo.replace(demo.connect(url, name), timeout=ANSWER) for name in ("tiles", "whole")}

    def __call__(self, model, name, dtype, array):
        self.free.acquire()
        future = self.demo.send(self.demo.replace(self.served[model], input=name, dtype=dtype), array)
        future.add_done_callback(lambda _: self.free.release())
        return future


@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_mixed_requests_are_all_answered_and_none_is_wrong(server, demo, cases, concurrency):
    random, bad = np.random.default_rng(concurrency), bad_cases()
    send, counted, sent = Sender(demo, server.url, concurrency), {"wrong": 0, "refused": 0, "right": 0}, []
    for number in range(REQUESTS):
        *request, expected = cases[random.integers(len(cases))] if number % 5 else bad[number // 5 % len(bad)]
        sent.append((send(*request), expected))
    for future, expected in sent:
        if isinstance(expected, str):
            with pytest.raises(S2WrapError, match=expected):
                future.result(ANSWER)
            counted["refused"] += 1
        else:
            counted["wrong" if wrong(future.result(ANSWER), expected) else "right"] += 1
    assert counted == {"wrong": 0, "refused": REQUESTS // 5, "right": REQUESTS - REQUESTS // 5}
    assert server.alive()
    assert server.count("not healthy") == 0


ASKS = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import triton_client
served = triton_client.connect(sys.argv[2], "whole")
served = triton_client.replace(served, input="images")
futures = [triton_client.send(served, np.zeros((4, 900, 900, 3), np.uint8)) for _ in range(24)]
print("sent", flush=True)
futures[-1].result()
"""


def test_a_client_that_is_killed_leaves_the_server_to_the_others(server, demo, cases):
    command = [sys.executable, "-c", ASKS, str(CLIENT.parent), server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
        assert client.stdout.readline() == b"sent\n"
        time.sleep(0.3)  # some are on their way, some are computed
        client.kill()
    send = Sender(demo, server.url, 4)
    answers = [(send(*request), expected) for *request, expected in cases[:8]]
    assert not any(wrong(future.result(ANSWER), expected) for future, expected in answers)
    assert server.alive()


def test_the_client_gets_features_of_files_of_any_size(server, demo, models, tmp_path, capsys):
    for number, shot in enumerate((data.chelsea(), data.rocket()[:, :300])):
        Image.fromarray(shot).save(tmp_path / f"{number}.png")
    output = tmp_path / "out.safetensors"
    demo.run([tmp_path], "tiles", server.url, None, output, in_flight=2, timeout=ANSWER)
    found = load_file(output)
    for number, features in enumerate(models["tiles"].encode([tmp_path / "0.png", tmp_path / "1.png"])):
        np.testing.assert_allclose(found[f"spatial.{number}"], features.spatial, atol=1e-4)
        np.testing.assert_allclose(found["pooled"][number], features.pooled[0], atol=1e-4)
    assert found["spatial.0"].shape != found["spatial.1"].shape  # which keep the shapes of the pictures
    (tmp_path / "2.png").write_bytes(b"no picture")
    with pytest.raises(S2WrapError, match="2.png: tiles failed on a batch of 1: .*not a picture"):
        demo.run([tmp_path], "tiles", server.url, None, None, timeout=ANSWER)
    assert "2 pictures" in capsys.readouterr().out


def test_a_new_version_takes_over_while_requests_come(server, demo, cases, models, monkeypatch):
    from tritonclient import grpc

    torch.manual_seed(1)
    other = s2wrap.load("timm:test_vit@1,2", pretrained=False)
    file = models["folder"] / "other.onnx"
    export(other, file, image_hw=(160, 200), batch=(1, 2, 4), pixels="uint8", verify=False)
    *request, before = next(case for case in cases if case[0] == "whole")
    after = features_of({"whole": other}, "whole", decode_image(request[3].tobytes(), "a photo")[None])
    copy, send, client = shutil.copyfile, Sender(demo, server.url, 4), grpc.InferenceServerClient(server.url)

    def slow(*arguments):
        copy(*arguments)
        time.sleep(1.5)  # longer than the server waits between two looks

    monkeypatch.setattr("shutil.copyfile", slow)
    options = {"name": "whole", "backend": "python", "version": "new"}
    pool, answers = ThreadPoolExecutor(1), []
    written = pool.submit(write_repository, file, models["repository"], **options)

    def takes_over():
        answers.append(send(*request).result(ANSWER))
        if written.done():
            written.result()
        return is_ready(client, "whole", "2")

    server.wait(takes_over, "version 2")
    pool.shutdown()
    server.wait(lambda: not wrong(send(*request).result(ANSWER), after), "the new version")
    assert len(answers) > 5
    assert all(not wrong(answer, before) or not wrong(answer, after) for answer in answers)
    assert not wrong(answers[0], before)
    assert server.count("s2wrap-") == 0  # the draft was never seen
    assert server.count("failed to load") == 0
    assert server.count("successfully loaded 'whole'") == 2
