"""A real Ray cluster of several nodes on this machine does the tasks of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import EngineOptions, PackOptions, Progress, RunOptions, pack
from pipeline.base.errors import BusyError, ConfigError
from tests.conftest import Run
from tests.pipeline.samples import random_rows, write_jsonl
from tests.pipeline.sharing.runs import FLAGS, RELATED, files_of, two_splits, with_vectors

pytestmark = pytest.mark.needs("ray")

OPTIONS = PackOptions(max_length=80, window_samples=40, shard_size=4000)
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without room for tasks, and two nodes that have it for one each."""
    from ray.cluster_utils import Cluster

    seen_soon = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    head = {**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": seen_soon}
    try:
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(**NODE)
    except Exception as error:  # ports or shared memory that a machine does not give
        pytest.skip(f"Ray does not start on this machine: {error}")
    yield cluster
    cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture
def on_cluster(cluster: Any, tmp_path: Path) -> Callable[..., Any]:
    def call(source: Path, output: Path, options: PackOptions = OPTIONS, **more: Any) -> Any:
        engine = EngineOptions(engine="ray", ray_address=cluster.address)
        return pack(source, output, options, engine=engine, run=RunOptions(cache_dir=tmp_path / "cache"), **more)

    return call


def test_a_cluster_gives_the_bytes_of_one_process_though_a_node_dies(cluster: Any, run: Run, tmp_path: Path) -> None:
    source, cache = with_vectors(tmp_path / "in.parquet"), RunOptions(cache_dir=tmp_path / "cache")
    flags = ("--max-length", 80, "--window-samples", 40, "--shard-size", 4000, *RELATED)
    assert run("pack", source, "--output", tmp_path / "one", *flags).code == 0
    doomed, told = cluster.add_node(**NODE), list[Progress]()

    def kill(progress: Progress) -> None:
        if progress.stage == "writing" and progress.done and not told:
            cluster.remove_node(doomed, allow_graceful=False)
            next(tmp_path.glob(".out.staging-*/dataset")).joinpath("a.arrow.0123.part").touch()  # what it may leave
        if progress.stage == "writing" and progress.done:
            told.append(progress)

    related = replace(OPTIONS, strategy="threshold-filtering", set={"embedder": "column", "column": "vector"})
    engine = EngineOptions(engine="ray", ray_address=cluster.address, resources={"plan": "cpu:1"})
    result = pack(source, tmp_path / "out", related, engine=engine, run=cache, progress=kill)
    assert result.status == "packed"
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")
    assert len(told) > 1, "it went on without the node"
    assert told[-1].done == told[-1].total


@pytest.mark.soak
def test_what_a_cluster_makes_may_be_published_on_a_store(
    cluster: Any, on_cluster: Callable[..., Any], bucket: str, store: Any, tmp_path: Path
) -> None:
    source = two_splits(tmp_path / "in")
    pack(source, tmp_path / "one", OPTIONS)
    assert on_cluster(source, f"s3://{bucket}/out").status == "packed"
    store.get(f"{bucket}/out/", f"{tmp_path}/out/", recursive=True)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")


@pytest.mark.soak
def test_an_interruption_stops_the_clusters_tasks_and_the_same_call_goes_on(
    cluster: Any, on_cluster: Callable[..., Any], tmp_path: Path
) -> None:
    source = two_splits(tmp_path / "in")
    pack(source, tmp_path / "one", OPTIONS)

    def interrupt(progress: Progress) -> None:
        if progress.stage == "writing" and progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_cluster(source, tmp_path / "out", progress=interrupt)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".out.staging-*/dataset/*/*.arrow")}
    time.sleep(0.5)
    assert not [path for path in tmp_path.glob(".out.staging-*/dataset/*/*.arrow") if path not in kept]
    assert kept
    assert on_cluster(source, tmp_path / "out").status == "packed"
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.arrow")}
    assert all(after[path.name] == when for path, when in kept.items()), "finished shards are not written again"


