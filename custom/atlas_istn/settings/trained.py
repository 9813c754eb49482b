# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The configurations of a trained model: those of the bundle, with the settings of its training in the right places."""

from __future__ import annotations

import copy
import itertools
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from monai.bundle import ConfigParser

from .check import check_settings, references
from .stack import ATLAS, Family, blocks, stack

__all__ = ["trained_configs"]

_TRAINING = "train.yaml"
_OF_THE_RUN = ("device", "resume", "overwrite", "bundle_root")
"""Ids that say where and how one run went."""
_OF_DATA = ("dataset_dir", "data_list_file")
_OF_WORKFLOW = ("inferer",)
"""Beside the shared ids, what means the same in training and in inference."""
_SEVERAL_PROCESSES = "multi_gpu_train.yaml"
"""Beside the bundle's configurations: what a training in several processes stacks on them."""
_CALIBRATED = {"confidence": "@refine_confidence", "trust": "@refine_trust"}
"""Of the refinement, what a training leaves out; see ``parts/training.yaml``."""
_WIDTH = 120
_END = "...\n"  # of a document that is a mere scalar


def trained_configs(
    parts_dir: Path,
    config: Mapping[str, Any],
    bundle_root: Path,
    chosen: Mapping[str, Any],
    family: Family = ATLAS,
) -> dict[str, str]:
    """Make the configurations of the bundle of a trained model. Each is complete, and runs alone.

    Args:
        parts_dir: the bundle's ``configs/parts``.
        config: of the training, as its parser holds it.
        bundle_root: folder of the new bundle.
        chosen: settings that were calibrated when training was over; not for another training.
        family: the files to make.

    Returns:
        Name of each file → its text.

    Raises:
        InputError: a part is missing.
    """
    files = {name: [parts_dir / f"{part}.yaml" for part in parts] for name, (parts, _) in family.files.items()}
    shared = {name for part in family.shared for name in blocks(parts_dir / f"{part}.yaml")}
    parts = ConfigParser()
    parts.read_config([str(path) for path in files[_TRAINING]])
    changed = _changed(parts.config, _of_one_process(parts.config, config, parts_dir))
    values = {name: changed[name] for name in changed if name in {*shared, *_OF_DATA, *_OF_WORKFLOW}}
    values |= chosen
    if "refinement" in values:
        values["refinement"] = {**values["refinement"], **_CALIBRATED}
    texts = {}
    for name, paths in files.items():
        mine = changed if name == _TRAINING else _with_references(values, config, paths)
        texts[name] = "# Made for this model, with the settings of its training. Runs alone.\n" + stack(
            paths, _as_blocks({"bundle_root": str(bundle_root.absolute()), **mine}, paths)
        )
    return texts


def _of_one_process(parts: Mapping[str, Any], config: Mapping[str, Any], parts_dir: Path) -> dict[str, Any]:
    """A configuration without what a run in several processes adds, so that its bundle trains in one."""
    folders = (parts_dir.parent, parts_dir.parent.parent)
    overlay = next((file for folder in folders if (file := folder / _SEVERAL_PROCESSES).is_file()), None)
    single = copy.deepcopy(dict(config))
    for key, value in yaml.safe_load(overlay.read_text(encoding="utf-8")).items() if overlay else ():
        *above, name = key.removeprefix("+").split("#")
        mine, default = _within(single, above), _within(parts, above)
        if key.startswith("+"):
            mine[name] = [entry for entry in mine.get(name, []) if entry not in value]
        elif mine.get(name) != value:
            continue
        elif name in default:
            mine[name] = default[name]
        else:
            del mine[name]
    return {name: value for name, value in single.items() if value != [] or name in parts}


def _within(tree: Mapping[str, Any], path: list[str]) -> dict[str, Any]:
    """What stands in a configuration under a path of ids; empty where nothing does."""
    for name in path:
        tree = tree.get(name, {})
    return cast(dict[str, Any], tree)


def _changed(parts: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration has other than the parts do."""
    defaults = {**parts, **check_settings(parts)}
    changed = {
        name: value
        for name, value in config.items()
        if not name.startswith("_") and name not in _OF_THE_RUN and (name not in defaults or value != defaults[name])
    }
    folders = {name: str(Path(changed[name]).absolute()) for name in (*_OF_DATA, "output_dir") if changed.get(name)}
    return {**changed, **folders}


def _with_references(values: Mapping[str, Any], config: Mapping[str, Any], paths: list[Path]) -> dict[str, Any]:
    """Values, with what they refer to and the parts do not have, as what a data configuration adds for its own use."""
    known = {name for path in paths for name in blocks(path)}
    found = dict(values)
    missing = references(found) - known - found.keys()
    while missing:
        found |= {name: config[name] for name in missing & config.keys()}
        missing = (references(found) - known - found.keys()) & config.keys()
    return found


def _as_blocks(values: Mapping[str, Any], paths: list[Path]) -> dict[str, str]:
    """Values as the lines of a configuration, below the comments that stand above their ids."""
    texts = {name: text for path in paths for name, text in blocks(path).items() if name in values}
    return {name: _leading_comments(texts.get(name, "")) + _dumped(name, value) for name, value in values.items()}


def _leading_comments(text: str) -> str:
    return "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))


def _dumped(name: str, value: Any) -> str:
    short = yaml.safe_dump(value, sort_keys=False, default_flow_style=True, width=math.inf, allow_unicode=True)
    line = f"{name}: {short.removesuffix(_END).strip()}\n"
    if len(line) <= _WIDTH:
        return line
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=_WIDTH, allow_unicode=True)
    return f"{name}:\n{textwrap.indent(text, '  ')}"
