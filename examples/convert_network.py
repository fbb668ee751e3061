"""A network of torchvision gets gates; then half of its pixels are skipped."""

import torch
import torchvision

import perfconv

network = torchvision.models.resnet50().eval()  # yours, with its weights
gated = perfconv.convert(network)
print(gated.conversion_report)

image = torch.rand(1, 3, 224, 224)
with torch.no_grad():
    print("difference with open gates:", (gated(image) - network(image)).abs().max().item())

fast = perfconv.fuse(gated)  # for inference: BatchNorm folded, weights packed
perfconv.force_gates(fast, 0.5)  # random masks, in the place of gates trained to that density
with torch.no_grad(), perfconv.record_gates(fast) as record:
    fast(image)
for name, density in record.densities().items():
    print(f"{name}: {density.item():.2f} of its pixels computed")
