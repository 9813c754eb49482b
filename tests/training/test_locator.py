# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The locator, trained for seconds on small pictures, and the cut that it guides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from atlas_istn.data.localise import MISSING, Localised, Overviewd, box_centre
from atlas_istn.errors import InputError
from atlas_istn.networks import Locator
from atlas_istn.training.locator import LocatorTraining

SIZE = [20, 20]
SPACING = [1.0, 1.0]


def picture(
    centre: Sequence[float] | None, shape: Sequence[int] = (48, 48), angle: float = 0.0, seed: int = 0
) -> dict[str, MetaTensor]:
    """A noisy picture of an L about a centre, in voxels, with its label ``[2, *shape]``."""
    random = np.random.default_rng(seed)
    mould = np.zeros((25, 25))
    mould[6:19, 8:12], mould[15:19, 8:18] = 1, 1
    mould = ndimage.rotate(mould, angle, reshape=False, order=1)
    label = np.zeros(shape)
    if centre is not None:
        offset = np.array([12, 12]) - centre
        label = ndimage.affine_transform(mould, np.eye(2), offset, output_shape=tuple(shape), order=1)
    image = 100 * label + random.normal(0, 4, shape) + 10
    hard = (label > 0.5).astype(np.float32)
    tensors = {"image": image[None], "label": np.stack([1 - hard, hard])}
    return {key: MetaTensor(torch.from_numpy(value).float(), affine=torch.eye(4)) for key, value in tensors.items()}


@pytest.fixture(scope="module")
def locator() -> Locator:
    random = np.random.default_rng(1)
    cases = [picture(random.uniform(16, 32, 2), angle=float(random.uniform(-10, 10)), seed=n) for n in range(12)]
    torch.manual_seed(0)
    made = Locator(2, 1, SIZE, SPACING, channels=(8, 16, 16))
    LocatorTraining(made, [], lambda case: case, path="", iterations=250, quiet=True).fit(
        [Overviewd(["image", "label"], made.spacing)(case) for case in cases]
    )
    return made


def cut(locator: Locator, case: dict[str, MetaTensor], strict: bool = True) -> dict[str, MetaTensor]:
    return Localised(["image", "label"], SIZE, SPACING, locator, strict=strict)(dict(case))  # type: ignore[return-value]


def test_the_anatomy_is_found_wherever_it_lies_in_a_larger_and_turned_scan(locator: Locator) -> None:
    for number, (centre, shape, angle) in enumerate(
        [((12, 40), (64, 56), 15), ((45, 14), (64, 56), -15), ((20, 20), (36, 40), 0), ((30, 50), (70, 70), 20)]
    ):
        case = picture(centre, shape, angle, seed=100 + number)
        truth = box_centre(case["label"])
        found = cut(locator, case)
        assert found["label"].shape[1:] == tuple(n + 4 for n in SIZE)  # what resampling needs at the border
        # Where the middle of the cut lies in the scan: in 2D within 3 pixels of the true centre.
        middle = (np.array(found["label"].shape[1:]) - 1) / 2
        place = (np.asarray(found["image"].affine)[:2, :2] @ middle) + np.asarray(found["image"].affine)[:2, -1]
        assert np.linalg.norm(place - truth) < 3


def test_the_volume_that_is_seen_does_not_grow_with_the_field_of_view(locator: Locator) -> None:
    def volume(shape: tuple[int, int]) -> float:
        scan = picture((18, 18), shape, seed=9)
        location = locator.locate(Overviewd(["image", "label"], locator.spacing)(scan)["image"])
        assert location
        return location.volume

    assert volume((80, 80)) == pytest.approx(volume((36, 36)), rel=0.25)


def test_nothing_is_found_where_nothing_is(locator: Locator) -> None:
    with pytest.raises(InputError, match="the anatomy was not found"):
        cut(locator, picture(None, (60, 60), seed=5))
    middle = cut(locator, picture(None, (60, 60), seed=5), strict=False)["image"]
    assert middle.shape[1:] == (24, 24)


def test_a_model_is_chosen_on_grids_that_hold_the_anatomy(locator: Locator, caplog: pytest.LogCaptureFixture) -> None:
    """Also where the locator sees nothing, or takes something else for it: that is not the model's fault."""
    nothing, other = picture(None, (60, 60), seed=5), picture((15, 45), (60, 60), seed=6)
    label = picture((44, 16), (60, 60), seed=7)["label"]
    for image, warning in ((nothing["image"], "was not found"), (other["image"], "where it is not")):
        case = {"image": image, "label": label}
        assert torch.equal(cut(locator, case, strict=False)["label"][1].sum(), label[1].sum())
        assert warning in caplog.text
        caplog.clear()


def test_what_the_border_cuts_off_is_told(locator: Locator) -> None:
    whole = cut(locator, picture((30, 30), (60, 60), seed=7))["image"]
    assert whole.meta[MISSING] < 0.1
    case = picture((30, 30), (60, 60), seed=7)
    truncated = {key: MetaTensor(value[:, 29:], affine=torch.eye(4)) for key, value in case.items()}
    share = 1 - float(truncated["label"][1].sum() / case["label"][1].sum())
    found = cut(locator, truncated)["image"]
    # The L is 13 pixels long, so that one pixel is 8 % of it.
    assert found.meta[MISSING] == pytest.approx(share, abs=0.15)
    assert "beyond the border" in found.meta["warnings"]


def test_results_come_back_to_their_place(locator: Locator) -> None:
    case = picture((22, 40), (64, 56))
    transform = Localised(["image", "label"], SIZE, SPACING, locator)
    back = transform.inverse(transform(dict(case)))["label"]
    assert back.shape == case["label"].shape
    assert torch.equal(back[1], case["label"][1])


def test_a_resumed_run_takes_what_was_learned_from_the_file(tmp_path: Path) -> None:
    cases = [{"case": str(n), **picture((24, 24), seed=n)} for n in range(2)]
    path = str(tmp_path / "locator.pt")

    def train(resume: bool, iterations: int) -> Locator:
        torch.manual_seed(3)
        made = Locator(2, 1, SIZE, SPACING, channels=(8, 16))
        view = Overviewd(["image", "label"], made.spacing)
        LocatorTraining(made, cases, view, path, resume, iterations, quiet=True)()
        return made

    first = train(resume=False, iterations=2).state_dict()
    second = train(resume=True, iterations=50).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    again = train(resume=False, iterations=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
