"""Peak memory of predicting one large image with many classes, above what the network itself takes.

    python scripts/prediction_memory.py                      # 200 x 256 x 256 voxels, 30 classes
    python scripts/prediction_memory.py --classes 20 --shape 300 256 256 --limit-gib 0.6

Weights are random. The network first predicts one tile; the growth of the process's peak memory from there to the label
map on the image's grid is printed, and the exit code is 1 if it exceeds the limit.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np
import torch

from autoseg.core.geometry import Geometry
from autoseg.data.model import LabelSet
from autoseg.inference.predictor import Predictor
from autoseg.inference.restore import predict_case
from autoseg.networks.kinds.unet import PlainUNet
from autoseg.planning.plan import Configuration
from autoseg.preprocessing.prepare import Placement


def main() -> int:
    """Measures and prints; 1 if the limit is exceeded."""
    options = _options()
    predictor, labels = _random_model(tuple(options.patch), options.classes, options.width)
    prepared = tuple(round(length / options.zoom) for length in options.shape)
    image = np.random.default_rng(0).normal(size=(1, *prepared)).astype(np.float32)
    (z, y, x) = options.shape
    zoomed = (options.zoom,) * 3
    box = ((0, z), (0, y), (0, x))
    placement = Placement(Geometry((z, y, x)), (0, 1, 2), box, (1.0, 1.0, 1.0), prepared, zoomed)
    for _ in predictor.rows(np.zeros((1, *options.patch), np.float32)):
        pass
    before, begin = _peak_gib(), time.perf_counter()
    found = predict_case(predictor, image, placement, labels)
    growth, seconds = _peak_gib() - before, time.perf_counter() - begin
    one_copy = options.classes * float(np.prod(options.shape)) * 4 / 2**30
    print(f"{found.shape} voxels, {options.classes} classes, patch {tuple(options.patch)}: {seconds:.1f} s")
    print(f"network alone {before:.2f} GiB; prediction {growth:.2f} GiB above it, limit {options.limit_gib:.2f} GiB")
    print(f"one copy of all float32 logits would be {one_copy:.2f} GiB")
    return int(growth > options.limit_gib)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(200, 256, 256), help="voxels of the image, z y x")
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 128, 128), help="voxels of a tile, z y x")
    parser.add_argument("--classes", type=int, default=30)
    parser.add_argument("--width", type=int, default=8, help="channels of the network's first stage")
    parser.add_argument("--zoom", type=float, default=1.0, help="spacing of the network's grid over that of the image")
    parser.add_argument("--limit-gib", type=float, default=2.5)
    return parser.parse_args()


def _random_model(patch: tuple[int, ...], classes: int, width: int) -> tuple[Predictor, LabelSet]:
    spec = PlainUNet(
        dimensions=3,
        features_per_stage=(width, 2 * width, 4 * width),
        kernel_sizes=((3, 3, 3),) * 3,
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        blocks_per_stage=(1, 1, 1),
        decoder_convs_per_stage=(1, 1),
    )
    configuration = Configuration(
        name="3d_fullres",
        dimensions=3,
        spacing_mm=(1.0, 1.0, 1.0),
        patch_size=patch,
        batch_size=2,
        median_shape=tuple(map(float, patch)),
        normalization=("none",),
        use_nonzero_mask=(False,),
        network=spec,
        batch_dice=False,
        cascade_from=None,
        mirror_axes=(),
        estimated_feature_map_elements=0,
    )
    torch.manual_seed(0)
    predictor = Predictor((spec.build(1, classes),), configuration, classes, channels_last=True)
    return predictor, LabelSet({str(value): (value,) for value in range(classes)})


def _peak_gib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


if __name__ == "__main__":
    sys.exit(main())
