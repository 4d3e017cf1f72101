"""Where this process computes: alone, or as one of the ranks that torchrun started."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from pipeline.base.errors import BusyError


@dataclass(frozen=True)
class Place:
    """One rank and its device."""

    rank: int
    num_ranks: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

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
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if num_ranks == 1:
        yield Place(0, 1, device)
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield Place(distributed.get_rank(), num_ranks, device)
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise BusyError("another rank has ended, and says why") from error
        raise
    finally:
        gc.collect()  # a model in DistributedDataParallel that outlives its group can abort the process when it exits
        distributed.destroy_process_group()
