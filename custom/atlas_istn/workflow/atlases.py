# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Atlases of a multi-atlas segmentation, read as a run begins."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from torch import Tensor, nn

from ..errors import InputError, message_of
from ..fusion.base import LabelFusion
from ..fusion.similarity import LearnedVote
from ..fusion.trust import PredictedTrust
from ..inferers.fused_target import LearnedAtlas
from ..inferers.model_registration import ModelRegistration, NetworkRegistration, ThroughAtlas
from ..inferers.multi_atlas import AtlasSet
from ..inferers.segmenters import Fold, OutOfFold
from ..io.cases import find_cases
from ..io.channels import files_of
from ..models.loading import ModelLoader
from ..networks import SimilarityNetwork, VoteNet

__all__ = ["AtlasLoader", "learned_vote", "load_folds", "load_learned_atlas", "load_registration", "vote_net"]

logger = logging.getLogger(__name__)


class AtlasLoader:
    """Handler that reads the atlases as a run starts, and those that cannot be used are named all at once.

    Args:
        network: the set that takes them in.
        cases: of the atlases, with labels, as `find_cases` lists them.
        transform: from the paths of an image and its label to tensors on the model's grid, ``[C, *shape]`` and class
            indices ``[1, *shape]``.
        label_names: class index → name.
        learned: a learned atlas that the results are of, and which is written beside them, in place of their mean.
    """

    def __init__(
        self,
        network: AtlasSet,
        cases: Sequence[dict[str, str]],
        transform: Callable[[dict[str, str]], Any],
        label_names: Mapping[int, str],
        learned: LearnedAtlas | None = None,
    ) -> None:
        self.network = network
        self.cases = cases
        self.transform = transform
        self.label_names = label_names
        self.learned = learned

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self.load)

    def load(self) -> None:
        """Read the atlases.

        Raises:
            InputError: there are some that cannot be read or have no label.
        """
        found: list[tuple[Tensor, Tensor]] = []
        problems = []
        for case in self.cases:
            try:
                data = self.transform({"image": case["image"], "label": case["label"]})
                image, label = (torch.as_tensor(data[key]).as_subclass(Tensor) for key in ("image", "label"))
                if not (label > 0).any():
                    raise InputError(f"{case['label']}: no label within the grid. Choose a larger spatial_size.")
                found.append((image.float(), label[0].to(torch.int16)))
            except Exception as error:  # whatever a reader or transform raises: all of them are named
                problems.append(f"  {case['case']}: {message_of(error)}")
        if problems:
            lines = "\n".join(problems)
            raise InputError(f"{len(problems)} of {len(self.cases)} atlases cannot be used:\n{lines}")
        images, labels = (torch.stack(tensors) for tensors in zip(*found, strict=True))
        sources = [files_of(case["image"])[0] for case in self.cases]
        self.network.fill([case["case"] for case in self.cases], images, labels, sources)
        self._tell_missing(labels)
        if self.learned:
            self.network.show(self.learned.network)
        logger.info("%d atlas%s", len(images), "es" if len(images) > 1 else ": its labels are all that can be fused")

    def _tell_missing(self, labels: Tensor) -> None:
        """Say which of the labels that others have an atlas lacks; it may be cut off there, or labelled otherwise."""
        everyone = set(labels.unique().tolist())
        for case, label in zip(self.cases, labels, strict=True):
            lacking = [self.label_names[index] for index in sorted(everyone - set(label.unique().tolist()))]
            if lacking:
                others = "which other atlases have: there it votes for what it has"
                logger.warning("atlas %s has no %s, %s", case["case"], ", ".join(lacking), others)


def load_registration(
    model: str,
    spatial_size: Sequence[int],
    spacing: Sequence[float],
    device: torch.device | str,
    backward: bool = False,
) -> ModelRegistration:
    """Load a registration of pairs, or an Atlas-ISTN, to register atlases with.

    Args:
        model: folder that its training wrote.
        spatial_size: of the grid on which the atlases are; an Atlas-ISTN has to be of the same.
        spacing: voxel size in mm of that grid.
        device: for its network.
        backward: the fixed images of the pairs are of the atlases' modality, and the moving ones of the image's.

    Raises:
        InputError: there is none, it cannot be used, or its voxel size or its grid is another.
    """
    wanted: dict[str, Any] = {"spacing": list(spacing)}
    if (Path(model) / "configs/inference.yaml").is_file():
        if backward:
            raise InputError(f"{model}: an Atlas-ISTN registers both ways. Leave atlas_registration_backward out.")
        parser = _loaded(model, "inference", device, wanted | {"spatial_size": list(spatial_size)})
        return ThroughAtlas(parser.get_parsed_content("network"), parser.get_parsed_content("inferer"))
    parser = _loaded(model, "registration", device, wanted)
    network, inferer, limits = (parser.get_parsed_content(i) for i in ("network", "inferer", "intensity_limits"))
    return NetworkRegistration(network, inferer, backward, limits)


