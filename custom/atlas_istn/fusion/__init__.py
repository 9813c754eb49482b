# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Label fusion: one labelmap from those of several atlases that were warped onto a target."""

from __future__ import annotations
