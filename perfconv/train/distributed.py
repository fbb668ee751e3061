"""Processes of one run: torchrun starts them, this file knows which one it is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Process:
    """One of the processes that train together."""

    rank: int
    ranks: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over all processes; NaN anywhere is NaN everywhere."""
        if self.ranks > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
            value /= self.ranks
        return value

    def wait(self) -> None:
        """Until every process is here."""
        if self.ranks > 1:
            dist.barrier()


@contextmanager
def process_of(device: str | None = None) -> Iterator[Process]:
    """This process; under torchrun it joins the others, by NCCL on GPUs and gloo on CPUs.

    Args:
        device: "cpu", "cuda", "cuda:1"; None takes a GPU if there is one.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen == "cuda":
        chosen = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    place = torch.device(chosen)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if ranks == 1:
        yield Process(0, 1, place)
        return
    is_ours = not dist.is_initialized()
    if is_ours:
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    try:
        yield Process(rank, ranks, place)
    finally:
        if is_ours:
            dist.destroy_process_group()
