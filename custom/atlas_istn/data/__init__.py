# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Data: the letter B generator, degraded data sets, and transforms that MONAI lacks."""
