# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Handler that writes the files of each case, the atlas and a summary of the run."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from ..io.colour_tables import write_colour_tables
from ..io.label_table import LabelValues, written_values
from ..io.names import safe_name
from ..io.outputs import (
    atlas_grid_affine,
    write_csv,
    write_image,
    write_json,
    write_labelmap,
    write_probability,
    write_transforms,
)
from ..io.registration import write_registration
from ..networks import AtlasISTN
from ..pictures.palette import label_colour
from ..spatial import label_indices
from ..topology import labelmap_topology
from .atlas_maps import write_atlas_maps
from .cases import failing_alone
from .cohort import KEY, Cohort, gathered
from .faces import CutFace, cut_faces
from .prediction import Estimate
from .quality import QualityCheck
from .results import CaseResult, class_indices, native_affine

__all__ = ["RESULTS", "CaseWriter"]

logger = logging.getLogger(__name__)

RESULTS = {"itn": "itn", "one_pass": "one_pass", "pred": "refine"}
"""Key of a labelmap → name of the result, of the full method."""


_NO_COLUMNS = ("volume_unit", "channels", KEY)  # of a report, in the summary
_PREDICTED = {"dice": "predicted Dice", "low": "predicted Dice, low", "high": "predicted Dice, high"}
"""Key of an estimate in a report → its column in the summary, behind the name of the label."""
_SAME = 1 - 1e-5  # correlation of an image with itself, but for rounding
_LIKE = 0.5  # correlation of image and registered atlas, below which they have little in common
LARGER = "the image is larger than the model's grid: what lies outside it was not segmented"


