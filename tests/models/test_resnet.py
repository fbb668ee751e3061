"""ResNet trunks against torchvision's, and what torchvision's do not have."""

import importlib
from pathlib import Path

import pytest
import torch
from foreign import make_importable
from torch import Tensor, nn

from perfconv.models.resnet import DEPTHS, ResNet, stage_geometry
from perfconv.models.weights import load_weights, read_weights


def torchvisions(depth: int, **options) -> nn.Module:
    make_importable("torchvision")
    models = importlib.import_module("torchvision.models")
    return getattr(models, f"resnet{depth}")(**options)


def trunk(depth: int, **options) -> ResNet:
    return ResNet(*DEPTHS[depth], **options)


def small(**options) -> ResNet:
    kind, _ = DEPTHS[50]
    return ResNet(kind, (1, 1, 1, 1), **options)


@pytest.mark.parametrize("depth", DEPTHS)
def test_names_and_shapes_are_torchvisions(depth: int) -> None:
    with torch.device("meta"):
        theirs = torchvisions(depth).state_dict()
        ours = trunk(depth).state_dict()
    theirs = {name: value for name, value in theirs.items() if not name.startswith("fc.")}
    assert list(ours) == list(theirs)
    assert all(ours[name].shape == theirs[name].shape for name in ours)


@pytest.mark.parametrize(("depth", "output_stride"), [(18, 32), (50, 32), (50, 16), (50, 8)])
def test_features_are_torchvisions(depth: int, output_stride: int) -> None:
    torch.manual_seed(0)
    dilated = {32: None, 16: [False, False, True], 8: [False, True, True]}[output_stride]
    options = {"replace_stride_with_dilation": dilated} if dilated else {}
    theirs = torchvisions(depth, **options).eval()
    ours = trunk(depth, output_stride=output_stride).eval()
    load_weights(ours, theirs.state_dict())
    images = torch.rand(1, 3, 41, 52)
    with torch.no_grad():
        features = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(ours.normalization(images)))))
        found = ours(images)
        for index, info in enumerate(ours.feature_info):
            features = getattr(theirs, f"layer{index + 1}")(features)
            torch.testing.assert_close(found[info.name], features)
            assert features.shape[1:] == (
                info.channels,
                -(-41 // info.stride),
                -(-52 // info.stride),
            )


def test_geometry() -> None:
    strides = {os: [g.stride for g in stage_geometry(os)] for os in (8, 16, 32)}
    assert strides == {8: [1, 2, 1, 1], 16: [1, 2, 2, 1], 32: [1, 2, 2, 2]}
    assert [(g.first_dilation, g.dilation) for g in stage_geometry(8)] == [
        (1, 1), (1, 1), (1, 2), (2, 4),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got 4"):
        stage_geometry(4)


def test_options_of_the_authors() -> None:
    model = small(
        stem="three_convs", stride_in_1x1=True, normalization="mean_255", res6_channels=32,
        res6_kernel=1, output_stride=8,
    ).eval()  # fmt: skip
    first = model.layer2[0]
    assert (first.conv1.stride, first.conv2.stride) == ((2, 2), (1, 1))
    assert [m.stride[0] for m in model.conv1 if isinstance(m, nn.Conv2d)] == [2, 1, 1]
    assert model.layer1[0].conv1.in_channels == 128
    assert model.feature_info[-1] == ("res6", 32, 8)
    assert model(torch.rand(2, 3, 33, 40))["res6"].shape == (2, 32, 5, 5)
    grey = torch.full((1, 3, 1, 1), 0.5)
    expected = torch.tensor([127.5 - 123.68, 127.5 - 116.779, 127.5 - 103.939])
    torch.testing.assert_close(model.normalization(grey).flatten(), expected)


def test_norms_are_frozen_by_name() -> None:
    model = small(frozen_norms=("bn1", "layer1", "layer3.0.bn2")).train()
    frozen = {
        name for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not module.training
    }  # fmt: skip
    in_layer1 = {f"layer1.0.bn{k}" for k in (1, 2, 3)} | {"layer1.0.downsample.1"}
    assert frozen == {"bn1", "layer3.0.bn2", *in_layer1}
    assert all(not m.training for m in small(frozen_norms=("",)).train().modules()
               if isinstance(m, nn.BatchNorm2d))  # fmt: skip
    with pytest.raises(TypeError, match="frozen_norms must be a list"):
        small(frozen_norms="layer1")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_files(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    state = {**small().state_dict(), "fc.weight": torch.zeros(2, 2)}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)
    model = small(res6_channels=8)
    load_weights(model, path, new=("res6.",))
    assert torch.equal(model.layer4[0].conv3.weight, state["layer4.0.conv3.weight"])


class Code:
    def __reduce__(self) -> tuple:
        return print, ("executed",)


def test_files_with_code_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"weight": Code()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="must hold tensors only"):
        read_weights(tmp_path / "bad.pth")
    assert "executed" not in capsys.readouterr().out
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="must hold a state dict"):
        read_weights(tmp_path / "list.pth")


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    state = {**small().state_dict(), **{k.replace("__", "."): v for k, v in changes.items()}}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bn1__weight": None}, "lacks bn1.weight"),
        ({"head__weight": torch.zeros(1)}, "has head.weight besides"),
        ({"bn1__weight": torch.zeros(3)}, r"has bn1.weight of \(3,\), not \(64,\)"),
    ],
)
def test_weights_that_do_not_fit(changes: dict, message: str) -> None:
    model = small()
    before = model.conv1.weight.clone()
    with pytest.raises(ValueError, match=message):
        load_weights(model, changed(**changes))
    assert torch.equal(model.conv1.weight, before)


@pytest.mark.parametrize("name", ["stem", "normalization"])
def test_errors(name: str) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        small(**{name: "other"})
