# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from skimage.color import rgb2lab

from atlas_istn.io.results import RESULTS
from atlas_istn.pictures.palette import ALERT, RESULT_COLOURS, label_colour, line_colour


def lightness(colour: str) -> float:
    return float(rgb2lab(np.array(to_rgb(colour))[None])[0, 0])


@pytest.mark.parametrize(("colour_of", "light"), [(label_colour, True), (line_colour, False)])
def test_any_number_of_labels_has_colours_that_differ_and_stand_out(
    colour_of: Callable[[int], str], light: bool
) -> None:
    colours = [colour_of(number) for number in range(30)]
    assert len({*colours, ALERT}) == 31
    for colour in colours:
        assert lightness(colour) > 45 if light else lightness(colour) < 75


def test_every_result_has_a_title_and_a_colour() -> None:
    assert list(RESULTS) == list(RESULT_COLOURS)
    assert [kind.title for kind in RESULTS.values()] == ["ITN", "fused", "1-pass", "refined"]
    assert len({kind.ending for kind in RESULTS.values()}) == 4
