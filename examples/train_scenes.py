"""Trains a small scene parser with gates on made-up scenes, and looks at what its gates do."""

import tempfile
from pathlib import Path

import perfconv
from perfconv.train import load_model
from perfconv.train.config import with_overrides
from perfconv.train.distributed import process_of
from perfconv.train.loop import train
from perfconv.train.recipes import RECIPES

# Ten steps of each stage, so that this takes seconds; without the overrides it learns something.
recipe = with_overrides(
    RECIPES["scenes-segmentation-pag-0.7"],
    ["stages.0.steps=10", "stages.1.steps=10", "data.limit=16"],
)
with tempfile.TemporaryDirectory() as folder, process_of() as process:
    finished = train(recipe, folder, process=process)
    model = load_model(Path(folder) / "model.pt").model  # as in another program

scores = finished.results["segmentation"]
print(f"mean IoU {100 * scores['mean_iou']:.1f} %, accuracy {100 * scores['pixel_accuracy']:.1f} %")
for layer, density in finished.results["density"].items():
    print(f"{layer}: {100 * density:.0f} % of the pixels")

scene = perfconv.data.PerspectiveScenes(1, size=(64, 96), seed=5)[0]
ponder = perfconv.viz.ponder_map(model, scene.image[None])
print(f"{ponder.mean():.1f} of {len(perfconv.gates(model))} gated layers for a pixel on average")
