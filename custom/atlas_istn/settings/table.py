# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The table of ids: type, range, unit and meaning of everything that a configuration or a command line may set.

Defaults stand in the configurations. A new id needs a line here, or runs refuse it.
"""

from __future__ import annotations

from .groups import LEARNING, PARTS
from .kinds import Setting

__all__ = ["NESTED", "SETTINGS", "Setting"]


def _truth(help: str) -> Setting:  # noqa: A002
    return Setting(help, "truth")


def _share(help: str, optional: bool = False) -> Setting:  # noqa: A002
    return Setting(help, "number", 0, 1, optional=optional)


def _positive(help: str, unit: str = "") -> Setting:  # noqa: A002
    return Setting(help, "number", 0, above=True, unit=unit)


def _from_zero(help: str, unit: str = "", optional: bool = False) -> Setting:  # noqa: A002
    return Setting(help, "number", 0, unit=unit, optional=optional)


def _count(help: str, least: int = 0) -> Setting:  # noqa: A002
    return Setting(help, "whole", least)


def _text(help: str, *choices: str, optional: bool = False) -> Setting:  # noqa: A002
    return Setting(help, "text", choices=choices, optional=optional)


DATA = {
    "dataset_dir": _text("folder of the images, or data set with a dataset.json"),
    "output_dir": _text("folder of what a run writes"),
    "train_list": _text("list of dataset.json to train on"),
    "val_list": _text("list of dataset.json to choose the model by"),
    "test_list": _text("list of dataset.json to run on"),
    "spatial_size": Setting("size of the model's grid", "wholes", 4, unit="voxels"),
    "spacing": Setting("voxel size of the model's grid", "numbers", 0, above=True, unit="mm"),
    "in_channels": _count("channels of the image", 1),
    "label_names": Setting("class index → name, background first", "names"),
    "label_values": Setting("values of each class in label files; a list merges them", "values", -(2**31), 2**32 - 1),
    "intensity_window": Setting("intensities that become 0 and 1, in place of percentiles", "windows", optional=True),
    "pixel_size": Setting(
        "size of a pixel of PNG images along x and y; null: lengths are in pixels",
        "numbers",
        0,
        above=True,
        length=2,
        unit="mm",
        optional=True,
    ),
    "data_list_file": _text("dataset.json in place of the one in dataset_dir", optional=True),
    "segment_codes": Setting("concepts of the labels in DICOM"),
    "intensity_limits": Setting("limits of the scaled intensities", "numbers", length=2, rising=True),
    "anonymous_names": _truth("number the cases, in place of the names of their files"),
    "topology": Setting("topology that the atlas shall have, where it is not that of most training labels"),
    "label_sigma": _from_zero("smoothing of the training labels", "voxels"),
    "extra_augmentation": Setting("further random transforms", "components"),
    "augmentation_ranges": Setting(
        "random affine augmentation",
        "table",
        fields={
            "translation": _from_zero("largest shift", "mm"),
            "rotation": _from_zero("largest rotation", "radians"),
            "scale": _share("largest relative change of size"),
        },
    ),
}

MODEL = {
    "localise": _truth("scans are larger than the grid: find the anatomy in them"),
    "device": Setting("where it runs", "device"),
    "itn_kernels": Setting("kernel sizes of the DynUNet, scale by scale"),
    "itn_strides": Setting("strides of the DynUNet, scale by scale"),
    "itn_norm": Setting("normalisation of the ITN in place of its own"),
    "itn_activation": Setting("applied to the ITN's output", "component", optional=True),
    "ckpt_path": _text("model file"),
    "model_path": _text("model file that training writes"),
    "ckpt_dir": _text("folder of the checkpoints"),
    "init_path": _text("model whose weights a training begins with, as far as they fit", optional=True),
    "unet_path": _text("model file of a trained U-net"),
    "quality_path": _text("statistics of good cases, as calibrate writes them"),
}

PAIRS = {
    "structures": _text("what the structures of interest are", "labels", "maps", "landmarks", "none"),
    "structures_dir": _text("folder of the data set with structures under the names of the images"),
    "landmarks_dir": _text("folder of the data set with points under the names of the images"),
    "merge_structures": _truth("one map of all structures, in place of one for each"),
    "other_labels": _text("values of labels that label_values lacks", "refuse", "background"),
    "structure_unit": _positive("value of a map that means 1"),
    "structure_width": _positive("standard deviation of the Gaussians of landmarks", "mm"),
    "structure_distance": _from_zero("from the border to the ends of a distance map; 0: none", "mm"),
    "structure_channels": _count("maps of the structures of interest", 1),
    "itn_channels": Setting("features of each scale of the pairwise ITN, finest first", "wholes", 1),
    "require_structures": _truth("refuse pairs whose structures are missing"),
    "score_bound": _truth("also register the structures themselves: the bound of what registration can reach"),
    "bound_iterations": _count("iterations of that", 1),
    "pair_start": _text("where pairs begin: centres of the grids, or as headers place them", "grids", "world"),
    "moving_list": _text("list from which moving images are drawn; empty: that of the fixed ones"),
    "val_moving_list": _text("list from which moving images of validation pairs are drawn"),
    "val_random_pairs": _count("pairs drawn for validation; 0: its list has pairs"),
    "random_pairs": _count("pairs drawn from a list of images; 0: the list has pairs"),
    "intensity_percentiles": Setting("percentiles of an image that become 0 and 1", "numbers", 0, 100, length=2),
    "pair_loss_weights": Setting(
        "weights of the objective of a pairwise ISTN",
        "table",
        fields={
            "images": _from_zero("of the two representations"),
            "structures": _from_zero("of the structures"),
            "explicit": _from_zero("of representations and structures, before they are moved"),
            "implicit": _from_zero("of representations and structures, one of them moved"),
            "backward": _from_zero("of the structures, the fixed ones moved"),
            "invertible": _from_zero("of the structures and what there and back makes of them"),
            "lambda": _from_zero("λ of the regulariser"),
        },
    ),
    "refine_structures": _from_zero("weight of the structures that a pair has at test time"),
    "refine_pairs": _text("what is refined of a pair", "parameters", "weights"),
    "refine_tolerance": _share("improvement in 10 iterations below which a pair has settled"),
}

MULTI_ATLAS = {
    "atlas_dir": _text("data set that has the atlases, with labels"),
    "fusion_path": _text("model of a training of the network that fuses"),
    "similarity_patch": Setting("size of the patches that are compared", "wholes", 1, unit="voxels"),
    "similarity_most": _count("most similar atlases that vote, all alike; 0: all by their similarity"),
    "pairs_per_epoch": _count("pairs of a target and an atlas that make an epoch", 1),
    "episodes_per_pair": _count("patches of a target that are compared", 1),
    "episode_likeness": Setting(
        "Dice above which patches are alike, and below which they are not", "numbers", 0, 1, length=2
    ),
    "atlas_model": _text("folder of a trained Atlas-ISTN, whose atlas is registered to the fused labels"),
    "atlas_registration": _text("folder of a trained registration of pairs, which registers the atlases"),
    "atlas_registration_backward": _truth(
        "its fixed images are of the atlases' modality, its moving ones of the image's"
    ),
    "atlas_list": _text("list of dataset.json with the atlases"),
    "atlases": _count("atlases that are fused, the most similar ones; 0: all"),
    "atlas_similarity": Setting("error of image and registered atlas, by which atlases are chosen", "component"),
    "write_atlas_maps": _truth("write where atlases agree, which of them decides, and the labels of each"),
    "atlas_cache": _text("folder that keeps the warped atlases of each image, for another fusion; empty: none"),
    "atlases_at_once": _count("atlases that are registered at a time", 1),
    "fusion": Setting("how labels are fused", "component"),
    "affine_registration": Setting("registration that every atlas begins with", "component"),
    "deformable_registration": Setting("registration that follows; null: none", "component", optional=True),
    "segmenter": Setting("network whose predictions a refinement compares; null: none", "component", optional=True),
    "segmenter_folds": Setting("folders of a cross-validation's trainings, whose predictions it compares", "texts"),
    "label_weight": _from_zero("α of these predictions"),
    "atlas_refinement": Setting("registration of what is registered, at last; null: none", "component", optional=True),
}

TRAINING = {
    "max_epochs": _count("epochs", 1),
    "batch_size": _count("cases of a batch, in each process", 1),
    "learning_rate": _positive("step size of Adam at the start"),
    "stn_head_rate": _positive("learning rate of the STN's last layers, as a share of that of all others"),
    "weight_average": Setting("largest decay of the moving average of the weights; 0: none", "number", 0, 1),
    "atlas_rate": _share("η: how far the atlas moves per epoch"),
    "atlas_parts": _count("epochs in which the atlas takes each case once", 1),
    "atlas_shape": _text("what holds the atlas in place", "paper", "unbiased"),
    "atlas_average": _text("how cases are averaged", "mean", "median"),
    "atlas_case": _text("training case that is the atlas for good; empty: all are"),
    "atlas_sharpening": _share("strength of the Laplacian that sharpens the mean"),
    "topology_interval": _count("epochs between two looks at the atlas's topology; 0: only at the end"),
    "final_atlas_rounds": _count("rebuilds of the atlas when training is over"),
    "loss_weights": Setting(
        "weights of the loss",
        "table",
        fields={
            "omega": _from_zero("ω of the registration"),
            "lambda": _from_zero("λ of the regulariser"),
            "fade_in_epoch": _from_zero("epoch in which ω has half its value; 0: full from the start"),
            "fade_in_width": _positive("epochs over which ω rises"),
        },
    ),
    "loss_stiff": Setting(
        "the first epochs, in which the atlas hardly bends",
        "table",
        fields={
            "lambda": Setting("λ of the first one; null: as in the others", "number", 0, above=True, optional=True),
            "fraction": _share("share of the epochs in which λ falls to its own"),
        },
    ),
    "segmentation_weight": _from_zero("weight of the ITN's own loss"),
    "supervision": Setting("shares of the predictions that the ITN yields in training", "numbers", 0),
    "affine_start_epoch": Setting("first epoch with the affine head; negative: never", "whole"),
    "amp": _truth("run the convolutions in bf16, where the device computes in it at a useful speed"),
    "seed": Setting("of all random numbers", "whole", 0, 2**32 - 1),
    "num_workers": _count("processes that load data"),
    "val_interval": _count("epochs between validations", 1),
    "early_stop_patience": _count("validations without improvement after which training ends; 0: never"),
    "locator_iterations": _count("steps of the locator's training", 1),
    "resume": _truth("go on where an earlier run stopped"),
    "overwrite": _truth("replace the training that is in output_dir"),
}

REFINEMENT = {
    "refine_mode": _text("what is refined", "field", "weights"),
    "refine_iterations": _count("largest number of iterations; 0: the 1-pass"),
    "refine_lambda": _from_zero("λ* of the refinement, as a client sends it"),
    "refine_weights": Setting(
        "weights of the refinement",
        "table",
        fields={
            "beta": _from_zero("β* of atlas to subject"),
            "gamma": _from_zero("γ* of subject to atlas"),
            "lambda": _from_zero("λ* of the regulariser"),
        },
    ),
    "refine_similarity": Setting("error of two labelmaps", "component"),
    "refine_stiff": Setting(
        "the phase in which the atlas hardly bends",
        "table",
        fields={
            "lambda": _from_zero("its λ; null: ten-fold", optional=True),
            "fraction": _share("its share of the iterations"),
        },
    ),
    "refine_confidence": _share("mean probability to which a wavering ITN is raised; 0: never"),
    "refine_trust": Setting(
        "disagreements up to and from which the ITN is believed", "numbers", 0, 1, length=2, optional=True, rising=True
    ),
    "refine_adaptation": Setting(
        "how an ITN that wavers is adapted to an image",
        "table",
        fields={
            "steps": _count("steps of Adam; 0: never"),
            "rate": _positive("learning rate"),
            "disagreement": _share("1 − Dice of the labels of ITN and 1-pass above which it is adapted"),
            "confidence": _share("mean probability of its labels below which it is adapted"),
        },
    ),
    "ensemble": _count("starts of the refinement", 1),
    "results": Setting("what the inferer yields, and the name of each"),
}

OUTPUT = {
    "write_uncertainty": _truth("write the entropy of the labels"),
    "write_probabilities": _truth("write a soft map of each label"),
    "write_transforms": _truth("write the registration of each case"),
    "output_format": _text("what is written for DICOM series", "nifti", "dicom_seg"),
    "results_dir": _text("folder of an inference run to score in place of a new one", optional=True),
    "evaluate_space": _text("grid on which results are scored", "native", "model"),
    "reference_sigma": _from_zero("smoothing of the reference in model space", "voxels"),
    "surface_dice_tolerance": _from_zero("distance up to which surfaces agree", "mm"),
}

SETTINGS: dict[str, Setting] = {
    **DATA,
    **MODEL,
    **PAIRS,
    **MULTI_ATLAS,
    **TRAINING,
    **REFINEMENT,
    **OUTPUT,
    **{name: Setting("part of the workflow") for name in PARTS},
    **{name: Setting("part of what is learned", "component", optional=True) for name in LEARNING},
}
"""Id → what it may be."""

NESTED: dict[str, Setting] = {
    "cohort#cases#anonymous": DATA["anonymous_names"],
    "cohort#resume": TRAINING["resume"],
    "dataloader#batch_size": TRAINING["batch_size"],
    "dataset#data#anonymous": DATA["anonymous_names"],
    "ensemble_inferer#members": REFINEMENT["ensemble"],
    "evaluator#uncertainty": OUTPUT["write_uncertainty"],
    "itn_member#in_channels": DATA["in_channels"],
    "locator#in_channels": DATA["in_channels"],
    "locator#spacing": DATA["spacing"],
    "locator#spatial_size": DATA["spatial_size"],
    "locator_training#iterations": TRAINING["locator_iterations"],
    "locator_training#resume": TRAINING["resume"],
    "locator_training#seed": TRAINING["seed"],
    "loss#deformation_weight": TRAINING["loss_weights"].fields["omega"],
    "loss#fade_in_epoch": TRAINING["loss_weights"].fields["fade_in_epoch"],
    "loss#fade_in_width": TRAINING["loss_weights"].fields["fade_in_width"],
    "loss#regularisation": TRAINING["loss_weights"].fields["lambda"],
    "loss#segmentation_weight": TRAINING["segmentation_weight"],
    "loss#stiff_epochs": _from_zero("epochs in which λ falls to its own"),
    "loss#stiff_regularisation": TRAINING["loss_stiff"].fields["lambda"],
    "loss#supervision": TRAINING["supervision"],
    "network_def#in_channels": DATA["in_channels"],
    "network_def#spacing": DATA["spacing"],
    "network_def#spatial_size": DATA["spatial_size"],
    "optimizer#params#lr_values": _positive("learning rate of the STN's last layers"),
    "optimizer#lr": TRAINING["learning_rate"],
    "refinement#adaptation": Setting("adaptation of the ITN", "component", optional=True),
    "refinement#adaptation#confidence": REFINEMENT["refine_adaptation"].fields["confidence"],
    "refinement#adaptation#disagreement": REFINEMENT["refine_adaptation"].fields["disagreement"],
    "refinement#adaptation#rate": REFINEMENT["refine_adaptation"].fields["rate"],
    "refinement#adaptation#steps": REFINEMENT["refine_adaptation"].fields["steps"],
    "refinement#amp": TRAINING["amp"],
    "refinement#atlas_weight": REFINEMENT["refine_weights"].fields["beta"],
    "refinement#confidence": REFINEMENT["refine_confidence"],
    "refinement#iterations": REFINEMENT["refine_iterations"],
    "refinement#mode": REFINEMENT["refine_mode"],
    "refinement#regularisation": REFINEMENT["refine_weights"].fields["lambda"],
    "refinement#stiff_fraction": REFINEMENT["refine_stiff"].fields["fraction"],
    "refinement#stiff_regularisation": REFINEMENT["refine_stiff"].fields["lambda"],
    "refinement#subject_weight": REFINEMENT["refine_weights"].fields["gamma"],
    "refinement#trust": REFINEMENT["refine_trust"],
    "run_folder#overwrite": TRAINING["overwrite"],
    "run_folder#resume": TRAINING["resume"],
    "scorer#surface_dice_tolerance": OUTPUT["surface_dice_tolerance"],
    "stored_results#pixel_size": DATA["pixel_size"],
    "stored_results#space": OUTPUT["evaluate_space"],
    "train#average#decay": TRAINING["weight_average"],
    "train#atlas#amp": TRAINING["amp"],
    "train#atlas#average": TRAINING["atlas_average"],
    "train#atlas#parts": TRAINING["atlas_parts"],
    "train#atlas#rate": TRAINING["atlas_rate"],
    "train#atlas#shape": TRAINING["atlas_shape"],
    "train#atlas#sharpening": TRAINING["atlas_sharpening"],
    "train#atlas_dataloader#batch_size": TRAINING["batch_size"],
    "train#atlas_inferer#amp": TRAINING["amp"],
    "train#atlas_inferer#iterations": REFINEMENT["refine_iterations"],
    "train#atlas_inferer#regularisation": REFINEMENT["refine_weights"].fields["lambda"],
    "train#dataloader#batch_size": TRAINING["batch_size"],
    "train#dataloader#num_workers": TRAINING["num_workers"],
    "train#network#amp": TRAINING["amp"],
    "train#trainer#max_epochs": TRAINING["max_epochs"],
    "validate#dataloader#batch_size": TRAINING["batch_size"],
}
"""Place within a part of the workflow → what may stand there in place of the setting that usually does."""
