# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

"""Model files with their records: what is damaged or exchanged is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from atlas_istn.errors import InputError
from atlas_istn.models.loading import read_state
from atlas_istn.models.provenance import SETTINGS, check_model_file, read_record, record_path, save_model
from atlas_istn.settings import check_settings, differences
from support import ROOT

STATE = {"weight": torch.arange(64.0)}


def flip_bit(path: Path) -> None:
    """Change one bit of the weights themselves, in the middle of the file's numbers."""
    content = bytearray(path.read_bytes())
    content[content.index(STATE["weight"].numpy().tobytes()) + 101] ^= 1
    path.write_bytes(content)


def test_the_record_has_the_hash_of_the_file_and_what_else_is_known(tmp_path: Path) -> None:
    path = tmp_path / "models" / "model.pt"
    save_model(STATE, path, {"settings": {"seed": 3}})
    record = json.loads(record_path(path).read_text())
    assert record == {"settings": {"seed": 3}, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert check_model_file(path) == record

    changed = {"weight": torch.ones(64)}
    assert save_model(changed, path) == {**record, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    torch.testing.assert_close(read_state(path), changed)


def test_a_flipped_bit_is_found_with_and_without_a_record(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_model(STATE, path, {})
    flip_bit(path)
    torch.load(path, weights_only=True)  # which does not see it
    with pytest.raises(InputError, match=r"model\.pt: damaged, or not the model that .*model\.json belongs to"):
        read_state(path)
    record_path(path).unlink()
    with pytest.raises(InputError, match=r"model\.pt: damaged, its checksums do not agree"):
        read_state(path)


def test_a_record_of_another_model_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    save_model(STATE, tmp_path / "model.pt", {})
    torch.save({"weight": torch.ones(64)}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="not the model"):
        read_state(tmp_path / "model.pt")
    record_path(tmp_path / "model.pt").write_text("[1")
    with pytest.raises(InputError, match=r"model\.json: expected the record"):
        read_state(tmp_path / "model.pt")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_model({"weight": torch.tensor([1.0, float("nan")])}, tmp_path / "model.pt", {})
    with pytest.raises(InputError, match="weight holds values that are not finite"):
        read_state(tmp_path / "model.pt")


def test_the_shipped_model_has_a_record_that_fits() -> None:
    assert check_model_file(ROOT / "bundle" / "models" / "model.pt")["sha256"]


def test_the_shipped_model_has_the_settings_of_the_shipped_configuration() -> None:
    """A change of these in the configuration needs another model, or its record is to follow."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundle" / "configs" / "inference.yaml"))
    parser.update(check_settings(parser.config))
    parser["wanted"] = {"_target_": "atlas_istn.settings.model_settings"}
    record = read_record(ROOT / "bundle" / "models" / "model.pt")
    assert differences(record[SETTINGS], parser.get_parsed_content("wanted")) == ""
