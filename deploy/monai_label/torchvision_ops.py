# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Lets a CUDA build of torchvision be imported beside a CPU-only PyTorch; `setup.sh` installs it where that is needed.

The compiled part of such a torchvision cannot be loaded, so its operators do not exist, and its import ends with an
error at the first one that it describes to PyTorch. MONAI Label uses none of them, but imports torchvision. Declaring
the two that torchvision describes on import is enough. A `.pth` file imports this module whenever Python starts.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

_OPERATORS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing, but is asked before torchvision is imported for the first time."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")  # its declarations live as long as it does
            for operator in ("nms", "qnms"):
                self.library.define(operator + _OPERATORS)
            _KEPT.append(self)


_KEPT: list[_BeforeTorchvision] = []
sys.meta_path.insert(0, _BeforeTorchvision())
