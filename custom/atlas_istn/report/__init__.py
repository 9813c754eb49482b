# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A report of an inference run: one HTML file to look at every case, the conspicuous ones first."""

from .write import write_report

__all__ = ["write_report"]
