"""The examples of scripts/schedules: each is what its scheduler accepts, and its command line runs."""

from __future__ import annotations

import ast
import http.server
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Ended, Run
from tests.documents import ROOT
from tests.pipeline.samples import write_jsonl

SLURM, ARRAY_JOB = "array.slurm", "array-job.yaml"
SCHEDULES = ROOT / "scripts" / "schedules"
PROGRAM, JOB = "/opt/tightpack/bin/tightpack", "/etc/tightpack/nightly.yaml"
PLACES = ("/data", "/var/cache", "/var/lib/node_exporter/textfile", "/var/log/tightpack")
CRON, SERVICE, TIMER, CRON_JOB, DAG = (
    *("crontab", "tightpack-nightly.service", "tightpack-nightly.timer", "cronjob.yaml", "airflow_dag.py"),
)


def read(name: str) -> str:
    return (SCHEDULES / name).read_text()


def cron_line() -> list[str]:
    """The fields of the one line: five of time, the user, the command."""
    lines = [line for line in read(CRON).splitlines() if line and not line.startswith(("#", "SHELL="))]
    assert len(lines) == 1
    return lines[0].split(maxsplit=6)


def cron_job() -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(read(CRON_JOB))
    return value


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = cron_job()["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return spec


def dag_commands() -> dict[str, str]:
    """The commands that the DAG gives to bash, by the name of their constant."""
    tree = ast.parse(read(DAG))
    return {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }


def commands() -> dict[str, list[list[str]]]:
    """The command lines of every example, without where a shell sends their output."""
    (systemd,) = re.findall(r"^ExecStart=(.*)$", read(SERVICE), re.MULTILINE)
    return {
        CRON: [shlex.split(re.sub(r"\s\d?>>?\S+", "", cron_line()[6]))],
        SERVICE: [shlex.split(systemd)],
        CRON_JOB: [pod()["containers"][0]["command"]],
        DAG: [shlex.split(command) for command in dag_commands().values()],
    }


@pytest.fixture
def place(tmp_path: Path, real_data: Path) -> Path:
    """A folder with all that the examples want, for the root of the file system: real questions, a real tokenizer."""
    for folder in PLACES:
        (tmp_path / folder.strip("/")).mkdir(parents=True)
    (tmp_path / "data" / "questions").mkdir()
    with (real_data / "gsm8k" / "train.jsonl").open() as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(300), strict=False)]
    write_jsonl(rows, tmp_path / "data" / "questions" / "a.jsonl")
    shutil.copytree(real_data / "tokenizers" / "gpt2", tmp_path / "data" / "tokenizer", copy_function=shutil.copyfile)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "nightly.yaml").write_text(placed(read("nightly.yaml"), tmp_path))
    return tmp_path


def placed(text: str, place: Path) -> str:
    """A text with its paths below a folder."""
    text = re.sub(
        "|".join(f"(?<![\\w/]){each}(?=/|\\s|$)" for each in PLACES), lambda found: f"{place}{found[0]}", text
    )
    return text.replace(JOB, str(place / "job" / "nightly.yaml"))


