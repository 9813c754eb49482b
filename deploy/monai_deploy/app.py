# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""MONAI Deploy application: DICOM study in; DICOM SEG and a page of quality figures out.

    python app.py -i STUDY_DIR -o OUTPUT_DIR -m BUNDLE_DIR

Research use only. Not a medical device.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from holoscan.conditions import CountCondition
from monai.bundle import ConfigParser
from monai.deploy.core import AppContext, Application
from monai.deploy.core.arg_parser import parse_args, set_up_logging

CONFIG = Path(__file__).resolve().with_name("app.yaml")


class AtlasApp(Application):
    """Series selection → inference with refinement → DICOM objects.

    Args:
        context: paths of the study and of the results.
        bundle_root: folder of the bundle.
        work_dir: an empty folder for what is in the making.
    """

    def __init__(self, context: AppContext, bundle_root: Path, work_dir: Path) -> None:
        self.study_dir = Path(context.input_path)
        self.output_dir = Path(context.output_path)
        self.bundle_root = bundle_root
        self.work_dir = work_dir
        super().__init__()

    def compose(self) -> None:
        """Connect the operators."""
        from operators import BundleInference, SeriesSelector  # they need the package that the bundle may bring along
        from series import Rules

        parser = ConfigParser()
        parser.read_config(self.bundle_root / "configs" / "inference.yaml")
        parser.read_meta(self.bundle_root / "configs" / "metadata.json")
        rules = Rules.of(parser.config, parser["_meta_"], **self.kwargs("series_rules"))
        once = CountCondition(self, 1)  # what has no input would start again and again
        selector = SeriesSelector(
            self, once, study_dir=self.study_dir, work_dir=self.work_dir, rules=rules, name="series_selector"
        )
        inference = BundleInference(
            self,
            bundle_root=self.bundle_root,
            work_dir=self.work_dir,
            output_dir=self.output_dir,
            name="bundle_inference",
        )
        self.add_flow(selector, inference, {("selection", "selection")})


def find_bundle(model_path: Path) -> Path:
    """The folder of the bundle: the model path itself, or the folder in it where the packager puts a model."""
    for folder in (model_path, *sorted(model_path.glob("*/"))):
        if (folder / "configs" / "inference.yaml").is_file():
            return folder
    sys.exit(
        f"error: {model_path}: no bundle. Expected a folder with configs/inference.yaml and models/model.pt. Set it "
        "with -m."
    )


def main() -> None:
    """Run the application on a study; exit with status 1 and one message when it cannot be done."""
    # As init_app_context does, which also logs the paths; they may hold a patient's name.
    arguments = parse_args(sys.argv)
    set_up_logging(arguments.log_level)
    context = AppContext({name: value for name, value in vars(arguments).items() if value})
    bundle_root = find_bundle(Path(context.model_path))
    sys.path.append(str(bundle_root))
    from atlas_istn.errors import show_input_errors

    show_input_errors()
    with tempfile.TemporaryDirectory() as work_dir:
        app = AtlasApp(context, bundle_root, Path(work_dir))
        app.config(str(CONFIG))
        app.run()


if __name__ == "__main__":
    main()
