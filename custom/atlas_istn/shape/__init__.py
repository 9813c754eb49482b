# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What the correspondence between subjects is good for: propagation, surfaces, populations and motion.

Everything here reads the folder of an inference run. Points and meshes are in LPS millimetres, as in ITK files and in
3D Slicer; images keep the geometry of their files.
"""

from __future__ import annotations
