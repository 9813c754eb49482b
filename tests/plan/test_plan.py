# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Planning: what is found in a folder, what is refused, and what is decided."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from monai.bundle import ConfigParser
from PIL import Image

from atlas_istn.errors import InputError
from atlas_istn.io.cases import find_cases
from atlas_istn.io.label_table import class_of_value, written_values
from atlas_istn.plan import plan
from atlas_istn.plan.decide import Grid, decide_architecture, decide_grid, decide_window, outside
from atlas_istn.plan.discover import Case, discover
from atlas_istn.plan.labels import label_table
from atlas_istn.plan.splits import folds, patients, split
from atlas_istn.plan.suitability import judge
from atlas_istn.plan.survey import Anatomy, Scan, look_at_anatomy, look_at_scan
from atlas_istn.settings import check_settings
from support import ROOT


def disc(radius: float, shift: tuple[float, float] = (0, 0), size: int = 48) -> np.ndarray:
    y, x = np.indices((size, size)) - (size - 1) / 2
    return ((y - shift[0]) ** 2 + (x - shift[1]) ** 2 < radius**2).astype(np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A data set without dataset.json: two scans each of 12 patients, grey discs of the values 7 and 9."""
    random = np.random.default_rng(0)
    for number in range(24):
        label = 7 * disc(10 + number % 3, tuple(random.uniform(-2, 2, 2)))
        label[24:][label[24:] == 7] = 9
        image = 50 + 15 * label + random.normal(0, 5, label.shape)
        for folder, voxels in (("images", image.clip(0, 255)), ("labels", label)):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            name = f"patient{number // 2:02}_scan{number % 2}.png"
            Image.fromarray(voxels.astype(np.uint8)).save(tmp_path / "data" / folder / name)
    return tmp_path / "data"


def make(folders: Path, root: Path, **options: object) -> dict[str, object]:
    plan(str(folders), str(root), bundle_dir=str(ROOT / "bundle"), hours="0.5", **options)  # type: ignore[arg-type]
    return yaml.safe_load((root / "configs" / "data.yaml").read_text())  # type: ignore[no-any-return]


def test_a_folder_becomes_a_configuration(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "work"
    before = sorted(folders.rglob("*"))
    config = make(folders, root, labels="disc=7+9")
    assert sorted(folders.rglob("*")) == before  # the data set is only read
    assert config["label_names"] == {0: "background", 1: "disc"}
    assert config["label_values"] == [0, [7, 9]]
    assert config["data_list_file"] == str(root / "dataset.json")
    lists = json.loads((root / "dataset.json").read_text())
    names = {name: {entry["image"][:16] for entry in lists[name]} for name in ("training", "validation", "test")}
    assert sum(len(lists[name]) for name in names) == 24
    assert not names["training"] & names["validation"]  # by patient
    assert not names["training"] & names["test"]
    assert all(size * step >= 2 * 14 for size, step in zip(config["spatial_size"], config["spacing"], strict=True))
    assert (root / "plan.png").stat().st_size > 1000
    shown = capsys.readouterr().out
    for words in ("12 patients", "as --labels says", "Then train:", "0 and 1"):
        assert words.lower() in shown.lower()

    make(folders, root, labels="disc=7+9")  # the same again is no loss
    path = root / "configs" / "data.yaml"
    path.write_text(path.read_text().replace("spacing: [", "spacing: [9, "))
    with pytest.raises(InputError, match=r"data\.yaml: it was edited(.|\n)*-spacing: \[9, (.|\n)*\+spacing"):
        make(folders, root, labels="disc=7+9")
    make(folders, root, labels="disc=7+9", overwrite=True)
    (root / "models").mkdir()
    (root / "models" / "model.pt").touch()
    with pytest.raises(InputError, match="a model was trained with it"):
        make(folders, root, labels="disc=7+9")


def test_a_pixel_size_makes_pixels_millimetres(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = make(folders, tmp_path / "plain")
    assert " pixels" in capsys.readouterr().out
    sized = make(folders, tmp_path / "sized", spacing="0.5x0.25")
    assert " pixels" not in capsys.readouterr().out
    assert "pixel_size" not in plain
    assert sized["pixel_size"] == [0.5, 0.25]
    assert all(size <= side for size, side in zip(sized["pixel_size"], sized["spacing"], strict=True))
    extents = [np.multiply(config["spatial_size"], config["spacing"]) for config in (plain, sized)]
    np.testing.assert_allclose(extents[1], extents[0] * [0.5, 0.25], rtol=0.25)  # sizes are multiples of 8
    assert make(folders, tmp_path / "one", spacing="0.14")["pixel_size"] == [0.14, 0.14]
    for text in ("1x2x3", "0", "wide"):
        with pytest.raises(InputError, match="--spacing: expected"):
            make(folders, tmp_path / "bad", spacing=text)
    for folder in ("images", "labels"):
        for path in (folders / folder).glob("*.png"):
            nib.save(nib.Nifti1Image(np.asarray(Image.open(path)), np.eye(4)), path.with_suffix(".nii"))
            path.unlink()
    with pytest.raises(InputError, match="--spacing: expected PNG files"):
        make(folders, tmp_path / "bad", spacing="0.14")


def test_channels_in_several_files_are_one_image(folders: Path, tmp_path: Path) -> None:
    for path in sorted((folders / "images").iterdir()):
        pixels = np.asarray(Image.open(path))
        Image.fromarray(255 - pixels).save(path.with_stem(f"{path.stem}_0001"))
        path.rename(path.with_stem(f"{path.stem}_0000"))
    (folders / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "left": 7, "right": 9}}))
    config = make(folders, tmp_path / "work")
    assert config["in_channels"] == 2
    assert config["label_names"] == {0: "background", 1: "left", 2: "right"}
    (entry,) = (e for e in json.loads((tmp_path / "work" / "dataset.json").read_text())["training"][:1])
    assert [name[-9:] for name in entry["image"]] == ["_0000.png", "_0001.png"]
    lists = str(tmp_path / "work" / "dataset.json")
    cases = find_cases(str(folders), "training", with_labels=True, data_list_file=lists)
    assert all(Path(case["label"]).stem == case["case"] for case in cases)
    gone = folders / "images" / "patient03_scan1_0001.png"
    gone.unlink()
    with pytest.raises(InputError, match=r"1 of 24 cases have another number of channels than 2:\n  patient03.*: 1"):
        make(folders, tmp_path / "work")


def test_all_that_is_wrong_is_named_at_once(folders: Path, tmp_path: Path) -> None:
    labels = folders / "labels"
    Image.fromarray(disc(5, size=40)).save(labels / "patient00_scan0.png")
    (labels / "patient01_scan1.png").write_bytes(b"no picture")
    with pytest.raises(InputError) as caught:
        make(folders, tmp_path / "work")
    message = str(caught.value)
    assert "2 of 24 cases cannot be used" in message
    assert "patient00_scan0" in message
    assert "patient01_scan1" in message
    assert "--leave_out 'patient00_scan0,patient01_scan1'" in message
    assert not (tmp_path / "work").exists()


def test_labels_that_most_cases_lack_are_refused(folders: Path, tmp_path: Path) -> None:
    for path in sorted((folders / "labels").iterdir())[:14]:
        pixels = np.asarray(Image.open(path)).copy()
        pixels[pixels == 9] = 7
        Image.fromarray(pixels).save(path)
    with pytest.raises(InputError, match="label 9: 42% of the cases have it"):
        make(folders, tmp_path / "work")


def test_lists_of_a_data_set_are_kept_and_others_shared_out(tmp_path: Path) -> None:
    def entries(first: int, last: int) -> list[dict[str, str]]:
        return [{"image": f"i/{n}.png", "label": f"l/{n}.png"} for n in range(first, last)]

    def lists(content: dict[str, object], *wanted: str) -> dict[str, int]:
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        found = discover(str(tmp_path), wanted)
        return {name: len(cases) for name, cases in split(found.cases, 0).items()}

    assert lists({"training": entries(0, 20), "test": ["i/9.png"]}) == {"training": 14, "validation": 3, "test": 3}
    with pytest.raises(InputError, match="no labelled data set found"):
        lists({"regions_class_order": [1, 2], "labels": {"background": 0, "all": [1, 2], "part": 2}})
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for number in range(4):
            (tmp_path / folder / f"{number}{'_0000' if folder == 'imagesTr' else ''}.png").touch()
    assert discover(str(tmp_path)).names == {0: "background", 1: "all", 2: "part"}
    assert lists({"regions_class_order": [1, 2]}) == {"training": 3, "validation": 1}
    assert lists({"training": entries(0, 9), "validation": entries(9, 12)}) == {"training": 9, "validation": 3}
    assert lists({"a": entries(0, 8), "b": entries(8, 20)}, "b") == {"training": 8, "validation": 2, "test": 2}
    with pytest.raises(InputError, match=r"expected a list training.*a \(8, 8 with labels\)"):
        lists({"a": entries(0, 8)})


def test_cases_and_files_can_be_left_out(folders: Path, tmp_path: Path) -> None:
    (folders / "labels" / "patient00_scan0.png").write_bytes(b"no picture")
    config = make(folders, tmp_path / "work", leave_out="patient00_scan0,*scan1")
    lists = json.loads((tmp_path / "work" / "dataset.json").read_text())
    assert config["data_list_file"] == str(tmp_path / "work" / "dataset.json")
    left = [entry["image"] for entries in lists.values() if isinstance(entries, list) for entry in entries]
    assert sorted(left) == [f"images/patient{number:02}_scan0.png" for number in range(1, 12)]
    with pytest.raises(InputError, match=r"--leave_out patient99: .* it fits none"):
        discover(str(folders), leave_out=["*scan1", "patient99"])


def test_a_split_keeps_copies_of_a_scan_together() -> None:
    names = [f"p{number}" for number in range(20)]
    for seed in range(5):
        lists = split(cases(*names), seed, [["p0", "p5", "p9"], ["p3", "p4"]])
        places = {case.name: name for name, found in lists.items() for case in found}
        assert sorted(places) == sorted(names)
        assert places["p0"] == places["p5"] == places["p9"]
        assert places["p3"] == places["p4"]
        held = folds(lists, 3, seed, [["p0", "p5", "p9"]])
        assert all(len({"p0", "p5", "p9"} & {c.name for c in held[f"validation_fold{n}"]}) in (0, 3) for n in range(3))


def test_lists_of_other_names_are_added_to_those_there_are() -> None:
    found = [replace(case, source="training") for case in cases("p1", "p2")]
    lists = split([*found, *cases("q1", "q2", "q3")], 0)
    assert {case.name for case in lists["training"]} >= {"p1", "p2"}
    assert sum(map(len, lists.values())) == 5


def cases(*names: str) -> list[Case]:
    return [Case(name, f"{name}.png", f"{name}.png", "") for name in names]


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["OAS1_0001", "OAS1_0002", "OAS1_0003", "OAS1_0004", "OAS1_0005"], 5),
        (["p1_t1", "p1_t2", "p2_t1", "p2_t2"], 2),
        (["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"], 2),
        (["a", "b", "c"], 3),
    ],
)
def test_patients_are_told_by_names(names: list[str], count: int) -> None:
    assert len(patients(cases(*names))) == count


def test_folds_hold_every_patient_out_once() -> None:
    lists = {"training": cases("p1_a", "p1_b", "p2_a", "p3_a"), "validation": cases("p4_a", "p5_a")}
    made = folds(lists, 3, seed=1)
    out = [case.name for fold in range(3) for case in made[f"validation_fold{fold}"]]
    assert sorted(out) == ["p1_a", "p1_b", "p2_a", "p3_a", "p4_a", "p5_a"]
    for fold in range(3):
        assert not {c.name[:2] for c in made[f"training_fold{fold}"]} & {
            c.name[:2] for c in made[f"validation_fold{fold}"]
        }


def test_each_fold_is_a_training_of_its_own(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "work"
    make(folders, root, folds=3)
    text = capsys.readouterr().out
    assert "more than once" not in text  # as an image is in several folds
    shown = text.splitlines()
    lists = json.loads((root / "dataset.json").read_text())
    outputs = set()
    for fold in range(3):
        command = next(line for line in shown if f"fold_{fold}.yaml" in line)
        files = re.findall(r"'([^']+)'", command)
        assert files == [
            "bundle/configs/train.yaml",
            *(str(root / "configs" / f"{n}.yaml") for n in ("data", f"fold_{fold}")),
        ]
        parser = ConfigParser()
        parser.read_config([str(ROOT / files[0]), *files[1:]])
        check_settings(parser.config)
        assert parser["bundle_root"] == parser["output_dir"]
        outputs.add(parser["output_dir"])
        assert parser["data_list_file"] == str(root / "dataset.json")
        assert len(lists[parser["train_list"]]) + len(lists[parser["val_list"]]) == 20  # without the test list
    assert outputs == {str(root / f"fold_{fold}") for fold in range(3)}
    assert all(output in shown[-1] for output in outputs)  # what joins them
    (root / "fold_1" / "models").mkdir(parents=True)
    (root / "fold_1" / "models" / "model.pt").touch()
    with pytest.raises(InputError, match="a model was trained with it"):
        make(folders, root, folds=3)


def scan(values: set[int], spacing: tuple[float, ...] = (1.0, 1.0), low: float = 0.0) -> Scan:
    percentiles = (low, low, low, 0.0, 300.0, 300.0, 300.0)
    inside = np.linspace(0, 100, 1001, dtype=np.float32)
    return Scan(
        *(cases("c")[0], (9,) * len(spacing), spacing, "", frozenset(values), "x"),
        (percentiles,),
        (True,),
        inside[None],
    )


def test_the_table_of_labels() -> None:
    scans = [scan({0, 1, 21, 3}), scan({0, 1, 21})]
    merged = label_table(scans, {}, "hippocampus=1+21")
    assert merged.values == [[0, 3], [1, 21]]
    assert class_of_value(merged.values) == {0: 0, 3: 0, 1: 1, 21: 1}
    assert written_values(merged.values) == [0, 1]
    assert label_table(scans, {0: "none", 1: "left", 3: "x", 21: "right", 5: "y"}, "").names == [
        "none",
        "left",
        "x",
        "right",
    ]
    assert label_table([scan({0, 255})], {0: "background", 1: "B"}, "").values == [0, 255]
    # nnU-Net: a value is called by the smallest region that has it; nobody labelled what is ignored
    regions = label_table([scan({0, 1, 2, 3, 4, 9})], {1: "whole", 2: "core", 3: "core", 4: "core", 9: "ignore"}, "")
    assert (regions.names, regions.values) == (["background", "whole", "core"], [[0, 9], 1, [2, 3, 4]])
    assert "ignored is background" in regions.reason
    for wrong in ("left", "left=1,left=21", "left=2", "left=0", "left=1+1", "=1"):
        with pytest.raises(InputError, match="--labels"):
            label_table(scans, {}, wrong)


def anatomy(tmp_path: Path, label: np.ndarray, spacing: tuple[float, ...]) -> tuple[Scan, Anatomy]:
    for name, voxels in (("image", label * 3.0 + np.arange(label.shape[0]).reshape(-1, 1, 1)), ("label", label)):
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag([*spacing, 1.0])), tmp_path / f"{name}.nii.gz")
    case = Case("c", "image.nii.gz", "label.nii.gz", "")
    return look_at_scan(tmp_path, case, 3), look_at_anatomy(tmp_path, case, 3, [0, 1])


def test_grid_holds_the_foreground_with_a_margin_and_slices_stay_thick(tmp_path: Path) -> None:
    label = np.zeros((60, 60, 12), dtype=np.uint8)
    label[14:44, 20:40, 3:9] = 1
    spacing = (1.0, 1.0, 8.0)
    seen, measured = anatomy(tmp_path, label, spacing)
    assert measured.volumes.tolist() == [30 * 20 * 6 * 8]
    assert measured.low.tolist() == [-16.0, -10.0, -24.0]
    assert measured.high.tolist() == [14.0, 10.0, 24.0]
    grid, _ = decide_grid([seen], [measured], "mm")
    assert not grid.localised
    assert (2 * grid.half >= np.array([32, 20, 48]) * 1.1).all()
    assert np.prod(grid.size) <= 48 * 64 * 48
    assert grid.spacing[2] == 8.0
    strides = decide_architecture(grid).settings["itn_strides"]
    assert [stride[2] for stride in strides][:2] == [1, 1]  # thick slices are halved later
    assert (np.array(grid.size) % np.prod(strides, axis=0) == 0).all()
    assert outside(measured, grid) == (0.0, 0.0)
    # A grid of 20 mm: of 30 layers 10 lie beyond it, by their middles 5.5 mm at most.
    share, distance = outside(measured, Grid((20, 60, 12), spacing))
    assert share == pytest.approx(1 / 3)
    assert distance == pytest.approx(5.5)
    # About the anatomy's own middle it would cut as much, on both sides.
    share, distance = outside(measured, Grid((20, 60, 12), spacing, localised=True))
    assert (share, distance) == (pytest.approx(1 / 3), pytest.approx(4.5))


@pytest.mark.parametrize("shape", [(3, 3, 3), (11, 14, 16), (16, 9, 18), (17, 18, 12), (40, 7, 21), (90, 60, 30)])
@pytest.mark.parametrize("thickness", [1.0, 2.5, 6.0])
def test_every_grid_suits_the_strides_of_its_networks(tmp_path: Path, shape: tuple[int, ...], thickness: float) -> None:
    label = np.zeros((96, 96, 36), dtype=np.uint8)
    label[tuple(slice((n - size) // 2, (n + size) // 2) for n, size in zip(label.shape, shape, strict=True))] = 1
    seen, measured = anatomy(tmp_path, label, (1.0, 1.0, thickness))
    grid, _ = decide_grid([seen], [measured], "mm")
    chosen = decide_architecture(grid).settings.get("itn_strides", [[1] * 3, *[[2] * 3] * 3])  # as train.yaml has it
    strides = np.prod(chosen, axis=0)
    assert (np.array(grid.size) % strides == 0).all()
    assert np.prod(grid.size / strides) > 1  # a norm over one voxel leaves nothing


def test_anatomy_far_from_the_middle_is_looked_for(tmp_path: Path) -> None:
    label = np.zeros((80, 80, 12), dtype=np.uint8)
    label[60:75, 10:25, 3:9] = 1
    seen, measured = anatomy(tmp_path, label, (1.0, 1.0, 3.0))
    grid, decision = decide_grid([seen], [measured], "mm")
    assert grid.localised
    assert decision.settings["localise"]
    assert outside(measured, grid) == (0.0, 0.0)
    assert max(grid.half[:2]) < 20


def test_values_of_ct_get_a_window() -> None:
    assert not decide_window([scan({0, 1})]).settings
    window = decide_window([scan({0, 1}, low=-1000.0)]).settings["intensity_window"]
    assert window == [-19.0, 119.0]  # 0.5 to 99.5 and a fifth of that on each side
    ct, other = scan({0, 1}, low=-1000.0), scan({0, 1})  # as CT and PET
    both = replace(ct, **{n: (*getattr(ct, n), *getattr(other, n)) for n in ("percentiles", "whole", "foreground")})
    assert decide_window([both]).settings == {"intensity_window": [window, None]}


def test_what_an_atlas_forces_is_said_with_the_cases(tmp_path: Path) -> None:
    ring = disc(9) - disc(4)
    labels = [np.repeat(label[:, :, None], 3, axis=2) for label in (ring, ring, ring, disc(9))]
    anatomies = [anatomy(tmp_path, label, (1.0, 1.0, 1.0))[1] for label in labels]
    (suit,) = judge(anatomies, label_table([scan({0, 1})], {}, ""))
    assert (suit.present, suit.topology, suit.common) == (1.0, (1, 1, 0), 0.75)
    assert "1 component, 1 hole" in suit.warnings[0]
    assert "1 other" in suit.warnings[0]
