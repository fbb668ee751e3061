"""The small network that ships with the package, on a made-up scene: what it sees and computes."""

import torch

import perfconv
from perfconv.data import PerspectiveScenes
from perfconv.train import shipped_model

model = shipped_model().model  # trained by tools/train_shipped_model.py
scene = PerspectiveScenes(1, size=(96, 128), seed=5)[0]
image = scene.image[None]
with torch.no_grad():
    maps = model(image)

right = maps["segmentation"].argmax(1)[0] == scene.labels
ratio = (maps["log_depth"][0].exp() / scene.depth_m)[scene.depth_valid].log().abs().exp()
print(f"labels: {100 * right.float().mean():.0f} % of the pixels are right")
print(f"depth: a factor of {ratio.median():.2f} off, median")
count = perfconv.flops.count(model, image)
macs = {"needed": count.active_macs, "executed": count.executed_macs, "dense": count.dense_macs}
for name, value in macs.items():  # at such densities layers as small as these run densely
    print(f"{name}: {value / 1e6:.1f} million MACs")
for call in perfconv.viz.decisions(model, image).calls:
    print(f"{call.name}: {100 * call.gate.mask.float().mean():.0f} % of the pixels")
