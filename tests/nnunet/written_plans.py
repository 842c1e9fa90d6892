"""Contents of nnU-Net's plans.json and dataset.json, small and complete, to be changed by tests."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

DATASET: dict[str, Any] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "numTraining": 10,
    "file_ending": ".nii.gz",
}

RESAMPLING: dict[str, Any] = {
    f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")
} | {
    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
    "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
}


def architecture(dimensions: int = 3, kind: str = "PlainConvUNet", features: tuple[int, ...] = (4, 6, 8)) -> dict:
    stages = len(features)
    residual = kind == "ResidualEncoderUNet"
    module = "residual_unet" if residual else "unet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.{module}.{kind}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[3] * dimensions] * stages,
            "strides": [[1] * dimensions, *([[2] * dimensions] * (stages - 1))],
            "n_blocks_per_stage" if residual else "n_conv_per_stage": [1, 3, 4, 6][:stages]
            if residual
            else [2] * stages,
            "n_conv_per_stage_decoder": [1 if residual else 2] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


LEGACY: dict[str, Any] = {
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 4,
    "unet_max_num_features": 6,
    "n_conv_per_stage_encoder": [2, 2, 2],
    "n_conv_per_stage_decoder": [2, 2],
    "num_pool_per_axis": [2, 2, 2],
    "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "conv_kernel_sizes": [[3, 3, 3], [3, 3, 3], [3, 3, 3]],
}


def configuration(dimensions: int = 3, **changes: Any) -> dict[str, Any]:
    base = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8] * dimensions,
        "median_image_size_in_voxels": [20.0] * dimensions,
        "spacing": [1.5] * dimensions,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        **RESAMPLING,
        "architecture": architecture(dimensions),
        "batch_dice": False,
    }
    return deepcopy(base | changes)


def plans(**configurations: dict[str, Any]) -> dict[str, Any]:
    statistics = {"max": 9.0, "mean": 1.0, "median": 1.0, "min": 0.0, "percentile_00_5": 0.1, "percentile_99_5": 8.0}
    return deepcopy(
        {
            "dataset_name": "Dataset950_Tiny",
            "plans_name": "nnUNetPlans",
            "original_median_spacing_after_transp": [1.5, 1.5, 1.5],
            "original_median_shape_after_transp": [20, 20, 20],
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [1, 0, 2],
            "transpose_backward": [1, 0, 2],
            "configurations": configurations or {"3d_fullres": configuration()},
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {"0": statistics | {"std": 2.0}},
        }
    )
