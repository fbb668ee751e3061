"""Writes small data sets in the formats of the real ones."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (12, 16)  # height, width


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def save(path: Path, values: np.ndarray) -> np.ndarray:
    """An image file, and its folders; the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return values


def colours(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return random(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write_nyuv2_listed(root: Path) -> None:
    from scipy.io import savemat

    names = np.array(["5001.mat", "5002.mat", "5003.mat"], dtype=object)
    savemat(root / "imdb_NYUv2_offline.mat", {"imdb": {"train": names[2:], "val": names[:2]}})
    for number in (5001, 5002, 5003):
        draw = random(number)
        depth = draw.uniform(500, 9000, SIZE).astype(np.float32)
        depth[0, :2] = [0, 1]  # missing
        savemat(
            root / f"{number}.mat",
            {
                "datamat": {
                    "img": colours(number).astype(np.float32),
                    "segGT": draw.integers(0, 41, SIZE).astype(np.float32),
                    "depth": depth,
                }
            },
        )


def write_nyuv2_official(root: Path) -> dict[str, np.ndarray]:
    """Two images of 640 x 480 in an HDF5 file, as MATLAB orders them."""
    import h5py
    from scipy.io import savemat

    draw = random(0)
    content = {
        "images": draw.integers(0, 256, (2, 3, 640, 480), dtype=np.uint8),
        "depths": draw.uniform(0.5, 9, (2, 640, 480)).astype(np.float32),
        "labels": draw.integers(0, 895, (2, 640, 480), dtype=np.uint16),
    }
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        for name, values in content.items():
            file[name] = values
    savemat(root / "splits.mat", {"trainNdxs": [[2]], "testNdxs": [[1]]})
    mapping = draw.integers(1, 41, (1, 894), dtype=np.uint8)
    savemat(root / "classMapping40.mat", {"mapClass": mapping})
    return {**content, "mapClass": mapping}


def write_cityscapes(root: Path, names: tuple[str, ...] = ("aachen_000000_000019",)) -> None:
    for seed, name in enumerate(names):
        city = name.split("_")[0]
        draw = random(seed)
        save(root / f"leftImg8bit/train/{city}/{name}_leftImg8bit.png", colours(seed))
        ids = draw.integers(0, 34, SIZE, dtype=np.uint8)
        save(root / f"gtFine/train/{city}/{name}_gtFine_labelIds.png", ids)
        instances = np.where(ids >= 24, ids.astype(np.uint16) * 1000 + 1, ids).astype(np.uint16)
        save(root / f"gtFine/train/{city}/{name}_gtFine_instanceIds.png", instances)
        disparity = draw.integers(0, 30000, SIZE).astype(np.uint16)
        disparity[0, :3] = [0, 10, 257]
        save(root / f"disparity/train/{city}/{name}_disparity.png", disparity)
        camera = root / f"camera/train/{city}/{name}_camera.json"
        camera.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "extrinsic": {"baseline": 0.25},
            "intrinsic": {"fx": 2000.0, "fy": 2001, "u0": 8.5, "v0": 6.5},
        }
        camera.write_text(json.dumps(content))


def write_stanford(root: Path, *, coloured: bool = False) -> dict[str, np.ndarray]:
    """One panorama in area_1, one in area_3; the labels of the first."""
    labels = {}
    names = ["<UNK>_0_<UNK>_0_0", "ceiling_1_office_1_1", "clutter_1_office_1_1", "wall_3_hall_2_1"]
    for seed, area in enumerate(("area_1", "area_3")):
        folder = root / area / "pano" if coloured else root / area
        name = f"camera_{seed}_office"
        draw = random(seed)
        save(folder / f"rgb/{name}_rgb.png", colours(seed))
        depth = draw.integers(2, 5000, SIZE).astype(np.uint16)
        depth[0, :2] = 65535
        save(folder / f"depth/{name}_depth.png", depth)
        vectors = draw.normal(size=(*SIZE, 3))
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        normals = np.round(vectors * 127.5 + 127.5).astype(np.uint8)
        normals[0, :2] = 128
        save(folder / f"normal/{name}_normals.png", normals)
        if coloured:
            numbers = draw.integers(0, len(names), SIZE)
            numbers[1, 1] = 0x0D0D0D
            values = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], 2)
        else:
            numbers = values = draw.integers(0, 13, SIZE)
        save(folder / f"semantic/{name}_semantic.png", values.astype(np.uint8))
        labels[area] = numbers
    if coloured:
        (root / "assets").mkdir()
        (root / "assets/semantic_labels.json").write_text(json.dumps(names))
    return labels


