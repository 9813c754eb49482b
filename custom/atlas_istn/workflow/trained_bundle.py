# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The bundle that a training makes of its output folder: configurations, calibration, scores, metadata, a document."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.handlers import ProgressBar
from monai.bundle import ConfigParser

from ..errors import InputError
from ..io.files import remove_parts, write_whole
from ..io.outputs import write_json
from ..models.provenance import check_model_file
from ..settings.stack import ATLAS, Family
from ..settings.trained import trained_configs
from .metadata import describe, trained_metadata

__all__ = ["TrainedBundle"]

logger = logging.getLogger(__name__)

SPACES = ("model", "native")
_LOST = 0.02  # Dice that may get lost on the way to the image's own grid before it is worth a warning


class TrainedBundle:
    """Makes a complete bundle of a training's output folder.

    ``configs/`` are there from the beginning, each complete in one file. When training is over the model is calibrated
    on the validation list (see `Calibration`), what was chosen goes into the configurations, and the list is evaluated
    once more with them, on the model's grid and in native space: `validation/` holds these figures, `metadata.json`
    their means. All of it follows from the model and its data, so an interrupted end is simply repeated.

    Args:
        output_dir: folder of the training, which becomes the bundle's root.
        model_path: the model.
        config: of the training, see `running_config`.
        parts_dir: the parts that its configuration is made of, see `parts_dir`.

    Raises:
        InputError: the parts are not there.
    """

    family: Family = ATLAS

    def __init__(self, output_dir: str, model_path: str, config: Mapping[str, Any], parts_dir: Path) -> None:
        self.root = Path(output_dir)
        self.model_path = Path(model_path)
        self.config = config
        self.parts_dir = parts_dir
        if not parts_dir.is_dir():
            raise InputError(
                f"{parts_dir}: no such folder. Expected the parts of the configurations beside the training's "
                "configuration, of which the bundle of the model is made. Run training with the train.yaml of a bundle."
            )

    def begin(self, chosen: Mapping[str, Any] | None = None) -> None:
        """Remove what a killed run left half-written, and write the configurations.

        Args:
            chosen: settings of a model that is trained already.
        """
        if idist.get_rank() == 0:
            for folder in (
                "configs",
                "configs/parts",
                "docs",
                "validation",
                *(f"validation/{space}" for space in SPACES),
            ):
                remove_parts(self.root / folder)
            self._write_configs(chosen or {})

    def complete(self) -> None:
        """Calibrate, evaluate and describe the model; one that cannot be calibrated remains without that.

        Raises:
            InputError: a file cannot be written.
        """
        if idist.get_rank() > 0:
            return
        self._write_configs(self._calibrate() if self._refines() else {})
        scores = {space: self._evaluate(space) for space in SPACES}
        self._compare(scores)
        self.describe(scores)

    def describe(self, scores: Mapping[str, Mapping[str, Any]]) -> None:
        """Write metadata and document.

        Args:
            scores: of the validation list, by space, see `Evaluation.summary`; empty where there are none.
        """
        record = check_model_file(self.model_path)
        metadata = trained_metadata(self.parts_dir.parent, self.root, self.config, record, scores)
        write_json(metadata, self.root / "configs" / "metadata.json")
        self._write_readme(describe(metadata))
        logger.info("%s is a bundle: --config_file %s", self.root, self.root / "configs" / "inference.yaml")

    def _calibrate(self) -> dict[str, Any]:
        """Settings that calibration chooses; none where no validation case can be used, since the model is there."""
        try:
            chosen: dict[str, Any] = self._parser("calibrate").get_parsed_content("calibration").choose()
        except InputError as error:
            logger.warning("the model is not calibrated. %s", error)
            return {}
        logger.info("calibrated: %s", ", ".join(f"{name} {value}" for name, value in chosen.items()))
        return chosen

    def _write_readme(self, text: str) -> None:
        write_whole(self.root / "docs" / "README.md", lambda part: part.write_text(text, encoding="utf-8"))

    def _refines(self) -> bool:
        """Whether the result that counts is one of a refinement."""
        return bool(self.config["results"].get("pred") == "refine")

    def _write_configs(self, chosen: Mapping[str, Any]) -> None:
        configs = self.root / "configs"
        texts = dict(trained_configs(self.parts_dir, self.config, self.root, chosen, self.family))
        if self.parts_dir.parent.resolve() == configs.resolve():
            del texts["train.yaml"]  # with which this very training runs
        for name, text in texts.items():
            write_whole(configs / name, lambda part, text=text: part.write_text(text, encoding="utf-8"))  # type: ignore[misc]
        for source in (*self.parts_dir.glob("*.yaml"), self.parts_dir.parent / "logging.conf"):
            target = configs / source.relative_to(self.parts_dir.parent)
            if source.is_file() and source.resolve() != target.resolve():
                write_whole(target, lambda part, source=source: shutil.copyfile(source, part))  # type: ignore[misc]

    def _parser(self, name: str, **settings: Any) -> ConfigParser:
        """One of the bundle's configurations, for the validation list."""
        parser = ConfigParser()
        parser.read_config(str(self.root / "configs" / f"{name}.yaml"))
        settings |= {"ckpt_path": str(self.model_path), "device": self.config["device"]}
        for key, value in {**settings, "test_list": self.config["val_list"]}.items():
            parser[key] = value
        return parser

    def _evaluate(self, space: str) -> dict[str, Any]:
        """Scores of the validation list, see `Evaluation.summary`."""
        folder = self.root / "validation" / space
        parser = self._parser("evaluate", evaluate_space=space, output_dir=str(folder))
        parser["handlers"] = []  # before anything is made: a change makes the parser forget what it has made
        scorer = parser.get_parsed_content("scorer")
        evaluator = parser.get_parsed_content("evaluator")
        parser.get_parsed_content("loader")()
        ProgressBar(desc=f"validation, {space} space").attach(evaluator)
        scorer.attach(evaluator)
        evaluator.run()
        summary: dict[str, Any] = scorer.evaluation.summary()
        return summary

    def _compare(self, scores: Mapping[str, Mapping[str, Any]]) -> None:
        """Warn where results are much worse on the images' own grids than on the model's."""
        result = self.config["results"]["pred"]
        labels = [scores[space]["results"].get(result, {}).get("labels", {}) for space in SPACES]
        for name in labels[0].keys() & labels[1].keys():
            model, native = (statistics[name]["dice"]["mean"] for statistics in labels)
            if model - native > _LOST:
                logger.warning(
                    "%s: Dice is %.3f on the model's grid and %.3f on the images' own: the grid cuts the label, or is "
                    "too coarse for it. Look at spatial_size and spacing.",
                    *(name, model, native),
                )
