# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The bundle that a training of a pairwise ISTN makes of its output folder."""

from __future__ import annotations

import logging
from datetime import date
from typing import Any

import ignite.distributed as idist
from ignite.handlers import ProgressBar

from .. import __version__
from ..io.outputs import write_json
from ..models.provenance import check_model_file
from ..settings.stack import PAIR
from .metadata import copied_metadata, data_set_name
from .pair_cases import ALONE
from .trained_bundle import TrainedBundle

__all__ = ["TrainedPairs"]

logger = logging.getLogger(__name__)

_README = """# {name}

{task}. {intended_use}

Trained on {date} for {epochs} epochs with atlas_istn {version}. Data: {data_source}.

Means over the {pairs} validation pairs, by which the model was chosen: expect less on others.

| result | Dice | ASD [{unit}] | HD95 [{unit}] |
| --- | --- | --- | --- |
{rows}

Values of each pair: `validation/`. To register pairs, with the package atlas_istn installed:

```bash
python -m monai.bundle run registration --bundle_root . --config_file configs/registration.yaml \\
    --dataset_dir PAIRS --output_dir RESULTS
```
"""


class TrainedPairs(TrainedBundle):
    """Makes a complete bundle of the output folder of a pairwise ISTN's training, see `TrainedBundle`.

    Nothing is calibrated. The validation list is registered once more, as a run of the bundle would do it:
    ``validation/`` holds these results, ``metadata.json`` their means.
    """

    family = PAIR

    def complete(self) -> None:
        """Evaluate and describe the model.

        Raises:
            InputError: a pair cannot be used, or a file cannot be written.
        """
        if idist.get_rank() > 0:
            return
        summary = self._register()
        metadata = self._metadata(summary)
        write_json(metadata, self.root / "configs" / "metadata.json")
        self._write_readme(_describe(metadata, summary))
        logger.info("%s is a bundle: --config_file %s", self.root, self.root / "configs" / "registration.yaml")

    def _register(self) -> dict[str, Any]:
        """Scores of the validation list, see `Evaluation.summary`."""
        drawn = {name: self.config[f"val_{name}"] for name in ("random_pairs", "moving_list")}
        parser = self._parser(
            "registration", output_dir=str(self.root / "validation"), seed=self.config["seed"], **drawn, **ALONE
        )
        parser["handlers"] = []  # before anything is made: a change makes the parser forget what it has made
        scorer, writer = (parser.get_parsed_content(name) for name in ("scorer", "writer"))
        evaluator = parser.get_parsed_content("evaluator")
        parser.get_parsed_content("loader")()
        ProgressBar(desc="validation").attach(evaluator)
        writer.attach(evaluator)
        evaluator.run()
        summary: dict[str, Any] = scorer.evaluation.summary()
        return summary

    def _metadata(self, summary: dict[str, Any]) -> dict[str, Any]:
        config = self.config
        channels, shape = config["in_channels"], list(config["spatial_size"])
        image = {"type": "image", "format": "magnitude", "modality": "n/a", "dtype": "float32", "is_patch_data": False}
        image |= {"spatial_shape": shape, "value_range": [0, 1]}
        both = [f"{side} image {channel}" for side in ("moving", "fixed") for channel in range(channels)]
        inputs = image | {"num_channels": len(both), "channel_def": {str(n): name for n, name in enumerate(both)}}
        warped = image | {"num_channels": channels, "channel_def": {str(n): f"warped {n}" for n in range(channels)}}
        today = date.today().isoformat()
        scores = summary["results"].items()
        return {
            **copied_metadata(self.parts_dir.parent),
            "version": __version__,
            "changelog": {__version__: f"trained on {today}"},
            "name": f"Pairwise ISTN of {self.root.absolute().name}",
            "task": "Registration of pairs of images by what a network makes of them, with test-time refinement",
            "authors": "made by the training of the Atlas-ISTN bundle",
            "copyright": "of whoever trained it",
            "data_source": data_set_name(config),
            "data_type": "as the training data",
            "image_classes": f"two images of {channels} channel(s), voxels of {config['spacing']} mm",
            "label_classes": f"structures of interest: {config['structures']}",
            "pred_classes": "the moving image, warped onto the fixed one",
            "eval_metrics": {f"dice_{name}": round(found["mean"]["dice"]["mean"], 4) for name, found in scores},
            "intended_use": "Research use only: not a medical device, not for diagnosis or treatment.",
            "references": [],
            "network_data_format": {"inputs": {"pair": inputs}, "outputs": {"pred": warped}},
            "training": {
                "date": today,
                "epochs": config["max_epochs"],
                "seed": config["seed"],
                "pairs": summary["cases"],
                "sha256": check_model_file(self.model_path)["sha256"],
            },
        }


def _describe(metadata: dict[str, Any], summary: dict[str, Any]) -> str:
    rows = []
    for name, found in summary["results"].items():
        figures = " | ".join(f"{found['mean'][metric]['mean']:.3f}" for metric in ("dice", "asd", "hd95"))
        rows.append(f"| {name.replace('_', ' ')} | {figures} |")
    return _README.format(**metadata["training"] | metadata, rows="\n".join(rows), unit=summary["length_unit"])
