# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Is the anatomy found in scans that are larger, turned, shifted, of other voxel sizes and axis orders?

    python benchmarks/localise.py WORK DATA --list validation --variants 10

WORK is a trained bundle with `localise: true`. Of each case of the list so many seeded variants are made: shifted by up
to a third of the field of view into a larger scan, turned by up to 20 degrees in the voxels and as much
in the header, with other voxel sizes and another order of the axes; one more with 30 % of the anatomy's extent cut off,
and one without the anatomy. Prints the distance of the centre that is found from the true one, beside that of the mean
place of the training scans; with --dice also what segmentation gets out of it, and out of crops about the true centre.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, ResizeWithPadOrCropd, Spacingd
from scipy import ndimage
from scipy.spatial.transform import Rotation

from atlas_istn.data.localise import MISSING, Localised, box_centre
from atlas_istn.errors import input_error_behind
from atlas_istn.inferers.target import disagreement
from atlas_istn.io.cases import find_cases
from atlas_istn.io.outputs import write_csv

LARGER, SHIFT, TURN, SCALES, CUT = 1.7, 1 / 3, 20.0, (0.8, 1.25), 0.3


@dataclass(frozen=True)
class Variant:
    """A scan that was made of another.

    Attributes:
        name: case, number and kind.
        image: voxels.
        label: class indices.
        affine: voxel to RAS world, mm.
        centre: voxel coordinates of the anatomy's centre.
        missing: share of the anatomy that was cut off; 1 where there is none.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray
    centre: np.ndarray
    missing: float


def variants(name: str, scan: MetaTensor, label: MetaTensor, count: int, seed: int) -> Iterator[Variant]:
    """Make the variants of one case, axes in RAS."""
    random = np.random.default_rng(seed)
    image, classes = scan.numpy()[0].astype(float), label.numpy()[0].astype(int)
    spacing = np.asarray(scan.pixdim)[: image.ndim].astype(float)
    hot = torch.stack([torch.as_tensor(classes == 0), torch.as_tensor(classes > 0)]).float()
    centre = np.asarray(box_centre(hot), dtype=float)
    for number in range(count):
        yield turned(f"{name} {number}", image, classes, spacing, centre, random)
    places = np.argwhere(classes > 0)
    axis, volume = int(random.integers(image.ndim)), float((classes > 0).sum())
    first, last = places[:, axis].min(), places[:, axis].max()
    start = round(float(first + CUT * (last - first)))
    keep = tuple(slice(start, None) if a == axis else slice(None) for a in range(image.ndim))
    gone = 1 - float((classes[keep] > 0).sum()) / volume
    moved = centre - start * np.eye(image.ndim)[axis]
    yield Variant(f"{name} cut", image[keep], classes[keep], np.diag([*spacing, 1.0]), moved, gone)
    box = tuple(slice(max(0, a - 3), b + 4) for a, b in zip(places.min(axis=0), places.max(axis=0), strict=True))
    empty = image.copy()
    empty[box] = random.normal(np.percentile(image, 20), 0.02 * np.ptp(image), empty[box].shape)
    nothing = np.zeros_like(classes)
    yield Variant(f"{name} absent", empty, nothing, np.diag([*spacing, 1.0]), centre, 1.0)


def turned(
    name: str,
    image: np.ndarray,
    classes: np.ndarray,
    spacing: np.ndarray,
    centre: np.ndarray,
    random: np.random.Generator,
) -> Variant:
    """A larger scan in which the whole image lies shifted and turned."""
    dim = image.ndim
    sizes = spacing * np.exp(random.uniform(np.log(SCALES[0]), np.log(SCALES[1]), dim)) if dim == 3 else spacing
    extent = np.array(image.shape) * spacing
    shape = np.ceil(LARGER * extent / sizes).astype(int)
    turn = _rotation(random, dim)
    old, new = (np.array(image.shape) - 1) / 2 * spacing, (shape - 1) / 2 * sizes
    shift = random.uniform(-SHIFT, SHIFT, dim) * extent
    # mm of the new scan → mm of the old one: old = R' (new − middle − shift) + old middle
    matrix = turn.T @ np.diag(sizes) / spacing[:, None]
    offset = (turn.T @ (-new - shift) + old) / spacing
    background = float(np.percentile(image, 1))
    moved = ndimage.affine_transform(image, matrix, offset, tuple(shape), order=1, cval=background)
    labels = ndimage.affine_transform(classes, matrix, offset, tuple(shape), order=0)
    place = (turn @ (centre * spacing - old) + new + shift) / sizes
    affine = np.eye(dim + 1)
    affine[:dim, :dim] = _rotation(random, dim) @ np.diag(sizes)
    return Variant(name, moved, labels, affine, place, 0.0)


def _rotation(random: np.random.Generator, dim: int) -> np.ndarray:
    angle = np.deg2rad(random.uniform(-TURN, TURN))
    if dim == 2:
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    axis = random.normal(size=3)
    matrix: np.ndarray = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
    return matrix


def stored(variant: Variant, path: Path, random: np.random.Generator) -> tuple[Path, np.ndarray]:
    """Write a variant, in 3D with another order of axes, and return the world position of the centre."""
    dim = variant.image.ndim
    world = variant.affine[:dim, :dim] @ variant.centre + variant.affine[:dim, -1]
    affine = np.eye(4)
    affine[:dim, :dim], affine[:dim, 3] = variant.affine[:dim, :dim], variant.affine[:dim, -1]
    picture = nib.Nifti1Image(variant.image.astype(np.float32), affine)
    if dim == 3:
        order = np.stack([random.permutation(3), random.choice([-1, 1], 3)], axis=1)
        picture = picture.as_reoriented(order)
    nib.save(picture, path)
    return path, world


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--list", default="validation")
    parser.add_argument("--variants", type=int, default=10)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--dice", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    config = ConfigParser()
    config.read_config(str(arguments.work / "configs" / "evaluate.yaml"))
    config["ckpt_path"] = str(arguments.work / "models" / "model.pt")
    if not config["localise"] or config["in_channels"] > 1:
        sys.exit(f"{arguments.work}: expected a model of one channel that was trained with localise, found another.")
    dim = config.get_parsed_content("spatial_dims")
    read = config.get_parsed_content("reference").transforms[0]
    config["pixel_size"] = None  # variants are NIfTI files, which state it
    found = [transform for transform in config.get_parsed_content("preprocessing").transforms if transform]
    until = next(n for n, transform in enumerate(found) if isinstance(transform, Localised)) + 1
    look = Compose(found[:until])
    segment = Segmenter(config, found[until:]) if arguments.dice else None
    config.get_parsed_content("loader")()

    def oriented(volume: MetaTensor) -> MetaTensor:
        return volume if dim == 2 else Orientation(axcodes="RAS", labels=None)(volume)

    def cases(name: str) -> Sequence[Mapping[str, str]]:
        lists = config.get_parsed_content("data_list_file")
        return find_cases(str(arguments.data), name, with_labels=True, data_list_file=lists)

    usual = np.mean([_relative(oriented(read(case)["label"])) for case in cases("training")], 0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases(arguments.list)):
            scan, label = (oriented(volume) for volume in map(read(case).get, ("image", "label")))
            random = np.random.default_rng(1000 + number)
            for variant in variants(case["case"], scan, label, arguments.variants, number):
                path, world = stored(variant, Path(folder) / "scan.nii.gz", random)
                rows.append(_look(variant, path, world, look, usual, dim, segment))
                print(rows[-1])
    if arguments.csv:
        write_csv(rows, arguments.csv)
    _summary(rows)


def _relative(label: MetaTensor) -> np.ndarray:
    """Centre of a label in mm from the middle of its image."""
    classes = torch.as_tensor(label)[0]
    centre = np.asarray(box_centre(torch.stack([classes == 0, classes > 0]).float()))
    result: np.ndarray = (centre - (np.array(classes.shape) - 1) / 2) * np.asarray(label.pixdim)[: classes.ndim]
    return result


def _look(
    variant: Variant, path: Path, world: np.ndarray, look: Compose, usual: np.ndarray, dim: int, segment: Any
) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": variant.name, "truly_missing": round(variant.missing, 3)}
    try:
        cut = look({"image": str(path)})["image"]
    except Exception as error:
        return {**row, "found": False, "why": str(input_error_behind(error) or error).partition(": ")[2][:90]}
    affine = np.asarray(cut.affine)
    middle = affine[:dim, :dim] @ ((np.array(cut.shape[1:]) - 1) / 2) + affine[:dim, -1]
    still = variant.affine[:dim, :dim] @ (
        (np.array(variant.image.shape) - 1) / 2 + usual / np.diag(np.abs(variant.affine))[:dim]
    )
    row |= {"found": True, "off": float(np.linalg.norm(middle - world)), "missing": cut.meta.get(MISSING, 0.0)}
    row["constant_off"] = float(np.linalg.norm(still + variant.affine[:dim, -1] - world))
    return row | (segment(variant) if segment and not variant.missing else {})


class Segmenter:
    """Segments a variant where the anatomy was found, and about its true centre."""

    def __init__(self, config: ConfigParser, transforms: Sequence[Any]) -> None:
        size, spacing = (config.get_parsed_content(name) for name in ("spatial_size", "spacing"))
        keys, locator = ["image", "label"], config.get_parsed_content("locator")
        self.cuts = {
            "dice": Localised(keys, size, spacing, locator),
            "dice_true_centre": Localised(keys, size, spacing, truth="label"),
        }
        self.image = Compose(transforms)
        self.label = Compose([Spacingd("label", spacing, mode="bilinear"), ResizeWithPadOrCropd("label", size)])
        self.network, self.inferer = (config.get_parsed_content(name) for name in ("network", "inferer"))

    def __call__(self, variant: Variant) -> dict[str, float]:
        """Dice of both, mean over labels, on the model's grid."""
        classes = len(self.network.atlas_labels[0])
        hot = np.stack([variant.label == index for index in range(classes)]).astype(np.float32)
        affine = torch.eye(4, dtype=torch.float64)
        dim = variant.image.ndim
        affine[:dim, :dim] = torch.from_numpy(np.diag(np.linalg.norm(variant.affine[:dim, :dim], axis=0)))
        volumes = {"image": variant.image[None].astype(np.float32), "label": hot}
        scores = {}
        for name, cut in self.cuts.items():
            meta = {"padding": 0.0, "warnings": "", "source": variant.name}
            case = cut(
                {key: MetaTensor(torch.from_numpy(v), affine=affine, meta=dict(meta)) for key, v in volumes.items()}
            )
            image, label = self.image({"image": case["image"]})["image"], self.label({"label": case["label"]})["label"]
            result = self.inferer.infer(torch.as_tensor(image)[None], self.network)
            truth = torch.as_tensor(label)[None]
            truth = torch.cat([1 - truth[:, 1:].sum(dim=1, keepdim=True), truth[:, 1:]], dim=1)
            scores[name] = float(1 - disagreement(result.segmentation, truth))
        return scores


def _summary(rows: Sequence[Mapping[str, Any]]) -> None:
    whole = [row for row in rows if row["truly_missing"] == 0]
    print("| complete scans | found | centre off, median | greatest | constant centre off, median | greatest |")
    print("| --- | --- | --- | --- | --- | --- |")
    columns = [[row[name] for row in whole if row["found"]] for name in ("off", "constant_off")]
    figures = [f"{np.median(column):.2f} | {max(column):.2f}" if column else "- | -" for column in columns]
    print("|", " | ".join([str(len(whole)), str(len(columns[0])), *figures]), "|")
    pairs = [(row["dice"], row["dice_true_centre"]) for row in whole if "dice" in row]
    if pairs:
        print("Dice where it was found, and about the true centre: {:.3f}, {:.3f}".format(*np.mean(pairs, axis=0)))
    for row in rows:
        if 0 < row["truly_missing"] < 1:
            print(
                f"{row['variant']}: missing {row['truly_missing']:.0%}, told {row['missing']:.0%}"
                if row["found"]
                else row
            )
    absent = [row for row in rows if row["truly_missing"] == 1]
    print(f"absent: {sum(not row['found'] for row in absent)} of {len(absent)} fail")


if __name__ == "__main__":
    main()
