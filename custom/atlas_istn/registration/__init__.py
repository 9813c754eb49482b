# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The registration machinery of all systems: what is registered, how it is compared, what is moved, and the loop."""

from __future__ import annotations
