"""Operations on storage of a run fail in turn, in scripts/soak all: one message, and what is there is whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.base.storage import Step, intercepted
from tests.conftest import Ended, Run, left_behind
from tests.training.runs import command, equal

WHOLE = {".lock", "checkpoint.pt", "log.jsonl", "model", "result.json", "run.json"}


@pytest.mark.parametrize("is_every", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_whatever_cannot_be_written(is_every: bool, training: Run, shards: Path, tmp_path: Path) -> None:
    def ended(output: Path, act: Callable[[Step, Callable[[], Any]], Any]) -> Ended:
        with intercepted(act):
            return training(*command(shards, tmp_path, output, "--save-every", 1, "--no-check", steps=1))

    seen: list[tuple[str, str]] = []

    def note(step: Step, act: Callable[[], Any]) -> Any:
        key = (step.operation, Path(step.path).name)
        if "whole" in Path(step.path).parts and key not in seen:
            seen.append(key)
        return act()

    assert ended(tmp_path / "whole", note).code == 0
    assert {name for operation, name in seen if operation == "write"} == {
        ".checkpoint.pt",
        "log.jsonl",
        "result.json.part",
        "run.json.part",
    }
    every = [key for key in seen if key[0] in ("create", "write", "sync", "rename", "make", "lock")]
    some = [key for key in every if key[0] == "write" or key[1] in (".model", "model.safetensors", ".checkpoint.pt")]
    assert len(every) > 2 * len(some) > 10
    for number, key in enumerate(every if is_every else some):
        output = tmp_path / f"full-{number}"

        def full(step: Step, act: Callable[[], Any], key: tuple[str, str] = key, output: Path = output) -> Any:
            named = str(output) in step.path or step.path == str(output)
            if named and (step.operation, Path(step.path).name.replace(output.name, "whole")) == key:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), step.path)
            return act()

        told = ended(output, full)
        assert (told.code, "No space left on device" in told.err) == (74, True), (key, told.err)
        assert str(output) in told.err
        there = left_behind(output) if output.is_dir() else []
        assert {Path(name).parts[0] for name in there} <= WHOLE, (key, there)
        if "checkpoint.pt" in there:
            torch.load(output / "checkpoint.pt", weights_only=True)
        again = ended(output, lambda _, act: act())
        assert again.code == 0, (key, again.err)
        assert equal(tmp_path / "whole", output), key
        assert left_behind(output) == left_behind(tmp_path / "whole")
