from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from pipeline.base.errors import ConfigError
from tests.conftest import Run, left_behind
from tests.training.forked import Forked
from tests.training.runs import ROOT, command, log_of_complete, stopping
from tests.training.samples import VOCABULARY, config_file, pack_of, tiny
from training.options import TrainOptions


def test_a_disk_without_room_is_told_before_training(
    training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.running.train.free_bytes", lambda _: 80_000)
    ended = training(*command(shards, tmp_path, tmp_path / "other"))
    assert ended.code == 74
    assert "has no room for 0.000 GB of weights (" in ended.err
    assert not (tmp_path / "other/log.jsonl").exists()


def test_a_disk_that_is_full_before_all_weights_are_written(shards: Path, tmp_path: Path) -> None:
    """safetensors writes them past what tests can intercept."""
    code, _, said = Forked(tmp_path, *command(shards, tmp_path, tmp_path / "out", steps=1), most_bytes=40_000).wait()
    assert code == 74, said
    assert "out/model cannot be written (" in said
    assert "GB free)" in said
    assert left_behind(tmp_path / "out") == ["log.jsonl", "run.json"]


def test_a_model_in_which_samples_see_each_other_is_not_trained(training: Run, shards: Path, tmp_path: Path) -> None:
    train = ["train", "--shards", shards, "--model", config_file(tmp_path, "falcon"), "--steps", 1]
    ended = training(*train, "--output", tmp_path / "out")
    assert ended.code == 4
    assert "samples would not be trained as if alone: FalconForCausalLM leaks at FalconAttention" in ended.err
    assert not (tmp_path / "out").exists()
    all_the_same = training(*train, "--output", tmp_path / "out", "--no-check")
    assert all_the_same.code == 0
    assert "FalconForCausalLM computes attention itself: no backend has an effect on it" in all_the_same.err
    without_effect = training(*train, "--output", tmp_path / "other", "--backend", "sdpa")
    assert without_effect.code == 2
    assert "FalconForCausalLM computes attention itself, so --backend sdpa has no effect" in without_effect.err


def test_what_training_cannot_use_is_one_message(training: Run, run: Run, shards: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path)

    def ends(shards: object, *more: object) -> tuple[int, str]:
        ended = training(
            "train", "--shards", shards, "--model", config, "--steps", 1, "--output", tmp_path / "o", *more
        )
        assert ended.out == ""
        return ended.code, ended.err

    code, said = ends(tmp_path / "nowhere")
    assert (code, "no such directory" in said) == (3, True)
    code, said = ends(config)
    assert (code, "a file, not the directory of the shards" in said) == (3, True)
    code, said = ends(tmp_path / "tokens")
    assert (code, "no column 'position_ids'" in said) == (3, True)
    (tmp_path / "empty").mkdir()
    code, said = ends(tmp_path / "empty")
    assert (code, "no dataset; training reads what `python -m pipeline pack` writes" in said) == (3, True)
    for model in (tmp_path / "nowhere", "nowhere/config.json", "lama.json"):
        code, said = ends(shards, "--model", model)
        assert (code, f"model {model}: no such file or directory" in said) == (2, True)
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": 33}))
    code, said = ends(shards, "--model", wrong)
    assert (code, f"model {wrong} cannot be loaded as a causal language model" in said) == (2, True)
    for rows, why in (
        ([], "it lists no data files"),
        ([{"labels": [-100] * 9, "target_counts": [0, 0]}], "not a single target"),
    ):
        made = [{name: each.tolist() for name, each in pack_of([4, 5]).items()} | row for row in rows or [{}]]
        nothing = datasets.Dataset.from_list(made).select(range(len(rows)))
        nothing.save_to_disk(str(tmp_path / "nothing"))
        code, said = ends(tmp_path / "nothing")
        assert (code, why in said) == (3, True), said
    code, said = ends(shards, "--model", "nobody/nothing")
    assert (code, "cannot be loaded from the Hub (there is no such file or directory here)" in said) == (2, True)
    code, said = ends(shards, "--split", "train")
    assert (code, "there are no splits" in said) == (2, True)
    code, said = ends(shards, "--eval-shards", tmp_path / "tokens")
    assert (code, "no column 'position_ids'" in said) == (3, True)
    code, said = ends(shards, "--output", config / "out")
    assert (code, "llama.json/out: Not a directory" in said) == (74, True)
    code, said = ends(shards, "--backend", "torch-varlen")
    assert (code, "does not run here: its kernels need CUDA" in said) == (2, True)

    small = json.loads(config.read_text()) | {"vocab_size": 50}
    config.write_text(json.dumps(small))
    code, said = ends(shards)
    assert (code, "but the model has 50 ids" in said) == (3, True)
    config.write_text(json.dumps(small | {"vocab_size": VOCABULARY, "max_position_embeddings": 16}))
    code, said = ends(shards)
    assert (code, "pack with --max-length 16" in said) == (3, True)
    assert not (tmp_path / "o").exists()


def test_options_that_training_cannot_have_are_one_message(training: Run, shards: Path, tmp_path: Path) -> None:
    train = command(shards, tmp_path, tmp_path / "o", steps=1)

    def says(*more: object) -> str:
        ended = training(*train, *more)
        assert (ended.code, ended.out) == (2, "")
        return ended.err

    for option in ("--learning-rate", "--weight-decay", "--max-grad-norm", "--adam-eps"):
        for value in ("nan", "inf", "3e38"):
            said = says(option, value)
            assert "must be a finite number" in said or "is not in the range" in said, said
    for option, value in (("--seed", "-1"), ("--adam-beta1", "1"), ("--adam-beta2", "-0.1"), ("--adam-eps", "0")):
        assert f"{option}': {float(value) if option != '--seed' else value} is not in the range" in says(option, value)
    with pytest.raises(ConfigError, match="adam_beta1 must be less than 1, not 1"):
        TrainOptions(shards="", model="", steps=1, output=tmp_path, adam_beta1=1)
    assert "--warmup-steps 2 are more than --steps 1" in says("--warmup-steps", 2)
    for option, value in (("--eval-every", "2"), ("--eval-split", "test")):
        assert f"{option} has no effect without --eval-shards" in says(option, value)
    assert not (tmp_path / "o").exists()


def test_damaged_shards_are_not_trained(training: Run, shards: Path, tmp_path: Path) -> None:
    (shards / "README.md").write_text("anyone's to edit")
    assert training(*command(shards, tmp_path, tmp_path / "whole", steps=1)).code == 0
    (shard,) = shards.glob("*.arrow")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    ended = training(*command(shards, tmp_path, tmp_path / "out"))
    assert ended.code == 3
    assert f"{shard} was changed after it was packed; see `python -m pipeline verify {shards}`" in ended.err
    shard.write_bytes(content[: len(content) // 2])
    assert training(*command(shards, tmp_path, tmp_path / "out")).code == 3
    shard.unlink()
    assert training(*command(shards, tmp_path, tmp_path / "out")).code == 3
    (shards / "state.json").rename(shards / "elsewhere.json")
    ended = training(*command(shards, tmp_path, tmp_path / "out"))
    assert ended.code == 3
    assert "state.json is missing; see `python -m pipeline verify" in ended.err
    (shards / "state.json").write_text("{}")
    ended = training(*command(shards, tmp_path, tmp_path / "out"))
    assert ended.code == 3
    assert "cannot be read (KeyError: '_data_files')" in ended.err
    (shards / "manifest.json").write_text("{")
    ended = training(*command(shards, tmp_path, tmp_path / "out"))
    assert ended.code == 3
    assert "manifest.json is not valid JSON" in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("boundaries", [0, 4, 4, 9], "boundaries of a pack are no rising numbers"),
        ("boundaries", [], "boundaries of a pack are no rising numbers"),
        ("boundaries", [1, 4, 9], "input_ids and boundaries of a pack do not fit each other"),
        ("boundaries", [0, 4, 8], "input_ids and boundaries of a pack do not fit each other"),
        ("position_ids", [0, 1, 2, 3, 4, 0, 1, 2, 3], "position_ids and boundaries of a pack do not fit each other"),
        ("labels", [-100] * 8, "labels and boundaries of a pack do not fit each other"),
        ("labels", [-100, 6, 7, 5, 6, 7, 8, 9, -100], "target_counts and labels of a pack do not fit each other"),
        ("target_counts", [1, 1], "target_counts and labels of a pack do not fit each other"),
        ("input_ids", [5, 6, -7, 5, 6, 7, 8, 9, 5], "token -7, but the model has 128 ids"),
        ("labels", [-100, 6, 7, 5, -100, 7, 900, 9, 5], "label 900, but the model has 128 ids"),
    ],
)
def test_packs_that_do_not_fit_themselves_are_not_trained(
    training: Run, tmp_path: Path, column: str, value: list[int], says: str
) -> None:
    """Whoever changed them: no manifest tells."""
    pack = {name: each.tolist() for name, each in pack_of([4, 5], trained=1.0).items()}
    datasets.Dataset.from_list([pack] * 3).save_to_disk(str(tmp_path / "right"))
    right = training(*command(tmp_path / "right", tmp_path, tmp_path / "out", steps=1))
    assert right.code == 0
    assert "no manifest.json, so nothing tells whether they are as they were packed" in right.err
    datasets.Dataset.from_list([pack] * 3 + [pack | {column: value}]).save_to_disk(str(tmp_path / "wrong"))
    shutil.rmtree(tmp_path / "right")
    (tmp_path / "wrong").rename(tmp_path / "right")
    again = training(*command(tmp_path / "right", tmp_path, tmp_path / "out", steps=1))
    assert again.code == (3 if "rising" in says else 2)  # what cannot be packs, and what is another run
    (tmp_path / "right").rename(tmp_path / "wrong")
    for name, more in (("train", ["--steps", 1, "--output", tmp_path / "other"]), ("parity", []), ("bench", [])):
        ended = training(name, "--shards", tmp_path / "wrong", "--model", config_file(tmp_path), *more)
        assert (ended.code, says in ended.err) == (3, True), ended.err


def test_a_model_that_refuses_packs_is_refused(training: Run, shards: Path, tmp_path: Path) -> None:
    given = ["--shards", shards, "--model", config_file(tmp_path, "nemotron")]
    train = ["train", *given, "--steps", 1, "--output", tmp_path / "out"]
    for arguments in (["probe", *given[2:]], train, [*train, "--no-check"], ["parity", *given]):
        ended = training(*arguments)
        assert ended.code == 4
        assert "NemotronAttention is not told where segments begin" in ended.err + ended.out
    # Layers that know where segments begin, and have no kernels that keep them apart.
    hybrid = ["--shards", shards, "--model", config_file(tmp_path, "qwen3_next")]
    for arguments in (["train", *hybrid, *train[-4:], "--no-check"], ["parity", *hybrid]):
        ended = training(*arguments)
        assert ended.code == 4
        assert "Qwen3NextForCausalLM refuses packs: " in ended.err
    ended = training("bench", *given, "--layouts", "padded,packed", "--rounds", 1, "--json")
    assert ended.code == 0
    assert "is not told where segments begin" in ended.json["layouts"]["packed"]["failed"]
    assert ended.json["layouts"]["padded"]["tokens_per_second"] > 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_no_bug(
    error: Exception, training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("training.running.loop.train_step", step)
    ended = training(*command(shards, tmp_path, tmp_path / "out", "--no-check"))
    assert ended.code == 2
    assert f"memory does not suffice ({str(error).splitlines()[0]}): in train, take fewer --packs-per" in ended.err


@pytest.mark.parametrize(
    ("steps", "more", "says", "lines"),
    [
        (9, [], "of 5 steps in a row, up to step 6, are infinite or no numbers, and the loss is nan", 6),
        (3, [], "the gradients of 2 of 3 steps are infinite or no numbers", 3),
        (3, ["--save-every", 1, "--weight-decay", "1e30"], "after step 1 some weights are infinite or no numbers", 1),
    ],
)
def test_what_is_no_number_any_more_ends_the_run_and_is_not_saved(
    steps: int, more: list[object], says: str, lines: int, training: Run, shards: Path, tmp_path: Path
) -> None:
    ended = training(*command(shards, tmp_path, tmp_path / "out", "--learning-rate", "1e30", *more, steps=steps))
    assert ended.code == 4
    assert says in ended.err
    assert left_behind(tmp_path / "out") == ["log.jsonl", "run.json"]
    log = [json.loads(line, parse_constant=pytest.fail) for line in log_of_complete(tmp_path / "out")]
    assert [line["loss"] is None for line in log] == [False, *[True] * (lines - 1)]
    assert [line["skipped_steps"] for line in log] == list(range(lines))


def test_splits_are_chosen_by_name(training: Run, run: Run, tmp_path: Path) -> None:
    rows = [{"input_ids": list(range(3, 20))}] * 20
    both = datasets.DatasetDict(train=datasets.Dataset.from_list(rows), test=datasets.Dataset.from_list(rows[:5]))
    both.save_to_disk(str(tmp_path / "tokens"))
    assert run("pack", tmp_path / "tokens", "--output", tmp_path / "shards", "--max-length", 40).code == 0
    ambiguous = training(*command(tmp_path / "shards", tmp_path, tmp_path / "out"))
    assert ambiguous.code == 2
    assert "--split: " in ambiguous.err
    chosen = ["--split", "train", "--eval-shards", tmp_path / "shards", "--eval-split", "test", "--json"]
    trained = training(*command(tmp_path / "shards", tmp_path, tmp_path / "out", *chosen, steps=1))
    assert trained.code == 0
    assert trained.json["evaluation"]["samples"] == 5
    unsaid = training(*command(tmp_path / "shards", tmp_path, tmp_path / "other", *chosen[:4]))
    assert "choose one of the splits with --eval-split: train, test" in unsaid.err
    missing = training(*command(tmp_path / "shards", tmp_path, tmp_path / "other", "--split", "dev"))
    assert "no split 'dev'" in missing.err


def test_without_a_compiler_compilation_is_refused(shards: Path, tmp_path: Path) -> None:
    nowhere = {"PATH": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    compiled = command(shards, tmp_path, tmp_path / "out", "--compile", steps=1)
    code, _, said = Forked(tmp_path, *compiled, environment=nowhere).wait()
    assert code == 2, said
    assert "--compile: the model does not compile here" in said


def test_without_torch_the_extra_is_named(tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from training.command.main import main; main()"
    for arguments, code in ((["--help"], 0), (["probe", "--model", "x"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
    assert "pip install 'tightpack[train]'" in done.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "[]"),
        ("result.json", "{}"),
        ("result.json", '{"evaluation": {"step": 1}}'),
        ("log.jsonl", "broken}\n"),
        ("log.jsonl", "{}\n"),
        ("checkpoint.pt", [1]),
        ("checkpoint.pt", {"step": 1}),
    ],
)
def test_files_of_a_run_that_are_damaged_are_named(
    name: str, content: object, training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    arguments = command(shards, tmp_path, output, "--no-check", steps=2)
    with monkeypatch.context() as patched:
        if name != "result.json":
            patched.setattr("training.running.loop.train_step", stopping(after=1))
        assert training(*arguments).code == (0 if name == "result.json" else 143)
    if isinstance(content, str):
        (output / name).write_text(content)
    else:
        torch.save(content, output / name)
    ended = training(*arguments)
    assert ended.code == 2
    assert f"{output / name} is" in ended.err
    assert "; remove it" in ended.err  # or its directory


def test_a_model_that_lacks_weights_is_refused(training: Run, shards: Path, tmp_path: Path) -> None:
    model = tiny()
    state = model.state_dict()
    del state["model.layers.0.mlp.up_proj.weight"], state["model.norm.weight"]
    model.save_pretrained(tmp_path / "model", state_dict=state)
    for arguments in (["probe"], ["train", "--shards", shards, "--steps", 1, "--output", tmp_path / "out"]):
        ended = training(*arguments, "--model", tmp_path / "model")
        assert ended.code == 2
        assert "lack model.layers.0.mlp.up_proj.weight and 1 more, which would be random" in ended.err
    assert not (tmp_path / "out").exists()
