# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What is usual for a model, and whom its refinement should trust, learned from cases with labels.

Each case is run as it is and degraded, and compared with its labels on the model's grid. From this follow the
confidence to which a wavering ITN is raised, the disagreement from which the ITN is not believed, the statistics of the
quality check, the z-score from which it asks for a review, and how the Dice of a result is predicted.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.networks import one_hot
from monai.transforms import Compose
from torch import Tensor
from tqdm import tqdm

from ..data.degradations import KINDS, degrade
from ..errors import InputError, message_of
from ..inferers.refine import RefinementInferer
from ..inferers.target import TargetPolicy, confidence, disagreement
from ..io.names import patients_of
from ..io.outputs import write_json
from ..networks import AtlasISTN
from .label_measures import dice_of_labels, measure_labels
from .measures import Measures, measure
from .prediction import Outcome
from .quality import FEWEST_CASES, REVIEW_Z, Population, fingerprint

__all__ = ["Calibration", "Sample", "choose_confidence", "choose_review_z", "choose_trust"]

logger = logging.getLogger(__name__)

COPIES = 3  # degraded copies of each case
MOST_CASES = 20  # of a list, evenly chosen: an interval is the narrower, the more patients it is drawn from
_STRENGTHS = (1, 2, 3)
_GAIN = 0.002  # in mean Dice over the degraded copies, from which a setting is worth having
_HARM = 0.0005  # in mean Dice over the cases as they are, that is taken for it
_AT_LEAST = 3  # copies that a limit is drawn from
_BELOW = 0.02  # Dice below the worst case as it is, from which a copy is bad
_REVIEW_ZS = np.arange(2.5, 8.01, 0.25)


@dataclass(frozen=True)
class Sample:
    """One run of one case.

    Attributes:
        case: its name.
        kind: of the image's fault; empty where the image is as it was.
        confidence: of the ITN, see `atlas_istn.inferers.target.confidence`.
        disagreement: of the ITN's labels and the stiffly moved atlas, by which the ITN is trusted.
        refined: Dice of the refined result, mean over labels.
        one_pass: the same of the 1-pass, which takes the place of an ITN that is not trusted.
        measures: of the quality check.
        label_measures: of each label, see `measure_labels`.
        dice: of the refined result, of each label; NaN where the reference has none of it.
    """

    case: str
    kind: str
    confidence: float
    disagreement: float
    refined: float
    one_pass: float
    measures: Measures
    label_measures: list[list[float]]
    dice: list[float]

    @property
    def clean(self) -> bool:
        """Whether the image is as it was, and not degraded."""
        return not self.kind


def choose_confidence(samples: Sequence[Sample]) -> float:
    """Choose what an ITN that wavers is raised to: the confidence of half of the cases as they are."""
    return round(float(np.median([sample.confidence for sample in samples if sample.clean])), 3)


def better(new: Sequence[Sample], old: Sequence[Sample]) -> bool:
    """Whether a setting does the degraded copies good, and the cases as they are no harm."""

    def gain(clean: bool) -> float:
        pairs = zip(new, old, strict=True)
        return float(np.mean([a.refined - b.refined for a, b in pairs if b.clean == clean]))

    return gain(clean=False) >= _GAIN and gain(clean=True) >= -_HARM


def choose_trust(samples: Sequence[Sample]) -> list[float] | None:
    """Choose the disagreements up to which the ITN is believed, and from which it is not.

    No case as it is is doubted. Beyond, the limit is where taking the 1-pass for the refined result does most good over
    all samples; around it the ITN is believed in part.

    Returns:
        Two rising numbers, or None where doubt does not pay, or the cases are too few.
    """
    clean = [sample.disagreement for sample in samples if sample.clean]
    if len(clean) < FEWEST_CASES:
        return None
    usual = max(clean)
    doubtful = sorted((s for s in samples if s.disagreement > usual), key=lambda s: -s.disagreement)
    gains = np.cumsum([sample.one_pass - sample.refined for sample in doubtful])
    best = int(gains.argmax()) if len(gains) else -1
    degraded = sum(not sample.clean for sample in samples)
    if best + 1 < _AT_LEAST or gains[best] < _GAIN * degraded:
        return None
    following = doubtful[best + 1].disagreement if best + 1 < len(doubtful) else usual
    limits = [max(usual, following), doubtful[best].disagreement]
    return [round(limits[0], 4), round(max(limits[1], limits[0] + 1e-3), 4)]


