# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Modules of pictures under the names that they had in version 0.5.0."""

from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize(
    ("old", "names"),
    [
        ("conventions", ["label_colour", "check_picture"]),
        ("evolution", ["AtlasEvolution", "draw_evolution"]),
        ("figures", ["draw_results"]),
        ("io.dicom_capture", ["write_dicom_capture", "draw_page"]),
    ],
)
def test_old_names_of_pictures_are_found(old: str, names: list[str]) -> None:
    module = importlib.import_module(f"atlas_istn.{old}")
    for name in names:
        assert callable(getattr(module, name))
