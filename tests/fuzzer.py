"""Calls every operator and public function with random, mostly wrong arguments: a child process.

python fuzzer.py SEED CALLS. An exception is a fine answer; a dead process is not. The number of the
call is written before it is made, so that the parent knows which one was the last.
"""

import random
import sys

import torch

import perfconv

DTYPES = [
    torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64,
    torch.bool, torch.int32, torch.int64, torch.complex64,
]  # fmt: skip
SIDES = [0, 1, 1, 2, 3, 4, 5, 8, 16, 17]
INTEGERS = [0, 1, 1, 1, 1, 2, 2, 3, 4, 7, -1, -3, 2**31, 2**40, 2**62, -(2**63), 2**63 - 1]
ALGORITHMS = ["auto", "direct", "gather_gemm", "implicit_gemm", "dense"]
FILLS = ["zero", "nearest", "passthrough"]
ACTIVATIONS = ["none", "relu", "relu6", "silu", "hardswish"]
WORDS = [*ALGORITHMS, *FILLS, *ACTIVATIONS, "same", "", "x" * 999, "\0"]


def any_tensor(r: random.Random, dtype: torch.dtype | None = None) -> torch.Tensor:
    shape = [r.choice(SIDES) for _ in range(r.choice([0, 1, 2, 3, 4, 4, 4, 4, 5]))]
    dtype = dtype or r.choice(DTYPES)
    value = torch.randn(shape).mul(9).to(dtype) if dtype.is_floating_point else (
        torch.randint(-3, 9, shape).to(dtype)
    )  # fmt: skip
    kind = r.randrange(12)
    if kind == 0 and value.dim() > 1:
        value = value.transpose(-1, -2)
    elif kind == 1 and value.dim() == 4:
        value = value.contiguous(memory_format=torch.channels_last)
    elif kind == 2 and value.dim():
        value = value[::2]
    elif kind == 3 and value.dim() and len(value):
        value = value[:1].expand(r.choice(SIDES), *value.shape[1:])
    elif kind == 4:
        value = value.to("meta")
    elif kind == 5 and value.dtype.is_floating_point:
        value = value.requires_grad_()
    elif kind == 6 and value.dtype.is_floating_point:
        value = value.fill_(r.choice([float("nan"), float("inf"), 6e4]))
    elif kind == 7 and value.dim() > 1:
        value = value.to_sparse()
    return value


def any_value(r: random.Random) -> object:
    make = [
        lambda: any_tensor(r),
        lambda: r.choice(INTEGERS),
        lambda: [r.choice(INTEGERS) for _ in range(r.randrange(6))],
        lambda: tuple(r.choice(INTEGERS) for _ in range(r.randrange(4))),
        lambda: r.choice(WORDS),
        lambda: r.choice([None, True, False, 0.5, float("nan"), object(), {}, [], 1j, b"zero"]),
        lambda: perfconv.compact_mask(torch.rand(1, 1, r.choice(SIDES), r.choice(SIDES)) < 0.5),
    ]
    return r.choice(make)()


