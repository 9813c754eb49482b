# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The command that registers two images, with a model or without one."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from ..data.pairs import JoinPaird, prepare_pairs
from ..data.structures import StructureReader
from ..errors import InputError
from ..inferers.pair import PairInferer
from ..io.loading import read_volume
from ..io.pairs import pair_name
from ..networks import PairISTN
from ..networks.pair import NoPrediction
from ..registration.objective import Similarity
from ..registration.regularisers import mean_squared_gradient
from ..registration.similarity import LocalCorrelation, MutualInformation, correlation, squared_error
from ..registration.transformations import Affine, Deformation, Transformation
from .cases import FailureReport
from .pair_cases import ALONE, PairDataset, collate_pairs
from .pair_evaluator import PairEvaluator
from .pair_scorer import PairScorer
from .pair_writer import PairWriter

__all__ = ["register"]

logger = logging.getLogger(__name__)

_AFFINE = {kind: Affine("shear" if kind == "affine" else kind) for kind in ("rigid", "affine")}
TRANSFORMATIONS: dict[str, Transformation] = {
    **_AFFINE,
    "velocity": Deformation("velocity", rate=0.1),
    "b_spline": Deformation("b_spline", distance=8, rate=0.1),
    "affine_velocity": Deformation("velocity", rate=0.1, affine=_AFFINE["affine"]),
    "affine_b_spline": Deformation("b_spline", distance=8, rate=0.1, affine=_AFFINE["affine"]),
}
"""What may be found without a model."""
SIMILARITIES: dict[str, tuple[Similarity, float]] = {
    "ssd": (squared_error, 0.05),
    "ncc": (correlation, 0.2),
    "lncc": (LocalCorrelation(7), 0.3),
    "mi": (MutualInformation(), 0.2),
}
"""What may be compared without a model, and the weight of the regulariser that goes with it."""
_ITERATIONS = 150
_SMOOTHING = (4.0, 2.0)  # of the first two thirds of these, in voxels of the grid
_MOST = {2: 256**2, 3: 96**3}  # voxels of the grid, by dimensions


def register(
    fixed: str,
    moving: str,
    model: str = "",
    output_dir: str = "registered",
    transformation: str = "affine_velocity",
    similarity: str = "lncc",
    start: str = "world",
    iterations: int = 0,
    fixed_labels: str = "",
    moving_labels: str = "",
    fixed_points: str = "",
    moving_points: str = "",
) -> None:
    """Register a moving image to a fixed one: NIfTI, NRRD, MHA, PNG, or folders of DICOM series, on any grids.

    With a model, the folder that a training of pairs wrote, its network registers them and the result is refined.
    Without one, the images themselves are made alike by optimisation. Into OUTPUT_DIR/FIXED__MOVING go the transforms
    both ways (ITK's .h5), the warped image, and a report (.json). Given labels and points of the moving image are moved
    too; where those of the fixed one are given as well, they are scored.

    Args:
        fixed: image that stays.
        moving: image that is moved.
        model: folder of a trained model of pairs, or its models/model.pt.
        output_dir: folder of the results.
        transformation: without a model: rigid, affine, velocity, b_spline, affine_velocity or affine_b_spline.
        similarity: without a model: ssd (same intensities), ncc, lncc (locally proportional), mi (other modality).
        start: without a model: world, as the headers place the images, or grids, their centres on each other.
        iterations: largest number of steps; 0 for the model's own, without a model 150.
        fixed_labels: label map of the fixed image.
        moving_labels: label map of the moving image.
        fixed_points: landmarks of the fixed image, .csv, .fcsv or .mrk.json.
        moving_points: landmarks of the moving image.

    Raises:
        InputError: a file cannot be used, or an option is unknown.
    """
    files = {"moving": moving, "fixed": fixed}
    given = {"structure": (moving_labels, fixed_labels), "points": (moving_points, fixed_points)}
    for kind, paths in given.items():
        files |= {f"{side}_{kind}": path for side, path in zip(("moving", "fixed"), paths, strict=True) if path}
    for path in files.values():
        if not Path(path).exists():
            raise InputError(f"{path}: no such file. Check the path.")
    pair = {"case": pair_name(fixed, moving), **files}
    if model:
        evaluator, writer = _with_model(model, pair, output_dir, iterations)
    else:
        chosen = _choice("transformation", transformation, TRANSFORMATIONS)
        compared = _choice("similarity", similarity, SIMILARITIES)
        evaluator, writer = _without_model(pair, output_dir, chosen, compared, start, iterations or _ITERATIONS)
    logging.getLogger("ignite").setLevel(logging.WARNING)  # its engines report every start and end
    writer.attach(evaluator)
    FailureReport().attach(evaluator)
    evaluator.run()
    (report,) = writer.reports
    logger.info(
        "%s: objective %.4g, before %.4g; %.4g %% folded; %.2f s",
        *(pair["case"], report["objective_after"], report["objective_identity"], 100 * report["folded_fraction"]),
        report["seconds"],
    )


