# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Stages of the measurements across modalities, see ``cross_modality.py``."""
