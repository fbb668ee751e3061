"""Counts the MACs of a gated network and times it against the dense one."""

import torch
import torchvision
from torch.utils.benchmark import Timer

import perfconv

network = torchvision.models.resnet18().eval().to(memory_format=torch.channels_last)
image = torch.rand(1, 3, 224, 224).to(memory_format=torch.channels_last)

fast = perfconv.fuse(perfconv.convert(network))  # for inference: BatchNorm folded, weights packed
perfconv.force_gates(fast, 0.5)  # random masks, in the place of gates trained to that density

with torch.inference_mode():
    counted = perfconv.flops.count(fast, image)
    share = counted.executed_macs / counted.dense_macs
    print(f"{counted.dense_macs / 1e9:.2f} GMAC dense, {100 * share:.0f} % of it executed")
    for name, model in (("dense", network), ("gated", fast)):
        timer = Timer("model(image)", globals={"model": model, "image": image})
        print(f"{name}: {1e3 * timer.blocked_autorange(min_run_time=0.5).median:.1f} ms")
