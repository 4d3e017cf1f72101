"""Real samples, real tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from tests.conftest import Run
from tests.pipeline.oracle import assert_packed, expect

pytestmark = [pytest.mark.needs("tokenizers"), pytest.mark.slow]


@pytest.fixture(scope="module")
def superni(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Instruction samples of many tasks: the answer is trained, the rest is not."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(real_data / "tokenizers" / "gpt2" / "tokenizer.json"))
    with open(real_data / "superni" / "train.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file.read().split("\n") if line]
    prompts = tokenizer.encode_batch([f"{row['instruction']}\n{row['input']}\n" for row in rows])
    answers = tokenizer.encode_batch([row["output"] + "<|endoftext|>" for row in rows])
    kind = pa.list_(pa.int32())
    table = pa.table(
        {
            "input_ids": pa.array([p.ids + a.ids for p, a in zip(prompts, answers, strict=True)], kind),
            "labels": pa.array([[-100] * len(p.ids) + a.ids for p, a in zip(prompts, answers, strict=True)], kind),
        }
    )
    folder = tmp_path_factory.mktemp("superni") / "in"
    datasets.Dataset(table).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("overlong", ["drop", pytest.param("truncate", marks=pytest.mark.soak), "split"])
def test_superni_token_for_token(run: Run, tmp_path: Path, superni: Path, overlong: str) -> None:
    flags = ["--max-length", 2048, "--overlong", overlong, "--window-samples", 6000]
    ended = run("pack", superni, "--output", tmp_path / "out", *flags, "--json")
    assert ended.code == 0, ended.err
    rows = datasets.load_from_disk(str(superni)).to_list()
    assert_packed(tmp_path / "out", expect(rows, 2048, overlong), ended.json)
    assert run("verify", tmp_path / "out", "--source", superni).code == 0


@pytest.mark.parametrize(
    ("strategy", "at_least"),
    [("best-fit-decreasing", 0.998), ("greedy", 0.998), ("first-fit", 0.99), ("next-fit", 0.9), ("random", 0.999)],
)
def test_superni_fill(run: Run, superni: Path, strategy: str, at_least: float) -> None:
    overlong = [] if strategy == "random" else ["--overlong", "drop"]
    ended = run("pack", superni, "--dry-run", "--max-length", 2048, *overlong, "--strategy", strategy, "--json")
    assert ended.json["plan"]["fill"] >= at_least
    assert ended.json["plan"]["packs"] >= ended.json["plan"]["lower_bound"]
