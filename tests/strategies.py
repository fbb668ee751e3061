"""Hypothesis strategies for perforated convolutions: any legal problem, biased to the edges.

Channel and pixel counts lie at the kernels' tile sizes (12 or 14 rows, 16 or 32 columns) and one
beside them.
"""

from dataclasses import replace

from helpers import DTYPES, LAYOUTS, Problem
from hypothesis import strategies as st

ACTIVATIONS = (None, None, "relu", "relu6", "silu", "hardswish")
CHANNELS = (1, 2, 3, 4, 7, 15, 16, 17, 31, 32, 33, 40)
SIDES = (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
DENSITIES = (0.0, 0.02, 0.1, 0.3, 0.5, 0.8, 1.0)

dtypes = st.sampled_from(DTYPES)
layouts = st.sampled_from(LAYOUTS)


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def channels(draw: st.DrawFn) -> dict[str, int]:
    """in_channels, out_channels and groups: ordinary, grouped, or depthwise."""
    kind = draw(
        st.sampled_from(("ordinary", "ordinary", "grouped", "depthwise", "depthwise_twice"))
    )
    first, second = draw(st.sampled_from(CHANNELS)), draw(st.sampled_from(CHANNELS))
    if kind == "ordinary":
        return {"in_channels": first, "out_channels": second, "groups": 1}
    if kind == "grouped":
        groups = draw(st.integers(2, 3))
        first, second = min(first, 17), min(second, 17)
        return {"in_channels": first * groups, "out_channels": second * groups, "groups": groups}
    outputs = first * 2 if kind == "depthwise_twice" else first
    return {"in_channels": first, "out_channels": outputs, "groups": first}


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Any problem that torch's convolution accepts; images grow until the kernel fits."""
    kernel = draw(pairs(1, 5))
    dilation = draw(pairs(1, 3))
    is_same = draw(st.integers(0, 7)) == 0
    padding = "same" if is_same else draw(st.one_of(pairs(0, 2), pairs(0, 5)))
    size = draw(st.tuples(st.sampled_from(SIDES), st.sampled_from(SIDES)))
    if not is_same:
        spans = (step * (side - 1) + 1 for step, side in zip(dilation, kernel, strict=True))
        size = tuple(
            max(side, span - 2 * border)
            for side, span, border in zip(size, spans, padding, strict=True)
        )
    fill = draw(st.sampled_from(("zero", "zero", "nearest", "passthrough")))
    return Problem(
        batch=draw(st.sampled_from((0, 1, 1, 2, 3))),
        **draw(channels()),
        size=size,
        kernel=kernel,
        stride=(1, 1) if is_same else draw(st.one_of(st.just((1, 1)), pairs(1, 4))),
        padding=padding,
        dilation=dilation,
        density=draw(st.sampled_from(DENSITIES)),
        is_mask_shared=draw(st.booleans()),
        has_bias=draw(st.booleans()),
        has_residual=draw(st.booleans()),
        fill=fill,
        activation=draw(st.sampled_from(ACTIVATIONS)),
        activate_base=fill == "passthrough" and draw(st.booleans()),
        seed=draw(st.integers(0, 10_000)),
    )


@st.composite
def plain_problems(draw: st.DrawFn) -> Problem:
    """As above, with zero fill, no residual and no activation: linear in the input."""
    return replace(
        draw(problems()), has_residual=False, activation=None, fill="zero", activate_base=False
    )
