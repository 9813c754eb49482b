# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The command that joins trained bundles, as the folds of a cross-validation are, to one."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import Tensor

from ..errors import InputError
from ..io.outputs import write_json
from ..models.export import load_network
from ..models.loading import read_state
from ..models.provenance import SETTINGS, read_record, save_model
from ..settings import check_settings, differences, model_settings
from .quality import Population, fingerprint
from .trained_bundle import TrainedBundle

__all__ = ["MEMBERS", "make_ensemble"]

MEMBERS = "members"
"""Key of the record of an ensemble under which stand the SHA-256 of the models, that of the atlas first."""

_ITN = "itn."
_CALIBRATED = ("refine_confidence", "refine_trust")


def make_ensemble(
    *folders: str, output_dir: str, atlas_of: str = "", val_list: str = "", overwrite: bool = False
) -> None:
    """Join trained bundles to one: the mean of the ITNs' probabilities, to which one member registers its atlas.

    STN, atlas, locator and the settings of the refinement are those of one member, so that topology, transforms and
    atlas stay those of one model. The result is a bundle like those of the members.

    Args:
        folders: of two or more trainings whose models have the same settings.
        output_dir: folder of the new bundle.
        atlas_of: which of the folders gives STN, atlas and all else that is not the ITN; by default the first.
        val_list: labelled cases on which to calibrate and score the ensemble, best such that no member has seen; by
            default that is left to be done.
        overwrite: replace the model that is in output_dir.

    Raises:
        InputError: there are fewer than two folders, one holds no trained bundle, their settings differ, or a model
            would be lost.
    """
    root, members = Path(output_dir), [Path(folder) for folder in folders]
    if len(members) < 2:
        raise InputError(f"ensemble: expected the folders of two or more trainings, found {len(members)}.")
    leader = Path(atlas_of) if atlas_of else members[0]
    if leader not in members:
        raise InputError(f"--atlas_of {leader}: expected one of the members: {', '.join(map(str, members))}.")
    records = {member: _record(member) for member in members}
    _check_same(members, records)
    _check_output(root, members, overwrite)

    config = {**_config(leader, "train"), "output_dir": str(root), "val_list": val_list}
    config |= _mean_of_itns(config, len(members))
    model = root / "models" / "model.pt"
    bundle = TrainedBundle(str(root), str(model), config, leader / "configs" / "parts")
    inference = _config(leader, "inference")
    bundle.begin({} if val_list else {name: inference[name] for name in _CALIBRATED})
    sums = [records[member]["sha256"] for member in (leader, *members)]
    record = {SETTINGS: model_settings(_config(root, "inference")), MEMBERS: list(dict.fromkeys(sums))}
    save_model(_joined(leader, members), model, record)
    load_network(root / "configs" / "inference.yaml")  # refuses what does not fit together
    if val_list:
        bundle.complete()
        return
    write_json(asdict(Population.of([], fingerprint(model))), model.with_name("quality.json"))
    bundle.describe({})
    sys.stdout.write(
        f"The mean of {len(members)} ITNs and the atlas of {leader}, not calibrated. With a list of labelled cases, "
        "best such that no member has seen:\n"
        f"python -m monai.bundle run calibrate --config_file {root}/configs/calibrate.yaml --test_list LIST\n"
    )


def _record(member: Path) -> dict[str, Any]:
    """What the record of a member's model says; a bundle that training made has all of it."""
    files = [member / "configs" / "train.yaml", member / "configs" / "inference.yaml", member / "models" / "model.pt"]
    missing = [str(path) for path in files if not path.is_file()]
    record = {} if missing else read_record(files[-1])
    if missing or SETTINGS not in record:
        lacking = missing[0] if missing else f"the settings in {files[-1].with_suffix('.json')}"
        raise InputError(f"{member}: expected the folder of a training that is over, found none: without {lacking}.")
    return record


def _check_same(members: Sequence[Path], records: Mapping[Path, Mapping[str, Any]]) -> None:
    first = members[0]
    found = {member: differences(records[first][SETTINGS], records[member][SETTINGS]) for member in members}
    lines = "\n".join(f"{member}:\n{others}" for member, others in found.items() if others)
    if lines:
        raise InputError(
            f"ensemble: members whose settings differ have no mean. Other than those of {first} are those of\n{lines}\n"
            "Leave these members out, or train them with the same settings."
        )


def _check_output(root: Path, members: Sequence[Path], overwrite: bool) -> None:
    if root.resolve() in [member.resolve() for member in members]:
        raise InputError(f"--output_dir {root}: is a member, and would be lost. Choose another folder.")
    if (root / "models" / "model.pt").exists() and not overwrite:
        raise InputError(f"{root}: holds a model already. Choose another output_dir, or --overwrite true.")
    shutil.rmtree(root / "validation", ignore_errors=True)  # scores of another model


def _config(folder: Path, name: str) -> dict[str, Any]:
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / f"{name}.yaml"))
    return {**parser.config, **check_settings(parser.config)}


def _mean_of_itns(config: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The settings that make an ITN of several, each as a member has it, its activation included."""
    itn = config["itn"]
    while isinstance(itn, str) and itn.startswith("@"):  # else all of them would be the same
        itn = config[itn[1:]]
    mean = {
        "_target_": "atlas_istn.networks.MeanOfNetworks",
        "networks": [copy.deepcopy(itn) for _ in range(number)],
        "activation": config["itn_activation"] or {"_target_": "torch.nn.Identity"},
    }
    return {"itn": mean, "itn_activation": None}


def _joined(leader: Path, members: Sequence[Path]) -> dict[str, Tensor]:
    """The weights of the ensemble."""
    states = {member: read_state(member / "models" / "model.pt") for member in members}
    joined = {name: value for name, value in states[leader].items() if not name.startswith(_ITN)}
    for number, member in enumerate(members):
        own = {name.removeprefix(_ITN): value for name, value in states[member].items() if name.startswith(_ITN)}
        if not own:
            raise InputError(f"{member}: its model has no ITN, so there is nothing to take the mean of.")
        joined.update({f"{_ITN}networks.{number}.{name}": value for name, value in own.items()})
    return joined
