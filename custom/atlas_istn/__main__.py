# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Commands beside the bundle's own: `python -m atlas_istn COMMAND`."""

from __future__ import annotations

import logging

import fire

from .errors import show_input_errors


def letter_b(
    output_dir: str,
    num_training: int = 1000,
    num_validation: int = 50,
    num_test: int = 50,
    num_corrupt: int = 50,
    size: int = 128,
    seed: int = 0,
) -> None:
    """Generate the letter B data set: warped letters in noise, with a clean and a corrupted test list.

    Args:
        output_dir: folder of the data set (MSD layout).
        num_training: cases of the list `training`.
        num_validation: cases of the list `validation`.
        num_test: cases of the list `test`, clean.
        num_corrupt: cases of the list `test_corrupt`.
        size: pixels along each side.
        seed: another seed gives other letters.
    """
    from .data.letter_b import generate_letter_b

    generate_letter_b(output_dir, num_training, num_validation, num_test, num_corrupt, size, seed)


def figure(
    dataset_dir: str,
    output_dir: str,
    data_list: str = "test_corrupt",
    path: str = "",
    cases: int = 4,
    initial_atlas: str = "",
) -> None:
    """Draw cases of an inference run: image, ITN, 1-pass, refined result, deformed grid, and the atlas.

    Args:
        dataset_dir: data set that was run.
        output_dir: what inference wrote.
        data_list: list of the data set.
        path: picture to write; default `OUTPUT_DIR/figure.png`.
        cases: number of cases to show.
        initial_atlas: `models/initial_atlas.pt` of the training, to show the atlas before it too.
    """
    from .figures import draw_results

    draw_results(dataset_dir, output_dir, data_list, path or f"{output_dir}/figure.png", cases, initial_atlas)


def main() -> None:
    """Run a command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # MONAI warns once for each image that there is no GPU decoder for DICOM.
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    show_input_errors()
    fire.Fire({"letter_b": letter_b, "figure": figure})


if __name__ == "__main__":
    main()
