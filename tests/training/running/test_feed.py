from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from tests.conftest import Run
from tests.training.runs import command, log_of
from tests.training.samples import pack_of, tiny
from training import StepResult, train_step
from training.attention.interface import model_inputs
from training.checking.probe import probe
from training.options import TrainOptions
from training.order import packs_of_step
from training.running.feed import AHEAD, THREAD, ahead, collator
from training.running.step_log import LATE
from training.shards import open_shards


def num_threads() -> int:
    return sum(each.name.startswith(THREAD) for each in threading.enumerate())


def test_values_are_made_ahead_in_a_thread_that_ends() -> None:
    """Some ahead and no more, in their order; what goes wrong is raised where it would be taken."""
    made: list[int] = []

    def make(number: int) -> int:
        assert threading.current_thread().name.startswith(THREAD)
        made.append(number)
        if number == 5:
            raise ValueError("the sixth")
        return number * number

    taken: list[int] = []
    with pytest.raises(ValueError, match="the sixth"), ahead(make, range(100), torch.device("cpu")) as values:
        for each in values:
            taken.append(each)
            assert len(made) <= len(taken) + AHEAD
            assert num_threads() == 1
    assert taken == [0, 1, 4, 9, 16]
    assert num_threads() == 0
    assert len(made) <= 6 + AHEAD
    with ahead(make, iter(()), torch.device("cpu")) as none:
        assert list(none) == []


def with_a_bad_gradient(bad: int, seen: Callable[[int], None]) -> Callable[..., StepResult]:
    """A step; of one of them a gradient is no number."""
    steps: Iterator[int] = iter(range(1, 100))

    def step(model: torch.nn.Module, *arguments: Any, **named: Any) -> StepResult:
        number = next(steps)
        seen(number)
        nan = next(model.parameters()).register_hook(lambda gradient: gradient * (float("nan") if number == bad else 1))
        result = train_step(model, *arguments, **named)
        nan.remove()
        return result

    return step


@pytest.mark.parametrize("save_every", [0, 1])
def test_steps_are_read_late_and_those_skipped_are_counted(
    save_every: int, training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a step is looked at before two more are queued, unless a checkpoint is written."""
    output, lines = tmp_path / "out", []

    def seen(step: int) -> None:
        assert num_threads() == 1
        lines.append(len(log_of(output)))

    monkeypatch.setattr("training.running.loop.train_step", with_a_bad_gradient(3, seen))
    ended = training(*command(shards, tmp_path, output, "--save-every", save_every, "--json"))
    assert ended.code == 0, ended.err
    assert lines == [max(step - (0 if save_every else LATE), 0) for step in range(6)]
    assert [line["skipped_steps"] for line in log_of(output)] == [0, 0, 1, 1, 1, 1]
    assert [line["grad_norm"] is None for line in log_of(output)] == [step == 3 for step in range(1, 7)]
    assert ended.json["skipped_steps"] == 1
    assert "step 3 is skipped: its gradient is infinite or no number" in ended.err
    assert "skipped  1 step" in training(*command(shards, tmp_path, output)).out
    assert num_threads() == 0


def test_packs_that_are_found_damaged_meanwhile_end_the_run(training: Run, tmp_path: Path) -> None:
    """What was trained before them is in the log."""
    packs = [{name: each.tolist() for name, each in pack_of([4, 5], seed, 1.0).items()} for seed in range(8)]
    order = [packs_of_step(8, step, 1, seed=0)[0] for step in range(8)]
    packs[order[4]]["target_counts"] = [1, 1]
    datasets.Dataset.from_list(packs).save_to_disk(str(tmp_path / "shards"))
    arguments = command(tmp_path / "shards", tmp_path, tmp_path / "out", "--packs-per-step", 1, "--no-check", steps=8)
    ended = training(*arguments)
    assert ended.code == 3
    assert "target_counts and labels of a pack do not fit each other" in ended.err
    assert [line["step"] for line in log_of(tmp_path / "out")] == [1, 2, 3, 4]
    assert num_threads() == 0


@pytest.mark.parametrize(("family", "is_whole"), [("llama", False), ("openai-gpt", True)])
def test_what_is_compiled_is_given_few_shapes(family: str, is_whole: bool, shards: Path, tmp_path: Path) -> None:
    """A model without layers is compiled as a whole, for each other number of targets again."""
    options = TrainOptions(shards=str(shards), model="", output=tmp_path, steps=1, packs_per_forward=2, compile=True)
    opened = open_shards(str(shards), None)
    collate = collator(options, opened, tiny(family))
    batches = [collate(opened.packs.table([number, number + 1])) for number in range(0, len(opened.packs) - 1, 2)]
    assert len({each["input_ids"].shape for each in batches}) == 1
    assert len({each["targets"].shape for each in batches}) == (1 if is_whole else len({*map(num_targets, batches)}))
    assert len({*map(num_targets, batches)}) > 3


@pytest.mark.parametrize("more", [{}, {"attention": "joint", "packs_per_forward": 2}, {"attention": "joint"}])
def test_a_model_is_trained_by_what_it_is_probed_by(more: dict[str, Any], shards: Path, tmp_path: Path) -> None:
    """Some hybrid models keep samples apart by the numbers of segments alone."""
    probed, opened = _inputs_of_probe(), open_shards(str(shards), None)
    options = TrainOptions(shards=str(shards), model="", output=tmp_path, steps=1, **more)
    batch = collator(options, opened, tiny())(opened.packs.table([0, 1][: options.packs_per_forward]))
    is_one = len(batch["cu_seq_lens_q"]) == 2
    assert is_one == (more == {"attention": "joint"})
    assert set(model_inputs(tiny(), batch)) == probed - ({"seq_idx"} if is_one else set())


def _inputs_of_probe() -> set[str]:
    model, given = tiny(), []
    model.register_forward_pre_hook(lambda _, __, named: given.append(set(named)), with_kwargs=True)
    assert probe(model.eval(), "sdpa").verdict == "clean"
    return set.union(*given)


def num_targets(batch: dict[str, Any]) -> int:
    return int((batch["labels"] != -100).sum())