def write_sunrgbd(root: Path) -> np.ndarray:
    """One image; its depth in millimetres."""
    save(root / "image/train/img-000001.jpg", colours(1))
    save(root / "label37/train/img-000001.png", random(1).integers(0, 38, SIZE, dtype=np.uint8))
    return save_turned(root / "depth/train/img-000001.png")


def save_turned(path: Path) -> np.ndarray:
    """Depth as SUN RGB-D has it, the millimetres' bits turned; the millimetres."""
    millimetres = random(2).integers(0, 12000, SIZE).astype(np.uint16)
    save(path, ((millimetres << 3) | (millimetres >> 13)).astype(np.uint16))
    return millimetres


def write_sunrgbd_official(root: Path) -> list[np.ndarray]:
    """Three images as downloaded, the second and third for training; the labels of all."""
    import h5py
    from scipy.io import savemat

    folders = ["kv1/b3dodata/img_0063", "kv2/align_kv2/0002-resize", "xtion/sun3ddata/brown_1/r"]
    kind = [("sequenceName", object), ("depthpath", object), ("rgbpath", object), ("K", object)]
    metadata = root / "SUNRGBDtoolbox/Metadata"
    metadata.mkdir(parents=True)
    entries, labels = np.empty((1, len(folders)), kind), []
    for number, folder in enumerate(folders):
        there = f"/n/fs/sun3d/data/SUNRGBD/{folder}"
        save(root / f"SUNRGBD/{folder}/image/{number}.jpg", colours(number))
        save_turned(root / f"SUNRGBD/{folder}/depth_bfx/{number}.png")
        matrix = np.array([[520.5 + number, 0, 365], [0, 530.5, 265], [0, 0, 1]])
        entries[0, number] = (
            f"SUNRGBD/{folder}",
            f"{there}/depth_bfx/{number}.png",
            f"{there}//image/{number}.jpg",
            matrix,
        )
        labels.append(random(10 + number).integers(0, 38, SIZE, dtype=np.uint8))
    savemat(metadata / "SUNRGBDMeta.mat", {"SUNRGBDMeta": entries})
    with h5py.File(metadata / "SUNRGBD2Dseg.mat", "w", userblock_size=512) as file:
        places = file.create_dataset("SUNRGBD2Dseg/seglabel", (len(labels), 1), h5py.ref_dtype)
        for number, values in enumerate(labels):
            places[number, 0] = file.create_dataset(f"#refs#/{number}", data=values.T).ref
    split = root / "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
    split.parent.mkdir()
    paths = np.array([f"/n/fs/sun3d/data/SUNRGBD/{folder}/" for folder in folders], dtype=object)
    savemat(split, {"alltrain": paths[None, :0:-1], "alltest": paths[None, :1]})
    return labels


def write_bsds500(root: Path, annotators: int = 3) -> np.ndarray:
    """One image with several annotators; their maps."""
    from scipy.io import savemat

    save(root / "images/train/100075.jpg", colours(3))
    maps = random(4).random((annotators, *SIZE)) < 0.1
    cell = np.empty((1, annotators), dtype=object)
    for number, boundaries in enumerate(maps):
        segmentation = np.ones(SIZE, np.uint16)
        cell[0, number] = {"Boundaries": boundaries.astype(np.uint8), "Segmentation": segmentation}
    (root / "groundTruth/train").mkdir(parents=True)
    savemat(root / "groundTruth/train/100075.mat", {"groundTruth": cell})
    return maps
