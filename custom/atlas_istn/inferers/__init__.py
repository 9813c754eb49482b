# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""MONAI's face of the registration: inferers from an image to a result."""

from __future__ import annotations
