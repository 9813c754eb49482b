# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Handlers of the inference and evaluation workflows: preparing, writing and scoring case by case."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset, MetaTensor, list_data_collate

from ..errors import InputError, input_error_behind
from ..evaluation.metrics import score_labelmap
from ..evaluation.scores import Evaluation
from ..io.files import check_writable
from ..io.outputs import atlas_grid_affine, write_csv, write_image, write_json, write_labelmap, write_transforms
from ..io.registration import write_registration
from ..networks import AtlasISTN
from ..spatial import Transform
from ..spatial.consistency import Consistency, inverse_consistency
from ..topology import labelmap_topology
from .quality import QualityCheck

__all__ = ["CaseDataset", "CaseScorer", "CaseWriter", "FailureReport", "collate_cases"]

logger = logging.getLogger(__name__)

RESULTS = {"itn": "itn", "one_pass": "one_pass", "pred": "refine"}
"""Key in the evaluator's output → name of the result, of the full method."""


class CaseDataset(Dataset):
    """Prepares the images of cases; a case that cannot be prepared becomes a failure instead of ending the run.

    Items are ``{"case", "source", "reference", "grid_affine", "image"}`` or, for a failure, ``{"case", "error"}``;
    batch them with `collate_cases`.

    Args:
        data: ``{"case", "image"}`` and, for scoring, ``"label"``, as `find_cases` lists them.
        transform: the preprocessing of ``{"image": path}``.
    """

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """The prepared case, or what is wrong with it."""
        case = self.data[index]
        try:
            image = self.transform({"image": case["image"]})["image"]
        except Exception as error:  # whatever a reader or transform raises, the other cases go on
            return {"case": case["case"], "error": message_of(error)}
        return {
            "case": case["case"],
            "source": case["image"],
            "reference": case.get("label", ""),
            "grid_affine": torch.as_tensor(image.affine).double(),
            "image": image,
        }