def choose_review_z(samples: Sequence[Sample], population: Population) -> float:
    """Choose the z-score that tells bad results from good ones best (Youden's index); the customary if none are bad."""
    scores = np.array([max(population.z_scores(sample.measures).values()) for sample in samples])
    worst = min(sample.refined for sample in samples if sample.clean)
    bad = np.array([sample.refined < worst - _BELOW for sample in samples])
    if bad.sum() < _AT_LEAST:
        return REVIEW_Z
    index = [(scores[bad] > z).mean() - (scores[~bad] > z).mean() for z in _REVIEW_ZS]
    best = np.flatnonzero(np.isclose(index, max(index)))
    return float(min(_REVIEW_ZS[best], key=lambda z: abs(z - REVIEW_Z)))


class Calibration:
    """Calibrates a model.

    Costs a preparation and two refinements for each of up to 20 cases and of three copies of each.

    Args:
        network: filled with the model when it runs.
        loader: fills it.
        refinement: how cases are refined; its policy is put in the place of what is chosen.
        preprocessing: of ``{"image": path}``; the first of its transforms reads.
        reference: of ``{"image", "label"}`` to class indices ``[1, *shape]`` on the model's grid.
        data: cases with labels.
        path: file for the `Population`, ``quality.json`` beside the model.
        ckpt_path: the model.
        settings: of the refinement, see `refinement_settings`.
        device: where it runs.
    """

    def __init__(
        self,
        network: AtlasISTN,
        loader: Callable[[], None],
        refinement: RefinementInferer,
        preprocessing: Compose,
        reference: Callable[[dict[str, Any]], Mapping[str, Any]],
        data: Sequence[Mapping[str, str]],
        path: str,
        ckpt_path: str,
        settings: Mapping[str, Any],
        device: torch.device | str = "cpu",
    ) -> None:
        self.network = network
        self.loader = loader
        self.refinement = refinement
        self.preprocessing = preprocessing
        self.reference = reference
        self.data = data
        self.path = Path(path)
        self.ckpt_path = Path(ckpt_path)
        self.settings = dict(settings)
        self.device = torch.device(device)

    def run(self) -> Population:
        """Write the statistics for the refinement as it is set.

        Raises:
            InputError: no case can be used, or the file cannot be written.
        """
        self.loader()
        return self._write(self.samples())

    def choose(self) -> dict[str, Any]:
        """Choose confidence and trust, and write the statistics for them.

        Returns:
            ``refine_confidence`` and ``refine_trust``: what is worth having, else 0 and None.

        Raises:
            InputError: as for `run`.
        """
        self.loader()
        self.refinement.policy = TargetPolicy()
        samples = self.samples("calibration, ITN as it is")
        chosen: dict[str, Any] = {"refine_confidence": 0.0, "refine_trust": None}
        if sum(sample.clean for sample in samples) >= FEWEST_CASES:
            value = choose_confidence(samples)
            self.refinement.policy = TargetPolicy(value)
            sharpened = self.samples("calibration, ITN sharpened")
            if better(sharpened, samples):
                samples, chosen["refine_confidence"] = sharpened, value
            chosen["refine_trust"] = choose_trust(samples)
        self.refinement.policy = TargetPolicy(chosen["refine_confidence"], chosen["refine_trust"])
        self.settings |= chosen
        self._write(samples)
        return chosen

    def samples(self, title: str = "calibration") -> list[Sample]:
        """Run all cases and their copies; a case that cannot be prepared is left out, with a warning."""
        self.network.eval()
        found: list[Sample] = []
        reason = "the list is empty"
        for case in tqdm(_evenly(self.data, MOST_CASES), desc=title):
            try:
                found += self._samples_of(case)
            except Exception as error:  # whatever a reader or transform raises, the other cases go on
                reason = message_of(error)
                logger.warning("%s is left out of the calibration: %s", case["case"], reason)
        if not found:
            raise InputError(f"calibration: no case of the list can be used, the last because of this: {reason}")
        return found

    def _samples_of(self, case: Mapping[str, str]) -> list[Sample]:
        prepared = self._prepared(case)
        batch = torch.stack(list(prepared.values())).to(self.device)
        result = self.refinement.infer(batch, self.network)
        label = torch.as_tensor(self.reference({"image": case["image"], "label": case["label"]})["label"])
        truth = one_hot(label[None].to(self.device), result.segmentation.shape[1]).expand_as(result.segmentation)
        if result.prediction is None or result.one_pass is None or result.course is None:
            raise InputError("there is no refinement to calibrate")
        columns = (
            confidence(result.prediction),
            result.course.disagreement,
            1 - disagreement(result.segmentation, truth),
            1 - disagreement(result.one_pass, truth),
        )
        of_labels = measure_labels(result, batch, self.network.atlas_image), dice_of_labels(result.segmentation, truth)
        label_rows = (column.tolist() for column in of_labels)
        rows = zip(*(column.tolist() for column in columns), measure(result), *label_rows, strict=True)
        return [Sample(case["case"], kind, *row) for kind, row in zip(prepared, rows, strict=True)]

    def _prepared(self, case: Mapping[str, str]) -> dict[str, Tensor]:
        """The image on the model's grid, and under their faults copies of it; without those that cannot be prepared."""
        read, *prepare = self.preprocessing.transforms
        image = read({"image": case["image"]})
        prepared = {"": torch.as_tensor(Compose(prepare)(image)["image"])}
        for kind, copy in _degraded(image["image"], zlib.crc32(case["case"].encode())).items():
            try:
                prepared[kind] = torch.as_tensor(Compose(prepare)({**image, "image": copy})["image"])
            except Exception as error:  # as where the anatomy is not found any more
                logger.info("a degraded copy of %s is left out: %s", case["case"], message_of(error))
        return prepared

    def _write(self, samples: Sequence[Sample]) -> Population:
        usual = [sample.measures for sample in samples if sample.clean]
        population = Population.of(usual, fingerprint(self.ckpt_path), self.settings)
        if population.sufficient:
            population = replace(population, review_z=choose_review_z(samples, population))
        population = replace(population, outcomes=_outcomes(samples))
        write_json(asdict(population), self.path)
        logger.info("calibrated on %d cases: %s", population.cases, self.path)
        return population


