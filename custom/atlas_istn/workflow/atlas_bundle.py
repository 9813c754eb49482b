# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A bundle that holds atlases, for hosts that read one configuration and one model file, such as MONAI Label."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ..errors import InputError
from ..inferers.multi_atlas import AtlasSet
from ..io.files import write_whole
from ..io.outputs import write_json
from ..models.provenance import save_model
from .metadata import trained_metadata

__all__ = ["AtlasBundle"]

logger = logging.getLogger(__name__)

_OF_DATA = ("atlas_dir", "atlas_list", "atlas_cases", "atlas_preprocessing", "atlas_bundle", "pack_atlases")
_PATHS = ("atlas_registration", "atlas_model", "fusion_path", "dataset_dir", "data_list_file")


class AtlasBundle:
    """Writes a bundle whose model file is a set of atlases, and whose one configuration segments by them.

    Args:
        output_dir: folder of the new bundle.
        network: the atlases, read before `write`.
        config: that is running, see `running_config`.
        parts_dir: ``configs/parts`` of the bundle that it comes from.
    """

    def __init__(self, output_dir: str, network: AtlasSet, config: Mapping[str, Any], parts_dir: Path) -> None:
        self.root = Path(output_dir)
        self.network = network
        self.config = config
        self.configs = parts_dir.parent

    def write(self) -> None:
        """Write model, configuration and metadata.

        Raises:
            InputError: the refinement uses a network, whose model cannot lie in the same place; a model would be lost;
                or a file cannot be written.
        """
        model = self.root / "models" / "model.pt"
        if self.config.get("segmenter"):
            raise InputError("segmenter: a bundle of atlases has no room for a network. Expected --segmenter null.")
        if model.exists():
            raise InputError(f"{self.root}: holds a model already. Choose another output_dir.")
        config, target = self._config(), self.root / "configs"
        write_whole(
            target / "inference.yaml",
            lambda part: ConfigParser.export_config_file(config, str(part), fmt="yaml", sort_keys=False),
        )
        logging_conf = self.configs / "logging.conf"
        write_whole(target / logging_conf.name, lambda part: shutil.copyfile(logging_conf, part))
        write_json(self._metadata(), target / "metadata.json")
        save_model({name: buffer.cpu() for name, buffer in self.network.named_buffers(recurse=False)}, model, {})
        logger.info("%d atlases in %s, their images included", len(self.network.names), model)

    def _config(self) -> dict[str, Any]:
        config = {name: value for name, value in self.config.items() if name not in _OF_DATA}
        paths = {name: str(Path(config[name]).absolute()) for name in _PATHS if config.get(name)}
        atlases = {"names": list(self.network.names), "in_channels": self.network.images.shape[1]}
        loader = {"_target_": "atlas_istn.models.loading.ModelLoader", "path": "@ckpt_path", "network": "@network"}
        return config | {
            **paths,
            "bundle_root": str(self.root.absolute()),
            "ckpt_path": "$@bundle_root + '/models/model.pt'",
            "displayable_configs": {},  # of a refinement that there is none of
            "network_def": config["network_def"] | atlases,
            "loader": loader,
            "cohort": config["cohort"] | {"files": ["@ckpt_path"]},
            "run": "%segmentation",
        }

    def _metadata(self) -> dict[str, Any]:
        untrained = {"max_epochs": 0, "seed": 0, "results": {"pred": "fused"}}
        metadata = trained_metadata(self.configs, self.root, {**self.config, **untrained}, {}, {})
        del metadata["training"], metadata["eval_metrics"]
        count = len(self.network.names)
        return metadata | {
            "name": metadata["name"].replace("Atlas-ISTN", f"{count} atlases of"),
            "task": metadata["task"].partition(" by ")[0] + f" by {count} registered atlases, whose labels are fused",
            "description": "Images with labels, the atlases, are registered to an image, and their labels fused.",
            "changelog": {metadata["version"]: "made"},
            "authors": "made by the Atlas-ISTN bundle",
            "copyright": "of whoever has that of the atlases",
        }
