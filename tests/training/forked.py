"""Commands in processes of their own, forked from one that has imported torch and transformers already."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

CONTEXT = multiprocessing.get_context("forkserver")
"""Makes processes that have imported what stands here."""

CONTEXT.set_forkserver_preload(
    ["tests.training.forked", "datasets", "training.running.train", "transformers.models.llama.modeling_llama"]
)


def _run(arguments: list[str], environment: Mapping[str, str], output: Path, most_bytes: int | None) -> None:
    for number in (1, 2):
        os.dup2(os.open(output.with_suffix(f".{number}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(environment)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    torch.set_num_threads(1)  # as in the tests' own process: sums depend on it in their last bits
    sys.argv = ["training", *arguments]
    from training.command.main import main

    main()


class Forked:
    """A command that runs."""

    def __init__(
        self,
        folder: Path,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        most_bytes: int | None = None,
    ) -> None:
        """folder: for what it prints. most_bytes: the largest file that it may write, as on a disk that is full."""
        self._output = folder / f"printed-{len(list(folder.glob('printed-*.2')))}"
        self._output.with_suffix(".2").touch()
        self._process: ForkServerProcess = CONTEXT.Process(
            target=_run, args=(list(map(str, arguments)), dict(environment or {}), self._output, most_bytes)
        )
        self._process.start()

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def send(self, number: int) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self) -> tuple[int | None, str, str]:
        """Wait for its end; returns (exit code, stdout, stderr)."""
        self._process.join(timeout=120)
        out, err = (self._output.with_suffix(f".{number}").read_text() for number in (1, 2))
        assert "Traceback" not in err
        return self._process.exitcode, out, err


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


def two_ranks(folder: Path, *arguments: object) -> list[Forked]:
    """Two ranks of one run, as torchrun starts them; but nothing ends one when the other has ended."""
    port = free_port()
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        Forked(folder, *arguments, environment={**place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
