# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Atlas-ISTN for MONAI: joint segmentation, registration and atlas construction with test-time refinement."""

from __future__ import annotations

import atexit
import gc

from .models import legacy

__version__ = "0.7.0"

legacy.install()

# As a process ends, Python looks for cycles among all objects of torch and MONAI: a CPU-second, for memory that goes
# back to the system anyway. Frozen objects are left out.
atexit.register(gc.freeze)
