"""What exchanging lateral labels is worth: two equal organs, told apart by the side of the spine they lie on."""

from __future__ import annotations

import numpy as np
import torch

from autoseg.augmentation.kinds import DEFAULT
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.data.model import LabelSet
from autoseg.evaluation.confusion import confusion
from autoseg.inference.predictor import Predictor
from autoseg.planning.lateral import LateralSwap
from autoseg.training.losses import dice_ce
from tests.inference.examples import configuration, unet_spec

LABELS = LabelSet({"background": (0,), "left": (1,), "right": (2,)})
SWAP = LateralSwap(1, (0, 2, 1), (0, 2, 1), (0,))
SIZE, STEPS = 16, 90


def pictures(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 1, 16, 16) of a bright spine between two equal organs, and their labels."""
    image = 0.2 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.int8)
    image[..., 7:9] += 3
    for sample in range(count):
        top = int(torch.randint(1, 10, (1,), generator=generator))
        labels[sample, top : top + 5, 3:6], labels[sample, top : top + 5, 10:13] = 2, 1
    image[:, 0] += (labels > 0) * 1.5
    return image, labels


def share_on_the_wrong_side(swap: LateralSwap | None) -> float:
    """Of the organs' voxels found in new pictures, how many are given to the other organ."""
    torch.manual_seed(0)
    network = unet_spec(2, (8, 16, 16)).build(1, 3)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    spec = AugmentationSpec((SIZE, SIZE), (SIZE, SIZE), 0.05, False, (0, 1), (), swap=swap)
    for _ in range(STEPS):
        image, labels = DEFAULT(*pictures(8, generator), spec, generator)
        loss = dice_ce(network(image, deep_supervision=False), labels, LABELS, True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    predictor = Predictor((network,), configuration((SIZE, SIZE)), 3, mirror_axes=(0, 1), swap=swap)
    image, labels = pictures(20, generator)
    predicted = predictor.logits(image[:, 0][None].numpy()).argmax(0)
    counts = confusion(predicted, labels.numpy(), LABELS)[1:, 1:]
    assert counts.sum() > 0.7 * np.count_nonzero(labels)  # both ways find the organs
    return float((counts[0, 1] + counts[1, 0]) / counts.sum())


def test_mirroring_confuses_left_and_right_unless_their_labels_change_places() -> None:
    assert share_on_the_wrong_side(SWAP) < 0.02
    assert share_on_the_wrong_side(None) > 0.3
