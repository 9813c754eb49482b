# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The table of ids against the configurations, and the check as users meet it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow

from atlas_istn.errors import InputError, input_error_behind
from atlas_istn.settings import SETTINGS, Setting, check_settings, read
from atlas_istn.settings.table import NESTED
from support import ROOT

CONFIGS = ROOT / "bundle" / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))

WRONG: dict[str, list[Any]] = {
    "truth": ["yes please", 2],
    "whole": [1.5, "many", True],
    "number": ["much", float("nan"), [1.0]],
    "texts": [3, "a text"],
    "wholes": [3, [1.5, 2], []],
    "numbers": [3.0, ["a", 1], []],
    "table": [3, "a text"],
    "component": [3, "nonsense", {"kernel": 3}],
    "components": [3, "nonsense", [3]],
    "device": ["gpu", "cuda:99", 3],
    "names": [["background", "B"], {0: "background"}, {1: "A", 2: "B"}, {0: "same", 1: "same"}],
}


def leaves() -> list[tuple[str, Setting]]:
    """Every setting that is looked into, fields of tables included."""
    found = []
    for name, setting in SETTINGS.items():
        if setting.kind != "anything" and wrong_values(setting):  # any text, or none, has no wrong ones
            found.append((name, setting))
            found += [(f"{name}#{key}", part) for key, part in setting.fields.items()]
    return found


def wrong_values(setting: Setting) -> list[Any]:
    values = list(WRONG.get(setting.kind, []))
    one = setting.kind in ("whole", "number")
    if setting.low > -float("inf"):
        lower = setting.low if setting.above else setting.low - 1
        values.append(lower if one else [lower] * (setting.length or 2))
    if setting.high < float("inf"):
        values.append(setting.high + 1 if one else [setting.high + 1] * (setting.length or 2))
    if setting.choices:
        values.append("none of these")
    if not setting.optional:
        values.append(None)
    return values


def defaults() -> list[dict[str, Any]]:
    """The configurations of training."""
    return [yaml.safe_load((CONFIGS / name).read_text()) for name in ("train.yaml", "pair/train.yaml")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_id_of_any_configuration_is_forgotten(file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    names = {str(name).lstrip("+").partition("#")[0] for name in content}
    assert names <= set(SETTINGS)
    for name, value in content.items():
        if name in SETTINGS:  # and every value that we state ourselves is one that we allow
            SETTINGS[name].read(value)


@pytest.mark.parametrize(("name", "setting"), leaves(), ids=[name for name, _ in leaves()])
def test_values_that_make_no_sense_are_refused_with_name_value_and_what_is_allowed(name: str, setting: Setting) -> None:
    top, _, key = name.partition("#")
    for value in wrong_values(setting):
        whole = value
        if key:
            fine = next(found[top] for found in defaults() if top in found)
            whole = {**fine, key: value}
        with pytest.raises(InputError) as caught:
            check_settings({top: whole})
        message = str(caught.value)
        assert f"{name}: expected" in message
        assert repr(value) in message


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("amp", "false", False),
        ("amp", "True", True),
        ("refine_trust", "null", None),
        ("refine_trust", "[0.1, 0.2]", [0.1, 0.2]),
        ("max_epochs", "7", 7),
        ("learning_rate", "1e-3", 1e-3),
        ("learning_rate", "0.001", 0.001),
        ("spatial_size", "[32, 32]", [32, 32]),
        ("label_names", "{0: background, 1: B}", {0: "background", 1: "B"}),
        ("refine_weights", "{beta: 1, gamma: 0, lambda: 0.1}", {"beta": 1, "gamma": 0, "lambda": 0.1}),
        ("test_list", "101", "101"),
        ("dataset_dir", "null", "null"),
        ("max_epochs", "$2 * 3", "$2 * 3"),
    ],
)
def test_text_becomes_what_it_says(name: str, text: str, value: Any) -> None:
    found = check_settings({name: text})[name]
    assert found == value
    assert type(found) is type(value)


