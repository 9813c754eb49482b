# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Pieces of the inference workflow; the workflow itself is tested in tests/bundle."""

from __future__ import annotations

import csv
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import AsDiscreted
from torch.utils.data import DataLoader

from atlas_istn.errors import InputError, input_error_behind
from atlas_istn.inferers.refine import RefinementInferer
from atlas_istn.io.cases import Cases, find_cases
from atlas_istn.io.loading import LoadCased
from atlas_istn.models.loading import ModelLoader
from atlas_istn.networks import AtlasISTN
from atlas_istn.workflow.cases import CaseDataset, FailureReport, collate_cases
from atlas_istn.workflow.evaluator import AtlasEvaluator
from atlas_istn.workflow.writer import CaseWriter

SHAPE = (16, 16)


def save_image(path: Path, seed: int = 0) -> str:
    voxels = np.random.default_rng(seed).random(SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return str(path)


@pytest.fixture
def network(tiny_network: Callable[..., AtlasISTN]) -> AtlasISTN:
    return tiny_network(SHAPE)


def evaluator(cases: list[dict[str, str]], network: AtlasISTN, handlers: list[Any], batch_size: int) -> AtlasEvaluator:
    dataset = CaseDataset(cases, LoadCased("image", 2))
    return AtlasEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size, collate_fn=collate_cases),
        network=network,
        inferer=RefinementInferer(iterations=1),
        postprocessing=AsDiscreted(["pred", "itn", "one_pass"], argmax=True),
        val_handlers=handlers,
        amp=False,
    )


