# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Table 1 of MAS-refine on hippocampus: registrations by fusions by refinements, in two regimes; by one command.

    python benchmarks/multi_atlas.py DATA/hippocampus --output_dir output/multi_atlas

The first ten training cases are the atlases. Regime ``all``: networks learn from every training case; ``ten``: from the
atlases alone. What is done already is not done again; a training that was stopped goes on. Stages, in the order in
which they need each other:

``unet``, ``registrations`` (DI and DIS), ``votes`` (VoteNet+ for each registration), ``search`` (weights of the
refinement, on ``tuning``, the first of ``validation``), ``segment`` (both lists), ``beside`` (rows that the
paper has not), ``searches`` (Fig. 2), ``folds`` (U-Nets of two halves: what it is worth that an atlas is seen by one
that lacks it), ``peers`` (greedy and ANTs, with ``--peers``), ``tables`` (also with what is missing yet).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mas.peers import segment_by_peers
from mas.study import FULL_STEPS, Study
from mas.tables import claims, write_claims, write_rows

STAGES = {
    "unet": Study.train_unet,
    "registrations": Study.train_registrations,
    "votes": Study.train_votes,
    "search": Study.search,
    "segment": Study.segment_all,
    "beside": Study.segment_beside,
    "searches": Study.compare_searches,
    "folds": Study.compare_folds,
}
PEERS, TABLES = "peers", "tables"


def main() -> None:
    """Parse the arguments, and go from stage to stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("output/multi_atlas"))
    parser.add_argument("--regimes", default="all,ten")
    parser.add_argument("--stages", default=",".join([*STAGES, TABLES]))
    parser.add_argument("--steps", type=int, default=FULL_STEPS, help="of a registration network; others in proportion")
    parser.add_argument("--quick", action="store_true", help="few cases: a smoke test, with --steps 4")
    parser.add_argument("--peers", help="Python of an environment that has label_fusion_requirements.txt: stage peers")
    options = parser.parse_args()
    chosen = options.stages.split(",")
    if unknown := set(chosen) - {*STAGES, PEERS, TABLES}:
        parser.error(f"stages {', '.join(sorted(unknown))}: expected some of {', '.join([*STAGES, PEERS, TABLES])}.")
    if PEERS in chosen and not options.peers:
        parser.error("stage peers: give --peers.")
    for regime in options.regimes.split(","):
        study = Study(options.data.resolve(), options.output_dir.resolve(), regime, options.steps, options.quick)
        for name in (name for name in STAGES if name in chosen):
            STAGES[name](study)
        if PEERS in chosen:  # of no regime: they learn nothing
            segment_by_peers(options.peers, study.data, study.runner.folder)
        if TABLES in chosen:
            write_rows(study.runner.folder)
            if study.searched():
                write_claims(study.runner.folder, claims(study.chosen(), study.best()))


if __name__ == "__main__":
    main()
