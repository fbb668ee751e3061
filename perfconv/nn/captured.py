"""CapturedCall: a network on inputs of one size, on a GPU as a CUDA graph that is captured once.

Masks may change from replay to replay: grids are sized for every pixel, counts stay on the device.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

WARM_UP = 3  # calls before a capture: torch asks for some, which load kernels and pack weights

Outputs = TypeVar("Outputs")


class CapturedCall(Generic[Outputs]):
    """Calls ``call`` without gradients; on a GPU each call replays one CUDA graph.

    A replay costs the host one launch, whatever the network. Inputs are copied to where the graph
    reads them; outputs lie where it writes them, and the next call overwrites them there: clone
    what must outlive it. Capture anew after a change of the network, of its gates' settings too,
    and after ``prepack``, ``train()`` or ``to()``: they free packed weights that the graph reads.
    On a CPU ``call`` runs as it is, after the same checks, and its outputs are new ones.

    Args:
        call: a network in eval mode, or a function around one, that waits for no device; its
            outputs are of any kind. For gates' decisions: ``record_gates`` within the function.
        examples: inputs of the sizes, dtypes and the device to capture for, at least one.

    Raises:
        ValueError: there is no example; in a call, another number of inputs or another shape.
        TypeError: in a call, another dtype.

    Example:
        >>> layer = perfconv.nn.GatedConv2d(torch.nn.Conv2d(3, 3, 3, padding=1)).eval()
        >>> captured = CapturedCall(layer, torch.rand(1, 3, 8, 8))
        >>> captured(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """

    def __init__(self, call: Callable[..., Outputs], *examples: Tensor) -> None:
        if not examples:
            raise ValueError(
                "CapturedCall: at least one example of the inputs must be given, got none. Give "
                "tensors of their shapes, dtypes and device."
            )
        self._call = call
        with torch.inference_mode(False), torch.cuda.device_of(examples[0]):
            self._inputs = tuple(example.detach().clone() for example in examples)
            self._graph: torch.cuda.CUDAGraph | None = None
            if _has_graphs(examples[0].device):
                self._graph = graph_of(self._run)

    def __call__(self, *inputs: Tensor) -> Outputs:
        """The outputs for ``inputs``, tensors like the examples; for a graph on any device.

        Notes: does not wait for the device, if what is on the host lies in pinned memory; leave
        that alone until the copy is done.
        """
        self._check(inputs)
        with torch.inference_mode(False), torch.no_grad():
            if self._graph is None:
                return self._call(*inputs)
            with torch.cuda.device_of(self._inputs[0]):
                for own, given in zip(self._inputs, inputs, strict=True):
                    own.copy_(given, non_blocking=True)
                self._graph.replay()
            return self._outputs

    def _run(self) -> None:
        with torch.no_grad():
            self._outputs = self._call(*self._inputs)

    def _check(self, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs) != len(self._inputs):
            raise ValueError(
                f"CapturedCall: there must be as many inputs as examples, {len(self._inputs)}, got "
                f"{len(inputs)}."
            )
        for number, (own, given) in enumerate(zip(self._inputs, inputs, strict=True)):
            if given.shape != own.shape:
                raise ValueError(
                    f"CapturedCall: input {number} must have the shape of its example, "
                    f"{tuple(own.shape)}, got {tuple(given.shape)}. Make a CapturedCall for each "
                    "size."
                )
            if given.dtype != own.dtype:
                raise TypeError(
                    f"CapturedCall: input {number} must be {own.dtype} as its example, got "
                    f"{given.dtype}. Convert it."
                )


def graph_of(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of ``call`` on the current device, after calls on a stream of their own.

    What it reads and writes stays where it is: keep that alive and fill it in place.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"