def load_learned_atlas(
    model: str,
    spatial_size: Sequence[int],
    spacing: Sequence[float],
    label_names: Mapping[Any, str],
    device: torch.device | str,
) -> LearnedAtlas:
    """Load a trained Atlas-ISTN, of whose atlas the results shall be.

    Args:
        model: folder that its training wrote.
        spatial_size: of the grid on which labels are fused.
        spacing: of that grid, in mm.
        label_names: of these labels.
        device: for its network.

    Raises:
        InputError: there is none, it cannot be used, or its grid or its labels are others.
    """
    parser = _atlas_istn(model, spatial_size, spacing, label_names, device)
    return LearnedAtlas(parser.get_parsed_content("network"), parser.get_parsed_content("inferer"))


def load_folds(
    folders: Sequence[str],
    spatial_size: Sequence[int],
    spacing: Sequence[float],
    label_names: Mapping[Any, str],
    device: torch.device | str,
) -> OutOfFold:
    """Load the trainings of a cross-validation, whose predictions for an image are those of networks it is new to.

    Args:
        folders: that these trainings wrote; what each was trained with is read from its configuration.
        spatial_size: of the grid on which atlases are registered.
        spacing: of that grid, in mm.
        label_names: of the atlases.
        device: for the networks.

    Raises:
        InputError: a folder has no model, its grid or labels are others, or the data that it was trained with are gone.
    """
    folds = []
    for folder in folders:
        parser = _atlas_istn(folder, spatial_size, spacing, label_names, device)
        training = _bundle(folder, "train", device, {})
        dataset, name, file = (training.get_parsed_content(i) for i in ("dataset_dir", "train_list", "data_list_file"))
        cases = find_cases(dataset, name, with_labels=True, data_list_file=file)
        sources = [files_of(case["image"])[0] for case in cases]
        folds.append(Fold(folder, parser.get_parsed_content("network").eval().segment, sources))
    return OutOfFold(folds)


def learned_vote(network: SimilarityNetwork, path: str, most: int = 0) -> LearnedVote:
    """Make a vote by a network that was trained.

    Args:
        network: takes the weights.
        path: of the model.
        most: see `LearnedVote`.

    Raises:
        InputError: there is no such model, or it does not fit.
    """
    _load(network, path)
    return LearnedVote(network, most)


def vote_net(network: VoteNet, path: str, fusion: LabelFusion) -> PredictedTrust:
    """Make a fusion by the trust of a network that was trained.

    Args:
        network: takes the weights.
        path: of the model.
        fusion: see `PredictedTrust`.

    Raises:
        InputError: there is no such model, or it does not fit.
    """
    _load(network, path)
    return PredictedTrust(network, fusion)


def _atlas_istn(
    model: str,
    spatial_size: Sequence[int],
    spacing: Sequence[float],
    label_names: Mapping[Any, str],
    device: torch.device | str,
) -> ConfigParser:
    """The inference of a trained Atlas-ISTN, with its weights, for a grid and labels."""
    wanted = {"spatial_size": list(spatial_size), "spacing": list(spacing), "label_names": dict(label_names)}
    return _loaded(model, "inference", device, wanted)


def _loaded(model: str, name: str, device: torch.device | str, wanted: Mapping[str, Any]) -> ConfigParser:
    """The same as `_bundle`, with the weights in its network."""
    parser = _bundle(model, name, device, wanted)
    parser.get_parsed_content("loader")()
    return parser


def _bundle(model: str, name: str, device: torch.device | str, wanted: Mapping[str, Any]) -> ConfigParser:
    """A configuration of the bundle that a training wrote, whose settings have to be those that are wanted."""
    config = Path(model) / "configs" / f"{name}.yaml"
    if not config.is_file():
        raise InputError(f"{config}: no such file. Expected the folder that a training wrote, with configs and models.")
    parser = ConfigParser()
    parser.read_config(str(config))
    parser["bundle_root"], parser["device"], parser["handlers"] = model, device, []
    for key, value in wanted.items():
        found = parser.get_parsed_content(key)
        if found != value:
            raise InputError(f"{model}: it was trained with {key} {found}, here it is {value}. Set it to that.")
    return parser


def _load(network: nn.Module, path: str) -> None:
    if not path:
        raise InputError("fusion_path: expected models/model.pt of a training of this fusion, found nothing.")
    ModelLoader(path, network)()
