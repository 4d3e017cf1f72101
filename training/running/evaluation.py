"""Scores of packs that are not trained: how much a model loses on them, a target and a sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from training.options import TrainOptions
from training.packs import Costs
from training.place import Place
from training.plan import losses_of, micro_batch_of
from training.running.feed import Feed, ahead, plain_collator
from training.running.output import Scores, finite
from training.shards import Shards


class Evaluation:
    """What scores a model on all packs of some shards; every rank has its part of them."""

    def __init__(
        self, options: TrainOptions, place: Place, shards: Shards, model: PreTrainedModel, autocast: torch.dtype | None
    ) -> None:
        """model: bare, with its attention set."""
        self._feed = Feed(shards, model, plain_collator(options, sample_mean=True), place.device)
        self._place, self._autocast, self._is_divided = place, autocast, options.fsdp
        self._num_packs, self._packs_per_forward = len(shards.packs), options.packs_per_forward

    def scores(self, step: int, stopped: Callable[[], int]) -> Scores | None:
        """Score every pack once. The model, and what is drawn at random, are afterwards as they were.

        stopped: asked on every rank before each forward pass; None is returned once it says other than 0.

        Raises `DataError` as `Feed.batches`.
        """
        place, since, cost = self._place, time.perf_counter(), Costs()
        sums = torch.zeros(2, dtype=torch.float64, device=place.device)
        firsts = range(0, self._num_packs, place.num_ranks * self._packs_per_forward)  # as many on every rank
        bar = tqdm(total=len(firsts), desc="evaluating", leave=False, disable=None if place.is_first else True)
        with bar, _evaluating(self._feed.model), ahead(self._part, firsts, place.device) as parts:
            for batches, of_part in parts:
                if stopped():
                    return None
                for batch in batches:
                    scored = self._sums(batch)
                    if of_part.packs:
                        sums += scored
                cost += of_part
                bar.update()
        targets, samples, packs = place.total(torch.tensor([cost.targets, cost.samples, cost.packs])).tolist()
        per_target, per_sample = (place.total(sums).cpu() / torch.tensor([targets, samples])).tolist()
        return Scores(
            step=step,
            loss_per_target=finite(per_target),
            loss_per_sample=finite(per_sample),
            targets=targets,
            samples=samples,
            packs=packs,
            seconds=time.perf_counter() - since,
        )

    def _part(self, first: int) -> tuple[list[dict[str, Any]], Costs]:
        """What this rank scores at once, if there is anything left for it, of the packs from a first one on."""
        place = self._place
        end = min(first + place.num_ranks * self._packs_per_forward, self._num_packs)
        own = list(range(first, end))[place.rank :: place.num_ranks]
        if own or not self._is_divided:
            return self._feed.batches([own] if own else [])
        batches, _ = self._feed.batches([[first]])  # what others score: they need this rank's part of the model
        return batches, Costs()

    def _sums(self, batch: dict[str, Any]) -> Tensor:
        """Losses of targets, and mean losses of samples, each added up.  # shape: (2,)"""
        micro_batch = micro_batch_of(batch, self._place.device)
        losses = losses_of(self._feed.model, micro_batch, autocast=self._autocast).double()
        return torch.stack([losses.sum(), torch.dot(losses, micro_batch.weights.double())])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Let a model compute as it is used: without dropout, and without being compiled for other shapes."""
    trained = [each for each in model.modules() if each.training]
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for each in trained:
            each.training = True
