"""Sample and Batch: shapes and dtypes are held to, validity follows, stacking."""

import pytest
import torch

from perfconv.data import Camera, Sample, collate


def sample(**changes: object) -> Sample:
    fields = {
        "image": torch.rand(3, 4, 5),
        "labels": torch.zeros(4, 5, dtype=torch.int64),
        "depth_m": torch.ones(1, 4, 5),
        "normals": torch.ones(3, 4, 5),
        "boundaries": torch.zeros(2, 4, 5, dtype=torch.bool),
        "camera": Camera(4, 4, 2, 1.5),
    }
    return Sample(**{**fields, **changes})


def test_validity_follows_from_values() -> None:
    depth = torch.tensor([[[1.0, 0.0, torch.nan, torch.inf, -1.0]]]).expand(1, 4, 5)
    normals = torch.zeros(3, 4, 5)
    normals[1, 0] = 1
    made = sample(depth_m=depth, normals=normals)
    assert made.depth_valid[0, 0].tolist() == [True, False, False, False, False]
    assert made.normals_valid[0].any(1).tolist() == [True, False, False, False]
    assert made.size == (4, 5)
    assert sample(depth_m=None).depth_valid is None


def test_share_of_annotators() -> None:
    boundaries = torch.zeros(4, 4, 5, dtype=torch.bool)
    boundaries[:3, 0] = True
    share = sample(boundaries=boundaries).boundary_share
    assert share.shape == (1, 4, 5)
    assert share[0, :, 0].tolist() == [0.75, 0, 0, 0]


@pytest.mark.parametrize(
    ("field", "value", "error", "match"),
    [
        ("labels", torch.zeros(4, 5), TypeError, "labels must be torch.int64, got torch.float32"),
        ("labels", torch.zeros(4, 4, dtype=torch.int64), ValueError, r"labels must be \(H, W\)"),
        ("depth_m", torch.ones(4, 5), ValueError, r"depth_m must be \(1, H, W\) with .*\(4, 5\)"),
        ("normals", torch.ones(2, 4, 5), ValueError, r"normals must be \(3, H, W\)"),
        ("boundaries", torch.zeros(1, 4, 5), TypeError, "boundaries must be torch.bool"),
        ("image", torch.zeros(1, 4, 5), ValueError, r"image must be \(3, H, W\)"),
    ],
)
def test_refusals(field: str, value: torch.Tensor, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=f"Sample 'here': {match}"):
        sample(name="here", **{field: value})


def test_collate() -> None:
    batch = collate([sample(name="a"), sample(name="b", normals=None)])
    assert len(batch) == 2
    assert batch.names == ("a", "b")
    assert batch.image.shape == (2, 3, 4, 5)
    assert batch.labels.shape == (2, 4, 5)
    assert batch.depth_valid.shape == (2, 1, 4, 5)
    assert batch.boundaries.shape == (2, 1, 4, 5)
    assert batch.normals is None
    assert batch.cameras[1] == Camera(4, 4, 2, 1.5)
    assert batch.to("meta").image.is_meta
    with pytest.raises(ValueError, match="samples must be of one size"):
        collate([sample(), Sample(torch.rand(3, 4, 4))])
    with pytest.raises(ValueError, match="got no sample"):
        collate([])
