# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Commands beside the bundle's own: `python -m atlas_istn COMMAND`."""

from __future__ import annotations

import importlib
import logging
import sys

import fire

from .errors import show_input_errors

COMMANDS = {
    "letter_b": ("data.letter_b", "generate_letter_b", "generate the letter B data set"),
    "curves": ("curves", "draw_curves", "draw the losses and the validation of a training"),
    "atlas_evolution": ("evolution", "draw_evolution", "animate the atlas of a training run"),
    "compare": ("comparison.command", "compare", "compare evaluated results: tables, tests and pictures"),
    "degrade": ("data.degradations", "degrade_dataset", "degrade images as scanners and artefacts do"),
    "topology": ("topology.atlas", "check_model", "print the topology of a model's atlas, and repair it"),
    "propagate": ("shape.propagate", "propagate", "take points, meshes or images between atlas and subjects"),
    "mesh": ("shape.mesh", "mesh", "make corresponding surfaces of the atlas and of every subject"),
    "population": ("shape.population", "population", "mean shape, modes of variation, volumes and groups of a cohort"),
    "motion": ("shape.motion", "motion", "strain and volumes of one subject over time"),
    "figure": ("figures", "draw_results", "draw cases of an inference run and the atlas"),
    "report": ("report", "write_report", "write an HTML report of an inference run"),
    "onnx": ("export", "export_itn", "export the voxel-wise segmentation network to ONNX"),
    "merge_itns": ("merge", "merge_itns", "put the ITNs of several models into one model"),
    "pack": ("pack", "pack_bundle", "pack the bundle and the package into one zip file"),
}
"""Name → module, function and summary. Only the module of the command that is run is imported: some take seconds."""


def main() -> None:
    """Run a command, or list them."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    show_input_errors()
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        lines = [f"  {command:12} {summary}" for command, (_, _, summary) in COMMANDS.items()]
        usage = "\n".join(["usage: python -m atlas_istn COMMAND [--help]", *lines])
        if name in ("", "--help", "-h"):
            sys.stdout.write(usage + "\n")
            return
        sys.exit(f"There is no command '{name}'.\n{usage}")
    module, function, _ = COMMANDS[name]
    command = getattr(importlib.import_module(f"atlas_istn.{module}"), function)
    fire.Fire(command, command=sys.argv[2:], name=f"atlas_istn {name}")


if __name__ == "__main__":
    main()
