# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Colour tables as 3D Slicer and ITK-SNAP document them: columns, background, names."""

from __future__ import annotations

import shlex
from pathlib import Path

from atlas_istn.io.colour_tables import write_colour_tables

LABELS = {21: ('right "big" part', "#ff7a00"), 3: ("left", "#0000ff"), -1: ("none", "#ffffff")}


def lines(path: Path) -> list[list[str]]:
    return [shlex.split(line) for line in path.read_text().splitlines() if not line.startswith("#")]


def test_values_names_and_colours_stand_in_both_tables(tmp_path: Path) -> None:
    write_colour_tables(tmp_path, LABELS)
    colours = {"3": ["0", "0", "255"], "21": ["255", "122", "0"]}
    slicer = [line.split() for line in (tmp_path / "labels.ctbl").read_text().splitlines()[1:]]
    assert slicer[0] == ["0", "background", "0", "0", "0", "0"]
    assert {value: rgb for value, _, *rgb, alpha in slicer[1:] if alpha == "255"} == colours
    assert [line[1] for line in slicer[1:]] == ["left", 'right_"big"_part']
    # index, red, green, blue, alpha (0 to 1), visible, in meshes, name
    itk_snap = lines(tmp_path / "labels.label.txt")
    assert itk_snap[0] == [*["0"] * 7, "Clear Label"]
    assert {line[0]: line[1:4] for line in itk_snap[1:]} == colours
    assert [line[4:] for line in itk_snap[1:]] == [["1", "1", "1", "left"], ["1", "1", "1", "right 'big' part"]]