def message_of(error: BaseException) -> str:
    """The message of the `InputError` behind an exception, or else of the first exception, in one line."""
    mistake = input_error_behind(error)
    if mistake:
        return " ".join(str(mistake).split())
    while error.__cause__:  # Compose wraps every exception in one that names the transform alone
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def collate_cases(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of the cases that could be prepared, with the others under ``"failures"`` as (case, message)."""
    failures = [(item["case"], item["error"]) for item in items if "error" in item]
    prepared = [item for item in items if "error" not in item]
    batch: dict[str, Any] = list_data_collate(prepared) if prepared else {}
    return {**batch, "failures": failures}


class CaseWriter:
    """Handler that writes the files of each case, the atlas and a summary of the run.

    Args:
        output_dir: folder of the results.
        network: holds the atlas.
        label_names: class index → name, background included.
        label_values: value of each class in the labelmap files.
        quality: judges each case by the measures that `CaseMeasures` adds to the output.
        results: key in the evaluator's output → name of the result. The labelmap under ``"pred"`` is written as the
            segmentation, the others by name.
    """

    def __init__(
        self,
        output_dir: str,
        network: AtlasISTN,
        label_names: Mapping[int, str],
        label_values: Sequence[int],
        quality: QualityCheck | None = None,
        results: Mapping[str, str] = RESULTS,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.network = network
        self.label_names = {int(k): v for k, v in label_names.items()}
        self.label_values = list(label_values)
        self.quality = quality
        self.results = results
        self.summary: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an `AtlasEvaluator`."""
        engine.add_event_handler(Events.STARTED, self._write_atlas)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write_batch)
        engine.add_event_handler(Events.COMPLETED, self._write_summary)

    def _write_atlas(self) -> None:
        self.summary = []
        if self.network.stn is None:  # no registration, no atlas
            return
        network, folder = self.network, self.output_dir / "atlas"
        affine = atlas_grid_affine(network.atlas_labels.shape[2:], network.spacing)
        labels = network.atlas_labels[0].float().cpu().numpy()
        write_image(network.atlas_image[0, 0].float().cpu().numpy(), affine, folder / "atlas_image.nii.gz")
        write_image(np.moveaxis(labels, 0, -1), affine, folder / "atlas_probabilities.nii.gz")
        write_labelmap(labels.argmax(axis=0), affine, self.label_values, folder / "atlas_labelmap.nii.gz")

    def _write_batch(self, engine: Engine) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            try:
                self._write_case(batch, output)
            except (InputError, ValueError, RuntimeError) as error:
                engine.state.failures.append((batch["case"], message_of(error)))

    def _write_case(self, batch: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        case = batch["case"]
        folder = self.output_dir / case
        suffix = ".png" if str(batch["source"]).lower().endswith(".png") else ".nii.gz"
        for key, name in {**self.results, "pred": "seg"}.items():
            labelmap = output[key]
            write_labelmap(
                np.asarray(labelmap[0].cpu()).astype(int),
                np.asarray(labelmap.meta.get("original_affine", labelmap.affine)),
                self.label_values,
                folder / f"{case}_{name}{suffix}",
            )
        if "uncertainty" in output:
            entropy = output["uncertainty"]
            affine = np.asarray(entropy.meta.get("original_affine", entropy.affine))
            write_image(np.asarray(entropy[0].cpu()), affine, folder / f"{case}_uncertainty.nii.gz")
        transform = _transform(output, self.network)
        if transform:
            write_transforms(transform, batch["grid_affine"].numpy(), lambda name: folder / f"{case}_{name}.h5")
            write_registration(transform, batch["grid_affine"].numpy(), folder / f"{case}_registration.npz")
        report = self._report(case, output, transform)
        write_json(report, folder / f"{case}.json")
        self.summary.append(_flat(report))

    def _report(self, case: str, output: Mapping[str, Any], transform: Transform | None) -> dict[str, Any]:
        refined = np.asarray(output["pred"][0].cpu()).astype(int)
        labels = [index for index in self.label_names if index > 0]
        topology = {self.label_names[i]: t._asdict() for i, t in labelmap_topology(refined, labels).items()}
        report: dict[str, Any] = {
            "case": case,
            **_course(output),
            **(_deformation(transform, _consistency(output, transform, self.network)) if transform else {}),
            "topology": topology,
            **{key: value for key, value in output["pred"].meta.items() if key.startswith("topology_")},
        }
        warnings = _warnings(report)
        if _exceeds(output["pred"], self.network):
            warnings.append("the image is larger than the model's grid: what lies outside it was not segmented")
        report["warnings"] = warnings
        if self.quality and "measures" in output:
            empty = sum(shape["components"] == 0 for shape in topology.values())
            kept = report.get("topology_kept", True)
            verdict = self.quality(output["measures"], report["folded_fraction"], empty, kept)
            report |= {"quality": verdict.flag, "quality_score": verdict.score, "quality_reasons": verdict.reasons}
        report["labels"] = {self.label_names[index]: self.label_values[index] for index in labels}
        report["loss_curve"] = [float(f"{loss:.4g}") for loss in output.get("loss_curve", [])]
        return report

    def _write_summary(self, engine: Engine) -> None:
        failed = [{"case": case, "error": message} for case, message in engine.state.failures]
        write_csv([*self.summary, *failed], self.output_dir / "summary.csv")
        logger.info("results of %d cases in %s", len(self.summary), self.output_dir)


def _course(output: Mapping[str, Any]) -> dict[str, float]:
    figures: dict[str, float] = {name: float(output[name]) for name in ("loss_before", "loss_after") if name in output}
    if "iterations" in output:
        figures["iterations"] = int(output["iterations"])
    if "trust" in output:
        figures["itn_trust"] = round(float(output["trust"]), 3)
    return {**figures, "seconds": round(float(output["seconds"]), 3)}


def _consistency(output: Any, transform: Transform, network: AtlasISTN) -> Consistency:
    """Consistency of a case's transform, kept in its output: the report and the scores both need it."""
    if "consistency" not in output:
        output["consistency"] = inverse_consistency(transform, network.atlas_labels)
    return output["consistency"]


def _deformation(transform: Transform, consistency: Consistency) -> dict[str, float]:
    jacobian = transform.jacobian_determinant()
    return {
        "min_jacobian": float(jacobian.min()),
        "folded_fraction": float((jacobian <= 0).float().mean()),
        "ic_dice": float(consistency.dice.nanmean()),
        "mice": float(consistency.mice),
    }


def _exceeds(native: MetaTensor, network: AtlasISTN) -> bool:
    model = np.multiply(network.atlas_labels.shape[2:], network.spacing)
    extent = np.asarray(native.shape[1:]) * np.asarray(native.pixdim)[: native.ndim - 1]
    # Sorted, since the image's axes may be stored in another order than the model's.
    return bool((np.sort(extent) > np.sort(model) * 1.05).any())


def _transform(output: Mapping[str, Any], network: AtlasISTN) -> Transform | None:
    """The transform of the result ``"pred"``, if it comes from a registration."""
    if "velocity" not in output:
        return None
    shape = tuple(network.atlas_labels.shape[2:])
    velocity, affine = torch.as_tensor(output["velocity"])[None], torch.as_tensor(output["affine"])[None]
    return Transform(velocity, affine, shape, tuple(network.spacing), network.squarings)


def _warnings(report: Mapping[str, Any]) -> list[str]:
    warnings = []
    if report.get("folded_fraction", 0.0) > 0:
        warnings.append("the deformation folds: raise refine_weights lambda")
    if not report.get("topology_kept", True):
        warnings.append("the atlas's topology cannot be kept on this grid: too coarse, or anatomy cut off")
    if report.get("itn_trust", 1.0) < 1:
        warnings.append(f"the ITN's labels look like no shape near the atlas: believed by {report['itn_trust']:.0%}")
    for name, topology in report["topology"].items():
        if topology["components"] == 0:
            warnings.append(f"{name} is empty")
        elif topology["components"] > 1:
            warnings.append(f"{name} has {topology['components']} components")
    return warnings


def _flat(report: Mapping[str, Any]) -> dict[str, Any]:
    row = {key: value for key, value in report.items() if not isinstance(value, (dict, list))}
    for name, topology in report["topology"].items():
        row.update({f"{name} {key}": value for key, value in topology.items()})
    lists = {key: "; ".join(report[key]) for key in ("warnings", "quality_reasons") if key in report}
    return {**row, **lists}


class CaseScorer:
    """Handler that scores the labelmaps of each result against the original labels.

    Args:
        output_dir: folder for ``metrics.csv`` and ``summary.json``.
        network: holds the atlas.
        label_names: class index → name, background included.
        reference: transform that reads the label of a case onto the grid that is scored: ``{"image", "label"}``
            paths to class indices ``[1, *shape]``.
        surface_dice_tolerance: in millimetres.
        results: key in the evaluator's output → name of the result.
    """

    def __init__(
        self,
        output_dir: str,
        network: AtlasISTN,
        label_names: Mapping[int, str],
        reference: Callable[[dict[str, Any]], Mapping[str, Any]],
        surface_dice_tolerance: float = 1.0,
        results: Mapping[str, str] = RESULTS,
    ) -> None:
        self.output_dir = output_dir
        self.network = network
        self.labels = {int(index): name for index, name in label_names.items() if int(index) > 0}
        self.reference = reference
        self.tolerance = surface_dice_tolerance
        self.results = results
        self.evaluation = Evaluation()

    def attach(self, engine: Engine) -> None:
        """Register with an `AtlasEvaluator`."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score_batch)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self) -> None:
        check_writable(self.output_dir)
        self.evaluation = Evaluation()

    def _score_batch(self, engine: Engine) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            try:
                self._score_case(batch, output)
            except (InputError, RuntimeError) as error:
                engine.state.failures.append((batch["case"], message_of(error)))

    def _score_case(self, batch: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        label = self.reference({"image": batch["source"], "label": batch["reference"]})["label"]
        spacing = [float(s) for s in label.pixdim[: label.ndim - 1]]
        truth = np.asarray(label[0].cpu())
        transform = _transform(output, self.network)
        for key, name in self.results.items():
            prediction = np.asarray(output[key][0].cpu())
            rows = score_labelmap(prediction, truth, self.labels, spacing, self.tolerance)
            if key == "pred" and transform:  # the only result whose transform the output holds
                consistency = _consistency(output, transform, self.network)
                # IC-DSC of each label, and the case's MICE with each of them
                figures = [{"ic_dice": dice, "mice": float(consistency.mice)} for dice in consistency.dice[0].tolist()]
                rows = [row | added for row, added in zip(rows, figures, strict=True)]
            self.evaluation.add(batch["case"], name, rows)

    def _write(self, engine: Engine) -> None:
        for case, message in engine.state.failures:
            self.evaluation.add_failure(case, message)
        self.evaluation.write(self.output_dir)
        sys.stdout.write(self.evaluation.table() + "\n")


class FailureReport:
    """Last handler: when cases failed, the run ends with a message that names them, after all others are done."""

    def attach(self, engine: Engine) -> None:
        """Register with an `AtlasEvaluator`."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Raise if there were failures.

        Raises:
            InputError: naming every failed case and its reason.
        """
        failures = engine.state.failures
        if failures:
            lines = "\n".join(f"  {case}: {message}" for case, message in failures)
            raise InputError(f"{len(failures)} of {len(engine.data_loader.dataset)} cases failed:\n{lines}")
