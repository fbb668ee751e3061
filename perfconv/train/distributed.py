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

    Raises:
        ValueError: there is no such device, or fewer GPUs than processes of this machine.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    place = _place(device)
    if ranks == 1:
        yield Process(0, 1, place)
        return
    is_ours = not dist.is_initialized()
    if is_ours:
        dist.init_process_group(backend_of(place))
    try:
        yield Process(rank, ranks, place)
    finally:
        if is_ours:
            dist.destroy_process_group()


def backend_of(place: torch.device) -> str:
    """How processes talk: NCCL about tensors on GPUs where torch has it, gloo about all others."""
    has_nccl = place.type == "cuda" and dist.is_nccl_available()
    return "cpu:gloo,cuda:nccl" if has_nccl else "gloo"


def _place(device: str | None) -> torch.device:
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen == "cuda":
        chosen = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        place = torch.device(chosen)
    except RuntimeError as error:
        raise ValueError(f"--device must be cpu, cuda or cuda:1, got {device!r}.") from error
    if place.type == "cuda":
        there = torch.cuda.device_count()
        if (place.index or 0) >= there:
            raise ValueError(
                f"--device must be one that is there, got {place}, and torch sees {there} GPUs. "
                "Start no more processes than there are GPUs, or take --device cpu."
            )
        torch.cuda.set_device(place)
    elif place.type != "cpu":
        raise ValueError(f"--device must be cpu, cuda or cuda:1, got {device!r}.")
    return place
