# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Ids that belong together: parts of the workflow, and what a model, a refinement or a training is bound to."""

from __future__ import annotations

__all__ = [
    "ARCHITECTURE",
    "FREE_ON_RESUME",
    "LEARNING",
    "OF_MODEL",
    "OF_REFINEMENT",
    "OF_WARPS",
    "PARTS",
    "PREPARATION",
]

PARTS = (
    "imports",
    "bundle_root",
    "num_classes",
    "spatial_dims",
    "network_def",
    "itn",
    "itn_network",
    "itn_member",
    "stn",
    "network",
    "reading",
    "localisation",
    "gridding",
    "preprocessing",
    "dataset",
    "dataloader",
    "displayable_configs",
    "structure_names",
    "join_pairs",
    "atlas_cases",
    "atlas_preprocessing",
    "atlas_bundle",
    "pack_atlases",
    "predicted_registration",
    "warp_cache",
    "registering_models",
    "itn_segmenter",
    "fold_segmenter",
    "learned_atlas",
    "fusion_network",
    "fusion_draws",
    "fusion_collate",
    "fusion_batch",
    "fusion_calibration",
    "trusted_fusion",
    "segmentation",
    "pairs",
    "bound",
    "writer",
    "registration",
    "refinement",
    "inferer",
    "ensemble_inferer",
    "quality",
    "inversion",
    "postprocessing",
    "loader",
    "handlers",
    "evaluator",
    "reference",
    "scorer",
    "stored_results",
    "cohort",
    "calibration",
    "trained_bundle",
    "optimizer",
    "lr_scheduler",
    "segmentation_loss",
    "loss",
    "train",
    "validate",
    "run_folder",
    "reading",
    "gridding",
    "localisation",
    "locator",
    "locator_view",
    "locator_training",
    "check_cases",
    "unet_loader",
    "initial_weights",
    "itn_loader",
    "initialize",
    "finalize",
    "training",
    "inference",
    "evaluate",
    "calibrate",
    "run",
)
"""Ids that hold parts of the workflow."""

ARCHITECTURE = ("network_def", "itn", "itn_member", "stn", "locator", "transformation", "fusion_network")
"""Parts that a network is made of."""

OF_MODEL = (
    "network_def",
    "spatial_size",
    "spacing",
    "label_names",
    "label_values",
    "intensity_window",
    "intensity_limits",
    "intensity_percentiles",
    "pair_start",
)
"""What a model was trained with, and cannot be used without, together with all that these refer to."""

OF_REFINEMENT = (
    "refine_mode",
    "refine_iterations",
    "refine_weights",
    "refine_similarity",
    "refine_stiff",
    "refine_confidence",
    "refine_trust",
    "refine_adaptation",
)
"""What decides how the results of a refinement usually look: `workflow.quality` compares it with its calibration."""

OF_WARPS = (
    "spacing",
    "affine_registration",
    "deformable_registration",
    "predicted_registration",
    "atlas_refinement",
    "segmenter",
    "label_weight",
    "atlases",
    "atlas_similarity",
)
"""What decides how atlases are registered, and which of them are taken."""

LEARNING = (
    *ARCHITECTURE,
    "structure_reader",
    "pair_similarity",
    "structure_similarity",
    "pair_regulariser",
    "preprocessing",
    "optimizer",
    "lr_scheduler",
    "segmentation_loss",
    "loss",
)
"""Parts that decide what a training learns."""

PREPARATION = ("reading", "gridding", "localisation")
"""Lists of transforms that do so too."""

FREE_ON_RESUME = (
    "dataset_dir",
    "output_dir",
    "ckpt_dir",
    "model_path",
    "ckpt_path",
    "quality_path",
    "test_list",
    "segment_codes",
    "anonymous_names",
    "max_epochs",
    "val_interval",
    "early_stop_patience",
    "topology",
    "topology_interval",
    "final_atlas_rounds",
    "num_workers",
    "resume",
    "overwrite",
)
"""Settings that a resumed training may have others of: they count from then on, or change no weights."""