@pytest.mark.parametrize("batch_size", [1, 2])
def test_failed_cases_are_reported_once_per_run_and_the_others_written(
    tmp_path: Path, network: AtlasISTN, batch_size: int
) -> None:
    cases = [{"case": name, "image": str(tmp_path / f"{name}.nii.gz")} for name in ("a", "b", "c")]
    save_image(tmp_path / "a.nii.gz")
    writer = CaseWriter(str(tmp_path / "out"), network, {0: "background", 1: "ring"}, [0, 1])
    engine = evaluator(cases, network, [writer], batch_size)
    for _ in range(2):  # a second run of the same engine starts anew
        engine.run()
        assert [case for case, _ in engine.state.failures] == ["b", "c"]
        with (tmp_path / "out" / "summary.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [(row["case"], bool(row["error"])) for row in rows] == [("a", False), ("b", True), ("c", True)]
    assert (tmp_path / "out" / "a" / "a_seg.nii.gz").is_file()
    with pytest.raises(InputError, match=r"^2 of 3 cases failed:\n  b: .*no such file.*\n  c: "):
        FailureReport()(engine)


def test_transforms_are_left_out_where_nobody_reads_them(tmp_path: Path, network: AtlasISTN) -> None:
    image = save_image(tmp_path / "a.nii.gz")
    files = {}
    for transforms in (True, False):
        out = tmp_path / str(transforms)
        writer = CaseWriter(str(out), network, {0: "background", 1: "ring"}, [0, 1], transforms=transforms)
        evaluator([{"case": "a", "image": image}], network, [writer], 1).run()
        files[transforms] = {path.name for path in (out / "a").iterdir()}
    assert files[True] - files[False] == {"a_atlas_to_subject.h5", "a_subject_to_atlas.h5", "a_registration.npz"}
    assert files[False] < files[True]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_reader_of_a_run_is_told_what_the_headers_leave_open(
    tmp_path: Path, network: AtlasISTN, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In the case's report, its row and the log; and which files were not used."""
    for name in ("a", "b"):
        image = nib.load(save_image(tmp_path / f"{name}.nii.gz"))
        image.header["sform_code"] = image.header["qform_code"] = 0 if name == "a" else 1
        nib.save(nib.Nifti1Image(image.dataobj, None, image.header), tmp_path / f"{name}.nii.gz")
    (tmp_path / "notes.txt").touch()
    writer = CaseWriter(str(tmp_path / "out"), network, {0: "background", 1: "ring"}, [0, 1])
    with caplog.at_level(logging.INFO):
        evaluator(find_cases(str(tmp_path)), network, [writer], batch_size).run()
    reports = [json.loads((tmp_path / "out" / name / f"{name}.json").read_text()) for name in ("a", "b")]
    assert [any("no orientation" in warning for warning in report["warnings"]) for report in reports] == [True, False]
    with (tmp_path / "out" / "summary.csv").open(newline="") as stream:
        rows = {row["case"]: row for row in csv.DictReader(stream)}
    assert "no orientation" in rows["a"]["warnings"]
    assert rows["notes.txt"]["not_used"] == "no image of a known format"
    assert "a.nii.gz: the header states no orientation" in caplog.text
    assert "not used: notes.txt (no image of a known format)" in caplog.text
    assert nib.load(tmp_path / "out" / "a" / "a_seg.nii.gz").header["sform_code"] == 0


def test_no_file_is_named_where_cases_are_numbered(tmp_path: Path, network: AtlasISTN) -> None:
    (tmp_path / "Secret_Name.nii.gz").write_text("no image")
    engine = evaluator(find_cases(str(tmp_path), anonymous=True), network, [], 1)
    engine.run()
    ((case, message),) = engine.state.failures
    assert case == "case_001"
    assert message.startswith("case_001: the image cannot be read")
    assert "Secret" not in message


def test_a_case_that_cannot_be_written_fails_alone(tmp_path: Path, network: AtlasISTN) -> None:
    cases = [{"case": name, "image": save_image(tmp_path / f"{name}.nii.gz")} for name in ("a", "b")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("a file where the folder should be")
    writer = CaseWriter(str(tmp_path / "out"), network, {0: "background", 1: "ring"}, [0, 1])
    with pytest.raises(InputError, match=r"1 of 2 cases failed:\n  a: .*cannot be written"):
        evaluator(cases, network, [writer, FailureReport()], 2).run()
    assert (tmp_path / "out" / "b" / "b.json").is_file()


class Wanting(RefinementInferer):
    """Has no memory for the second batch."""

    calls = 0

    def infer(self, image: Any, network: Any) -> Any:
        self.calls += 1
        if self.calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        return super().infer(image, network)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_other_cases_go_on_where_memory_is_short(tmp_path: Path, network: AtlasISTN, batch_size: int) -> None:
    names = ["a", "b", "c", "d", "e"]
    cases = [{"case": name, "image": save_image(tmp_path / f"{name}.nii.gz")} for name in names]
    writer = CaseWriter(str(tmp_path / "out"), network, {0: "background", 1: "ring"}, [0, 1])
    engine = evaluator(cases, network, [writer], batch_size)
    engine.inferer = Wanting(iterations=1)
    engine.run()
    failed = names[batch_size : 2 * batch_size]
    assert [case for case, _ in engine.state.failures] == failed
    assert engine.state.failures[0][1].startswith("out of memory (CUDA out of memory.")
    written = {path.parent.name for path in (tmp_path / "out").glob("*/*_seg.nii.gz")}
    assert written == set(names) - set(failed)
    with (tmp_path / "out" / "summary.csv").open(newline="") as stream:
        assert {row["case"]: bool(row["error"]) for row in csv.DictReader(stream)} == {n: n in failed for n in names}


def test_the_dataset_says_what_is_wrong_in_one_line() -> None:
    def broken(data: dict[str, Any]) -> dict[str, Any]:
        raise InputError("first\nsecond") if data["image"] == "a" else KeyError("third\nfourth")

    dataset = CaseDataset([{"case": name, "image": name} for name in ("a", "b")], broken)
    assert dataset[0] == {"case": "a", "error": "first second"}
    assert dataset[1]["error"].startswith("KeyError: ")
    assert "\n" not in dataset[1]["error"]
    assert collate_cases([dataset[0], dataset[1]]) == {"failures": [("a", "first second"), ("b", dataset[1]["error"])]}


def test_a_model_is_loaded(tmp_path: Path, network: AtlasISTN, tiny_network: Callable[..., AtlasISTN]) -> None:
    with torch.no_grad():
        network.atlas_image.fill_(3.0)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other = tiny_network(SHAPE)
    ModelLoader(str(tmp_path / "model.pt"), other)()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)


def test_a_model_that_does_not_fit_is_named_by_its_first_entry_that_differs(tmp_path: Path, network: AtlasISTN) -> None:
    state = network.state_dict()
    last = list(state)[-1]
    bad = {
        "shape": ({**state, last: state[last][None]}, f"{last} has the shape"),
        "missing": ({name: value for name, value in state.items() if name != last}, f"it has no entry {last}"),
        "surplus": ({**state, "head.weight": torch.zeros(1)}, "its entry head.weight is unknown"),
        "empty": ({}, "no entry"),
        "list": ([torch.zeros(1)], "holds more than weights"),
    }
    for name, (content, message) in bad.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(InputError, match=message) as caught:
            ModelLoader(str(tmp_path / f"{name}.pt"), network)()
        assert str(tmp_path / f"{name}.pt") in str(caught.value)
    whole = tmp_path / "shape.pt"
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(InputError, match="not readable as a checkpoint"):
        ModelLoader(str(tmp_path / "cut.pt"), network)()


def test_the_mistake_behind_an_exception_is_found() -> None:
    def wrapped(error: Exception) -> Exception:
        try:
            try:
                raise error
            except Exception as inner:
                raise RuntimeError("a framework says so") from inner
        except RuntimeError as outer:
            return outer

    assert str(input_error_behind(wrapped(InputError("the file")))) == "the file"
    assert input_error_behind(wrapped(KeyError("the bug"))) is None


@pytest.mark.parametrize(
    ("raised", "shown"), [("InputError('the file')", "\nerror: the file\n"), ("KeyError(1)", "Traceback")]
)
def test_a_mistake_is_shown_without_a_traceback_and_a_bug_with_one(raised: str, shown: str) -> None:
    # The module alone, without the package: importing torch would take seconds.
    script = f"import errors\nerrors.show_input_errors()\nfrom errors import InputError\nraise {raised}"
    folder = Path(sys.modules["atlas_istn.errors"].__file__ or "").parent
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert shown in done.stderr
    assert ("Traceback" in done.stderr) == (shown == "Traceback")


def test_many_failures_for_one_reason_are_one_line() -> None:
    many = [(f"c{number}", f"/data/c{number}.png: the image has 2 dimensions. Expected 3.") for number in range(9)]
    others = [("x", "/data/x.png: damaged."), ("y", "/data/y.png: damaged.")]
    data = Cases([{"case": case, "image": ""} for case, _ in [*many, *others]])
    engine = SimpleNamespace(
        state=SimpleNamespace(failures=[*many, *others]), data_loader=SimpleNamespace(dataset=CaseDataset(data, None))
    )
    with pytest.raises(InputError) as caught:
        FailureReport()(engine)
    assert str(caught.value).splitlines() == [
        "11 of 11 cases failed:",
        "  c0, c1, c2 and 6 more: the image has 2 dimensions. Expected 3.",
        "  x: /data/x.png: damaged.",
        "  y: /data/y.png: damaged.",
    ]
