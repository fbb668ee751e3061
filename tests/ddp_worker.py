"""What each rank of tests/test_ecosystem_ddp.py runs; importable by the processes it starts."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import perfconv


class Network(nn.Module):
    """Rank 1 gets a mask without active pixels: no parameter may go without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first = perfconv.PerforatedConv2d(3, 8, 3, padding=1, fill="nearest")
        self.second = perfconv.PerforatedConv2d(8, 4, 3, padding=1)

    def forward(self, input: Tensor, mask: Tensor) -> Tensor:
        return self.second(self.first(input, mask).relu(), mask)


def make_network() -> Network:
    torch.manual_seed(0)
    return Network()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(4, 1, 9, 10, generator=generator) < 0.4
    mask[2:] = False
    return torch.randn(4, 3, 9, 10, generator=generator), mask


def train_on_rank(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
    )
    network = make_network()
    parallel = DistributedDataParallel(network)
    input, mask = batch()
    own = slice(rank * 2, rank * 2 + 2)
    for _ in range(2):  # the second pass hangs if a gradient was missing in the first
        network.zero_grad()
        parallel(input[own], mask[own]).square().mean().backward()
    grads = {name: parameter.grad for name, parameter in network.named_parameters()}
    torch.save(grads, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    # Without destructors: that of DistributedDataParallel holds the interpreter's lock while it
    # waits for gloo's thread, which may be waiting for that lock (seen in torch 2.13).
    os._exit(0)