def _with_model(
    model: str, pair: Mapping[str, str], output_dir: str, iterations: int
) -> tuple[PairEvaluator, PairWriter]:
    """By the bundle that the model's training made."""
    path = Path(model)
    root = path if path.is_dir() else path.parent.parent
    config = root / "configs" / "registration.yaml"
    if not config.is_file():
        raise InputError(
            f"{config}: no such file. Expected the folder that a training of pairs wrote, with configs/ and models/. "
            "Set model to it."
        )
    parser = ConfigParser()
    parser.read_config(str(config))
    weights = path if path.is_file() else root / "models" / "model.pt"
    settings: dict[str, Any] = {
        **ALONE,
        "pairs": [dict(pair)],
        "bundle_root": str(root),
        "ckpt_path": str(weights),
        "output_dir": output_dir,
        "score_bound": False,
        "handlers": [],
        **({"refine_iterations": iterations} if iterations else {}),
    }
    for name, value in settings.items():
        parser[name] = value
    evaluator: PairEvaluator = parser.get_parsed_content("evaluator")
    parser.get_parsed_content("loader")()
    writer: PairWriter = parser.get_parsed_content("writer")
    return evaluator, writer


def _without_model(
    pair: Mapping[str, str],
    output_dir: str,
    transformation: Transformation,
    compared: tuple[Similarity, float],
    start: str,
    iterations: int,
) -> tuple[PairEvaluator, PairWriter]:
    """By optimisation alone, from the identity."""
    dim, size, spacing = _grid(pair["fixed"])
    structures, names = _labels(pair, dim)
    similarity, weight = compared
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inferer = PairInferer(
        iterations=iterations,
        similarity=similarity,
        regulariser=mean_squared_gradient,
        regularisation=weight,
        tolerance=1e-3,
        smoothing=_SMOOTHING,
    )
    prepare = prepare_pairs(size, spacing, start=start, structures=structures, strict=False)
    dataset = PairDataset([pair], prepare, JoinPaird())
    evaluator = PairEvaluator(
        device=device,
        val_data_loader=torch.utils.data.DataLoader(dataset, batch_size=1, collate_fn=collate_pairs),
        network=PairISTN(None, NoPrediction(), transformation, spacing).to(device),
        inferer=inferer,
    )
    return evaluator, PairWriter(output_dir, PairScorer(structures, names, one_pass=False))


def _choice(name: str, text: str, known: Mapping[str, Any]) -> Any:
    if text not in known:
        raise InputError(f"{name}: expected one of {', '.join(known)}, found '{text}'.")
    return known[text]


def _grid(path: str) -> tuple[int, list[int], list[float]]:
    """Dimensions, size and spacing of a grid over the extent of an image, of no more voxels than take a minute."""
    image, dim = _read(path)
    columns = np.asarray(image.affine)[:dim, :dim]
    order = np.abs(columns).argmax(axis=1) if dim == 3 else np.arange(dim)  # the array axis along each of RAS
    sizes = np.linalg.norm(columns, axis=0)[order]
    extent = sizes * np.asarray(image.shape[1:])[order]
    coarsest = float((extent.prod() / _MOST[dim]) ** (1 / dim))
    spacing = [float(max(size, coarsest)) for size in sizes]
    size = [max(16, math.ceil(float(length / step))) for length, step in zip(extent, spacing, strict=True)]
    return dim, size, spacing


def _read(path: str) -> tuple[Any, int]:
    try:
        return read_volume(path, 3), 3
    except InputError as error:
        try:
            return read_volume(path, 2), 2
        except InputError:
            raise error from None


def _labels(pair: Mapping[str, str], dim: int) -> tuple[StructureReader, list[str]]:
    """The reader of the labels of both images, each of which is a structure; and their names."""
    paths = [pair[f"{side}_structure"] for side in ("moving", "fixed") if f"{side}_structure" in pair]
    values = {int(value) for path in paths for value in np.unique(read_volume(path, dim).numpy().round())} - {0}
    present = sorted(values)
    reader = StructureReader("labels" if present else "none", dim, [0, *present], merge=False)
    return reader, [f"label {value}" for value in present]
