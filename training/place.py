"""Where this process computes: alone, or as one of the ranks that torchrun started."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from pipeline.base.errors import BusyError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """One rank and its device."""

    rank: int
    num_ranks: int
    device: torch.device
    in_group: bool = False
    """Whether torchrun started it, be it as the only rank."""

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

    def total(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sum of the ranks' numbers, which it becomes in place."""
        if self.num_ranks > 1:
            distributed.all_reduce(numbers)
        return numbers

    def highest(self, number: int) -> int:
        """The highest of the ranks' numbers; waits for them all."""
        if self.num_ranks == 1:
            return number
        numbers = torch.tensor(number)
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
        return int(numbers)


@contextmanager
def joined() -> Iterator[Place]:
    """Join the ranks that torchrun started, if it did. Raises `BusyError` where another rank has ended."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if os.environ.get("WORLD_SIZE", "1") == "1" and not distributed.is_torchelastic_launched():
        yield Place(0, 1, device)
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    place = Place(distributed.get_rank(), distributed.get_world_size(), device, in_group=True)
    log.info("rank %d of %d, %s", place.rank, place.num_ranks, distributed.get_backend_config())
    try:
        yield place
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise BusyError("another rank has ended, and says why") from error
        raise
    finally:
        gc.collect()  # a model in DistributedDataParallel that outlives its group can abort the process when it exits
        distributed.destroy_process_group()
