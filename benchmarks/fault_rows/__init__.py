# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What can go wrong, kind by kind: how to bring it about, and what is expected."""
