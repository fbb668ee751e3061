"""That code above the operators waits for no device: what a CUDA graph needs, without a GPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoWaiting(TorchDispatchMode):
    """Fails where a GPU would have to be waited for: values read, tensors made from numbers."""

    REFUSED = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "equal", "_unique2")

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        name = operator.overloadpacket.__name__
        indices = arguments[1] if name.startswith(("index", "_unsafe_index")) else ()
        indices = indices if isinstance(indices, list | tuple) else ()
        reads = any(index is not None and index.dtype == torch.bool for index in indices)
        assert name not in self.REFUSED, name
        assert not reads, "indexed by a mask"
        return operator(*arguments, **(options or {}))
