"""Metrics of the four tasks: sums over a set that merge across processes."""

from perfconv.metrics.boundary import BoundaryMetric, BoundaryScores
from perfconv.metrics.depth import DepthMetric, DepthScores
from perfconv.metrics.matching import Match, match_boundaries
from perfconv.metrics.normals import NormalsMetric, NormalsScores
from perfconv.metrics.segmentation import (
    InstanceMetric,
    InstanceScores,
    SegmentationMetric,
    SegmentationScores,
)
from perfconv.metrics.state import Metric
from perfconv.metrics.thinning import suppress_non_maxima, thin

__all__ = [
    "BoundaryMetric",
    "BoundaryScores",
    "DepthMetric",
    "DepthScores",
    "InstanceMetric",
    "InstanceScores",
    "Match",
    "Metric",
    "NormalsMetric",
    "NormalsScores",
    "SegmentationMetric",
    "SegmentationScores",
    "match_boundaries",
    "suppress_non_maxima",
    "thin",
]
