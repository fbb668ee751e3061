"""DistributedDataParallel on two gloo ranks: the gradients of one process over the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ddp_worker import batch, make_network, train_on_rank


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_ranks_give_the_gradients_of_one_process(tmp_path: Path) -> None:
    network = make_network()
    input, mask = batch()
    network(input, mask).square().mean().backward()
    mp.spawn(train_on_rank, args=(2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        grads = torch.load(tmp_path / f"rank{rank}.pt")
        assert grads.keys() == dict(network.named_parameters()).keys()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-4, atol=1e-6)
