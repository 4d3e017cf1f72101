"""Options of training and of its checks. They need no torch, so that a command's help does not wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pipeline.base.errors import ConfigError
from pipeline.base.options import Options, Range
from pipeline.base.words import listed

MOST_NUMBER = 1e30
"""More than any float32 squared could be told from infinity."""

PADDED, GROUPED = "padded", "length-grouped"
FLATTENING, FLATTENING_TOLD = "transformers-flattening", "transformers-flattening-cu-seqlens"
MINIBATCH, PACKED, STATIC, DENSE = "minibatch", "packed", "packed-static", "dense"
LAYOUTS = (PADDED, GROUPED, FLATTENING, FLATTENING_TOLD, MINIBATCH, PACKED, STATIC, DENSE)
"""How the same samples are given to a model, see `training.measuring.layouts`."""

FLATTENED = (FLATTENING, FLATTENING_TOLD)
"""Layouts of transformers' own collator: the model finds in every layer where samples begin, or is told."""

OF_TRANSFORMERS = (PADDED, GROUPED, *FLATTENED)
"""Layouts that a model computes as transformers does."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """A model, and how it computes."""

    model: str
    """A directory, a Hub id, or a config.json for random weights."""

    backend: Literal["auto", "flash-attn", "torch-varlen", "sdpa"] = "auto"
    """Who computes attention; auto is the fastest that runs."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward pass, by autocast; auto is bfloat16 on a GPU. Parameters are float32."""

    seed: Annotated[int, Range(0, 2**32 - 1)] = 0


@dataclass(frozen=True, kw_only=True)
class ShardOptions(ModelOptions):
    """A model, and the packs that it is given."""

    shards: str
    """A directory that `python -m pipeline pack` wrote."""

    split: str | None = None


ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoraOptions(Options):
    """An adapter that is trained in a model's stead."""

    r: Annotated[int, Range(1)] = 16
    """Rank of its matrices."""

    alpha: Annotated[float, Range(most=MOST_NUMBER, above=0)] = 32.0
    """What it adds is multiplied by alpha / r."""

    dropout: Annotated[float, Range(0, below=1)] = 0.0
    """Probability that an input of the adapter is dropped."""

    targets: Sequence[str] = (ALL_LINEAR,)
    """Layers that it is put to, by the ends of their names; all matrices but the head by default."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ShardOptions):
    """What is trained, and how."""

    steps: Annotated[int, Range(1)]
    output: Path
    packs_per_step: Annotated[int, Range(1)] = 8
    """Packs that all ranks together train in one optimizer step."""

    packs_per_forward: Annotated[int, Range(1)] = 1
    """Packs that a rank puts through the model at once."""

    lora: LoraOptions | None = None
    """Train an adapter, and leave the model as it is."""

    attention: Literal["isolated", "joint"] = "isolated"
    loss: Literal["token-mean", "sample-mean"] = "token-mean"
    learning_rate: Annotated[float, Range(0, MOST_NUMBER)] = 2e-5
    warmup_steps: Annotated[int, Range(0)] = 0
    weight_decay: Annotated[float, Range(0, MOST_NUMBER)] = 0.0
    adam_beta1: Annotated[float, Range(0, below=1)] = 0.9
    """What Adam keeps, from step to step, of the mean of gradients."""

    adam_beta2: Annotated[float, Range(0, below=1)] = 0.999
    """What it keeps of the mean of their squares."""

    adam_eps: Annotated[float, Range(most=MOST_NUMBER, above=0)] = 1e-8
    """What it adds to the root of that mean, by which it divides."""

    max_grad_norm: Annotated[float, Range(most=MOST_NUMBER, above=0)] = 1.0
    compile: bool = False
    """torch.compile decoder layers, for rows of one length and at most 8 shapes."""

    fsdp: bool = False
    """Divide the model, its gradient and Adam's moments over the ranks (FSDP2)."""

    gradient_checkpointing: bool = False
    """Keep the activations of no layer, and compute them again for the backward pass."""

    deterministic: bool = False
    """Let no algorithm add in an order of chance, as attention kernels do backwards, at some cost in time."""

    save_every: Annotated[int, Range(0)] = 0
    """Steps between checkpoints; 0: only when the run is interrupted."""

    log_every: Annotated[int, Range(1)] = 1
    eval_shards: str | None = None
    """Packs that are not trained, but scored now and then, and after the last step."""

    eval_split: str | None = None
    eval_every: Annotated[int, Range(0)] = 0
    """Steps between evaluations; 0: only after the last step."""

    check: bool = True
    """Compare the shards with their checksums and probe the model first, and train nothing if either fails."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a value that an option cannot have, and for options that do not go together."""
        super().__post_init__()
        if self.warmup_steps > self.steps:
            raise ConfigError(f"--warmup-steps {self.warmup_steps} are more than --steps {self.steps}")
        if self.fsdp and self.compile:
            raise ConfigError("--compile is not made for --fsdp: leave out one of them")
        if self.eval_shards is None:
            for name in ("eval_split", "eval_every"):
                if getattr(self, name):
                    raise ConfigError(f"--{name.replace('_', '-')} has no effect without --eval-shards")

    def is_evaluated(self, step: int) -> bool:
        """Whether the model is scored after a step, counted from 1."""
        if self.eval_shards is None:
            return False
        return step == self.steps or bool(self.eval_every and step % self.eval_every == 0)

    def check_ranks(self, num_ranks: int) -> None:
        """Raise `ConfigError` unless a step's packs can be dealt to that many ranks."""
        more = -self.packs_per_step % num_ranks
        if more:
            raise ConfigError(
                f"--packs-per-step {self.packs_per_step} is not divisible by {num_ranks} ranks:"
                f" {self.packs_per_step + more} is"
            )


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(ModelOptions):
    """How a model is probed."""

    all_ways: bool = False
    """Also by positions alone, with usual mistakes, and with each backend that runs."""


@dataclass(frozen=True, kw_only=True)
class ParityOptions(ShardOptions):
    """How packs are compared with their samples one by one."""

    packs: Annotated[int, Range(1)] = 4


@dataclass(frozen=True, kw_only=True)
class BenchOptions(ShardOptions):
    """How layouts are measured."""

    steps: Annotated[int, Range(1)] = 8
    """Steps of each layout in a round."""

    packs_per_forward: Annotated[int, Range(1)] = 1
    """Packs, or as many samples as they have, in one forward pass, which is one step."""

    rounds: Annotated[int, Range(1)] = 3
    layouts: Sequence[str] = LAYOUTS

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a value that an option cannot have, and for a backend that nothing uses."""
        super().__post_init__()
        for name in self.layouts:
            if name not in LAYOUTS:
                raise ConfigError(f"--layouts: there is no {name!r}, but {', '.join(LAYOUTS)}")
        without = (PADDED, GROUPED) if self.backend == "torch-varlen" else OF_TRANSFORMERS
        if self.backend in ("sdpa", "torch-varlen") and not set(self.layouts) - set(without):
            raise ConfigError(
                f"--backend {self.backend} has no effect on {listed(self.layouts, 'and')}, which the model computes by"
                " attention of its own"
            )
