"""What `python -m training train` is told."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.errors import ConfigError
from training.models import model_identity
from training.shards import Shards, shards_identity

_NOT_IN_RESULT = (
    "shards",
    "output",
    "packs_per_forward",
    "gradient_checkpointing",
    "save_every",
    "log_every",
    "check",
)
"""Options that change at most how the trained weights are rounded, or are named by the shards' `run_id`."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What is trained, and how."""

    shards: str
    model: str
    steps: int
    split: str | None = None
    packs_per_step: int = 8
    """Of all ranks together; one optimizer step."""

    packs_per_forward: int = 1
    """Of one rank, in one forward and backward pass."""

    attention: str = "isolated"
    loss: str = "token-mean"
    """token-mean or sample-mean."""

    learning_rate: float = 2e-5
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    dtype: str = "auto"
    """Of the forward pass, by autocast: float32 or bfloat16; auto is bfloat16 on a GPU. Parameters are float32."""

    seed: int = 0
    backend: str = "auto"
    compile: bool = False
    """torch.compile the whole model once, for rows of one length."""

    gradient_checkpointing: bool = False
    """Keep the activations of no layer, and compute them again for the backward pass."""

    output: Path = field(default=Path())
    save_every: int = 0
    """Steps between checkpoints; 0: only when the run is interrupted."""

    log_every: int = 1
    check: bool = True
    """Compare the shards with their checksums and probe the model first, and train nothing if either fails."""

    def check_ranks(self, num_ranks: int) -> None:
        """Raise `ConfigError` for options that do not go together, or with that many ranks."""
        if self.warmup_steps > self.steps:
            raise ConfigError(f"--warmup-steps {self.warmup_steps} are more than --steps {self.steps}")
        more = -self.packs_per_step % num_ranks
        if more:
            raise ConfigError(
                f"--packs-per-step {self.packs_per_step} is not divisible by {num_ranks} ranks:"
                f" {self.packs_per_step + more} is"
            )

    def identity(self, shards: Shards) -> dict[str, Any]:
        """What tells a run from another: options that decide the result, and the content of model and shards."""
        decide = {name: value for name, value in asdict(self).items() if name not in _NOT_IN_RESULT}
        return decide | {"shards": shards_identity(shards), "model": model_identity(self.model)}
