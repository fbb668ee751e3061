"""EfficientNet-lite0: shapes, names, and its ImageNet weights on a photo of a cat."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from foreign import make_importable
from torch import Tensor

import perfconv
from perfconv.data.image import load_photo
from perfconv.models import (
    EfficientNetLite0,
    efficientnet_lite0_imagenet,
    find_cat_photo,
    square_input,
)
from perfconv.models.efficientnet_lite import SamePaddedConv2d
from perfconv.models.efficientnet_lite_weights import EGYPTIAN_CAT, find_file, read_weights
from perfconv.nn import GatedInvertedResidual


def cat() -> Tensor:
    """The photo, (1, 3, 224, 224); skips the test if it or the weights are not there."""
    try:
        efficientnet_lite0_imagenet()
        return square_input(load_photo(find_cat_photo()).pixels)
    except RuntimeError as error:
        pytest.skip(str(error))


def test_the_cat_is_a_cat() -> None:
    scores = efficientnet_lite0_imagenet()(cat()).softmax(1)
    assert scores.argmax() == EGYPTIAN_CAT
    assert scores.max() > 0.7


def test_parameters_and_sizes() -> None:
    model = EfficientNetLite0(classes=10).eval()
    assert len(model.state_dict()) == 296
    whole = EfficientNetLite0()
    assert sum(parameter.numel() for parameter in whole.parameters()) == 4_652_008
    assert not model.blocks[1][0].has_shortcut
    assert model.blocks[1][1].has_shortcut
    with torch.no_grad():
        assert model(torch.rand(2, 3, 65, 50)).shape == (2, 10)


def test_same_numbers_as_timm() -> None:
    make_importable("torchvision", "timm")
    import timm

    torch.manual_seed(0)
    ours = EfficientNetLite0(classes=7).eval()
    theirs = timm.create_model("tf_efficientnet_lite0", num_classes=7).eval()
    theirs.load_state_dict(ours.state_dict())  # the same names
    images = torch.rand(1, 3, 71, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("size", [7, 8])
def test_padding_at_a_stride(size: int) -> None:
    """TensorFlow pads an even size at the end only."""
    conv = SamePaddedConv2d(1, 1, 3, 2, bias=False)
    image = torch.rand(1, 1, size, size)
    sides = (1, 1, 1, 1) if size == 7 else (0, 1, 0, 1)
    assert torch.equal(conv(image), F.conv2d(F.pad(image, sides), conv.weight, stride=2))


def test_input_of_any_shape() -> None:
    prepared = square_input(torch.rand(2, 3, 50, 90), size=32)
    assert prepared.shape == (2, 3, 32, 32)
    assert prepared.min() >= -1
    assert prepared.max() <= 1


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    wanted = EfficientNetLite0().state_dict()
    path = tmp_path / "weights.pth"
    for content, message in (
        ([1], "must hold 296 tensors by name, got list"),
        ({"a": torch.zeros(1)}, "must hold 296 tensors by name, got 1 tensors"),
        ({name: torch.zeros(1) for name in wanted}, r"conv_stem.weight must be \(32, 3, 3, 3\)"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            read_weights(path, wanted)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is no file of weights"):
        read_weights(path, wanted)
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "nothing.pth", wanted)


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.files", lambda package: [])
    with pytest.raises(RuntimeError, match="is not installed here. Install it: pip install"):
        find_file("scikit-image", "chelsea.png")


def test_converted_with_open_gates_sees_the_same_cat() -> None:
    plain, photo = efficientnet_lite0_imagenet(), cat()
    converted = perfconv.convert(plain)
    report = converted.conversion_report
    assert set(report.converted.values()) == {"GatedInvertedResidual"}
    assert (len(report.converted), len(report.left)) == (9, 7)
    wanted = plain(photo).softmax(1)
    for model in (converted, perfconv.fuse(converted), perfconv.unconvert(converted)):
        torch.testing.assert_close(model(photo).softmax(1), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("density", [0.0, 0.5])
def test_closed_and_random_gates_run_sparsely(density: float) -> None:
    """Both executions agree, and the operators that ran multiplied at active pixels only."""
    converted, photo = perfconv.convert(efficientnet_lite0_imagenet()), cat()
    outputs = []
    for execution in ("dense", "sparse"):
        for block in converted.modules():
            if isinstance(block, GatedInvertedResidual):
                block.execution = execution
        force_gates(converted, density)
        outputs.append(converted(photo))
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)
    force_gates(converted, density)
    counted = perfconv.flops.count(converted, photo)
    assert counted.active_macs < counted.dense_macs
    assert counted.executed_macs < counted.dense_macs


def force_gates(model: torch.nn.Module, density: float) -> None:
    perfconv.force_gates(model, density, generator=torch.Generator().manual_seed(0))
