"""Trainers of others on our shards, as docs/trainers.md shows them: they train, and their loss is the definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from tests.training.samples import losses_alone, tiny
from training import PackedCollator, train_step, use_backend
from training.attention.interface import model_inputs

COMMON: dict[str, Any] = {
    "max_steps": 1,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
    "train_sampling_strategy": "sequential",
    "bf16": False,
    "disable_tqdm": True,
}


def first_loss(trainer: Any) -> float:
    trainer.train()
    return float(trainer.state.log_history[0]["loss"])


def by_definition(packs: datasets.Dataset) -> float:
    model = tiny()
    with torch.no_grad():
        rows = packs.with_format("numpy")
        return float(torch.cat([each for row in rows for each in losses_alone(model, row)]).mean())


def joint(packs: datasets.Dataset) -> float:
    """Each pack as one long sample."""
    model = tiny()
    total = torch.zeros(())
    count = 0
    with torch.no_grad():
        for row in packs:
            ids = torch.tensor(row["input_ids"])[None]
            labels = torch.tensor(row["labels"])
            losses = -model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
            trained = labels[1:] != -100
            total += losses[trained].gather(1, labels[1:][trained][:, None]).sum()
            count += int(trained.sum())
    return float(total / count)


@pytest.fixture
def packs(shards: Path) -> datasets.Dataset:
    return datasets.load_from_disk(str(shards)).select(range(2))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {f"t{number}": number for number in range(128)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="t2", pad_token="t0")


def trained_by_trainer(packs: datasets.Dataset, folder: Path, collator: Any, **options: Any) -> float:
    arguments = TrainingArguments(output_dir=str(folder / "out"), **{**COMMON, **options})
    return first_loss(Trainer(model=tiny().train(), args=arguments, train_dataset=packs, data_collator=collator))


def trained_by_trl(packs: datasets.Dataset, folder: Path, tokenizer: Any, **options: Any) -> float:
    recipe: dict[str, Any] = {
        "packing": False,
        "padding_free": True,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    arguments = SFTConfig(output_dir=str(folder / "out"), **{**COMMON, **recipe, **options})
    trainer = SFTTrainer(model=tiny().train(), args=arguments, train_dataset=packs, processing_class=tokenizer)
    return first_loss(trainer)


def test_trainer_with_the_default_collator(packs: datasets.Dataset, tmp_path: Path) -> None:
    one = packs.select([0])
    alone = trained_by_trainer(one, tmp_path, default_data_collator, per_device_train_batch_size=1)
    assert alone == pytest.approx(by_definition(one), abs=1e-5)
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    accumulated = trained_by_trainer(packs, tmp_path, default_data_collator, **options)
    assert accumulated == pytest.approx(by_definition(packs), abs=1e-5)


def test_trainer_with_our_collator(packs: datasets.Dataset, tmp_path: Path) -> None:
    options = {"per_device_train_batch_size": 2, "remove_unused_columns": False}
    loss = trained_by_trainer(packs, tmp_path, PackedCollator(), **options)
    assert loss == pytest.approx(by_definition(packs), abs=1e-5)
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        trained_by_trainer(packs, tmp_path, PackedCollator(), per_device_train_batch_size=2)


def test_trainer_evaluates(packs: datasets.Dataset, tmp_path: Path) -> None:
    """Our collator takes its batch size of 8 as any other; the default one, which cannot stack packs, has 1."""

    def loss(collator: Any, **options: Any) -> float:
        arguments = TrainingArguments(output_dir=str(tmp_path / "out"), **{**COMMON, **options})
        trainer = Trainer(model=tiny(), args=arguments, eval_dataset=packs, data_collator=collator)
        return float(trainer.evaluate()["eval_loss"])

    assert loss(PackedCollator(), remove_unused_columns=False) == pytest.approx(by_definition(packs), abs=1e-5)
    rows = [by_definition(packs.select([number])) for number in range(len(packs))]
    assert loss(default_data_collator, per_device_eval_batch_size=1) == pytest.approx(sum(rows) / len(rows), abs=1e-5)


def test_lora_in_ones_own_loop(packs: datasets.Dataset, tmp_path: Path) -> None:
    model = tiny().train()
    use_backend(model, "auto")
    frozen = {name: each.clone() for name, each in model.state_dict().items()}
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    adapted = get_peft_model(model, config)
    optimizer = torch.optim.AdamW([each for each in adapted.parameters() if each.requires_grad], lr=2e-2)
    batch = PackedCollator()(packs[:2])
    losses = [float(train_step(adapted, batch, optimizer).loss) for _ in range(4)]
    assert losses[0] == pytest.approx(by_definition(packs), abs=1e-5)
    assert losses[-1] < losses[0] - 0.5
    adapted.save_pretrained(str(tmp_path / "adapter"))
    base = tiny()
    base.load_adapter(str(tmp_path / "adapter"))
    with torch.no_grad():
        ids = {name: batch[name] for name in ("input_ids", "position_ids")}
        by_adapter = base(**ids, use_cache=False).logits
        own = adapted.eval()(**model_inputs(adapted, batch)).logits
    assert float((own - by_adapter).abs().max()) < 1e-4
    use_backend(loaded := tiny().train(), "auto")
    again = PeftModel.from_pretrained(loaded, str(tmp_path / "adapter"), is_trainable=True)
    optimizer = torch.optim.AdamW([each for each in again.parameters() if each.requires_grad], lr=2e-2)
    assert float(train_step(again, batch, optimizer).loss) < losses[-1]  # goes on where the other ended
    merged = adapted.merge_and_unload().state_dict()
    changed = [name for name, each in frozen.items() if not torch.equal(each, merged[name])]
    assert len(changed) == 14  # the matrices of two layers, and nothing else


def test_trl(packs: datasets.Dataset, tmp_path: Path, tokenizer: Any) -> None:
    loss = trained_by_trl(packs, tmp_path, tokenizer, per_device_train_batch_size=2)
    assert loss == pytest.approx(by_definition(packs), abs=1e-5)


def test_joint_attention_on_purpose(packs: datasets.Dataset, tmp_path: Path, tokenizer: Any) -> None:
    one = packs.select([0])
    expected = joint(one)
    assert abs(expected - by_definition(one)) > 1e-3  # or this shows nothing
    options = {"per_device_train_batch_size": 1}
    without_positions = one.remove_columns("position_ids")
    assert trained_by_trainer(without_positions, tmp_path, default_data_collator, **options) == pytest.approx(
        expected, abs=1e-5
    )
    collated = trained_by_trainer(
        one, tmp_path, PackedCollator(attention="joint"), **options, remove_unused_columns=False
    )
    assert collated == pytest.approx(expected, abs=1e-5)
    by_trl = trained_by_trl(one.remove_columns("seq_lengths"), tmp_path, tokenizer, **options)
    assert by_trl == pytest.approx(expected, abs=1e-5)


def test_what_the_page_warns_of_is_silently_wrong(packs: datasets.Dataset, tmp_path: Path, tokenizer: Any) -> None:
    one = packs.select([0])
    right = by_definition(one)
    options = {"per_device_train_batch_size": 1}
    wrong = {
        "flattening": trained_by_trainer(one, tmp_path, DataCollatorWithFlattening(), **options),
        "seq2seq": trained_by_trainer(one, tmp_path, DataCollatorForSeq2Seq(tokenizer), **options),
        "language modeling": trained_by_trainer(
            one.select_columns(["input_ids", "labels", "position_ids"]),
            tmp_path,
            DataCollatorForLanguageModeling(tokenizer, mlm=False),
            **options,
        ),
        "cache": trained_by_trainer(one, tmp_path, default_data_collator, **options, use_cache=True),
        "mask of ones": trained_by_trainer(
            one.map(lambda row: {"attention_mask": [1] * len(row["input_ids"])}, keep_in_memory=True),
            tmp_path,
            default_data_collator,
            **options,
        ),
        "trl, padding_free=False": trained_by_trl(one, tmp_path, tokenizer, **options, padding_free=False),
        "trl, no labels": trained_by_trl(one.remove_columns("labels"), tmp_path, tokenizer, **options),
    }
    for name, loss in wrong.items():
        assert abs(loss - right) > 1e-3, name
