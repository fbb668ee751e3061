"""Frames in, labels and ponder map out: what a video costs, frame by frame.

    python examples/stream_frames.py                          a made-up street, panned
    python examples/stream_frames.py FOLDER --device cuda     frames of yours, all of one size
    python examples/stream_frames.py --network pag_resnet50 --size 425 560 --device cuda

The network that ships with the package, --checkpoint of yours, or --network with random weights
and random masks, for its latency alone. On a GPU it is captured as a CUDA graph once, for every
mask to come. Every frame also goes through the same network without its ponder map, whose price
that shows, and without its gates.

Latency is from a frame in memory to results on the device. A file is read before that, a picture
drawn after it. float32 on a CPU, bfloat16 on a GPU. Needs pip install 'perfconv[predict]'.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import perfconv
from perfconv import viz
from perfconv.cli.predict.inputs import find_inputs
from perfconv.cli.predict.network import open_network
from perfconv.data import PerspectiveScenes
from perfconv.data.palette import palette
from perfconv.nn import CapturedCall
from perfconv.train import build_network

GATED = ("pag_resnet50", "pag_resnet101", "gated_resnet50", "layer_skipping_resnet50")
MADE_UP_FRAMES, STEP = 60, 3  # pixels that the made-up camera moves by from frame to frame
WARM_UP = 5  # calls before any is timed
PERCENTILES = (50, 90, 99)


class Seen(NamedTuple):
    """What a gated network says of a frame, and where it computed."""

    labels: Tensor  # (1, H, W)
    ponder: Tensor  # (1, 1, H, W), active layers
    density: Tensor  # (), mean over the gated layers
    decisions: viz.Decisions


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="*", help="images, folders, patterns; none: made up")
    parser.add_argument("--frames", type=int, help=f"at most; {MADE_UP_FRAMES} made-up ones")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), metavar=("H", "W"),
                        help="of made-up frames")  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--network", choices=GATED, help="random weights")
    which.add_argument("--checkpoint", type=Path, help="of perfconv train")
    parser.add_argument("--density", type=float, help="random masks; 0.5 with --network")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--every", type=int, default=20, help="draw every k-th frame; 0: none")
    parser.add_argument("--output", type=Path, default=Path("stream"), help="of the pictures")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can use, and finds none. Leave it out.")
    if options.frames is not None and options.frames < 1:
        parser.error(f"--frames must be 1 or more, got {options.frames}.")
    return options


def made_up_frames(count: int, size: tuple[int, int]) -> Iterator[tuple[str, Tensor]]:
    """A view of a street that moves to its right end and back."""
    height, width = size
    scene = PerspectiveScenes(1, size=(height, 2 * width), kind="street", seed=5)[0].image
    for number in range(count):
        way = STEP * number % (2 * width)
        left = min(way, 2 * width - way)
        yield f"frame-{number:04d}", scene[:, :, left : left + width]


def frames_of(options: argparse.Namespace) -> Iterator[tuple[str, Tensor]]:
    """Names and images (3, H, W)."""
    if not options.sources:
        return made_up_frames(options.frames or MADE_UP_FRAMES, tuple(options.size))
    inputs = find_inputs(options.sources)
    return ((i.name, i.read().sample.image) for i in islice(inputs, options.frames))


def network_of(options: argparse.Namespace) -> tuple[nn.Module, viz.Classes]:
    if options.network is None:
        network = open_network(options.checkpoint, None, None, {})
        if network.classes is None:
            raise ValueError(
                f"the network must predict labels, got {', '.join(network.tasks)}. Give the "
                "--checkpoint of another, or none."
            )
        return network.model, network.classes
    torch.manual_seed(0)
    colours = palette()
    names = [f"class {number}" for number in range(len(colours))]
    return build_network(options.network, {}).eval(), viz.Classes(names, colours)


def labels_of(model: nn.Module, image: Tensor) -> Tensor:
    return model(image)["segmentation"].argmax(1)  # (1, H, W)


def watched(model: nn.Module) -> Callable[[Tensor], Seen]:
    """The gated network as a function that keeps what its gates decide, and waits for no device."""

    def see(image: Tensor) -> Seen:
        with perfconv.record_gates(model) as record:
            labels = labels_of(model, image)
        decisions = viz.recorded(model, record, image.shape[2:])
        density = torch.stack(list(record.densities().values())).mean()
        return Seen(labels, decisions.ponder(), density, decisions)

    return see


def timed(call: Callable[[Tensor], object], image: Tensor, device: str) -> tuple[object, float]:
    """What it returns, and milliseconds."""
    if device == "cpu":
        begin = time.perf_counter()
        found = call(image)
        return found, 1e3 * (time.perf_counter() - begin)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    found = call(image)
    end.record()
    end.synchronize()
    return found, begin.elapsed_time(end)


def prepared(options: argparse.Namespace, model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The gated network and the dense one, fused."""
    model = model.to(options.device, dtype_on(options.device), memory_format=torch.channels_last)
    dense = perfconv.fuse(perfconv.unconvert(model), inplace=True)
    gated = perfconv.fuse(model, inplace=True)
    density = 0.5 if options.density is None and options.network else options.density
    if density is not None:
        perfconv.force_gates(gated, density)
    return gated, dense