def coherent_conv(r: random.Random) -> dict:
    """Arguments of a convolution that fit together."""
    groups, taps = r.choice([1, 1, 2, 3]), r.choice([1, 2, 3])
    channels, outputs = groups * r.choice([1, 3, 16]), groups * r.choice([1, 5, 33])
    padding, height, width = r.choice([0, 1, 2]), r.choice([3, 5, 12]), r.choice([3, 6, 13])
    size = [side + 2 * padding - taps + 1 for side in (height, width)]
    batch, dtype = r.choice([0, 1, 2]), r.choice(DTYPES[:6])
    return {
        "input": torch.randn(batch, channels, height, width).to(dtype),
        "weight": torch.randn(outputs, channels // groups, taps, taps).to(dtype),
        "mask": torch.rand(r.choice([1, batch]), 1, *size) < r.random(),
        "grad_output": torch.randn(batch, outputs, *size).to(dtype),
        "gate": torch.randn(2, outputs).to(dtype),
        "size": [height, width],
        "taps": [taps, taps],
        "padding": [padding] * 4,
        "groups": groups,
    }


def block_arguments(r: random.Random) -> list:
    """Those of gated_block that follow its images; a list may hold anything."""
    inner = r.choice([1, 3, 16])
    kernels = r.choice([[1, 3, 1], [3, 3], [1, 2], [1, 5, 1]])
    sides = [5, *[inner] * (len(kernels) - 1), 5]
    weights = [
        torch.randn(after, before, kernel, kernel)
        for before, after, kernel in zip(sides, sides[1:], kernels, strict=False)
    ]
    lists = [
        weights,
        [torch.randn(len(weight)) for weight in weights],
        r.choice([[], [torch.ops.perfconv.pack_weight(weight, 1) for weight in weights]]),
        [1] * 2 * len(kernels),
        [kernel // 2 for kernel in kernels for _ in range(2)],
        [1] * 2 * len(kernels),
        [1] * len(kernels),
    ]
    if r.random() < 0.5:
        chosen = r.choice(lists)
        if chosen:
            chosen[r.randrange(len(chosen))] = any_value(r)
    decides = [None, torch.randn(2, 5), None]
    given = [torch.rand(r.choice([1, 2]), 1, 7, 6) < r.random(), None, None]
    return [*r.choice([decides, given]), *lists, r.choice(ACTIVATIONS), r.choice(ACTIVATIONS)]


def operator_call(r: random.Random) -> tuple[object, list, dict]:
    """A raw operator with arguments that are right but for one or two."""
    ops, c, one = torch.ops.perfconv, coherent_conv(r), [1, 1]
    active = torch.ops.perfconv.compact_mask(c["mask"])
    rest = [one, c["padding"], one, c["groups"]]
    algorithm = r.choice(ALGORITHMS)
    calls = [
        (ops.perforated_conv2d, lambda: [
            c["input"], c["weight"], c["mask"], None, None, None, *active[:2], None, *rest,
            r.choice(FILLS[:2]), r.choice(ACTIVATIONS), False, None, algorithm,
        ]),
        (ops.perforated_conv2d_dgrad, lambda: [
            c["grad_output"], c["weight"], c["mask"], None, None, c["size"], r.random() < 0.5,
            *rest, algorithm,
        ]),
        (ops.perforated_conv2d_wgrad, lambda: [
            c["grad_output"], c["input"], c["mask"], None, None, c["taps"], *rest, algorithm,
        ]),
        (ops.perforated_conv2d_backward, lambda: [
            c["grad_output"], c["input"], c["weight"], c["mask"], None, None, *rest,
            r.random() < 0.5, algorithm,
        ]),
        (ops.active_sum, lambda: [c["grad_output"], c["mask"]]),
        (ops.nearest_fill, lambda: [c["grad_output"], c["mask"]]),
        (ops.nearest_fill_grad, lambda: [c["grad_output"], c["mask"]]),
        (ops.compact_mask, lambda: [c["mask"]]),
        (ops.expand_mask, lambda: [c["mask"], c["taps"], *rest[:3], c["size"]]),
        (ops.gate_mask, lambda: [c["grad_output"], c["gate"], None, r.random() < 0.5]),
        (ops.gather_pixels, lambda: [c["grad_output"], *active[:2]]),
        (ops.scatter_pixels, lambda: [
            torch.randn(c["mask"].numel(), 3), c["mask"], *active[:2], None,
        ]),
        (ops.pack_weight, lambda: [c["weight"], c["groups"]]),
        (ops.gated_block, lambda: [torch.randn(2, 5, 7, 6), None, *block_arguments(r)]),
        (ops.gated_block_into, lambda: [torch.randn(2, 5, 7, 6), None, *block_arguments(r)]),
    ]  # fmt: skip
    op, make = r.choice(calls)
    arguments = make()
    for _ in range(r.choice([0, 1, 1, 1, 2, 3])):
        arguments[r.randrange(len(arguments))] = any_value(r)
    return op, arguments, {}


def function_call(r: random.Random) -> tuple[object, list, dict]:
    """A public function, likewise."""
    c = coherent_conv(r)
    options = {"padding": c["padding"][0], "groups": c["groups"]}
    active = perfconv.compact_mask(c["mask"])
    call = r.choice([
        (perfconv.perforated_conv2d, [c["input"], c["weight"], c["mask"]], options),
        (perfconv.explain, [c["input"], c["weight"], c["mask"]], options),
        (perfconv.expand_mask, [c["mask"], c["taps"][0]], {"padding": c["padding"][0]}),
        (perfconv.downsample_mask, [c["mask"], 2], {}),
        (perfconv.density, [c["mask"]], {}),
        (perfconv.compact_mask, [c["mask"]], {}),
        (perfconv.gate_mask, [c["grad_output"], c["gate"], None], {}),
        (perfconv.gather_pixels, [c["grad_output"], active], {}),
        (perfconv.scatter_pixels, [torch.randn(c["mask"].numel(), 3), active], {}),
        (perfconv.pack_weight, [c["weight"]], {"groups": c["groups"]}),
    ])  # fmt: skip
    function, arguments, options = call
    extra = ["stride", "dilation", "fill", "base", "residual", "activation", "activate_base",
             "expected_density", "algorithm", "packed_weight", "bias", "size"]  # fmt: skip
    for _ in range(r.choice([0, 1, 1, 2])):
        if r.random() < 0.5:
            arguments[r.randrange(len(arguments))] = any_value(r)
        else:
            options = {**options, r.choice([*options, *extra]): any_value(r)}
    return function, arguments, options


def differentiate(value: object) -> None:
    """Backwards too, where there is something to differentiate."""
    if isinstance(value, torch.Tensor) and value.requires_grad and value.device.type == "cpu":
        value.sum().backward()


def main(seed: int, calls: int) -> None:
    torch.set_num_threads(1)
    torch.set_printoptions(threshold=0, edgeitems=1)  # torch's refusals quote whole tensors
    r = random.Random(seed)
    torch.manual_seed(seed)
    good = 0
    for index in range(calls):
        function, arguments, options = (operator_call if index % 2 else function_call)(r)
        print(f"call {index} {function}", file=sys.stderr, flush=True)
        try:
            differentiate(function(*arguments, **options))
            good += 1
        except Exception:
            continue
    print(f"{calls} calls, {good} without an exception")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
