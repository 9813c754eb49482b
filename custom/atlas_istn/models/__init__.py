# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Model files: loading, exporting and packing them."""

from __future__ import annotations
