# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Of `multi_atlas.py`: trainings, rows, peers, tables."""
