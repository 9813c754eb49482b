# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Files: finding and reading cases, writing labelmaps, transforms and reports."""
