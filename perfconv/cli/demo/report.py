"""Writes what the demo found: PNG files, and one HTML page that needs no other file."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jinja2

import perfconv
from perfconv.cli.demo import pictures
from perfconv.cli.demo.classify import Classification
from perfconv.cli.demo.measurement import Measurement, conclusion, describe
from perfconv.cli.demo.perforate import PERFORATED_BLOCKS
from perfconv.cli.demo.photos import BUDGETS, KINDS, MAX_SIDE, Comparison
from perfconv.cli.demo.pictures import Picture
from perfconv.data.image import Photo

PAGE = "report.html"


def write_report(
    folder: Path,
    photo: Photo,
    measurement: Measurement,
    *,
    all_true_difference: float,
    fill: str,
    next_steps: list[str],
    compared: Comparison | None = None,
    decided: Sequence[Picture] = (),
    classified: Classification | str | None = None,
) -> Path:
    """Writes the PNG files and the page; each file appears complete or not at all.

    Args:
        folder: where to; made if missing.
        photo: what was run on.
        measurement: the table.
        all_true_difference: of the edge probabilities, all-True masks against dense.
        fill: of inactive pixels.
        next_steps: commands to try.
        compared: learned gates and hand-made masks over several photos.
        decided: pictures of what the gates decided.
        classified: the second network, or a sentence that says why it is missing.

    Returns:
        The path of the page.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown, dense = measurement.shown, measurement.dense
    twin = measurement.random_twin(shown)
    finest = min(PERFORATED_BLOCKS)
    images = {
        "photo": pictures.photo_image(photo.pixels),
        "mask": pictures.mask_image(shown.run.masks[finest].mask, photo.pixels),
        "edges-dense": pictures.edge_image(dense.run.edges),
        "edges-perforated": pictures.edge_image(shown.run.edges),
        "edges-random-mask": pictures.edge_image(twin.run.edges),
        "disagreement": pictures.disagreement_image(shown.run.edges, dense.run.edges),
    }
    figures = {
        "flops-latency": pictures.latency_figure(measurement),
        "agreement-speed": pictures.agreement_figure(measurement),
    }
    is_classified = isinstance(classified, Classification)
    of_classes = classified.pictures if isinstance(classified, Classification) else ()
    for name, image in images.items():
        write_atomically(folder / f"{name}.png", pictures.png_bytes(image))
    drawn = figures | {picture.name: picture.figure for picture in (*decided, *of_classes)}
    for name, figure in drawn.items():
        write_atomically(folder / f"{name}.png", pictures.figure_png(figure))
    is_photo = {"photo", "mask"}
    page = _template().render(
        photo=photo,
        m=measurement,
        shown=shown,
        twin=twin,
        conclusion=conclusion(measurement),
        describe=describe,
        all_true_difference=all_true_difference,
        fill=fill,
        next_steps=next_steps,
        compared=compared,
        compared_side=MAX_SIDE,
        budgets=BUDGETS,
        kinds=KINDS,
        decided=_with_addresses(decided),
        classified=classified if is_classified else None,
        classified_pictures=_with_addresses(of_classes),
        why_not_classified=None if is_classified else classified,
        build=perfconv.build_info(),
        images={
            name: pictures.data_address(image, is_photo=name in is_photo)
            for name, image in images.items()
        },
        figures={name: pictures.figure_svg(figure, name) for name, figure in figures.items()},
    )
    path = folder / PAGE
    write_atomically(path, page.encode())
    return path


def _with_addresses(drawn: Sequence[Picture]) -> list[tuple[Picture, str]]:
    return [(picture, pictures.figure_address(picture.figure)) for picture in drawn]


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under another name beside it, then moves it into place."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("perfconv.cli.demo", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{PAGE}.jinja")