class CaseWriter:
    """Handler that writes the files of each case, the atlas, colour tables of the labels and a summary of the run.

    Args:
        output_dir: folder of the results.
        network: holds the atlas.
        label_names: class index → name, background included.
        label_values: values of each class in label files, see `atlas_istn.io.label_table`.
        quality: judges each case that a refinement gave.
        results: key of a labelmap → name of the result. The labelmap under ``"pred"`` is written as the segmentation,
            the others by name.
        transforms: write the registration too, in both directions and as its parameters.
        cohort: the cases of the run, of which others may be finished or fall to other processes.
    """

    def __init__(
        self,
        output_dir: str,
        network: AtlasISTN,
        label_names: Mapping[int, str],
        label_values: LabelValues,
        quality: QualityCheck | None = None,
        results: Mapping[str, str] = RESULTS,
        transforms: bool = True,
        cohort: Cohort | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.network = network
        self.label_names = {int(k): v for k, v in label_names.items()}
        self.label_values = written_values(label_values)
        self.quality = quality
        self.results = results
        self.transforms = transforms
        self.cohort = cohort
        self.summary: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an `AtlasEvaluator`."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write_batch)
        engine.add_event_handler(Events.COMPLETED, self._write_summary)

    def start(self) -> None:
        """Begin a run: write the colour tables and, where there is a registration, the atlas."""
        self.summary = []
        labels = {self.label_values[i]: (name, label_colour(i - 1)) for i, name in self.label_names.items() if i > 0}
        write_colour_tables(self.output_dir, labels)
        network, folder = self.network, self.output_dir / "atlas"
        if network.stn is None:
            return
        affine = atlas_grid_affine(network.atlas_labels.shape[2:], network.spacing)
        soft = network.atlas_labels[0].float().cpu().numpy()
        write_image(network.atlas_image[0, 0].float().cpu().numpy(), affine, folder / "atlas_image.nii.gz")
        write_image(np.moveaxis(soft, 0, -1), affine, folder / "atlas_probabilities.nii.gz")
        write_labelmap(soft.argmax(axis=0), affine, self.label_values, folder / "atlas_labelmap.nii.gz")

    def _write_batch(self, engine: Engine) -> None:
        for case in engine.state.cases:
            with failing_alone(engine, case.case):
                self.write(case)

    def write(self, case: CaseResult) -> None:
        """Write the files of one case, and remember its row of the summary.

        Raises:
            InputError: a file cannot be written.
        """
        name, folder = case.case, self.output_dir / case.case
        suffix = ".png" if case.from_png else ".nii.gz"
        for key, ending in {**self.results, "pred": "seg"}.items():
            labelmap = case.labelmaps[key]
            path = folder / f"{name}_{ending}{suffix}"
            affine = native_affine(labelmap)
            write_labelmap(class_indices(labelmap), affine, self.label_values, path, case.source)
        if case.uncertainty is not None:
            entropy, path = np.asarray(case.uncertainty[0].cpu()), folder / f"{name}_uncertainty.nii.gz"
            write_image(entropy, native_affine(case.uncertainty), path, case.source)
        if case.probabilities is not None:
            for index, label in self.label_names.items():
                if index > 0:
                    path = folder / f"{name}_probability_{self.label_values[index]}_{safe_name(label)}.nii.gz"
                    soft = np.asarray(case.probabilities[index].cpu())
                    write_probability(soft, native_affine(case.probabilities), path, case.source)
        write_atlas_maps(case, folder, self.label_values)
        transform = case.result.transform
        if transform and self.transforms:
            write_transforms(transform, case.grid_affine, lambda direction: folder / f"{name}_{direction}.h5")
            write_registration(transform, case.grid_affine, folder / f"{name}_registration.npz")
        report = self.report(case)
        if self.cohort:
            report[KEY] = self.cohort.key({"image": case.source})
        write_json(report, folder / f"{name}.json")
        self.summary.append(_flat(report))

    def report(self, case: CaseResult) -> dict[str, Any]:
        """Everything that is worth knowing of a case, as a JSON tree."""
        labels = [index for index in self.label_names if index > 0]
        shapes = labelmap_topology(class_indices(case.segmentation), labels)
        report: dict[str, Any] = {
            "case": case.case,
            **_course(case),
            **self._deformation(case),
            "topology": {self.label_names[index]: shape._asdict() for index, shape in shapes.items()},
        }
        note = case.topology
        if note:
            report |= {f"topology_{name}": value for name, value in note._asdict().items()}
        report["warnings"] = [*case.notes, *_warnings(report)]
        if self.network.locator is None and _exceeds(case.segmentation, self.network):
            report["warnings"].append(LARGER)
        faces = _faces(case, self.network)
        report["cut_faces"] = {face.side: face.area for face in faces}
        if self.quality and case.measures:
            empty = sum(shape.components == 0 for shape in shapes.values())
            kept = note is None or note.kept
            area = "mm²" if case.segmentation.ndim > 3 else case.unit
            cut = ", ".join(f"{face.side} ({face.area:.3g} {area})" for face in faces)
            verdict = self.quality(case.measures, report["folded_fraction"], empty, kept, cut)
            report |= {"quality": verdict.flag, "quality_score": verdict.score, "quality_reasons": verdict.reasons}
            report["predicted_dice"] = self._predicted(self.quality.predict(case.label_measures), labels)
        if case.result.atlases:
            report["atlases"] = [_known(note._asdict()) for note in case.result.atlases[0]]
            report["warnings"] += _atlas_warnings(case)
        report["volumes"], report["volume_unit"] = self._volumes(case)
        channels = self.network.atlas_image.shape[1]
        if channels > 1:
            report["channels"] = channels
        if case.from_png and case.unit == "mm":
            report["pixel_size"] = np.asarray(case.segmentation.pixdim)[:2].tolist()
        report["labels"] = {self.label_names[index]: self.label_values[index] for index in labels}
        curve = case.result.course.curve[:, 0].tolist() if case.result.course else []
        report["loss_curve"] = [float(f"{loss:.4g}") for loss in curve]
        return report

    def _predicted(self, found: Sequence[Estimate | None] | str, labels: Sequence[int]) -> dict[str, Any] | str:
        """Of each label that there is an estimate of, its numbers; else why there is none."""
        if isinstance(found, str):
            return found
        estimates = zip(labels, found, strict=True)
        return {
            self.label_names[index]: {name: round(value, 3) for name, value in estimate._asdict().items()}
            for index, estimate in estimates
            if estimate
        }

    def _deformation(self, case: CaseResult) -> dict[str, Any]:
        if case.result.transform is None or case.consistency is None:
            return {}
        jacobian = case.result.transform.jacobian_determinant()
        names = [name for index, name in self.label_names.items() if index > 0]
        dice = [None if math.isnan(value) else value for value in case.consistency.dice[0].tolist()]
        return {
            "min_jacobian": float(jacobian.min()),
            "folded_fraction": float((jacobian <= 0).float().mean()),
            "ic_dice": float(case.consistency.dice.nanmean()),
            "label_ic_dice": dict(zip(names, dice, strict=True)),
            "mice": float(case.consistency.mice),
        }

    def _volumes(self, case: CaseResult) -> tuple[dict[str, float], str]:
        """Size of each label of the segmentation, and its unit."""
        native = case.segmentation
        dim = native.ndim - 1
        unit, scale = ("ml", 1e-3) if dim == 3 else ("mm²" if case.unit == "mm" else case.unit, 1.0)
        size = float(np.prod(np.asarray(native.pixdim)[:dim])) * scale
        counts = np.bincount(class_indices(native).ravel(), minlength=len(self.label_values))
        return {name: float(f"{counts[i] * size:.6g}") for i, name in self.label_names.items() if i > 0}, unit

    def _write_summary(self, engine: Engine) -> None:
        engine.state.failures = gathered(engine.state.failures)
        if idist.get_rank() > 0:
            return
        if self.cohort:
            self.summary = [_flat(report) for report in self.cohort.reports()]
        failed = [{"case": case, "error": message} for case, message in engine.state.failures]
        unused = getattr(engine.data_loader.dataset.data, "unused", {})
        others = [{"case": path, "not_used": reason} for path, reason in unused.items()]
        write_csv([*self.summary, *failed, *others], self.output_dir / "summary.csv")
        if unused:
            logger.info("not used: %s", "; ".join(f"{path} ({reason})" for path, reason in unused.items()))
        logger.info("results of %d cases in %s", len(self.summary), self.output_dir)
        flags = Counter(row["quality"] for row in self.summary if "quality" in row)
        counts = [f"{flag} {count}" for flag, count in sorted(flags.items())]
        if flags or failed:
            logger.info("quality: %s", ", ".join([*counts, f"failed {len(failed)}"]))
        self._log_predicted()
        for row in self.summary:
            if row.get("quality") in ("review", "fail"):
                logger.info("  %s: %s, %s", row["case"], row["quality"], row["quality_reasons"])

    def _log_predicted(self) -> None:
        columns = {name: f"{name} {_PREDICTED['dice']}" for index, name in self.label_names.items() if index > 0}
        found = {name: [row[column] for row in self.summary if column in row] for name, column in columns.items()}
        texts = [f"{name} {min(dice):.2f} to {max(dice):.2f}" for name, dice in found.items() if dice]
        if texts:
            logger.info("predicted Dice: %s", ", ".join(texts))


def _course(case: CaseResult) -> dict[str, float]:
    figures: dict[str, float] = {}
    course = case.result.course
    if course:
        figures = {
            "loss_before": float(course.curve[0, 0]),
            "loss_after": float(course.loss[0]),
            "iterations": int(course.iterations[0]),
            "itn_trust": round(float(course.trust[0]), 3),
        }
    if case.result.adapted:
        figures["itn_adapted"] = case.result.adapted[0]
    return {**figures, "seconds": round(case.result.seconds, 3)}


def _faces(case: CaseResult, network: AtlasISTN) -> list[CutFace]:
    predicted = case.result.segmentation if case.result.prediction is None else case.result.prediction
    labels = label_indices(predicted[:1])[0].cpu().numpy()
    native = case.segmentation
    return cut_faces(labels, case.grid_affine, native.shape[1:], native_affine(native), network.spacing)


def _exceeds(native: MetaTensor, network: AtlasISTN) -> bool:
    model = np.multiply(network.atlas_labels.shape[2:], network.spacing)
    extent = np.asarray(native.shape[1:]) * np.asarray(native.pixdim)[: native.ndim - 1]
    # Sorted, since the image's axes may be stored in another order than the model's.
    return bool((np.sort(extent) > np.sort(model) * 1.05).any())


def _warnings(report: Mapping[str, Any]) -> list[str]:
    warnings = []
    if report.get("folded_fraction", 0.0) > 0:
        warnings.append("the deformation folds: raise refine_weights lambda")
    if not report.get("topology_kept", True):
        warnings.append("the atlas's topology cannot be kept on this grid: too coarse, or anatomy cut off")
    if report.get("itn_trust", 1.0) < 1:
        warnings.append(f"the ITN's labels look like no shape near the atlas: believed by {report['itn_trust']:.0%}")
    if report.get("itn_adapted"):
        warnings.append("the ITN wavered, far from the 1-pass: it was adapted to this image")
    for name, topology in report["topology"].items():
        if topology["components"] == 0:
            warnings.append(f"{name} is empty")
        elif topology["components"] > 1:
            warnings.append(f"{name} has {topology['components']} components")
    return warnings


def _known(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as JSON has them, which knows no NaN."""
    return {name: None if value != value else value for name, value in figures.items()}


def _atlas_warnings(case: CaseResult) -> list[str]:
    notes = case.result.atlases[0]
    warnings = ["one atlas alone: there is nothing to fuse"] if len(notes) == 1 else []
    if max(note.ncc for note in notes) < _LIKE:
        warnings.append("no atlas looks like the image: other contrast, or other anatomy, or no overlap")
    itself = [note.atlas for note in notes if note.ncc > _SAME]
    return [*warnings, *(f"the atlas {name} is this very image: leave it out to judge the result" for name in itself)]


def _flat(report: Mapping[str, Any]) -> dict[str, Any]:
    row = {
        key: value for key, value in report.items() if not isinstance(value, (dict, list)) and key not in _NO_COLUMNS
    }
    row.update({f"{name} {report['volume_unit']}": value for name, value in report["volumes"].items()})
    for name, topology in report["topology"].items():
        row.update({f"{name} {key}": value for key, value in topology.items()})
    predicted = report.get("predicted_dice", {})
    for name, estimate in predicted.items() if isinstance(predicted, dict) else ():
        row.update({f"{name} {title}": estimate[key] for key, title in _PREDICTED.items()})
    lists = {key: "; ".join(report[key]) for key in ("warnings", "quality_reasons") if key in report}
    return {**row, **lists}
