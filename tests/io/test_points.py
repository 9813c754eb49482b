# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_istn.errors import InputError
from atlas_istn.io.points import read_points

POINTS = np.array([[1.5, -2.0, 3.0], [4.0, 5.25, -6.0]])
RAS = POINTS * [-1, -1, 1]


def markups(system: str, points: np.ndarray, kind: str = "Fiducial") -> dict[str, Any]:
    """What 3D Slicer writes, in short."""
    places = [{"id": str(i), "label": f"F-{i}", "position": list(map(float, p))} for i, p in enumerate(points)]
    markup = {"type": kind, "coordinateSystem": system, "controlPoints": places, "display": {"opacity": 0.5}}
    return {"@schema": "schema", "markups": [{**markup, "measurements": [{"name": "length"}]}]}


def write_file(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".mrk.json"):
        system = "RAS" if "ras" in name else "LPS"
        path.write_text(json.dumps(markups(system, RAS if system == "RAS" else POINTS)))
    elif name.endswith(".fcsv"):
        head = "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n# columns = id,x,y,z\n"
        head = head.replace("LPS", "0") if "ras" in name else head
        rows = RAS if "ras" in name else POINTS
        path.write_text(head + "".join(f"{i},{x},{y},{z},0,0,0,1,F-{i}\n" for i, (x, y, z) in enumerate(rows)))
    else:
        path.write_text("name,x,y,z\n" + "".join(f"F-{i},{x},{y},{z}\n" for i, (x, y, z) in enumerate(POINTS)))
    return path


def with_entry(key: str, value: object) -> str:
    """Markups whose first point has another entry."""
    content = markups("LPS", POINTS)
    content["markups"][0]["controlPoints"][0][key] = value
    return json.dumps(content)


def with_unit(unit: object) -> str:
    content = markups("LPS", POINTS)
    content["markups"][0]["coordinateUnits"] = unit
    return json.dumps(content)


NAMES = ["a.csv", "a.fcsv", "ras.fcsv", "a.mrk.json", "ras.mrk.json"]


@pytest.mark.parametrize("name", NAMES)
def test_points_are_read_in_lps_and_written_in_their_own_system(tmp_path: Path, name: str) -> None:
    content = read_points(write_file(tmp_path, name), 3)
    np.testing.assert_allclose(content.points, POINTS)
    content.write(content.points + 1, tmp_path / f"moved_{name}")
    np.testing.assert_allclose(read_points(tmp_path / f"moved_{name}", 3).points, POINTS + 1, atol=1e-6)
    text = (tmp_path / f"moved_{name}").read_text()
    assert "F-1" in text
    assert "-0.500000" in text or "2.5" in text  # 1.5 + 1 in LPS, its negative in RAS
    if name.startswith("ras"):
        assert "-2.5" in text


def test_everything_but_the_coordinates_is_kept(tmp_path: Path) -> None:
    path = write_file(tmp_path, "a.mrk.json")
    read_points(path, 3).write(POINTS, tmp_path / "b.mrk.json")
    before, after = json.loads(path.read_text()), json.loads((tmp_path / "b.mrk.json").read_text())
    before["markups"][0].pop("measurements")  # they belong to the old points
    assert before == after
    content = read_points(write_file(tmp_path, "a.csv"), 3)
    content.write(POINTS, tmp_path / "b.csv")
    with (tmp_path / "b.csv").open(newline="") as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == ["F-0", "F-1"]


def test_a_table_of_a_flat_image_needs_no_z(tmp_path: Path) -> None:
    (tmp_path / "flat.csv").write_text("x,y\n1,2\n")
    content = read_points(tmp_path / "flat.csv", 2)
    np.testing.assert_array_equal(content.points, [[1, 2, 0]])
    content.write(content.points, tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_text() == "x,y\n1.000000,2.000000\n"


def test_points_without_a_place_stay_so(tmp_path: Path) -> None:
    content = markups("LPS", POINTS)
    content["markups"][0]["controlPoints"][0] |= {"positionStatus": "undefined", "position": [0.0, 0.0, 0.0]}
    (tmp_path / "a.mrk.json").write_text(json.dumps(content))
    found = read_points(tmp_path / "a.mrk.json", 3)
    np.testing.assert_array_equal(found.points, POINTS[1:])


@pytest.mark.parametrize("unit", ["mm", ["mm", "UCUM", "millimeter"]])
def test_millimetres_may_be_named_or_coded(tmp_path: Path, unit: object) -> None:
    (tmp_path / "a.mrk.json").write_text(with_unit(unit))
    np.testing.assert_array_equal(read_points(tmp_path / "a.mrk.json", 3).points, POINTS)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "columns x, y, z once each.* empty file"),
        ("a.csv", "a,b\n1,2\n", "columns x, y, z once each.* found the columns a, b"),
        ("a.csv", "x,y\n1,2\n", "columns x, y, z once each.* found the columns x, y"),
        ("a.csv", "x,y,z,x\n1,2,3,4\n", "once each.* found the columns x, y, z, x"),
        ("a.csv", "x,y,z\n1,2,3\n1,2,three\n", "line 3: expected coordinates.* found 1, 2, three"),
        ("a.csv", "x,y,z\n1,,3\n", "line 2: .* found 1, , 3"),
        ("a.csv", "x,y,z\n\n1,2,nan\n", "line 3: .* finite numbers, found 1, 2, nan"),
        ("a.csv", "x,y,z\n1,2,3,4\n", "line 2 has 4 fields, the header 3"),
        ("a.csv", "x,y,z\n1,2\n", "line 2 has 2 fields, the header 3"),
        ("a.csv", "x,y,z\n", "found no points"),
        ("a.fcsv", "# CoordinateSystem = IJK\n1,2,3,4\n", "IJK"),
        ("a.fcsv", "# CoordinateSystem = LPS\nF-1,2\n", "line 2: expected coordinates, 3 finite numbers, found 2"),
        ("a.mrk.json", "{", "line 1: no JSON"),
        ("a.mrk.json", "[1]", "the file lacks the list markups"),
        (
            "a.mrk.json",
            json.dumps(markups("LPS", POINTS, "ROI")),
            "type ROI. Expected Fiducial, Line, Angle, Curve, Clo",
        ),
        ("a.mrk.json", '{"markups": [{"type": "Line"}]}', "markup 1 lacks the list controlPoints"),
        (
            "a.mrk.json",
            with_entry("position", [1.0, 2.0, None]),
            r"markup 1, point 1 \('F-0'\): .* found 1.0, 2.0, None",
        ),
        ("a.mrk.json", with_entry("position", None), r"markup 1, point 1 \('F-0'\): .* found none"),
        ("a.mrk.json", with_entry("position", [1.0, 2.0]), r"markup 1, point 1 \('F-0'\): .* found 1.0, 2.0\."),
        ("a.mrk.json", with_unit("m"), "markup 1: expected coordinateUnits mm, found m"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_points(tmp_path / name, 3)
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.csv: .*No such file"):
        read_points(tmp_path / "gone.csv", 3)
