"""The problems that are timed: shapes, masks, and the named lists of them."""

from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from perfconv._bench.ponder import has_ponder_maps, ponder_score


@dataclass(frozen=True)
class Problem:
    """One convolution with one mask. Sizes in pixels and channels."""

    channels: int
    out_channels: int
    height: int
    width: int
    kernel: int = 3
    dilation: int = 1
    groups: int = 1
    batch: int = 1
    dtype: str = "float32"
    density: float = 0.25
    pattern: str = "random"  # random | blobs | band | ponder
    seed: int = 0

    @property
    def name(self) -> str:
        groups = "" if self.groups == 1 else f"-g{self.groups}"
        return (
            f"c{self.channels}-{self.out_channels}{groups}-{self.batch}x{self.height}x{self.width}"
            f"-k{self.kernel}-dil{self.dilation}-{self.dtype}-{self.pattern}{self.density}"
        )

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel // 2)

    def dense_macs(self) -> int:
        taps = self.kernel**2 * self.channels // self.groups
        return self.batch * self.height * self.width * self.out_channels * taps

    def record(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class BlockProblem:
    """A gated bottleneck, channels to channels / 4 and back, with one mask."""

    channels: int
    height: int
    width: int
    dilation: int = 1
    density: float = 0.5
    pattern: str = "random"
    dtype: str = "float32"
    seed: int = 0

    @property
    def name(self) -> str:
        inner = self.channels // 4
        return (
            f"c{self.channels}-{inner}-{self.channels}-{self.height}x{self.width}"
            f"-dil{self.dilation}-{self.dtype}-{self.pattern}{self.density}"
        )

    def mask(self) -> Tensor:
        return mask_of_size(self.height, self.width, self.density, self.pattern, self.seed)

    def record(self) -> dict:
        return asdict(self)


def mask_of_size(height: int, width: int, density: float, pattern: str, seed: int = 0) -> Tensor:
    """(1, 1, height, width); see ``make_mask``."""
    return make_mask(Problem(1, 1, height, width, density=density, pattern=pattern, seed=seed))


def make_mask(problem: Problem) -> Tensor:
    """(N, 1, H, W) bool of about the wanted density.

    random: independent pixels. blobs: 3x3 squares at random places. band: the pixels nearest to a
    wavy line across the image, as object boundaries are. ponder: where the gates of HED that ship
    with the package spend most on a photo (``ponder.py``).
    """
    generator = torch.Generator().manual_seed(problem.seed)
    shape = (problem.batch, 1, problem.height, problem.width)
    if problem.density >= 1:
        return torch.ones(shape, dtype=torch.bool)
    score = torch.rand(shape, generator=generator)
    if problem.pattern == "blobs":
        score = F.max_pool2d(score, 3, 1, 1)
    elif problem.pattern == "ponder":
        score = ponder_score(problem.height, problem.width).expand(shape) + 1e-6 * score
    elif problem.pattern == "band":
        x = torch.linspace(0, 12, problem.width)
        line = problem.height * (0.5 + 0.25 * torch.sin(x))
        rows = torch.arange(problem.height)[:, None]
        score = -(rows - line).abs().expand(shape) + 0.01 * score
    wanted = round(problem.density * score[0].numel())
    limit = score.flatten(1).kthvalue(score[0].numel() - wanted, dim=1).values
    return score > limit.view(-1, 1, 1, 1)


def issue_shapes() -> list[tuple[int, int, int, int]]:
    """(channels, height, width, dilation) of the 3x3 layers of a ResNet at output stride 8."""
    return [
        (64, 120, 160, 1),
        (64, 60, 80, 2),
        (128, 120, 160, 1),
        (128, 60, 80, 1),
        (128, 60, 80, 2),
        (256, 60, 80, 1),
        (256, 60, 80, 2),
        (256, 30, 40, 1),
        (512, 60, 80, 4),
        (512, 30, 40, 2),
    ]


def standard_problems() -> list[Problem]:
    """3x3, C = C_out, all densities with random masks, the other patterns at 0.25."""
    problems = []
    for dtype in ("float32", "bfloat16"):
        for channels, height, width, dilation in issue_shapes():
            common = {"dilation": dilation, "dtype": dtype}
            problems += [
                Problem(channels, channels, height, width, density=density, **common)
                for density in (0.1, 0.25, 0.5, 0.75, 1.0)
            ]
            problems += [
                Problem(channels, channels, height, width, pattern=pattern, **common)
                for pattern in ("blobs", "band")
            ]
    return problems


def special_problems() -> list[Problem]:
    """Depthwise, small-channel, grouped and 1x1 convolutions at density 0.25 and 0.5."""
    return [
        Problem(*sizes, dtype=dtype, density=density, kernel=kernel, groups=groups)
        for dtype in ("float32", "bfloat16")
        for density in (0.25, 0.5, 1.0)
        for sizes, kernel, groups in (
            ((64, 64, 120, 160), 3, 64),
            ((256, 256, 60, 80), 3, 256),
            ((3, 64, 240, 320), 3, 1),
            ((8, 8, 240, 320), 3, 1),
            ((16, 16, 240, 320), 3, 1),
            ((64, 1, 240, 320), 3, 1),
            ((128, 128, 60, 80), 3, 32),
            ((256, 256, 60, 80), 1, 1),
        )
    ]


def quick_problems() -> list[Problem]:
    return [
        Problem(channels, channels, 30, 40, dtype=dtype, density=density)
        for dtype in ("float32", "bfloat16")
        for channels in (64, 128)
        for density in (0.25, 0.5)
    ]


def block_problems(densities: tuple[float, ...], patterns: tuple[str, ...]) -> list[BlockProblem]:
    """The bottlenecks of a ResNet-50 at output stride 8 for an image of 425x560."""
    layers = ((256, 107, 140, 1), (512, 54, 70, 1), (1024, 54, 70, 2), (2048, 54, 70, 4))
    found = [
        BlockProblem(*layer, density=density, pattern=pattern if density < 1 else "random")
        for layer in layers
        for pattern in patterns
        for density in densities
    ]
    return list(dict.fromkeys(found))


def quick_block_problems() -> list[BlockProblem]:
    return [BlockProblem(64, 12, 14, density=density) for density in (0.3, 1.0)]


def cuda_problems() -> list[Problem]:
    """Layers that fill a GPU: at least 64 Ki pixels a batch, where the density is what matters."""
    layers = (
        Problem(256, 256, 128, 256, batch=2),
        Problem(512, 512, 60, 80, batch=14, dilation=4),
        Problem(64, 64, 120, 160, batch=8),
        Problem(256, 64, 128, 256, batch=2, kernel=1),
        Problem(256, 256, 128, 256, batch=2, groups=256),
    )
    cases = [
        *(("bfloat16", density, "random") for density in (0.1, 0.25, 0.5, 0.75, 1.0)),
        ("bfloat16", 0.25, "blobs"),
        ("bfloat16", 0.25, "band"),
        ("float16", 0.25, "random"),
        ("float32", 0.25, "random"),
    ]
    return [
        replace(layer, dtype=dtype, density=density, pattern=pattern)
        for layer in layers
        for dtype, density, pattern in cases
    ]


def patterns() -> tuple[str, ...]:
    """Those that can be made here: real ponder maps need the weights of HED and a photo."""
    return PATTERNS if has_ponder_maps() else PATTERNS[:-1]


# Of the report: (channels, height, width, dilation), three channel counts and two map sizes.
REPORT_SHAPES = ((64, 120, 160, 1), (128, 60, 80, 1), (256, 60, 80, 1), (512, 30, 40, 2))
DENSITIES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


# The layer whose channels, map size, batch and dilation are changed one at a time.
SWEPT = Problem(256, 256, 60, 80)


def one_thing_changed() -> list[Problem]:
    """Besides density, pattern, dtype and threads, which the report's other layers have anyway."""
    sizes = ((15, 20), (30, 40), (120, 160))
    return [
        *(replace(SWEPT, channels=c, out_channels=c) for c in (64, 128, 512)),
        *(replace(SWEPT, height=height, width=width) for height, width in sizes),
        *(replace(SWEPT, batch=batch) for batch in (2, 4)),
        *(replace(SWEPT, dilation=dilation) for dilation in (2, 4)),
    ]


def conv_problems(scope: str) -> list[tuple[Problem, str]]:
    """(problem, pass) of a scope: quick (seconds each), standard, full."""
    if scope == "quick":
        small = [Problem(64, 64, 30, 40, dtype=d) for d in ("float32", "bfloat16")]
        cases = [(replace(p, density=d), "forward") for p in small for d in (0.25, 0.5, 1.0)]
        cases += [(p, mode) for p in small for mode in ("training", "dgrad", "wgrad")]
        cases += [(Problem(64, 64, 30, 40, kernel=1), "forward")]
        return [*cases, (Problem(64, 64, 30, 40, groups=64), "forward")]
    dtypes = ("float32", "bfloat16") if scope == "full" else ("float32",)
    cases: list[tuple[Problem, str]] = []
    for dtype in dtypes:
        layers = [
            Problem(c, c, height, width, dilation=dilation, dtype=dtype)
            for c, height, width, dilation in REPORT_SHAPES
        ]
        is_fine = scope == "full" and dtype == "float32"
        densities = DENSITIES if is_fine else (0.1, 0.25, 0.5, 1.0)
        forward = [replace(layer, density=d) for layer in layers for d in densities]
        forward += [replace(layer, pattern=p) for layer in layers for p in patterns()[1:]]
        training = [replace(layer, density=d) for layer in layers for d in (0.25, 0.5, 1.0)]
        cases += [(p, "forward") for p in forward] + [(p, "training") for p in training]
    if scope == "full":
        for dtype in dtypes:
            single = Problem(256, 256, 60, 80, dtype=dtype)
            gradients = [replace(single, density=d) for d in (0.25, 0.5, 1.0)]
            cases += [(p, mode) for mode in ("dgrad", "wgrad") for p in gradients]
        cases += [(p, "forward") for p in special_problems()]
        cases += [(p, "forward") for p in one_thing_changed()]
    return list(dict.fromkeys(cases))


PATTERNS = ("random", "blobs", "band", "ponder")
PASSES = ("forward", "training", "dgrad", "wgrad", "graph")

LISTS = {
    "standard": standard_problems,
    "special": special_problems,
    "quick": quick_problems,
    "cuda": cuda_problems,
}
