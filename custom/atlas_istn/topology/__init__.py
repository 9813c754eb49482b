# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Topology of labels: counting it, keeping it under changes, and restoring it.

The foreground of a shape has full connectivity (8 neighbours in 2D, 26 in 3D), its background face connectivity (4, 6).
"""

from __future__ import annotations

from .betti import Topology, label_topology, labelmap_topology
from .note import TopologyNote
from .repair import pull_argmax, repair_labelmap, restore_labelmap
from .signature import Signature
from .simple import march

__all__ = [
    "Signature",
    "Topology",
    "TopologyNote",
    "label_topology",
    "labelmap_topology",
    "march",
    "pull_argmax",
    "repair_labelmap",
    "restore_labelmap",
]
