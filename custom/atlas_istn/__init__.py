# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Atlas-ISTN for MONAI: joint segmentation, registration and atlas construction with test-time refinement."""

from __future__ import annotations

from .models import legacy

__version__ = "0.5.0"

legacy.install()
