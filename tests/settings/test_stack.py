# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The committed configurations are what their parts make, and stacking text does what MONAI does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from atlas_istn.errors import InputError
from atlas_istn.settings.stack import generate, stack
from support import ROOT

CONFIGS = ROOT / "bundle" / "configs"


@pytest.mark.parametrize("name", list(generate(CONFIGS)))
def test_the_committed_file_is_what_its_parts_make(name: str) -> None:
    message = "change bundle/configs/parts and run `python -m atlas_istn configs`"
    assert (CONFIGS / name).read_text() == generate(CONFIGS)[name], message


def test_no_id_is_stated_twice_among_the_parts() -> None:
    seen: set[str] = set()
    for part in sorted((CONFIGS / "parts").glob("*.yaml")):
        # Training and inference are never in one file; what both say is what they have of their own.
        own = set(yaml.safe_load(part.read_text()))
        if part.stem in ("model", "refinement"):
            assert not own & seen
            seen |= own
    for part in ("training", "inference", "evaluate", "calibrate"):
        assert not set(yaml.safe_load((CONFIGS / "parts" / f"{part}.yaml").read_text())) & seen


def test_later_ids_replace_earlier_ones_and_comments_stay(tmp_path: Path) -> None:
    first, second = (tmp_path / f"{name}.yaml" for name in ("first", "second"))
    first.write_text("# Section\n\n# of a\na: 1  # one\nb:\n- x\n# inside\n- y\n")
    second.write_text("# of c\nc: {d: 2}\n")
    assert stack([first, second], {}) == "# Section\n\n# of a\na: 1  # one\nb:\n- x\n# inside\n- y\n# of c\nc: {d: 2}\n"
    text = stack([first, second], {"a": "# new\na: 3\n", "z": "z: 5\n"})
    assert text == "# Section\n\n# new\na: 3\nb:\n- x\n# inside\n- y\n# of c\nc: {d: 2}\nz: 5\n"
    assert yaml.safe_load(text) == {"a": 3, "b": ["x", "y"], "c": {"d": 2}, "z": 5}


def test_what_is_no_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(InputError, match=r"list\.yaml.*at the top level, found '- a'"):
        stack([tmp_path / "list.yaml"], {})
    with pytest.raises(InputError, match=r"none\.yaml"):
        stack([tmp_path / "none.yaml"], {})
