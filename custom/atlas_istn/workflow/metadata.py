# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""``metadata.json`` and ``docs/README.md`` of the bundle that a training makes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError

__all__ = ["copied_metadata", "data_set_name", "describe", "trained_metadata"]

_COPIED = (
    "schema",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "supported_apps",
    "description",
)
"""What the metadata of the bundle that trained says of the method and of the software."""
_MODALITIES = {"MR": {"MR", "MRI"}, "CT": {"CT"}}
_README = """# {name}

{task}. {intended_use}

Trained on {date} for {epochs} epochs with atlas_istn {version}. Data: {data_source}.
Grid of the model: {shape}; {image_classes}. Labels: {label_classes}.

{scores}

To run the model, with the package atlas_istn installed:

```bash
python -m monai.bundle run inference --bundle_root . --config_file configs/inference.yaml --dataset_dir SCANS \\
    --output_dir RESULTS
```
"""
_SCORES = """Means over the {validation_cases} validation cases. They also chose and calibrated the model: expect less
of others.

| figure | value |
| --- | --- |
{figures}

Values of each case: `validation/`."""
_NO_SCORES = "It has no scores yet."
_INTENDED = "Research use only: not a medical device, not for diagnosis or treatment."
Summary = Mapping[str, Any]


def trained_metadata(
    configs: Path, root: Path, config: Mapping[str, Any], record: Mapping[str, Any], scores: Mapping[str, Summary]
) -> dict[str, Any]:
    """Make the metadata of a trained bundle, by MONAI's schema.

    Args:
        configs: of the bundle whose configuration was trained with; its metadata says what is needed.
        root: folder of the trained bundle; ``plan.json`` there, or beside the lists that were made, is taken up.
        config: of the training.
        record: of the model, see `atlas_istn.models.provenance`.
        scores: of the validation list, by space, see `Evaluation.summary`; empty where there are none.

    Raises:
        InputError: a file cannot be read.
    """
    names = [str(name) for _, name in sorted((int(k), v) for k, v in config["label_names"].items())]
    channels = {str(number): name for number, name in enumerate(names)}
    shape, data = list(config["spatial_size"]), data_set_name(config)
    labels = ", ".join(f"{number} {name}" for number, name in channels.items())
    image = {
        "format": "magnitude",
        "modality": _modality(config),
        "num_channels": config["in_channels"],
        "value_range": [0, 1],
    }
    image["channel_def"] = {str(channel): f"image {channel}" for channel in range(config["in_channels"])}
    output = {"format": "segmentation", "num_channels": len(names), "value_range": [0, 1], "channel_def": channels}
    common = {"type": "image", "spatial_shape": shape, "dtype": "float32", "is_patch_data": False}
    unit = f" {scores['native']['length_unit']}" if scores else ""
    today = date.today().isoformat()
    return {
        **copied_metadata(configs),
        "version": __version__,
        "changelog": {__version__: f"trained on {today}"},
        "name": f"Atlas-ISTN {', '.join(names[1:])}",
        "task": f"Segmentation of {', '.join(names[1:])} by atlas registration with test-time refinement",
        "authors": "made by the training of the Atlas-ISTN bundle",
        "copyright": "of whoever trained it",
        "data_source": data,
        "data_type": "as the training data",
        "image_classes": f"{config['in_channels']} channel(s), voxels of {config['spacing']}{unit}",
        "label_classes": f"single channel: {labels}",
        "pred_classes": f"soft channels: {labels}",
        "eval_metrics": _figures(scores, config["results"]["pred"]),
        "intended_use": _INTENDED,
        "references": [],
        "network_data_format": {"inputs": {"image": common | image}, "outputs": {"pred": common | output}},
        "training": {
            "date": today,
            "epochs": config["max_epochs"],
            "seed": config["seed"],
            "validation_cases": scores["native"]["cases"] if scores else 0,
            **{key: record[key] for key in ("sha256", "members") if key in record},
            "fingerprint": _plan(root, config).get("fingerprint", {}),
        },
    }


def describe(metadata: Mapping[str, Any]) -> str:
    """Return the text of the trained bundle's ``docs/README.md``."""
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in metadata["eval_metrics"].items())
    scores = _SCORES.format(**metadata["training"], figures=rows) if rows else _NO_SCORES
    image = metadata["network_data_format"]["inputs"]["image"]
    return _README.format(**metadata["training"] | metadata, shape=image["spatial_shape"], scores=scores)


def _plan(root: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the plan; those of a cross-validation share one."""
    lists = Path(config.get("data_list_file") or root / "dataset.json")
    return _read(root / "plan.json") or _read(lists.with_name("plan.json"))


def _figures(scores: Mapping[str, Summary], result: str) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for space, summary in scores.items():
        labels = summary["results"].get(result, {}).get("labels", {})
        for label, statistics in labels.items():
            for metric in ("dice", "hd95"):
                value = statistics[metric]["mean"]
                figures[f"{metric}_{label}_{space}"] = None if math.isnan(value) else round(value, 4)
    return figures


def _modality(config: Mapping[str, Any]) -> str:
    """The DICOM modality, where the data set states one: "MRI" as in the Decathlon, or "MR"."""
    stated = _read(Path(config["dataset_dir"]) / "dataset.json").get("modality", {})
    words = {str(text).upper() for text in (stated.values() if isinstance(stated, Mapping) else [stated])}
    return next((code for code, names in _MODALITIES.items() if words and words <= names), "n/a")


def copied_metadata(configs: Path) -> dict[str, Any]:
    """What the metadata in a folder of configurations says of the method and of the software."""
    template = _read(configs / "metadata.json")
    return {key: template[key] for key in _COPIED if key in template}


def data_set_name(config: Mapping[str, Any]) -> str:
    """Name and reference of the data set of a training, as its ``dataset.json`` has them."""
    description = _read(Path(config["dataset_dir"]) / "dataset.json")
    name = description.get("name") or Path(config["dataset_dir"]).absolute().name
    return ", ".join(str(text) for text in (name, description.get("reference")) if text)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: expected a JSON object, found none ({error}). Correct the file.") from error
