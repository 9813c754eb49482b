# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Several networks as one."""

from __future__ import annotations

import torch

from atlas_istn.networks import MeanOfNetworks, UNet


def test_the_mean_is_that_of_the_probabilities(dim: int) -> None:
    itn, image = MeanOfNetworks([UNet(dim, 1, 2, (4, 8)) for _ in range(2)]), torch.rand(2, 1, *(16,) * dim)
    each = [network(image).softmax(dim=1) for network in itn.networks]
    torch.testing.assert_close(itn(image), (each[0] + each[1]) / 2)
    assert not torch.allclose(each[0], each[1])