def dtype_on(device: str) -> torch.dtype:
    return torch.float32 if device == "cpu" else torch.bfloat16


def captured(
    gated: nn.Module, dense: nn.Module, image: Tensor, device: str
) -> dict[str, CapturedCall]:
    """What every frame goes through, ready to be timed."""
    example = image.to(device)
    calls = {
        "gated": CapturedCall(watched(gated), example),
        "gated, labels only": CapturedCall(partial(labels_of, gated), example),
        "dense, labels only": CapturedCall(partial(labels_of, dense), example),
    }
    for call in calls.values():
        for _ in range(WARM_UP):
            call(image)
    return calls


def report(times: dict[str, list[float]], densities: list[float]) -> None:
    for kind, found in times.items():
        ranks = torch.tensor(PERCENTILES) / 100
        values = torch.tensor(found).quantile(ranks).tolist()
        shown = ", ".join(f"p{p} {v:.2f}" for p, v in zip(PERCENTILES, values, strict=True))
        print(f"{kind}: {shown} ms, {1e3 * len(found) / sum(found):.0f} frames/s")
    mean = sum(densities) / len(densities)
    print(f"mean density {mean:.2f}, of a frame {min(densities):.2f} to {max(densities):.2f}")


def main() -> None:
    options = arguments()
    model, classes = network_of(options)
    gated, dense = prepared(options, model)
    calls: dict[str, CapturedCall] = {}
    times: dict[str, list[float]] = {}
    densities, drawn = [], []
    for number, (name, frame) in enumerate(frames_of(options)):
        image = frame[None].to(dtype_on(options.device), memory_format=torch.channels_last)
        if options.device == "cuda":
            image = image.pin_memory()  # else the copy to the GPU waits
        calls = calls or captured(gated, dense, image, options.device)
        found = {}
        turns = list(calls) if number % 2 else list(reversed(calls))  # gated first, dense first
        for kind in turns:
            found[kind], time_ms = timed(calls[kind], image, options.device)
            times.setdefault(kind, []).append(time_ms)
        seen: Seen = found["gated"]
        densities.append(seen.density.item())
        if options.every and number % options.every == 0:
            options.output.mkdir(parents=True, exist_ok=True)
            drawn.append(options.output / f"{name}.png")
            figure = viz.task_figure(
                "segmentation", seen.labels[0].cpu(), image=frame, classes=classes,
                found=seen.decisions, title=name,
            )  # fmt: skip
            viz.save(figure, drawn[-1])
    print(f"{len(densities)} frames of {image.size(2)}x{image.size(3)}, {options.device}, "
          f"{image.dtype}".replace("torch.", ""))  # fmt: skip
    report({kind: times[kind] for kind in calls}, densities)
    print(f"{len(drawn)} pictures" + f" in {options.output}" * bool(drawn))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:  # unreadable frames or weights, frames of two sizes
        raise SystemExit(str(error)) from error
