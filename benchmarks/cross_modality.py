# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Across modalities: bSSFP atlases segment LGE, and LGE atlases bSSFP; all that is measured of it, by one command.

python benchmarks/cross_modality.py data/cardiac_mr --peers peers/bin/python
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from across.stages import FULL_STEPS, STAGES, Rotation
from across.tables import write_all

ROTATIONS = 3
TABLES = "tables"


def main() -> None:
    """Parse the arguments, and go from stage to stage, rotation by rotation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("output/cross_modality"))
    parser.add_argument("--stages", default=",".join([*STAGES, TABLES]))
    parser.add_argument("--rotations", default=",".join(map(str, range(ROTATIONS))))
    parser.add_argument("--steps", type=int, default=FULL_STEPS, help="of a registration network; others in proportion")
    parser.add_argument("--peers", default="peers/bin/python", help="Python of the environment of the peers")
    parser.add_argument("--peer_pairs", type=int, default=15, help="of each direction and rotation; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the draws and the trainings")
    parser.add_argument("--quick", action="store_true", help="few patients: a smoke test, with --steps 4")
    options = parser.parse_args()
    stages, output_dir = options.stages.split(","), options.output_dir.resolve()
    if unknown := set(stages) - {*STAGES, TABLES}:
        parser.error(f"stages {', '.join(sorted(unknown))}: expected some of {', '.join([*STAGES, TABLES])}.")
    peers = Path(options.peers).absolute()  # a link, which has to stay one
    if "peers" in stages and not peers.exists():
        parser.error(f"{peers}: no such file. Make the environment as peer_registrations.py says, or leave out peers.")
    torch.set_num_threads(1)
    failed = []
    for number in map(int, options.rotations.split(",")):
        rotation = Rotation(
            number,
            options.dataset_dir.resolve(),
            output_dir,
            options.steps,
            str(peers),
            options.peer_pairs,
            options.seed,
            options.quick,
        )
        for stage in (name for name in STAGES if name in stages):
            try:
                STAGES[stage](rotation)
            except (Exception, SystemExit) as error:  # what needs nothing of it goes on, through hours without a user
                failed.append(f"rotation {number}, {stage}: {error}")
                print(failed[-1], flush=True)
    if TABLES in stages:
        print(write_all(output_dir))
    if failed:
        sys.exit("\n".join(["failed:", *failed]))


if __name__ == "__main__":
    main()
