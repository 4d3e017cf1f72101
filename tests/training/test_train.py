from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaMLP

from tests.conftest import Run, left_behind
from tests.training.samples import VOCABULARY, config_file, pack_of, packed_shards, tiny
from training.shards import packs_of_step

ROOT = Path(__file__).parents[2]


def log_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model/model.safetensors")


def equal(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def command(shards: Path, folder: Path, output: Path, *more: object, steps: int = 6) -> list[object]:
    config = config_file(folder)
    return ["train", "--shards", shards, "--model", config, "--steps", steps, "--output", output, *more]


def test_training_lowers_the_loss_and_leaves_a_model(training: Run, shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    more = ["--learning-rate", "3e-2", "--packs-per-step", 4, "--packs-per-forward", 2]
    ended = training(*command(shards, tmp_path, output, *more, "--warmup-steps", 2, "--json", steps=30))
    assert ended.code == 0, ended.err
    log = log_of(output)
    assert [line["step"] for line in log] == list(range(1, 31))
    assert sum(line["loss"] for line in log[-5:]) < sum(line["loss"] for line in log[:5]) - 1
    rates = [line["learning_rate"] for line in log]
    assert rates[:3] == pytest.approx([1.5e-2, 3e-2, 3e-2])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    assert all(line["tokens_per_second"] > line["targets_per_second"] > 0 for line in log)
    assert all(line["peak_memory_bytes"] > 1 << 20 for line in log)
    assert ended.json["loss"] == log[-1]["loss"]
    assert ended.json["backend"] == "sdpa"
    model = AutoModelForCausalLM.from_pretrained(output / "model")
    assert model.config.vocab_size == VOCABULARY
    assert not (output / "checkpoint.pt").exists()


def test_a_finished_run_is_up_to_date_and_no_other(training: Run, shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert training(*command(shards, tmp_path, output)).code == 0
    before = (output / "model/model.safetensors").stat().st_mtime_ns
    again = training(*command(shards, tmp_path, output))
    assert again.code == 0
    assert "up to date" in again.out
    assert (output / "model/model.safetensors").stat().st_mtime_ns == before
    other = training(*command(shards, tmp_path, output, "--learning-rate", "1e-3"))
    assert other.code == 2
    assert "holds another run: its learning-rate is 2e-05, not 0.001" in other.err


def test_a_run_whose_model_is_gone_or_was_another_is_not_up_to_date(
    training: Run, shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert training(*command(shards, tmp_path, output)).code == 0
    before = weights(output)
    (output / "model/notes.txt").write_text("one's own")
    (tmp_path / "tokenizer.json").touch()  # of no model
    assert "up to date" in training(*command(shards, tmp_path, output)).out
    (output / "model/model.safetensors").unlink()
    changed = training(*command(shards, tmp_path, output))
    assert changed.code == 2
    assert "model is not as it was written; remove it to train it again" in changed.err
    shutil.rmtree(output / "model")
    again = training(*command(shards, tmp_path, output))
    assert again.code == 0
    assert "model is gone: it is trained again" in again.err
    assert "up to date" not in again.out
    assert all(torch.equal(before[name], each) for name, each in weights(output).items())
    arguments = command(shards, tmp_path, output)
    config = config_file(tmp_path)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-3}))
    other = training(*arguments)
    assert other.code == 2
    assert "holds another run: its model has another config.json or other weights" in other.err
    gone = training(*["nowhere/config.json" if each == config else each for each in arguments])
    assert gone.code == 2
    assert "model nowhere/config.json: no such file or directory" in gone.err


def test_what_is_not_a_runs_own_is_left_alone(training: Run, shards: Path, tmp_path: Path) -> None:
    before = left_behind(shards)
    refused = training(*command(shards, tmp_path, shards))
    assert refused.code == 2
    assert "holds files that are not of a training run" in refused.err
    assert left_behind(shards) == before
    (tmp_path / "file").touch()
    assert "is a file" in training(*command(shards, tmp_path, tmp_path / "file")).err
    failed = training(*command(shards, tmp_path, tmp_path / "out", "--learning-rate", "1e30"))
    assert failed.code == 4
    assert training(*command(shards, tmp_path, tmp_path / "out")).code == 0  # nothing of it was worth keeping


def test_two_runs_do_not_write_one_output(training: Run, shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    with open(output / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busy = training(*command(shards, tmp_path, output))
    assert busy.code == 75
    assert "another run is writing" in busy.err
    assert training(*command(shards, tmp_path, output)).code == 0
    assert (output / "model/model.safetensors").stat().st_mode & 0o777 == (output / "log.jsonl").stat().st_mode & 0o777


def test_a_disk_without_room_is_told_before_training(
    training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.train._room_for", lambda *_: 1 << 60)
    ended = training(*command(shards, tmp_path, tmp_path / "other"))
    assert ended.code == 74
    assert "has no room for 1,152,921,504.607 GB of weights" in ended.err
    assert not (tmp_path / "other/log.jsonl").exists()


def test_the_tokenizer_goes_with_the_model(training: Run, shards: Path, tmp_path: Path) -> None:
    """From a directory, and by its id from the Hub, whose files lie in the cache."""
    snapshot = tmp_path / "hub/models--somebody--tiny/snapshots/1"
    tiny().save_pretrained(snapshot)
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(snapshot)
    refs = tmp_path / "hub/models--somebody--tiny/refs"
    refs.mkdir()
    (refs / "main").write_text("1")
    train = ["train", "--shards", shards, "--steps", 1]
    assert training(*train, "--model", snapshot, "--output", tmp_path / "local").code == 0
    done = subprocess.run(
        [sys.executable, "-m", "training", *map(str, train), "--model", "somebody/tiny", "--output", tmp_path / "hubs"],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for output in ("local", "hubs"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / output / "model")
        assert tokenizer.convert_tokens_to_ids(["a", "b"]) == [0, 1]
    without = training(*train, "--model", config_file(tmp_path), "--output", tmp_path / "none")
    assert "has no tokenizer, so the trained model has none" in without.err


def test_a_full_disk_is_a_storage_fault(shards: Path, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))"
    program = f"{limit}; from training.cli import main; main()"
    arguments = map(str, command(shards, tmp_path, tmp_path / "out", steps=1))
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 74, done.stderr
    assert "out/model cannot be written (" in done.stderr
    assert "GB free)" in done.stderr
    assert not (tmp_path / "out/.model").exists()
    more = map(str, command(shards, tmp_path, tmp_path / "saved", "--save-every", 1))
    done = subprocess.run([sys.executable, "-c", program, *more], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 74, done.stderr
    assert "checkpoint.pt cannot be written (" in done.stderr
    assert left_behind(tmp_path / "saved") == [".lock", "log.jsonl", "run.json"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_to_the_same_weights(
    training: Run, shards: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    more = ["--learning-rate", "1e-2", "--loss", "sample-mean"]
    assert training(*command(shards, tmp_path, whole, *more, steps=60)).code == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *map(str, command(shards, tmp_path, stopped, *more, steps=60))],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as in this process: sums depend on it in their last bits
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (stopped / "log.jsonl").exists() or len(log_of_complete(stopped)) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if sent == signal.SIGINT else 143), said
    assert "the same command goes on after step" in said
    assert "Traceback" not in said
    step = torch.load(stopped / "checkpoint.pt", weights_only=True)["step"]
    assert 5 <= step < 60
    with open(stopped / "log.jsonl", "a") as file:
        file.write(json.dumps({"step": step + 1, "loss": 0.0}) + '\n{"step": ')  # as if it had been killed later
    on = training(*command(shards, tmp_path, stopped, *more, steps=60))
    assert on.code == 0, on.err
    assert f"going on after step {step}" in on.err
    assert equal(whole, stopped)
    assert [line["loss"] for line in log_of(stopped)] == [line["loss"] for line in log_of(whole)]


def log_of_complete(output: Path) -> list[str]:
    return [line for line in (output / "log.jsonl").read_text().split("\n") if line.endswith("}")]


def test_checkpoints_are_written_on_request_and_of_one_run(training: Run, shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert training(*command(shards, tmp_path, output, "--save-every", 2)).code == 0
    assert not (output / "checkpoint.pt").exists()
    (output / "result.json").unlink()
    torch.save({"step": 2}, output / "checkpoint.pt")
    other = training(*command(shards, tmp_path, output, steps=9))
    assert other.code == 2
    assert "holds another run: its steps is 6, not 9" in other.err
    (output / "checkpoint.pt").write_bytes(b"broken")
    broken = training(*command(shards, tmp_path, output))
    assert broken.code == 2
    assert "remove it to begin again" in broken.err


def test_every_option_that_decides_the_result_changes_it(training: Run, shards: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path)
    train = ["train", "--shards", shards, "--model", config, "--steps", 3, "--learning-rate", "1e-2"]
    assert training(*train, "--output", tmp_path / "plain").code == 0
    for number, more in enumerate(
        (
            ["--attention", "joint"],
            ["--loss", "sample-mean"],
            ["--packs-per-step", 4],
            ["--learning-rate", "2e-2"],
            ["--warmup-steps", 2],
            ["--weight-decay", "0.5"],
            ["--max-grad-norm", "0.01"],
            ["--dtype", "bfloat16"],
            ["--seed", 1],
        )
    ):
        output = tmp_path / str(number)
        ended = training(*train, *more, "--output", output)
        assert ended.code == 0, (more, ended.err)
        assert not equal(tmp_path / "plain", output), more
    for more in (["--log-every", 2], ["--save-every", 1], ["--no-check"], ["--backend", "sdpa"]):
        output = tmp_path / more[0]
        assert training(*train, *more, "--output", output).code == 0
        assert equal(tmp_path / "plain", output), more


def test_micro_batches_do_not_change_what_is_learned(training: Run, shards: Path, tmp_path: Path) -> None:
    for packs in (1, 3, 8):
        output = tmp_path / str(packs)
        assert training(*command(shards, tmp_path, output, "--packs-per-forward", packs)).code == 0
        assert "up to date" in training(*command(shards, tmp_path, output, "--packs-per-forward", 2)).out
    one, three, eight = (weights(tmp_path / str(packs)) for packs in (1, 3, 8))
    for name, each in one.items():
        assert torch.allclose(each, three[name], atol=1e-4), name
        assert torch.allclose(each, eight[name], atol=1e-4), name


def on_two_ranks(*arguments: object) -> subprocess.Popen[str]:
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "training"]
    return subprocess.Popen(
        [*launched, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_ranks_train_as_one(training: Run, shards: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert training(*command(shards, tmp_path, one, "--learning-rate", "1e-3")).code == 0
    process = on_two_ranks(*command(shards, tmp_path, two, "--learning-rate", "1e-3", "--json"))
    printed, said = process.communicate()
    assert process.returncode == 0, said
    assert json.loads(printed)["steps"] == 6  # one rank prints
    assert [line["loss"] for line in log_of(two)] == pytest.approx([line["loss"] for line in log_of(one)], abs=1e-5)
    other = weights(two)
    for name, each in weights(one).items():
        assert torch.allclose(each, other[name], atol=1e-4), name


def test_a_rank_that_is_left_alone_says_so(shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    with open(output / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _, said = on_two_ranks(*command(shards, tmp_path, output)).communicate()
    assert "rank 0: another run is writing" in said
    assert "bug of ours" not in said


def test_two_ranks_that_are_stopped_go_on_to_the_same_weights(shards: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    process = on_two_ranks(*command(shards, tmp_path, whole, steps=60))
    _, said = process.communicate()
    assert process.returncode == 0, said
    process = on_two_ranks(*command(shards, tmp_path, stopped, steps=60))
    while not (stopped / "log.jsonl").exists() or len(log_of_complete(stopped)) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    for rank in range(2):
        assert f"rank {rank}: terminated; the same command goes on after step" in said
    step = torch.load(stopped / "checkpoint.pt", weights_only=True)["step"]
    assert 5 <= step < 60
    process = on_two_ranks(*command(shards, tmp_path, stopped, steps=60))
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert f"going on after step {step}" in said
    assert equal(whole, stopped)


def test_checkpointed_gradients_are_the_same(
    training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    forward = LlamaMLP.forward

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        passes.append(self.training)
        return forward(self, *arguments, **named)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    assert training(*command(shards, tmp_path, tmp_path / "plain")).code == 0
    once = sum(passes)
    assert training(*command(shards, tmp_path, tmp_path / "again", "--gradient-checkpointing")).code == 0
    assert sum(passes) - once == 2 * once > 0
    assert equal(tmp_path / "plain", tmp_path / "again")


def test_a_model_in_which_samples_see_each_other_is_not_trained(training: Run, shards: Path, tmp_path: Path) -> None:
    train = ["train", "--shards", shards, "--model", config_file(tmp_path, "falcon"), "--steps", 1]
    ended = training(*train, "--output", tmp_path / "out")
    assert ended.code == 4
    assert "samples would not be trained as if alone: FalconForCausalLM leaks at FalconAttention" in ended.err
    assert not (tmp_path / "out").exists()
    all_the_same = training(*train, "--output", tmp_path / "out", "--no-check")
    assert all_the_same.code == 0
    assert "FalconForCausalLM computes attention itself: sdpa has no effect on it" in all_the_same.err


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
        ([], "cannot be read"),
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
    for option in ("--learning-rate", "--weight-decay", "--max-grad-norm"):
        for value in ("nan", "inf", "3e38"):
            code, said = ends(shards, option, value)
            assert (code, "must be a finite number" in said) == (2, True)
    assert ends(shards, "--seed", -1)[0] == 2
    code, said = ends(shards, "--warmup-steps", 2)
    assert (code, "--warmup-steps 2 are more than --steps 1" in said) == (2, True)
    code, said = ends(shards, "--output", config / "out")
    assert (code, "cannot be written: Not a directory" in said) == (74, True)
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
    assert "manifest.json is damaged" in ended.err
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
    ended = training("bench", *given, "--layouts", "padded,packed", "--rounds", 1, "--json")
    assert ended.code == 0
    assert "is not told where segments begin" in ended.json["layouts"]["packed"]["failed"]
    assert ended.json["layouts"]["padded"]["tokens_per_second"] > 0


def test_a_loss_that_is_not_finite_ends_the_run(training: Run, shards: Path, tmp_path: Path) -> None:
    ended = training(*command(shards, tmp_path, tmp_path / "out", "--learning-rate", "1e30"))
    assert ended.code == 4
    assert "is nan: lower --learning-rate?" in ended.err
    assert not (tmp_path / "out/model").exists()
    last = (tmp_path / "out/log.jsonl").read_text().splitlines()[-1]
    assert json.loads(last, parse_constant=pytest.fail)["loss"] is None


def test_without_a_terminal_there_is_a_line_now_and_then(
    training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.train._TELL_EVERY", 0.0)
    ended = training(*command(shards, tmp_path, tmp_path / "out"))
    assert f"step 3 of 6, loss {log_of(tmp_path / 'out')[2]['loss']:.4f}" in ended.err
    ended = training(*command(shards, tmp_path, tmp_path / "other", "--log-every", 4))
    assert "step 3 of 6" not in ended.err
    assert "step 4 of 6" in ended.err


def test_splits_are_chosen_by_name(training: Run, run: Run, tmp_path: Path) -> None:
    rows = [{"input_ids": list(range(3, 20))}] * 20
    both = datasets.DatasetDict(train=datasets.Dataset.from_list(rows), test=datasets.Dataset.from_list(rows[:5]))
    both.save_to_disk(str(tmp_path / "tokens"))
    assert run("pack", tmp_path / "tokens", "--output", tmp_path / "shards", "--max-length", 40).code == 0
    ambiguous = training(*command(tmp_path / "shards", tmp_path, tmp_path / "out"))
    assert ambiguous.code == 2
    assert "--split: " in ambiguous.err
    assert training(*command(tmp_path / "shards", tmp_path, tmp_path / "out", "--split", "train", steps=1)).code == 0
    missing = training(*command(tmp_path / "shards", tmp_path, tmp_path / "other", "--split", "dev"))
    assert "no split 'dev'" in missing.err


def test_compiled_training_learns_the_same(training: Run, run: Run, tmp_path: Path) -> None:
    if not any(os.access(Path(folder) / "g++", os.X_OK) for folder in os.environ["PATH"].split(":")):
        pytest.skip("no C++ compiler for torch.compile on a CPU")
    shards = packed_shards(run, tmp_path)
    assert training(*command(shards, tmp_path, tmp_path / "plain", steps=3)).code == 0
    ended = training(*command(shards, tmp_path, tmp_path / "compiled", "--compile", steps=3))
    assert ended.code == 0, ended.err
    losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("plain", "compiled")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_signal_after_the_last_step_does_not_lose_the_run(
    training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice Ctrl-C while the model is written: it is written."""
    written = LlamaForCausalLM.save_pretrained

    def interrupted(self: Any, folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        written(self, folder)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", interrupted)
    output = tmp_path / "out"
    ended = training(*command(shards, tmp_path, output))
    assert ended.code == 0, ended.err
    assert (output / "model/model.safetensors").is_file()
    assert "up to date" in training(*command(shards, tmp_path, output)).out


def test_without_a_compiler_compilation_is_refused(training: Run, shards: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training", *map(str, command(shards, tmp_path, tmp_path / "out", "--compile"))],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CXX": "/nowhere/g++"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "--compile: the model does not compile here" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_torch_the_extra_is_named(tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from training.cli import main; main()"
    for arguments, code in ((["--help"], 0), (["probe", "--model", "x"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
    assert "pip install 'tightpack[train]'" in done.stderr


def test_steps_walk_through_every_pack_once_an_epoch() -> None:
    seen = [pack for step in range(10) for pack in packs_of_step(7, step, 3, seed=0)]
    for epoch in range(4):
        assert sorted(seen[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert seen[:7] != seen[7:14]
    assert packs_of_step(7, 2, 3, seed=0) != packs_of_step(7, 2, 3, seed=1)
    assert packs_of_step(2, 0, 5, seed=0)[4] in (0, 1)  # more packs a step than there are