def _outcomes(samples: Sequence[Sample]) -> list[Outcome]:
    """What the Dice is predicted from: all runs, with their patients numbered."""
    cases = list(dict.fromkeys(sample.case for sample in samples))
    patients = dict(zip(cases, patients_of(cases), strict=True))
    number = {patient: index for index, patient in enumerate(dict.fromkeys(patients.values()))}
    return [
        Outcome(
            number[patients[sample.case]],
            sample.kind,
            [[round(value, 4) for value in values] for values in sample.label_measures],
            [None if math.isnan(value) else round(value, 4) for value in sample.dice],
        )
        for sample in samples
    ]


def _degraded(image: MetaTensor, seed: int) -> dict[str, Tensor]:
    """Copies of an image ``[C, *shape]`` with faults that its seed chooses, under their names."""
    random = np.random.RandomState(seed)
    kinds = random.choice(list(KINDS), COPIES, replace=False)
    return {str(kind): degrade(image, str(kind), int(random.choice(_STRENGTHS)), seed) for kind in kinds}


def _evenly(cases: Sequence[Mapping[str, str]], most: int) -> list[Mapping[str, str]]:
    places = np.unique(np.linspace(0, len(cases) - 1, min(len(cases), most)).round().astype(int))
    return [cases[place] for place in places]
