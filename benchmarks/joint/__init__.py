# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Rows of the ablation of the joint training, see ``joint_training.py``."""
