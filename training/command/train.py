"""`python -m training train`."""

from __future__ import annotations

from typing import Any

import click

from pipeline.base.harness import Decorator, flag, flags, print_result, result_options
from training.command.flags import COMPUTE_FLAGS, MODEL_FLAG, SHARD_FLAGS, Lora
from training.options import TrainOptions

_OUTPUT_FLAGS: list[Decorator] = [
    flag(TrainOptions, "steps", "Make so many optimizer steps.", metavar="N"),
    flag(TrainOptions, "output", "Write the model and the log to this directory.", metavar="DIR"),
]

_STEP_FLAGS: list[Decorator] = [
    flag(TrainOptions, "packs_per_step", "Train so many packs in a step, on all ranks together.", metavar="N"),
    flag(TrainOptions, "packs_per_forward", "Put so many packs of a rank through the model at once.", metavar="N"),
    flag(TrainOptions, "attention", "Keep the samples of a pack apart, or let each see those before it."),
    flag(TrainOptions, "loss", "Give every target the same weight, or every sample."),
]

_LORA_FLAG: list[Decorator] = [
    flag(
        TrainOptions,
        "lora",
        "Train a LoRA adapter of this rank, alpha, dropout and these layers, and leave the model as it is.",
        type=Lora(),
        metavar="r=16,alpha=32,...",
    ),
]

_OPTIMIZER_FLAGS: list[Decorator] = [
    flag(TrainOptions, "learning_rate", "Let the learning rate rise to this.", metavar="RATE"),
    flag(TrainOptions, "warmup_steps", "Let it rise for so many steps, before it falls as a cosine.", metavar="N"),
    flag(TrainOptions, "weight_decay", "Decay matrices by this.", metavar="RATE"),
    flag(TrainOptions, "max_grad_norm", "Clip the gradient to this norm.", metavar="NORM"),
    flag(TrainOptions, "adam_beta1", "Keep so much of Adam's mean of gradients in each step.", metavar="BETA"),
    flag(TrainOptions, "adam_beta2", "Keep so much of Adam's mean of their squares.", metavar="BETA"),
    flag(TrainOptions, "adam_eps", "Add this to the root of that mean.", metavar="EPS"),
]

_EVAL_FLAGS: list[Decorator] = [
    flag(TrainOptions, "eval_shards", "Score the packs of this directory, without training them.", metavar="DIR"),
    flag(TrainOptions, "eval_split", "Score this split; it is needed where --eval-shards has several.", metavar="NAME"),
    flag(TrainOptions, "eval_every", "Score them every N steps, too; after the last it is always done.", metavar="N"),
]

_RUN_FLAGS: list[Decorator] = [
    flag(TrainOptions, "compile", "Compile the model, for rows of one length."),
    flag(TrainOptions, "fsdp", "Divide the model over the ranks of torchrun: it takes less memory and more exchange."),
    flag(TrainOptions, "gradient_checkpointing", "Compute activations twice: it takes less memory and more time."),
    flag(TrainOptions, "deterministic", "Compute the same bits in every run on a GPU of one kind: it takes more time."),
    flag(TrainOptions, "save_every", "Write a checkpoint to go on from, every N steps.", metavar="N"),
    flag(TrainOptions, "log_every", "Write a line of the log every N steps.", metavar="N"),
    flag(TrainOptions, "check", "Check the shards' checksums, and probe the model, before training."),
]


@click.command()
@flags(
    SHARD_FLAGS,
    MODEL_FLAG,
    _OUTPUT_FLAGS,
    _STEP_FLAGS,
    _LORA_FLAG,
    _OPTIMIZER_FLAGS,
    COMPUTE_FLAGS,
    _EVAL_FLAGS,
    _RUN_FLAGS,
)
@result_options
def train(as_json: bool, **values: Any) -> None:
    """Train a model on packs.

    A run that was stopped goes on by the same command; torchrun starts several ranks.
    """
    from training.command.tables import train_table
    from training.running.train import train as run_train

    print_result(*train_table(run_train(TrainOptions(**values))), as_json)