def test_a_worker_without_the_same_package_is_refused(
    cluster: Any, on_cluster: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = two_splits(tmp_path / "in")
    with monkeypatch.context() as other:
        other.setattr("pipeline.base.dealing.cluster.code", lambda: ("0.0.9", "0123456789ab"))
        with pytest.raises(ConfigError, match=r"worker .* has tightpack .*, and this is 0\.0\.9; install the same"):
            on_cluster(source, tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_same_command_goes_on_where_one_died(
    cluster: Any, run: Run, tmp_path: Path, number: signal.Signals
) -> None:
    flags = ("--max-length", 80, "--window-samples", 40, "--shard-size", 300)
    on_ray = ("--engine", "ray", "--ray-address", cluster.address)
    out = ("pack", two_splits(tmp_path / "in"), "--output", tmp_path / "out", *flags, *on_ray)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen([sys.executable, "-m", "pipeline", *map(str, out)], env=environment)
    while len(written := list(tmp_path.glob(".out.staging-*/dataset/*/*.arrow"))) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() == (143 if number == signal.SIGTERM else -9)
    assert run(*out).code == 0
    assert run("pack", tmp_path / "in", "--output", tmp_path / "one", *flags).code == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")
    assert len(list((tmp_path / "out").rglob("*.arrow"))) > len(written)


@pytest.mark.soak
def test_a_worker_without_the_package_is_refused(cluster: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "pipeline"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('it is not installed')")
    node = cluster.add_node(**NODE, env_vars={"PYTHONPATH": str(broken.parent)})
    flags = ("--output", tmp_path / "out", *FLAGS, "--engine", "ray", "--ray-address", cluster.address)
    command = [sys.executable, "-m", "pipeline", "pack", two_splits(tmp_path / "in"), *flags]
    try:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        ended = subprocess.run(
            [*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    finally:
        cluster.remove_node(node)
    told = "cannot do tasks: ImportError: it is not installed; install tightpack there"
    assert (ended.returncode, told in ended.stderr) == (2, True), ended.stderr
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.soak
def test_what_a_task_logs_is_told_here(cluster: Any, run: Run, tmp_path: Path) -> None:
    write_jsonl(random_rows(50), tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("")
    command = ("pack", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--output", tmp_path / "out", "--max-length", 80)
    ended = run(*command, "--engine", "ray", "--ray-address", cluster.address, "--json")
    assert (ended.code, ended.json["status"]) == (0, "packed"), ended.err
    assert ended.err.count("b.jsonl: there is no row in it") == 1


def test_what_a_cluster_cannot_do_is_said_before_work_begins(
    cluster: Any, on_cluster: Callable[..., Any], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = two_splits(tmp_path / "in")
    flags = ("pack", source, "--output", tmp_path / "out", *FLAGS, "--engine", "ray", "--ray-address")
    ended = run(*flags, "127.0.0.1:1")
    assert (ended.code, "--ray-address 127.0.0.1:1 does not answer" in ended.err) == (75, True), ended.err
    for resources, told in {
        "embed=gpu:1": "--resources embed=cpu:1,gpu:1: no node of the cluster has so much",
        "plan=cpu:2": "--resources plan=cpu:2: no node of the cluster has so much",
        "plan=CPU:1": "write it as gpu:1",
        "plan=gpu:1.5": "what is above 1 is whole",
        "embde=gpu:1": "no stage is called 'embde'; did you mean 'embed'?",
        "embed=gpu": "write it as gpu:1",
    }.items():
        ended = run(*flags, cluster.address, "--resources", resources)
        assert (ended.code, told in ended.err) == (2, True), ended.err
    with monkeypatch.context() as elsewhere:  # a folder in which this process alone sees what it writes
        elsewhere.setattr("pipeline.base.storage.write_file", lambda path, content: None)
        with pytest.raises(ConfigError, match=r"does not see .*; --output must lie on a file system that all nodes"):
            on_cluster(source, tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


def test_an_engine_that_is_not_installed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = run("pack", two_splits(tmp_path / "in"), "--output", tmp_path / "out", *FLAGS, "--engine", "ray")
    assert (ended.code, "pip install 'tightpack[ray]'" in ended.err) == (2, True), ended.err


@pytest.mark.soak
def test_a_busy_error_is_what_a_worker_that_always_dies_gives(
    on_cluster: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.packing.shards import WriteStage

    source = two_splits(tmp_path / "in")
    monkeypatch.setattr(WriteStage, "__reduce__", lambda self: (os._exit, (1,)))
    with pytest.raises(BusyError, match=r"shard \d of window \d of train: its worker died 4 times"):
        on_cluster(source, tmp_path / "out")
    assert list(tmp_path.glob(".out.staging-*")), "what is done is kept"
