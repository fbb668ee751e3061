"""Modules built on the operators."""

from perfconv.nn.captured import CapturedCall
from perfconv.nn.cell_gate import CellGate, SharedGate
from perfconv.nn.conv import PerforatedConv2d, prepack
from perfconv.nn.depth_bins import (
    CITYSCAPES,
    CITYSCAPES_M,
    NYUV2,
    NYUV2_M,
    DepthBins,
    quantile_bins,
)
from perfconv.nn.depth_branch import DepthBranch, DepthPrediction
from perfconv.nn.depth_pool import DepthAwarePool, DepthPooled
from perfconv.nn.dilation_pool import MultiDilationPool
from perfconv.nn.dropped_block import DroppedBlock
from perfconv.nn.fuse import fuse
from perfconv.nn.gate import BinaryGate, Gate, LayerGate, PixelGate
from perfconv.nn.gate_record import (
    GateCall,
    GateRecord,
    force_gates,
    gates,
    parameter_groups,
    record_gates,
    set_temperature,
)
from perfconv.nn.gated_block import GatedBlock
from perfconv.nn.gated_blocks import GatedBasicBlock, GatedBottleneck, GatedInvertedResidual
from perfconv.nn.gated_chain import GatedChain
from perfconv.nn.gated_conv import GatedConv2d
from perfconv.nn.mask_state import MaskState
from perfconv.nn.pooled_block import GatedPoolBottleneck
from perfconv.nn.recurrent import LoopOutput, RecurrentRefinement, merge
from perfconv.nn.scale_gate import ScaleChoice, ScaleGate

__all__ = [
    "CITYSCAPES",
    "CITYSCAPES_M",
    "NYUV2",
    "NYUV2_M",
    "BinaryGate",
    "CapturedCall",
    "CellGate",
    "DepthAwarePool",
    "DepthBins",
    "DepthBranch",
    "DepthPooled",
    "DepthPrediction",
    "DroppedBlock",
    "Gate",
    "GateCall",
    "GateRecord",
    "GatedBasicBlock",
    "GatedBlock",
    "GatedBottleneck",
    "GatedChain",
    "GatedConv2d",
    "GatedInvertedResidual",
    "GatedPoolBottleneck",
    "LayerGate",
    "LoopOutput",
    "MaskState",
    "MultiDilationPool",
    "PerforatedConv2d",
    "PixelGate",
    "RecurrentRefinement",
    "ScaleChoice",
    "ScaleGate",
    "SharedGate",
    "force_gates",
    "fuse",
    "gates",
    "merge",
    "parameter_groups",
    "prepack",
    "quantile_bins",
    "record_gates",
    "set_temperature",
]
