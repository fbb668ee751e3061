"""Readers of data sets: small files of the same formats, their refusals, and real samples."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("PIL", reason="Pillow is not installed")
pytest.importorskip("h5py", reason="h5py is not installed")
pytest.importorskip("scipy", reason="SciPy is not installed")

import small_datasets
from real_samples import sample_folder

from perfconv.data import Camera, flip, normals_from_depth
from perfconv.data.bsds500 import BSDS500
from perfconv.data.cityscapes import Cityscapes
from perfconv.data.dataset import LabelledImages, Readable
from perfconv.data.files import DataError, read_rgb
from perfconv.data.nyuv2 import NYUv2
from perfconv.data.stanford import Stanford2D3D, find_turn, viewer_normals
from perfconv.data.sunrgbd import SUNRGBD

SIZE = small_datasets.SIZE


def test_nyuv2_one_file_each(tmp_path: Path) -> None:
    small_datasets.write_nyuv2_listed(tmp_path)
    test, train = NYUv2(tmp_path, "test"), NYUv2(tmp_path)
    assert test.names == ("5001", "5002")
    assert train.names == ("5003",)
    sample = test[1]
    pixels = torch.from_numpy(small_datasets.colours(5002)).permute(2, 0, 1)
    torch.testing.assert_close(sample.image * 255, pixels.float())
    assert sample.depth_valid[0, 0, :3].tolist() == [False, False, True]
    assert 0.5 < sample.depth_m[sample.depth_valid].min() < sample.depth_m.max() < 9
    numbers = torch.from_numpy(small_datasets.random(5002).uniform(500, 9000, SIZE))
    torch.testing.assert_close(
        sample.depth_m[0, 1:].double(), numbers[1:] / 1000, rtol=1e-5, atol=0
    )
    assert set(sample.labels.unique().tolist()) <= {*range(40), 255}
    assert (sample.labels == 255).any()


def test_nyuv2_with_normals(tmp_path: Path) -> None:
    small_datasets.write_nyuv2_listed(tmp_path)
    assert NYUv2(tmp_path)[0].normals is None
    sample = NYUv2(tmp_path, normals_radius=1)[0]
    assert sample.normals.shape == (3, *SIZE)  # of noise: none need be valid


def test_nyuv2_official(tmp_path: Path) -> None:
    content = small_datasets.write_nyuv2_official(tmp_path)
    dataset = NYUv2(tmp_path, "train")
    assert dataset.names == ("0002",)
    sample = dataset[0]
    assert sample.size == (427, 561)
    row, column = 100, 200  # in the cut image; files hold columns before rows
    place = (column + 40, row + 44)
    expected = content["images"][(1, slice(None), *place)] / 255
    assert sample.image[:, row, column].tolist() == pytest.approx(expected.tolist())
    assert sample.depth_m[0, row, column].item() == pytest.approx(content["depths"][(1, *place)])
    name = int(content["labels"][(1, *place)])
    wanted = 255 if name == 0 else int(content["mapClass"][0, name - 1]) - 1
    assert sample.labels[row, column].item() == wanted
    assert sample.camera.centre_x == pytest.approx(284.58, abs=0.01)


@pytest.mark.parametrize("missing", ["splits.mat", "classMapping40.mat"])
def test_nyuv2_says_where_a_file_comes_from(tmp_path: Path, missing: str) -> None:
    small_datasets.write_nyuv2_official(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(DataError, match=rf"{missing} is missing. It comes from the"):
        NYUv2(tmp_path)
    with pytest.raises(DataError, match="must hold nyu_depth_v2_labeled.mat"):
        NYUv2(tmp_path / "empty")


def test_cityscapes(tmp_path: Path) -> None:
    small_datasets.write_cityscapes(tmp_path)
    sample = Cityscapes(tmp_path)[0]
    draw = small_datasets.random(0)
    ids = draw.integers(0, 34, SIZE, dtype=np.uint8)
    expected = {7: 0, 8: 1, 26: 13, 33: 18, 0: 255, 29: 255, 30: 255}
    for label_id, train_id in expected.items():
        assert set(sample.labels[torch.from_numpy(ids == label_id)].tolist()) <= {train_id}
    assert torch.equal(sample.instances > 0, torch.from_numpy(ids >= 24))
    assert sample.camera.focal_y == 2001
    assert sample.depth_m[0, 0, :2].tolist() == [0, 0]
    assert sample.depth_m[0, 0, 2].item() == pytest.approx(0.25 * 2000 / 1)  # (257 - 1) / 256
    assert sample.depth_valid[0, 0, :3].tolist() == [False, False, True]


def test_cityscapes_without_depth_or_labels(tmp_path: Path) -> None:
    small_datasets.write_cityscapes(tmp_path)
    (tmp_path / "disparity").rename(tmp_path / "elsewhere")
    assert Cityscapes(tmp_path)[0].depth_m is None
    (tmp_path / "leftImg8bit/train").rename(tmp_path / "leftImg8bit/test")
    sample = Cityscapes(tmp_path, "test")[0]
    assert sample.labels is None


@pytest.mark.parametrize("coloured", [False, True])
def test_stanford(tmp_path: Path, coloured: bool) -> None:
    numbers = small_datasets.write_stanford(tmp_path, coloured=coloured)
    train, test = Stanford2D3D(tmp_path), Stanford2D3D(tmp_path, "test")
    assert (train.names, test.names) == (("camera_0_office",), ("camera_1_office",))
    sample = train[0]
    found = torch.from_numpy(numbers["area_1"])
    if coloured:  # unknown, ceiling, clutter, wall
        wanted = torch.tensor([255, 3, 255, 10])[torch.where(found > 3, 0, found)]
    else:
        wanted = torch.where(found == 0, 255, found - 1)
    assert torch.equal(sample.labels, wanted)
    assert not sample.depth_valid[0, 0, :2].any()
    assert torch.equal(sample.normals_valid, sample.depth_valid)
    lengths = sample.normals.norm(dim=0)
    torch.testing.assert_close(lengths, sample.normals_valid[0].float())
    value = int(small_datasets.random(0).integers(2, 5000, SIZE)[3, 4])
    assert sample.depth_m[0, 3, 4].item() == pytest.approx(value / 512)


def test_sunrgbd(tmp_path: Path) -> None:
    millimetres = small_datasets.write_sunrgbd(tmp_path)
    dataset = SUNRGBD(tmp_path)
    assert len(dataset.classes) == 37
    expected = torch.from_numpy(millimetres.astype(np.float32) / 1000).clamp(max=8)
    torch.testing.assert_close(dataset[0].depth_m[0], expected)


def test_sunrgbd_official(tmp_path: Path) -> None:
    labels = small_datasets.write_sunrgbd_official(tmp_path)
    train, test = SUNRGBD(tmp_path), SUNRGBD(tmp_path, "test")
    assert train.names == ("kv2/align_kv2/0002-resize", "xtion/sun3ddata/brown_1/r")
    assert test.names == ("kv1/b3dodata/img_0063",)
    for sample, values in zip((test[0], train[0], train[1]), labels, strict=True):
        numbers = torch.from_numpy(values.astype(np.int64))
        assert torch.equal(sample.labels, torch.where(numbers == 0, 255, numbers - 1))
        assert 7 < sample.depth_m.max() <= 8
    assert train[0].camera == Camera(521.5, 530.5, 364.0, 264.0)
    torch.testing.assert_close(train[0].image, read_rgb(next(tmp_path.rglob("1.jpg"))))


@pytest.mark.parametrize("name", ["SUNRGBDMeta.mat", "SUNRGBD2Dseg.mat", "allsplit.mat"])
def test_sunrgbd_says_which_file_of_the_toolbox(tmp_path: Path, name: str) -> None:
    small_datasets.write_sunrgbd_official(tmp_path)
    (path,) = tmp_path.rglob(name)
    if name != "SUNRGBD2Dseg.mat":  # that one is read with each sample
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(DataError, match=f"{name} is damaged"):
            SUNRGBD(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=rf"{name} is missing. It comes from the SUN RGB-D page"):
        SUNRGBD(tmp_path)


def test_sunrgbd_with_labels_of_another_download(tmp_path: Path) -> None:
    import h5py

    small_datasets.write_sunrgbd_official(tmp_path)
    with h5py.File(next(tmp_path.rglob("SUNRGBD2Dseg.mat")), "r+") as file:
        first = file["SUNRGBD2Dseg/seglabel"][:1]
        del file["SUNRGBD2Dseg/seglabel"]
        file.create_dataset("SUNRGBD2Dseg/seglabel", data=first, dtype=h5py.ref_dtype)
    with pytest.raises(DataError, match=r"2Dseg.mat must hold the labels of every image.*got 1\."):
        SUNRGBD(tmp_path)[0]


@pytest.mark.parametrize("annotators", [1, 3])
def test_bsds500(tmp_path: Path, annotators: int) -> None:
    maps = small_datasets.write_bsds500(tmp_path, annotators)
    sample = BSDS500(tmp_path)[0]
    assert torch.equal(sample.boundaries, torch.from_numpy(maps))
    assert sample.labels is None


# ---- what cannot be read -------------------------------------------------------------------------

WRITERS: dict[str, tuple[Callable[[Path], object], Callable[[Path], LabelledImages], str]] = {
    "nyuv2": (small_datasets.write_nyuv2_listed, NYUv2, "5003.mat"),
    "nyuv2-official": (small_datasets.write_nyuv2_official, NYUv2, "nyu_depth_v2_labeled.mat"),
    "cityscapes": (small_datasets.write_cityscapes, Cityscapes, "*labelIds.png"),
    "cityscapes-image": (small_datasets.write_cityscapes, Cityscapes, "*leftImg8bit.png"),
    "cityscapes-disparity": (small_datasets.write_cityscapes, Cityscapes, "*disparity.png"),
    "cityscapes-camera": (small_datasets.write_cityscapes, Cityscapes, "*camera.json"),
    "stanford": (small_datasets.write_stanford, Stanford2D3D, "camera_0*_normals.png"),
    "sunrgbd": (small_datasets.write_sunrgbd, SUNRGBD, "depth/train/*.png"),
    "sunrgbd-official": (
        small_datasets.write_sunrgbd_official,
        partial(SUNRGBD, split="test"),
        "SUNRGBD2Dseg.mat",
    ),
    "bsds500": (small_datasets.write_bsds500, BSDS500, "100075.mat"),
}


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage", "empty"])
@pytest.mark.parametrize("case", WRITERS)
def test_damaged_files_are_named(tmp_path: Path, case: str, damage: str) -> None:
    write, reader, pattern = WRITERS[case]
    write(tmp_path)
    dataset = reader(tmp_path)
    (path,) = tmp_path.rglob(pattern)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        pieces = {"truncated": content[: len(content) // 2], "garbage": b"x" * 900, "empty": b""}
        path.write_bytes(pieces[damage])
    with pytest.raises(DataError) as caught:
        dataset[0]
    assert str(path) in str(caught.value)
    expected = "is missing" if damage == "missing" else "is damaged"
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("case", "values", "match"),
    [
        ("cityscapes", np.full(SIZE, 200, np.uint8), r"must hold label ids in \[0, 33\], got 200"),
        ("cityscapes", np.zeros((3, 4), np.uint8), "labelIds.png must be as large as its image"),
        ("cityscapes-disparity", np.zeros((3, 4), np.uint16), "image, 12 x 16, got 3 x 4"),
        ("stanford", np.zeros((3, 4, 3), np.uint8), "normals.png must be as large as its image"),
        ("sunrgbd", np.zeros((3, 4), np.uint16), "must be as large as its image"),
        ("cityscapes", np.zeros((*SIZE, 3), np.uint8), "must have pixels of one of the kinds"),
        ("cityscapes-image", np.zeros(SIZE, np.uint16), "must have pixels of one of the kinds"),
        ("sunrgbd", np.zeros((*SIZE, 3), np.uint8), "must have pixels of one of the kinds"),
    ],
)
def test_other_content_is_refused(
    tmp_path: Path, case: str, values: np.ndarray, match: str
) -> None:
    write, reader, pattern = WRITERS[case]
    write(tmp_path)
    (path,) = tmp_path.rglob(pattern)
    small_datasets.save(path, values)
    with pytest.raises(DataError, match=match):
        reader(tmp_path)[0]


def test_mat_files_without_the_fields(tmp_path: Path) -> None:
    from scipy.io import savemat

    small_datasets.write_nyuv2_listed(tmp_path)
    savemat(tmp_path / "5003.mat", {"datamat": {"img": np.zeros((2, 2, 3))}})
    with pytest.raises(DataError, match=r"5003.mat must hold the field 'segGT'"):
        NYUv2(tmp_path)[0]
    savemat(tmp_path / "5003.mat", {"other": 1})
    with pytest.raises(DataError, match=r"must hold the variable 'datamat', got \['other'\]"):
        NYUv2(tmp_path)[0]


def test_mat_files_of_other_sizes(tmp_path: Path) -> None:
    from scipy.io import savemat

    small_datasets.write_nyuv2_listed(tmp_path)
    parts = {"img": np.zeros((4, 5, 3)), "segGT": np.zeros((4, 4)), "depth": np.zeros((4, 5))}
    savemat(tmp_path / "5003.mat", {"datamat": parts})
    with pytest.raises(DataError, match=r"5003.mat is damaged or not of .*labels must be"):
        NYUv2(tmp_path)[0]
    small_datasets.write_bsds500(tmp_path)
    small_datasets.save(tmp_path / "images/train/100075.jpg", small_datasets.colours(3, (5, 6)))
    with pytest.raises(DataError, match=r"100075.mat must be as large as its image, 5 x 6"):
        BSDS500(tmp_path)[0]


def test_skipped_and_counted(tmp_path: Path) -> None:
    names = tuple(f"aachen_00000{number}_000019" for number in range(3))
    small_datasets.write_cityscapes(tmp_path, names)
    (tmp_path / f"gtFine/train/aachen/{names[1]}_gtFine_labelIds.png").write_bytes(b"")
    dataset = Readable(Cityscapes(tmp_path))
    assert [dataset[index].name for index in range(len(dataset))] == [names[0], names[2]]
    assert len(dataset.skipped) == 1
    assert names[1] in str(dataset.skipped[0])


@pytest.mark.parametrize("reader", [NYUv2, Cityscapes, Stanford2D3D, SUNRGBD, BSDS500])
def test_splits_and_empty_folders(tmp_path: Path, reader: Callable[..., LabelledImages]) -> None:
    with pytest.raises(ValueError, match="split must be one of"):
        reader(tmp_path, "validation")
    with pytest.raises(DataError, match=str(tmp_path)):
        reader(tmp_path)


def test_frames_of_normals() -> None:
    """A round room of which every wall faces the viewer, seen in one frame, is found again."""
    width = 360
    angle = torch.arange(width) * (2 * torch.pi / width)
    facing = torch.stack([torch.zeros(width), torch.zeros(width), torch.ones(width)])
    in_room = torch.stack([facing[2] * (-angle).sin() * -1, facing[1], (-angle).cos()])
    normals = in_room[:, None].expand(3, 5, width)
    valid = torch.ones(1, 5, width, dtype=torch.bool)
    torch.testing.assert_close(viewer_normals(normals, 0.0)[:, 0], facing, atol=1e-5, rtol=0)
    for turn in (0.0, 90.0, 250.0):
        turned = viewer_normals(normals, turn)[:, 0]
        expected = torch.tensor([-turn]).deg2rad()
        torch.testing.assert_close(turned[2], expected.cos().expand(width), atol=1e-5, rtol=0)
    assert abs((find_turn(normals, valid) + 180) % 360 - 180) < 1.5


# ---- real files ----------------------------------------------------------------------------------


def test_real_nyuv2() -> None:
    """The bins of depth that the authors stored follow from their thresholds."""
    from scipy.io import loadmat

    folder = sample_folder("nyuv2")
    dataset = NYUv2(folder, "test")
    assert len(dataset) == 654
    counts = {}
    for name in ("5017", "5034"):
        sample = dataset.read(name)
        assert sample.size == (425, 560)
        depth_mm = sample.depth_m[0].double() * 1000
        bins = (
            torch.bucketize(depth_mm.round().contiguous(), torch.tensor([1500.0, 2100, 3000, 4700]))
            + 1
        )
        stored = loadmat(folder / f"{name}.mat")["datamat"]["depthBin"][0, 0]
        assert torch.equal(bins, torch.from_numpy(stored).long())
        counts[name] = torch.bincount(bins.flatten(), minlength=6)[1:].tolist()
    assert counts["5017"] == [13544, 28870, 55011, 114931, 25644]


def test_real_nyuv2_normals() -> None:
    """Ceilings face down, floors up, walls neither."""
    sample = NYUv2(sample_folder("nyuv2"), "test", normals_radius=4).read("5017")
    assert sample.normals_valid.float().mean() > 0.5
    upright = {}
    for name in ("floor", "wall", "ceiling"):
        pixels = (sample.labels == NYUv2.classes.index(name)) & sample.normals_valid[0]
        upright[name] = sample.normals[1, pixels].median().item()
    assert upright["floor"] > 0.8
    assert upright["ceiling"] < -0.8
    assert abs(upright["wall"]) < 0.2


def test_real_flips_commute() -> None:
    """Normals of the mirrored depth are the mirrored normals; the labels go along."""
    sample = NYUv2(sample_folder("nyuv2"), "test", normals_radius=2).read("5034")
    mirrored = flip(sample)
    found = normals_from_depth(mirrored.depth_m, mirrored.camera, radius=2)
    assert torch.equal(found.valid, mirrored.normals_valid)
    torch.testing.assert_close(found.normals, mirrored.normals, atol=1e-4, rtol=0)
    assert torch.equal(mirrored.labels, sample.labels.flip(-1))


def test_real_stanford() -> None:
    sample = Stanford2D3D(sample_folder("stanford2d3d"))[0]
    assert sample.size == (704, 2048)
    assert torch.equal(sample.normals_valid, sample.depth_valid)

    def of_class(name: str) -> torch.Tensor:
        """In the files' frame, half a turn about the line of sight away from the samples'."""
        pixels = (sample.labels == Stanford2D3D.classes.index(name)) & sample.normals_valid[0]
        return sample.normals[:, pixels] * torch.tensor([[-1.0], [-1.0], [1.0]])

    assert of_class("ceiling").mean(1).tolist() == pytest.approx([0, 1, 0], abs=0.03)
    assert of_class("floor").mean(1).tolist() == pytest.approx([0, -1, 0], abs=0.03)
    assert (of_class("wall")[2] > 0).float().mean() > 0.99
    assert 0.8 < sample.depth_m[sample.depth_valid].min() < sample.depth_m.max() < 32


def test_real_stanford_normals_are_those_of_its_depth() -> None:
    """x to the right, y up, z towards the viewer, as in every other data set."""
    sample = Stanford2D3D(sample_folder("stanford2d3d"))[0]
    height, width = sample.size
    polar = ((torch.arange(height) + 160.5) * (torch.pi / 1024))[:, None]  # 160 rows are cut off
    azimuth = (torch.arange(width) + 0.5) * (2 * torch.pi / width)
    rays = torch.stack(
        [
            polar.sin() * azimuth.sin(),
            polar.cos().expand(height, width),
            -polar.sin() * azimuth.cos(),
        ]
    )
    points = rays * sample.depth_m
    rightwards = points.roll(-2, 2) - points.roll(2, 2)
    upwards = points.roll(2, 1) - points.roll(-2, 1)
    x, y, z = F.normalize(torch.linalg.cross(rightwards, upwards, dim=0), dim=0)
    x, z = x * azimuth.cos() + z * azimuth.sin(), z * azimuth.cos() - x * azimuth.sin()
    cosine = (torch.stack([x, y, z]) * sample.normals).sum(0)[2:-2]
    assert cosine[sample.normals_valid[0, 2:-2]].median() > 0.99


def test_real_stanford_in_the_frame_of_the_room() -> None:
    turn = 130.0
    sample = Stanford2D3D(sample_folder("stanford2d3d"))[0]
    columns = torch.arange(2048) * (2 * torch.pi / 2048)
    angle = -(columns + torch.tensor(turn).deg2rad())
    facing = sample.normals * torch.tensor([-1.0, -1.0, 1.0])[:, None, None]
    x, y, z = facing
    in_room = torch.stack([angle.cos() * x - angle.sin() * z, y, angle.sin() * x + angle.cos() * z])
    found = find_turn(in_room, sample.normals_valid)
    assert abs((found - turn + 180) % 360 - 180) < 6
    restored = viewer_normals(in_room, turn)
    torch.testing.assert_close(restored, facing, atol=1e-5, rtol=0)


def test_real_bsds500() -> None:
    dataset = BSDS500(sample_folder("bsds500"), "test")
    assert dataset.names == ("104010", "65084")
    shares = [sample.boundary_share.mean().item() for sample in map(dataset.__getitem__, range(2))]
    assert shares == pytest.approx([0.080, 0.071], abs=0.001)