@pytest.mark.needs("transformers", "prometheus_client")
@pytest.mark.parametrize("name", [CRON, SERVICE, CRON_JOB, DAG])
def test_command_lines_run(run: Run, place: Path, name: str) -> None:
    def ended(command: list[str]) -> Ended:
        return run(*(placed(word, place) for word in command[1:]))

    for command in commands()[name]:
        assert command[0] == ("tightpack" if name == CRON_JOB else PROGRAM)
    pack, *checks = commands()[name]
    first = ended(pack)
    assert first.code == 0, first.err
    assert all(json.loads(line)["level"] in ("info", "warning") for line in first.err.splitlines())
    assert [ended(check).code for check in checks] == [0] * (name == DAG)
    manifest = json.loads((place / "data" / "packed" / "questions" / "manifest.json").read_text())
    assert manifest["counts"]["samples_packed"] == 300
    metrics = place / "var/lib/node_exporter/textfile/tightpack-nightly.prom"
    assert re.search(r'tightpack_samples\{command="pack",job_name="tightpack-nightly"\} 300', metrics.read_text())
    if name == SERVICE:
        assert ended(pack).code == 99, "up to date"
    if name == CRON:
        (place / "data" / "questions" / "b.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
        assert ended(pack).code == 0, "a file more, and the dataset is replaced"


def array_commands(folder: Path) -> dict[str, list[list[str]]]:
    """What the examples of array jobs call, with two tasks: those of each, then the last step."""
    stub = folder / "tightpack"
    stub.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    stub.chmod(0o755)
    path = f"{folder}:/usr/bin:/bin"

    def called(command: list[str], **environment: str) -> list[str]:
        ended = subprocess.run(command, env={"PATH": path, **environment}, check=True, capture_output=True, text=True)
        return ended.stdout.splitlines()

    tasks, last = list(yaml.safe_load_all(read(ARRAY_JOB)))
    shell, finish = (job["spec"]["template"]["spec"]["containers"][0]["command"] for job in (tasks, last))
    assert f"--task-count {tasks['spec']['completions']} " in shell[-1]
    shell[-1] = shell[-1].replace("--task-count 8", "--task-count 2")
    script = ["bash", str(SCHEDULES / SLURM)]
    return {
        SLURM: [
            *(called(script, SLURM_ARRAY_TASK_ID=i, SLURM_ARRAY_TASK_COUNT="2") for i in "01"),
            called([*script, "--finish"]),
        ],
        ARRAY_JOB: [*(called(shell, JOB_COMPLETION_INDEX=i) for i in "01"), called(finish)],
    }


@pytest.mark.needs("transformers", "prometheus_client")
@pytest.mark.parametrize("name", [SLURM, ARRAY_JOB])
def test_array_jobs_run(run: Run, place: Path, tmp_path: Path, name: str) -> None:
    *tasks, last = array_commands(tmp_path)[name]
    commands = [[placed(word, place) for word in command] for command in (*tasks, last)]
    assert run(*commands[0]).code == 0
    assert run(*commands[-1], "--window-samples", 100).code == 75, "other windows, so another run, is not begun"
    assert [run(*command).code for command in commands[1:]] == [0, 0]
    manifest = json.loads((place / "data" / "packed" / "questions" / "manifest.json").read_text())
    assert manifest["counts"]["samples_packed"] == 300


def test_the_cron_line() -> None:
    *times, user, command = cron_line()
    assert len(times) == 5 and all(re.fullmatch(r"[\d*/,-]+", field) for field in times)
    assert re.fullmatch(r"[a-z]+", user)
    assert "%" not in command, "cron takes it for the end of a line"


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    (tmp_path / SERVICE).write_text(read(SERVICE).replace(PROGRAM, sys.executable))  # it looks for the program
    (tmp_path / TIMER).write_text(read(TIMER))

    def verdict() -> tuple[int, str]:
        call = ["systemd-analyze", "verify", str(tmp_path / SERVICE), str(tmp_path / TIMER)]
        ended = subprocess.run(call, check=False, capture_output=True, text=True)
        return ended.returncode, "\n".join(line for line in ended.stderr.splitlines() if "tightpack" in line)

    assert verdict() == (0, "")
    (tmp_path / SERVICE).write_text(read(SERVICE).replace(PROGRAM, sys.executable).replace("RestartSec=", "Restarts="))
    assert "Unknown key" in verdict()[1], "a fault would show"


def test_codes_that_no_retry_mends_are_not_retried() -> None:
    final = [2, 3, 4, 70]
    (rule,) = cron_job()["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == final
    assert rule["onExitCodes"]["containerName"] == pod()["containers"][0]["name"]
    assert re.search(r"^RestartPreventExitStatus=(.*)$", read(SERVICE), re.MULTILINE)[1] == " ".join(map(str, final))  # type: ignore[index]


def test_every_volume_of_the_pod_is_mounted() -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in pod()["containers"][0]["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod()["volumes"]}
    job = yaml.safe_load(read("nightly.yaml"))
    for path in (job["input"], job["output"], job["tokenizer"], job["cache_dir"], job["metrics_file"], JOB):
        assert any(path.startswith(f"{mounted}/") or path == mounted for mounted in mounts.values()), path


BATCH: dict[str, Any] = {"groupVersion": "batch/v1", "version": "v1"}
CRON_JOBS: dict[str, Any] = {"name": "cronjobs", "singularName": "cronjob", "namespaced": True, "kind": "CronJob"}
ANSWERS: dict[str, dict[str, Any]] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [{"name": "batch", "versions": [BATCH], "preferredVersion": BATCH}],
    },
    "/apis/batch/v1": {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "batch/v1",
        "resources": [CRON_JOBS | {"verbs": ["create", "get"]}],
    },
}


class Discovery(http.server.BaseHTTPRequestHandler):
    """What an API server answers where it is asked what kinds of objects there are, as kubectl does before anything."""

    def do_GET(self) -> None:
        answer = ANSWERS.get(self.path.partition("?")[0])
        content = json.dumps(answer or {}).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def api_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Discovery) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_kubectl_accepts_the_cron_job(tmp_path: Path, api_server: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")

    def accepted(text: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "job.yaml").write_text(text)
        flags = [f"--server={api_server}", f"--cache-dir={tmp_path}", "--dry-run=client", "--validate=false"]
        call = ["kubectl", "create", *flags, "-f", str(tmp_path / "job.yaml")]
        return subprocess.run(call, check=False, capture_output=True, text=True, env={"HOME": str(tmp_path)})

    ended = accepted(read(CRON_JOB))
    assert (ended.returncode, "cronjob.batch/tightpack-nightly created (dry run)" in ended.stdout) == (0, True), ended
    assert accepted(read(CRON_JOB).replace("kind: CronJob", "kind: CronJobs")).returncode != 0, "a fault would show"


@pytest.mark.soak
def test_airflow_imports_the_dag(tmp_path: Path) -> None:
    if importlib.util.find_spec("airflow") is None:
        pytest.skip("Airflow is not installed")
    code = f"import runpy; dag = runpy.run_path({str(SCHEDULES / DAG)!r})['pack'].dag"
    code += "; assert sorted(dag.task_ids) == ['pack', 'verify']; print(dag.get_task('pack').skip_on_exit_code)"
    environment = {"AIRFLOW_HOME": str(tmp_path), "HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert "99" in ended.stdout
