# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Check of the finished atlas, and its repair."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events

from ..errors import InputError
from ..io.outputs import write_json
from ..models.loading import read_state
from ..models.provenance import save_model
from ..networks import AtlasISTN
from ..pictures.atlas_repair import draw_repair
from ..topology.repair import pull_argmax, repair_labelmap
from ..topology.signature import Signature
from .handlers import BestModel

__all__ = ["AtlasCheck", "AtlasTopology", "check_atlas", "check_model"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AtlasCheck:
    """An atlas beside the topology that it should have.

    Attributes:
        labels: soft channels ``[Nc, *shape]`` as they were.
        repaired: the nearest soft channels with the topology, or nearer to it; `labels` itself where nothing is wrong.
        target: the topology wanted.
        before: the topology of `labels`.
        after: the topology of `repaired`.
        defects_before: components, holes, cavities and contacts too many or too few in `labels`.
        defects_after: those left in `repaired`; 0 unless the target is out of reach.
    """

    labels: np.ndarray
    repaired: np.ndarray
    target: Signature
    before: Signature
    after: Signature
    defects_before: int
    defects_after: int

    @property
    def changed(self) -> np.ndarray:
        """The voxels ``[*shape]`` whose label the repair changed."""
        return self.labels.argmax(axis=0) != self.repaired.argmax(axis=0)

    def report(self, names: Mapping[int, str] | None = None) -> dict[str, Any]:
        """All of it as a JSON tree, with labels by name."""
        names = names or {}

        def pairs(chosen: Iterable[tuple[int, int]]) -> list[str]:
            return ["+".join(names.get(label, str(label)) for label in pair) for pair in sorted(chosen)]

        return {
            "target": self.target.describe(names),
            "atlas": self.before.describe(names),
            "defects": self.defects_before,
            "voxels_changed": int(self.changed.sum()),
            "defects_after_repair": self.defects_after,
            "contacts_missing": pairs(self.target.adjacent - self.after.adjacent),
            "contacts_surplus": pairs(self.after.adjacent - self.target.adjacent),
            # Channels that sum to one overlap nowhere by more than half: then the labelmap says it all.
            "overlapping_voxels": int(((self.repaired[1:] > 0.5).sum(axis=0) > 1).sum()),
        }


def check_atlas(labels: np.ndarray, target: Signature) -> AtlasCheck:
    """Compare an atlas with the topology that it should have, and repair it where it has another.

    Args:
        labels: soft channels ``[Nc, (D,) H, W]``.
        target: the topology wanted.
    """
    labelmap = labels.argmax(axis=0).astype(np.int16)
    before = Signature.of(labelmap, len(labels))
    defects = target.defects(labelmap)
    if not defects:
        return AtlasCheck(labels, labels, target, before, before, 0, 0)
    repaired = repair_labelmap(labels, target)
    after = Signature.of(repaired, len(labels))
    return AtlasCheck(labels, pull_argmax(labels, repaired), target, before, after, defects, target.defects(repaired))


class AtlasTopology:
    """Trainer handler that watches the atlas, and checks and repairs that of the finished model.

    Attach it after the handlers that change the atlas and choose the model. It writes the finished model, leaves
    ``atlas_topology.json`` beside it and, where something was repaired, ``atlas_topology.png``. During the training it
    only says what it finds: the atlas still moves.

    Args:
        network: holds the atlas.
        best: the model.
        data_loader: training cases on the model's grid, ``{"label": [B, Nc, *shape]}`` batches; the atlas should have
            the topology that more than half of them have, and keep its own where no more than half agree.
        declared: what the atlas should have instead, as for `Signature.declare`.
        label_names: class index → name, background included.
        interval: epochs between two looks at the atlas during the training; 0 for none.

    Raises:
        InputError: what is declared makes no sense.
    """

    def __init__(
        self,
        network: AtlasISTN,
        best: BestModel,
        data_loader: Iterable[Mapping[str, Any]],
        declared: Mapping[Any, Any] | None = None,
        label_names: Mapping[int, str] | None = None,
        interval: int = 0,
    ) -> None:
        self.network = network
        self.best = best
        self.data_loader = data_loader
        self.declared = declared or {}
        self.label_names = {int(index): name for index, name in (label_names or {}).items()}
        self.interval = interval
        _declared(Signature({}, frozenset()), self.declared, network.atlas_labels[0])  # no mistake waits for the end

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; the first rank works."""
        if idist.get_rank() > 0:
            return
        if self.interval > 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.watch)
        engine.add_event_handler(Events.COMPLETED, self)

    def watch(self, engine: Engine) -> None:
        """Say what is wrong with the atlas of the network."""
        labels = self.network.atlas_labels[0].cpu()
        defects = self.target(labels).defects(labels.argmax(dim=0).numpy())
        found = "as it should be"
        if defects:
            found = f"{defects} defects ({_signature(labels).describe(self.label_names)['shapes']})"
        logger.info("epoch %d: topology of the atlas: %s", engine.state.epoch, found)

    def __call__(self) -> None:
        """Check and repair the model, and write it."""
        weights, path = self.best.weights, self.best.path
        if not weights:
            return
        labels = weights["atlas_labels"][0]
        check = check_atlas(labels.numpy(), self.target(labels))
        report = check.report(self.label_names)
        write_json(report, path.with_name("atlas_topology.json"))
        _log(report)
        picture = path.with_name("atlas_topology.png")
        if check.changed.any():
            draw_repair(check.labels, check.repaired, self.network.spacing, picture, self.label_names)
            self.best.weights = _repaired(weights, check)
        else:
            picture.unlink(missing_ok=True)  # of a run before this one
        self.best.save()

    @cached_property
    def majority(self) -> Signature:
        """What most training cases have."""
        labelmaps = (case for batch in self.data_loader for case in torch.as_tensor(batch["label"]))
        return Signature.majority([_signature(case) for case in labelmaps])

    def target(self, labels: torch.Tensor) -> Signature:
        """The topology that an atlas ``[Nc, *shape]`` should have: its own where most cases do not agree on another."""
        return _declared(self.majority.over(_signature(labels)), self.declared, labels)


def _signature(labels: torch.Tensor) -> Signature:
    """Of soft channels ``[Nc, *shape]``."""
    return Signature.of(labels.argmax(dim=0).to(torch.int16).cpu().numpy(), len(labels))


def _declared(signature: Signature, declared: Mapping[Any, Any], labels: torch.Tensor) -> Signature:
    """A signature with what is declared in its place, for an atlas ``[Nc, *shape]``."""
    if not isinstance(declared, Mapping):
        raise InputError(f"topology: expected a table such as {{1: [1, 0, 0]}}, found {declared!r}.")
    wanted = signature.declare(declared, len(labels))
    for union, topology in wanted.shapes.items():
        if labels.ndim == 3 and topology.cavities:
            name = "+".join(map(str, union))
            raise InputError(
                f"topology: expected {name}: [components, holes, 0] in 2D, found {list(topology)}. What a label "
                "encloses in 2D is a hole: count it in the second number."
            )
    return wanted


def _repaired(state: dict[str, torch.Tensor], check: AtlasCheck) -> dict[str, torch.Tensor]:
    return {**state, "atlas_labels": torch.from_numpy(check.repaired).to(state["atlas_labels"])[None]}


def _log(report: Mapping[str, Any]) -> None:
    if not report["defects"]:
        logger.info("the atlas has the topology that it should have")
    elif not report["defects_after_repair"]:
        logger.info("topology of the atlas repaired by relabelling %d voxels", report["voxels_changed"])
    else:
        logger.warning("topology of the atlas: %d defects are beyond repair", report["defects_after_repair"])
    for name in ("contacts_missing", "contacts_surplus"):
        if report[name]:
            logger.warning("topology of the atlas: %s %s", name.replace("_", " "), ", ".join(report[name]))


def check_model(model: str | Path, target: Mapping[Any, Any] | None = None, output: str | Path = "") -> None:
    """Print the topology of the atlas in a model file, and write the model with its atlas repaired.

    Args:
        model: a ``model.pt``.
        target: the topology wanted, such as "{1: [1, 0, 0], 1+2: [1, 0, 0], adjacent: [[1, 2]]}": label, or labels
            together, to components, holes (in 3D handles) and cavities; what it leaves out stays as it is.
        output: file for the repaired model; with it, if anything was repaired, goes a picture of the same name.

    Raises:
        InputError: the file cannot be read or is no model, the target makes no sense, or a model that reaches it is
            wanted and none was found.
    """
    state = read_state(Path(model))
    if "atlas_labels" not in state:
        raise InputError(f"{model}: expected a model.pt with an atlas, found one without. Train a model.")
    labels = state["atlas_labels"]
    channels = labels[0].numpy()
    check = check_atlas(channels, _declared(_signature(labels[0]), target or {}, labels[0]))
    report = check.report()
    missed = report["defects_after_repair"] or report["contacts_missing"] or report["contacts_surplus"]
    if output and not missed:
        save_model(_repaired(state, check), output, {})
        if check.changed.any():
            pixels = [1.0] * (labels.ndim - 2)  # a model file does not tell their size
            draw_repair(check.labels, check.repaired, pixels, Path(output).with_suffix(".png"))
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    sys.stdout.flush()
    if output:
        _log(report)
    if output and missed:
        raise InputError(
            f"target: expected a topology that a repair of the atlas in {model} reaches, found "
            f"{report['defects_after_repair']} defects after it. {output} is not written. Ask for less, or train with "
            "this topology."
        )