def places(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Each place in a part of the workflow at which a setting stands as it is, and the setting."""
    for key, value in content.items() if isinstance(content, dict) else ():
        here = (*path, *str(key).split("#"))
        if isinstance(value, str) and value.startswith("@") and value[1:] in SETTINGS:
            yield "#".join(here), value[1:]
        yield from places(value, here)


@pytest.mark.parametrize("file", sorted((CONFIGS / "parts").iterdir()), ids=lambda file: file.stem)
def test_no_place_of_a_setting_is_forgotten(file: Path) -> None:
    """A value that replaces a reference is checked like the setting; texts may be anything."""
    for place, name in places(yaml.safe_load(file.read_text())):
        setting = SETTINGS[name]
        if "#" in place and (setting.kind in ("truth", "whole", "number", "numbers", "wholes") or setting.choices):
            assert "displayable_configs" in place or NESTED.get(place) is setting, place


@pytest.mark.parametrize("place", NESTED)
def test_values_within_parts_are_checked_like_settings(place: str) -> None:
    def config(value: Any) -> dict[str, Any]:
        for key in reversed(place.split("#")):
            value = {"_target_": "anything", key: value}
        return {place.split("#")[0]: value[place.split("#")[0]]}

    for value in wrong_values(NESTED[place]):
        with pytest.raises(InputError) as caught:
            check_settings(config(value))
        assert f"{place}: expected" in str(caught.value)
        assert repr(value) in str(caught.value)
    assert check_settings(config("@learning_rate")) == config("@learning_rate")


def test_text_within_parts_gets_its_type() -> None:
    config = {"optimizer": {"_target_": "torch.optim.Adam", "lr": "1e-3"}, "train": {"trainer": {"max_epochs": "3"}}}
    found = check_settings(config)
    assert found["optimizer"]["lr"] == 1e-3
    assert found["train"]["trainer"]["max_epochs"] == 3
    assert config["optimizer"]["lr"] == "1e-3"


def test_words_within_components_get_their_types() -> None:
    stn = {"_target_": "atlas_istn.networks.SpatialTransformerNetwork", "coarse_heads": "false", "norm": "null"}
    own = {"_target_": "Compose", "transforms": [{"_target_": "EnsureTyped", "keys": "image", "track_meta": "true"}]}
    found = check_settings({"stn": stn, "own": own, "locator": "@own", "label_names": {0: "null", 1: "true"}})
    assert found["stn"]["coarse_heads"] is False
    assert found["stn"]["norm"] is None
    assert found["own"]["transforms"][0]["track_meta"] is True
    assert found["label_names"] == {0: "null", 1: "true"}  # which is no component


def test_unknown_ids_are_refused_with_the_nearest_and_all_mistakes_come_at_once() -> None:
    config = {
        "max_epoch": 3,
        "refine_weights": {"beta": 1, "gamma": 0, "lamda": 0.1},
        "learning_rate": 0,
        "label_names": {0: "background", 1: "B"},
        "label_values": [0, 1, 2],
    }
    with pytest.raises(InputError) as caught:
        check_settings(config)
    message = str(caught.value)
    for part in (
        "5 settings are wrong",
        "max_epoch: unknown, and nothing refers to it. Did you mean max_epochs?",
        "refine_weights#lamda: unknown, and nothing refers to it. Did you mean lambda?",
        "refine_weights#lambda: missing",
        "learning_rate: expected a number above 0, found 0",
        "label_values: expected as many as label_names, 2, found 3",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"intensity_limits": [5, 0]}, "intensity_limits: expected 2 rising numbers"),
        ({"refine_trust": [0.4, 0.2]}, "refine_trust: expected 2 rising numbers"),
        ({"label_values": [0, 0]}, "label_values: expected whole numbers, or lists of them, that differ"),
        ({"itn_kernels": [3, 3], "itn_strides": [1, 2, 2]}, "itn_kernels: expected as many as itn_strides, 3"),
        ({"spacing": [1, 1], "spatial_size": [8, 8, 8]}, "spacing: expected as many as spatial_size, 3"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_settings(config)


def test_what_a_part_does_not_take_is_refused_with_the_nearest_and_its_place() -> None:
    handlers = [{"_target_": "LrScheduleHandler", "lr_scheduler": None, "print_lrs": False}]
    optimizer = {"_target_": "torch.optim.Adam", "params": "$[]", "learning_rate": 0.1}
    anything = {"_target_": "torch.optim.NoSuchThing", "a": 1}  # MONAI will say so
    with pytest.raises(InputError) as caught:
        check_settings({"optimizer": optimizer, "train": {"handlers": handlers, "trainer": anything}})
    lines = sorted(str(caught.value).splitlines()[1:])
    assert len(lines) == 2
    assert lines[0].startswith("  optimizer#learning_rate: not taken there. Expected params, lr, betas")
    assert lines[1] == "  train#handlers#0#print_lrs: not taken there. Did you mean print_lr?"


def test_what_a_data_configuration_adds_and_refers_to_is_known() -> None:
    check_settings({"my_channels": [8, 16], "stn": {"_target_": "Stn", "channels": "@my_channels"}, "_meta_": {}})
    check_settings({"my_members": 3, "itn": "$[@my_members]"})


def test_what_a_client_sends_is_read() -> None:
    assert read("refine_iterations", "20") == 20
    with pytest.raises(InputError, match="refine_lambda: expected a number from 0, found -1"):
        read("refine_lambda", -1)


def settings(**more: Any) -> dict[str, Any]:
    return {"dataset_dir": "nowhere", "output_dir": "nowhere", "device": "$torch.device('cpu')", **more}


def test_a_run_converts_before_anything_is_made(tmp_path: Path) -> None:
    """With the settings in order, the run gets as far as the folder that is missing."""
    flow = ConfigWorkflow(
        config_file=[str(CONFIGS / "train.yaml")],
        run_id="training",
        logging_file=False,
        **settings(amp="false", refine_trust="null", output_dir=str(tmp_path)),
    )
    flow.initialize()
    with pytest.raises(Exception) as caught:  # noqa: PT011 (MONAI wraps what the configuration raises)
        flow.run()
    assert "no such folder" in str(input_error_behind(caught.value))
    assert flow.parser["amp"] is False
    assert flow.parser["refine_trust"] is None


def test_a_parser_without_changes_is_left_alone() -> None:
    parser = ConfigParser({"max_epochs": 3, "run": ["$1"]})
    assert check_settings(parser.config) == parser.config


def test_the_command_line_shows_all_mistakes_in_one_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(CONFIGS / "train.yaml")]
    done = subprocess.run(
        [*command, "--max_epoch", "3", "--amp", "perhaps", "--output_dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "max_epoch: unknown" in done.stderr
    assert "amp: expected true or false, found 'perhaps'" in done.stderr
    assert not list(tmp_path.iterdir())
