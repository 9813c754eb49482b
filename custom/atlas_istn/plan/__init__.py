# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A look at a labelled data set, and the configuration that it asks for."""

from __future__ import annotations

from .command import plan

__all__ = ["plan"]
