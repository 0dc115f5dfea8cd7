"""A run on Ray: the store is what this machine alone makes, whatever dies on the way."""

import ctypes
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

import s2wrap
from s2wrap import S2WrapError
from s2wrap.cli import app
from s2wrap.errors import MissingExtraError
from s2wrap.extraction import cluster, fleet
from s2wrap.extraction.control import control_folder
from s2wrap.extraction.fleet import Cluster, connected
from s2wrap.extraction.picture import Failure
from s2wrap.extraction.run import extract_features
from s2wrap.extraction.workers import grouped, portable

ROOT = Path(__file__).parent.parent
SPEC = "timm:test_vit@1,2"
COUNT = 330
KILLS = int(os.environ.get("S2WRAP_KILLS", "1"))
DIES_AFTER_A_COMMIT = """
import os
import signal

from s2wrap.cli import main
from s2wrap.extraction.store import Store


def commit(store, **options):
    whole(store, **options)
    if store.rows:
        os.kill(os.getpid(), signal.SIGKILL)


whole, Store.commit = Store.commit, commit
main()
"""
pytestmark = pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")  # Ray warns when it copies its settings


@pytest.fixture(scope="module")
def address():
    """A Ray of this machine; the tests of this module use it, as it is connected."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # its own is 15: beside other work its processes hardly run
        ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder and two tars, one cut short, with pictures that cannot be read; the weights of a model."""
    root, random = tmp_path_factory.mktemp("cluster"), np.random.default_rng(0)
    for name in ("photos", "packed"):
        (root / name).mkdir()
        for number in range(COUNT if name == "photos" else 60):
            height, width = random.integers(20, 60, 2)
            content = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(content).save(root / name / f"{number:05d}.png", compress_level=1)
    for number in (0, 70, 71, 329):
        (root / "photos" / f"{number:05d}.png").write_text("no picture")
    for number in range(2):
        with tarfile.open(root / f"{number}.tar", "w") as tar:
            for path in sorted((root / "packed").iterdir())[number * 30 : number * 30 + 30]:
                tar.add(path, path.name)
    whole = (root / "0.tar").read_bytes()
    (root / "0.tar").write_bytes(whole[: len(whole) // 2])
    torch.manual_seed(0)
    save_file(s2wrap.load(SPEC, pretrained=False).backbone.model.state_dict(), root / "weights.safetensors")
    return root


def loader(sources, loads=None, dies_after=None):
    """A `load` that leaves the number of its process in a folder; the first whose model is called so often dies.

    From then on, the models of all processes wait until a third one is loaded.
    """
    spec, weights, here = SPEC, str(sources / "weights.safetensors"), os.getpid()

    def load():
        import os
        import signal
        import time
        from contextlib import suppress
        from pathlib import Path

        import s2wrap

        model = s2wrap.load(spec, checkpoint=weights)
        if loads is None or os.getpid() == here:
            return model
        (Path(loads) / str(os.getpid())).touch()
        calls, dead = [], Path(loads).with_name("dead")

        def count(*_):
            calls.append(None)
            if len(calls) > dies_after and not dead.exists():
                with suppress(FileExistsError):
                    dead.touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            deadline = time.monotonic() + 240
            while dead.exists() and len(os.listdir(loads)) < 3 and time.monotonic() < deadline:
                time.sleep(0.05)

        if dies_after is not None:
            model.backbone.model.patch_embed.register_forward_pre_hook(count)
        return model

    return load


def extract(sources, output, addresses=("photos", "0.tar", "1.tar"), **options):
    options = {"spec": SPEC, "options": {}, "load": loader(sources)} | options
    if "cluster" not in options:
        options |= {"workers": 0}
    return extract_features([str(sources / name) for name in addresses], output, **options)


def read(output):
    """All that a store holds: names, features, failures, and how far it is."""
    if output.suffix == ".parquet":
        import pyarrow.dataset

        table = pyarrow.dataset.dataset(output).to_table()
        names, features = table["path"].to_pylist(), torch.from_numpy(np.stack(table["vector"].to_pylist()))
    else:
        names, parts = [], []
        for path in sorted(output.glob("part-*")):
            with safe_open(path, "pt") as file:
                names += json.loads(file.metadata()["files"])
                parts.append(file.get_tensor("spatial"))
        features = torch.cat(parts)
    failures, state = ((control_folder(output) / name).read_text() for name in ("failures.jsonl", "store.json"))
    return names, features, failures, {key: json.loads(state)[key] for key in ("rows", "failed", "mark", "finished")}


def assert_same(output, expected):
    (names, features, *others), (names_there, features_there, *others_there) = read(output), read(expected)
    assert names == names_there
    torch.testing.assert_close(features, features_there, atol=1e-5, rtol=0)
    assert others == others_there


@pytest.fixture(scope="module")
def expected(sources, tmp_path_factory):
    """The stores that this machine makes without Ray, by name of the output."""
    folder = tmp_path_factory.mktemp("expected")
    extract(sources, folder / "out.parquet", shard=50)
    extract(sources, folder / "photos.safetensors", ["photos"], shard=50, dtype="bfloat16")
    return folder


def test_a_cluster_makes_the_same_store_and_loads_the_model_once_an_actor(address, sources, expected, tmp_path):
    (tmp_path / "loads").mkdir()
    load = loader(sources, tmp_path / "loads")
    outcome = extract(sources, tmp_path / "out.parquet", cluster=Cluster(actors=2), shard=50, load=load)
    assert_same(tmp_path / "out.parquet", expected / "out.parquet")
    assert outcome.failed == 5  # four files, and the end of the tar that is cut short
    assert len(list((tmp_path / "loads").iterdir())) == 2


def test_one_of_two_actors_killed_in_the_middle_changes_nothing(address, sources, expected, tmp_path):
    output, loads = tmp_path / "out.safetensors", tmp_path / "loads"
    loads.mkdir()
    options = {"shard": 50, "dtype": "bfloat16", "load": loader(sources, loads, dies_after=2)}
    extract(sources, output, ["photos"], cluster=Cluster(actors=2), **options)
    assert_same(output, expected / "photos.safetensors")
    assert len(list(loads.iterdir())) == 3  # another took its place: it had not done its work


def arguments(sources, output, address):
    """Of the command that makes a store on Ray."""
    command = ["features", *(str(sources / name) for name in ("photos", "0.tar", "1.tar")), "--model", SPEC]
    command += ["--checkpoint", str(sources / "weights.safetensors"), "--shard", "20", "--skip-errors"]
    return [*command, "--output", str(output), "--ray-address", address, "--actors", "1"]


def test_a_run_killed_at_any_moment_leaves_what_an_undisturbed_one_does(address, sources, expected, tmp_path):
    """S2WRAP_KILLS sets how often, once by default: the process that holds the store, not Ray's."""
    random, environment = np.random.default_rng(0), os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    kills = stores = 0
    while kills < KILLS:
        output = tmp_path / f"{stores}" / "out.parquet"
        output.parent.mkdir()
        program = [sys.executable, "-m", "s2wrap", *arguments(sources, output, address)]
        while True:
            process = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                assert process.wait(random.uniform(2, 15) if kills < KILLS else 400) == 0
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        assert_same(output, expected / "out.parquet")
        stores += 1
    print(f"{kills} kills, {stores} stores")


def test_a_killed_run_goes_on_with_the_same_command(address, sources, expected, tmp_path):
    output = tmp_path / "out.parquet"
    command = arguments(sources, output, address)
    program = [sys.executable, "-c", DIES_AFTER_A_COMMIT, *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(program, env=environment, stderr=subprocess.DEVNULL, timeout=400, check=False)
    assert run.returncode == -signal.SIGKILL
    done = json.loads((control_folder(output) / "store.json").read_text())
    assert 0 < done["rows"] < COUNT
    assert not done["finished"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.exception
    assert_same(output, expected / "out.parquet")


def test_a_picture_that_crashes_the_decoder_is_one_failure(address, sources, tmp_path, monkeypatch):
    killer = str(sources / "photos" / "00100.png")

    def deadly(reading, pictures):
        from s2wrap.extraction import decode as decoding
        from s2wrap.extraction.cluster import _decode
        from s2wrap.images import load_image

        decoding.load_image = lambda path, reading: ctypes.string_at(0) if path == killer else load_image(path, reading)
        yield from _decode(reading, pictures)
        decoding.load_image = load_image

    monkeypatch.setattr(cluster, "_decode", deadly)
    outcome = extract(sources, tmp_path / "out.parquet", ["photos"], cluster=Cluster(actors=1))
    assert (outcome.rows, outcome.failed) == (COUNT - 5, 5)
    failures = [json.loads(line) for line in read(tmp_path / "out.parquet")[2].splitlines()]
    assert [failure["path"] for failure in failures if "crashed" in failure["reason"]] == [killer]


def test_an_error_of_a_worker_is_told_as_such_and_the_store_goes_on_without_ray(address, sources, expected, tmp_path):
    output, hidden = tmp_path / "out.parquet", tmp_path / "1.tar"

    def hide(state):
        if state.item is None:
            (sources / "1.tar").rename(hidden)

    with pytest.raises(S2WrapError, match="1.tar cannot be read: FileNotFoundError") as raised:
        extract(sources, output, shard=50, cluster=Cluster(actors=1), tell=hide)
    assert type(raised.value) is S2WrapError
    hidden.rename(sources / "1.tar")
    assert read(output)[3]["rows"] > 0
    extract(sources, output, shard=50)
    assert_same(output, expected / "out.parquet")


def test_actors_with_other_weights_are_refused(address, sources, tmp_path):
    def load():
        import s2wrap

        return s2wrap.load("timm:test_vit@1,2", pretrained=False)

    with pytest.raises(S2WrapError, match="a node loads other weights than this machine; give all the same"):
        extract(sources, tmp_path / "out.parquet", ["photos"], load=load, cluster=Cluster(actors=1))


def test_a_file_that_only_a_node_misses_is_no_failure_of_the_picture(tmp_path):
    (tmp_path / "a.png").touch()
    for name in ("none.png", "s3://bucket/a.png"):
        cluster._check_reachable(Failure(name, f"{name}: there is no such file"))
    cluster._check_reachable(Failure(str(tmp_path / "a.png"), "a.png: not a picture"))
    with pytest.raises(S2WrapError, match="is on this machine, but not on the node"):
        cluster._check_reachable(Failure(str(tmp_path / "a.png"), f"{tmp_path}/a.png: there is no such file"))


def test_errors_come_through_a_pickle_as_what_the_command_line_knows():
    for error, kind in ((MissingExtraError("ray", "ray"), S2WrapError), (torch.OutOfMemoryError("x"), MemoryError)):
        there = pickle.loads(pickle.dumps(portable(error)))
        assert (type(there), str(there)) == (kind, str(error))
    try:
        {}["key"]
    except KeyError as error:
        assert "line" in str(portable(error))


def test_blocks_are_cut_by_number_and_bytes():
    groups = list(grouped([1, 1, 1, 1, 9, 2, 50, 1], int, count=3, most=10))
    assert groups == [[1, 1, 1], [1, 9], [2], [50], [1]]


def test_an_address_where_no_ray_answers_is_an_error_at_once(monkeypatch):
    monkeypatch.setattr(fleet, "ANSWER_SECONDS", 1.0)
    started = time.monotonic()
    with socket.socket() as silent, socket.socket() as web:
        for server in (silent, web):
            server.bind(("127.0.0.1", 0))
            server.listen()
        closed, answers = socket.create_server(("127.0.0.1", 0)), threading.Thread(target=answer, args=[web])
        gone = closed.getsockname()[1]
        closed.close()
        answers.start()
        for address in (
            "head",
            "ray://head:10001",
            *(f"127.0.0.1:{port}" for port in (gone, *map(port_of, (web, silent)))),
        ):
            with pytest.raises(S2WrapError, match=f"{address}.*(HOST:PORT|ConnectionRefused|another server|imeout)"):
                fleet._join(None, address)
        answers.join()
    assert time.monotonic() - started < 2 * fleet.ANSWER_SECONDS


def port_of(server):
    return server.getsockname()[1]


def answer(server):
    connection, _ = server.accept()
    with connection:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"ray is not installed; .*s2wrap\[ray\]"), connected(Cluster()):
        pass


@pytest.mark.parametrize(
    ("asked", "cpus", "gpus", "actors"),
    [(None, 8, 2, 7), (None, 2, 0, 1), (None, 1, 0, 1), (3, 4, 0, 3), (None, 8, 2, 2), (1, 8, 2, 1)],
)
def test_actors_leave_a_cpu_for_decoding_or_take_a_gpu_each(asked, cpus, gpus, actors):
    device = "cuda" if gpus and actors <= gpus else "cpu"
    found = fleet._fleet(Cluster(None, asked, device), {"CPU": cpus, "GPU": gpus})
    assert found.actors == actors
    assert found.actors * found.needs()["num_cpus"] < cpus
    assert found.needs().get("num_gpus", 0) == (device == "cuda")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda: Cluster(actors=0), "--actors 0 is no number of processes; use 1 or more"),
        (lambda: Cluster(device="cuda:1"), "cuda:1 with Ray, .*use cpu or cuda"),
        (lambda: fleet._fleet(Cluster(actors=2), {"CPU": 2}), "--actors 2: .*a CPU must be left .*use 1 or fewer"),
        (lambda: fleet._fleet(Cluster(device="cuda"), {"CPU": 2}), "the cluster has 2 CPUs and 0 GPUs.*--device cpu"),
    ],
)
def test_what_a_cluster_cannot_do_is_refused(asked, message):
    with pytest.raises(S2WrapError, match=message):
        asked()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray", "--workers", "2"], "every free CPU of the cluster decodes; leave it out"),
        (["--actors", "2"], "--actors 2 are processes of Ray; add --ray"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message, tmp_path):
    result = CliRunner().invoke(app, ["features", "x", "--model", SPEC, "--output", str(tmp_path / "o.npz"), *options])
    assert message in str(result.exception)
