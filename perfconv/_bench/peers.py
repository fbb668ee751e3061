"""Other ways to the same result, timed beside ours: what a user would write, and other libraries.

A peer takes a case and returns the call that is timed, or says why it does not apply. All of them
but "matmul" and the voxel libraries compute what the perforated convolution does. What a machine
lacks for a peer is in the results file and in the report.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from perfconv._bench.conv_case import ConvCase
from perfconv._bench.timing import Call


@dataclass(frozen=True)
class Peer:
    """One competitor of the forward pass."""

    summary: str
    make: Callable[[ConvCase], Call]
    is_same_function: bool = True
    needs_compile: bool = False
    waits_for_device: bool = False  # reads the count of active pixels: no CUDA graph
    refuses: Callable[[ConvCase], str | None] = lambda case: None
    package: str = ""  # of another library
    devices: tuple[str, ...] = ("cpu", "cuda")

    def missing(self, device: str) -> str | None:
        """What this machine lacks for it, if anything."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if device not in self.devices:
            return f"{self.package} runs on {' and '.join(self.devices)} only"
        return why_not_importable(f"{self.package}.pytorch") if self.package else None


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.compile for these shapes alone; what was compiled before is forgotten."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def dense_times_mask(case: ConvCase) -> Call:
    def masked(input: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        return F.conv2d(input, weight, bias, **case.options) * mask

    call = compiled(masked)
    return lambda: call(case.input, case.weight, case.bias, case.mask)


def unfold_gemm(case: ConvCase) -> Call:
    """Every patch is copied, active or not; one matrix product."""
    p = case.problem
    input, weight = case.inputs["nchw"], case.weights["nchw"].flatten(1)

    def call() -> Tensor:
        patches = F.unfold(input, p.kernel, p.dilation, p.padding)  # (N, C_in * taps, H * W)
        sums = weight @ patches + case.bias[:, None]  # (N, C_out, H * W)
        return sums.view(p.batch, p.out_channels, p.height, p.width) * case.mask

    return call


class Places:
    """Where active pixels are, and where they read, in images with their padding."""

    def __init__(self, case: ConvCase) -> None:
        p = case.problem
        image, _, y, x = case.mask.nonzero(as_tuple=True)
        width = p.width + 2 * p.padding
        self.active = (image * p.height + y) * p.width + x  # (M,)
        self.first = (image * (p.height + 2 * p.padding) + y) * width + x
        taps = torch.arange(p.kernel, device=case.device) * p.dilation
        self.taps = (taps[:, None] * width + taps).flatten()


def padded_rows(case: ConvCase) -> Tensor:
    p = case.problem
    rows = F.pad(case.input, [p.padding] * 4).permute(0, 2, 3, 1)
    return rows.reshape(-1, p.channels)


def scattered(case: ConvCase, places: Places, sums: Tensor) -> Tensor:
    p = case.problem
    rows = sums.new_zeros(p.batch * p.height * p.width, p.out_channels)
    rows.index_copy_(0, places.active, sums)
    return rows.view(p.batch, p.height, p.width, -1).permute(0, 3, 1, 2)


def im2col_gemm(case: ConvCase, places: Places | None = None) -> Call:
    """The older libraries' way: find active pixels, copy their patches, multiply, scatter."""
    columns = case.weight.permute(2, 3, 1, 0).reshape(-1, case.problem.out_channels)

    def call() -> Tensor:
        found = places or Places(case)
        patches = padded_rows(case)[found.first[:, None] + found.taps].flatten(1)  # (M, taps * C)
        return scattered(case, found, torch.addmm(case.bias, patches, columns))

    return call


def gather_per_tap(case: ConvCase, places: Places | None = None) -> Call:
    """As sparse libraries do without a fused kernel: a gather and a product for each tap."""
    columns = case.weight.permute(2, 3, 1, 0).flatten(0, 1).contiguous()  # (taps, C_in, C_out)

    def call() -> Tensor:
        found, rows = places or Places(case), padded_rows(case)
        sums = case.bias.expand(len(found.active), -1).contiguous()
        for tap, offset in enumerate(found.taps):
            sums.addmm_(rows[found.first + offset], columns[tap])
        return scattered(case, found, sums)

    return call


def matmul(case: ConvCase) -> Call:
    """A product of the same M, N, K, its operands laid out beforehand: the bar."""
    rows = int(case.mask.sum())
    depth = case.problem.channels * case.problem.kernel**2
    left = torch.randn(rows, depth, device=case.device).to(case.input.dtype)
    right = torch.randn(depth, case.problem.out_channels, device=case.device).to(case.input.dtype)
    return lambda: torch.mm(left, right)


@cache
def why_not_importable(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except Exception as error:  # a package for another CUDA fails in ways of its own
        return f"{name} cannot be imported: {type(error).__name__}: {error}"
    return None


def voxel_call(package: str, case: ConvCase) -> Call:
    """Submanifold convolution on the active pixels, whose index it makes in every call.

    It is checked here against what it is to compute: inactive inputs count as zero. On the CPU it
    runs in one thread: with more, spconv 2.3.8 gives other results from call to call, wrong ones.
    """
    spconv = importlib.import_module(f"{package}.pytorch")
    p = case.problem
    weight = case.weight.permute(0, 2, 3, 1)
    if (
        p.kernel == 1
    ):  # its shape says (C_out, 1, 1, C_in), but spconv multiplies it as C_in x C_out
        weight = case.weight.flatten(1).T.reshape(weight.shape)
    layer = spconv.SubMConv2d(  # on the CPU it has no bias
        p.channels, p.out_channels, p.kernel, dilation=p.dilation, bias=False
    )
    layer = layer.to(case.device, case.input.dtype).eval().requires_grad_(False)
    layer.weight.copy_(weight)

    def features_of() -> Tensor:
        image, _, y, x = case.mask.nonzero(as_tuple=True)
        features = case.input.permute(0, 2, 3, 1)[image, y, x]
        places = torch.stack([image, y, x], 1).int()
        size = [p.height, p.width]
        return layer(spconv.SparseConvTensor(features, places, size, p.batch)).features

    threads = torch.get_num_threads()

    def in_one_thread() -> Tensor:
        torch.set_num_threads(1)
        try:
            return features_of()
        finally:
            torch.set_num_threads(threads)

    call = features_of if case.device.type == "cuda" or threads == 1 else in_one_thread
    case.check_active_inputs(package, call())
    return call


def executed_share(name: str, case: ConvCase) -> float:
    """Of the dense MACs, what a method computes: every pixel, active ones, or pairs of those."""
    if name in ("dense", "dense_times_mask", "unfold_gemm"):
        return 1.0
    peer = PEERS.get(name)
    if peer is None or not peer.package:
        return case.density
    p, active = case.problem, case.mask.float()
    ones = active.new_ones(1, 1, p.kernel, p.kernel)
    pairs = F.conv2d(active, ones, padding=p.padding, dilation=p.dilation) * active
    return pairs.mean().item() / p.kernel**2


def _has_groups(case: ConvCase) -> str | None:
    return None if case.problem.groups == 1 else "groups are not made here"


def _spconv_refusal(case: ConvCase) -> str | None:
    if case.problem.dtype != "float32" and case.device.type == "cpu":
        return "spconv on the CPU: float32 only"
    return _has_groups(case)


PEERS: Mapping[str, Peer] = {
    "dense_times_mask": Peer("dense x mask, torch.compile", dense_times_mask, needs_compile=True),
    "unfold_gemm": Peer("unfold every pixel, one GEMM", unfold_gemm, refuses=_has_groups),
    "im2col_gemm": Peer(
        "masked im2col + GEMM of older libraries, in torch",
        im2col_gemm,
        waits_for_device=True,
        refuses=_has_groups,
    ),
    "gather_per_tap": Peer(
        "gather + GEMM for each tap, in torch",
        gather_per_tap,
        waits_for_device=True,
        refuses=_has_groups,
    ),
    "matmul": Peer(
        "torch.mm of the same M, N, K: the bar, no convolution",
        matmul,
        is_same_function=False,
        refuses=_has_groups,
    ),
    "spconv": Peer(
        "spconv SubMConv2d: another function, inactive inputs count as zero; no groups, no bias; "
        "on the CPU float32 and one thread, since its results are wrong with more",
        partial(voxel_call, "spconv"),
        is_same_function=False,
        waits_for_device=True,
        refuses=_spconv_refusal,
        package="spconv",
    ),
    "spconv_triton": Peer(
        "spconv-triton SubMConv2d: another function, inactive inputs count as zero; no groups",
        partial(voxel_call, "spconv_triton"),
        is_same_function=False,
        waits_for_device=True,
        refuses=_has_groups,
        package="spconv_triton",
        devices=("cuda",),
    ),
}


def version(peer: Peer) -> str:
    """Of another library that is installed."""
    if not peer.package or peer.package not in sys.modules:
        return ""
    return str(getattr(sys.modules[peer.package], "__version__", ""))


def presence(device: str, *, with_compile: bool) -> dict[str, str | None]:
    """Every peer: None if it runs here, else why not."""
    found = {name: peer.missing(device) for name, peer in PEERS.items()}
    for name, peer in PEERS.items():
        if peer.needs_compile and not with_compile:
            found[name] = "this run is without torch.compile"
    return found


def peers_of(
    case: ConvCase,
    *,
    with_compile: bool,
    is_captured: bool,
    left_out: dict[str, str] | None = None,
) -> dict[str, Call]:
    """The peers that take this case, as calls; the same function is checked, once.

    For a CUDA graph the active pixels are found beforehand, which flatters those that wait. Another
    library that fails on this case or gives a wrong result is left out, which says why by its name.
    """
    calls: dict[str, Call] = {}
    for name, peer in PEERS.items():
        if peer.missing(case.device.type) is not None or peer.refuses(case) is not None:
            continue
        if (peer.needs_compile and not with_compile) or (is_captured and peer.package):
            continue
        if peer.package:
            try:
                calls[name] = peer.make(case)
            except Exception as error:  # of another library, in kinds of its own
                reason = f"{type(error).__name__}: {error}"
                print(f"{case.problem.name} without {name}: {reason}", file=sys.stderr)
                if left_out is not None:
                    left_out[name] = reason
        elif is_captured and peer.waits_for_device:
            calls[name] = peer.make(case, Places(case))  # type: ignore[call-arg]
        else:
            calls[name] = peer.make(case)
        if peer.is_same_function:
            found = calls[name]()
            assert isinstance(found, Tensor)
            case.check(name, found)
    return calls
