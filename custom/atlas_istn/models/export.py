# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Export of the ITN to ONNX, for runtimes that segment without PyTorch.

The registration stays behind: refinement needs gradients, which ONNX does not have.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from ..errors import InputError
from ..io.files import write_whole
from ..networks import AtlasISTN
from .loading import ModelLoader

__all__ = ["export_itn", "load_network"]

logger = logging.getLogger(__name__)


def export_itn(output: str, config_file: str = "bundle/configs/inference.yaml", ckpt_path: str = "") -> None:
    """Write the voxel-wise segmentation network as an ONNX model.

    Its input ``image`` is ``[B, C, *spatial_size]``, prepared as ``preprocessing`` does it, its output ``prediction``
    the soft channels ``[B, Nc, *spatial_size]``; any batch size will do.

    Args:
        output: ``.onnx``.
        config_file: the inference configuration.
        ckpt_path: the model; without it the one that the configuration names.

    Raises:
        InputError: the configuration or the model is missing, they do not fit, or the file cannot be written.
    """
    network = load_network(config_file, ckpt_path)
    image = torch.zeros(2, *network.atlas_image.shape[1:])  # a batch of 1 would be taken for a constant
    program = _exported(torch.nn.Sequential(network.itn, network.activation), image)
    write_whole(output, lambda part: program.save(str(part)))
    logger.info("wrote %s: image %s to prediction", output, ["batch", *image.shape[1:]])


def _exported(model: torch.nn.Module, image: torch.Tensor) -> torch.onnx.ONNXProgram:
    try:
        program = torch.onnx.export(
            model.eval(),
            (image,),
            input_names=["image"],
            output_names=["prediction"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    except ImportError as error:
        raise InputError(
            f"the export needs the package {error.name}. Install what it needs by: pip install 'atlas-istn[onnx]'."
        ) from error
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return program


def load_network(config_file: str | os.PathLike[str], ckpt_path: str | os.PathLike[str] = "") -> AtlasISTN:
    """Build the network of an inference configuration and fill it with a model.

    Args:
        config_file: ``inference.yaml`` in the folder ``configs`` of a bundle.
        ckpt_path: the model; without it ``models/model.pt`` of that bundle.

    Raises:
        InputError: a file is missing, or the two do not fit.
    """
    config = Path(config_file)
    if not config.is_file():
        raise InputError(f"{config}: no such file. Expected the inference configuration of a bundle. Check the path.")
    parser = ConfigParser()
    parser.read_config(str(config))
    network: AtlasISTN = parser.get_parsed_content("network_def")
    ModelLoader(str(ckpt_path or config.parent.parent / "models" / "model.pt"), network)()
    return network
