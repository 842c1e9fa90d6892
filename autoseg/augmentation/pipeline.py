"""The default augmentation: every random number of a batch is drawn first, then the transforms are applied in order.

Source: nnU-Net v2, `nnUNetTrainer.get_training_transforms`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autoseg.augmentation.first_stage import PreviousChanges, append_previous, draw_previous
from autoseg.augmentation.intensity import (
    GAMMA_PROBABILITY,
    INVERTED_GAMMA_PROBABILITY,
    Factors,
    Noise,
    apply_brightness,
    apply_contrast,
    apply_gamma,
    apply_noise,
    draw_brightness,
    draw_contrast,
    draw_gamma,
    draw_noise,
)
from autoseg.augmentation.mirror import apply_mirror, draw_mirror, mirror_labels
from autoseg.augmentation.sharpness import (
    Blur,
    Coarsening,
    apply_blur,
    apply_coarsening,
    draw_blur,
    draw_coarsening,
)
from autoseg.augmentation.spatial import Affine, apply_affine, apply_affine_to_labels, center_crop, draw_affine
from autoseg.augmentation.spec import AugmentationSpec


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was drawn for one sample; None where a transform is not applied."""

    affine: Affine | None
    noise: Noise | None
    blur: Blur | None
    brightness: Factors | None
    contrast: Factors | None
    coarsening: Coarsening | None
    inverted_gamma: Factors | None
    gamma: Factors | None
    mirrored_axes: tuple[int, ...]
    previous: PreviousChanges


def draw(generator: torch.Generator, spec: AugmentationSpec, channels: int) -> Drawn:
    """The random parameters of one sample, from a CPU generator."""
    dimensions = len(spec.patch_size)
    return Drawn(
        affine=draw_affine(generator, 2 if spec.is_dummy_2d else dimensions, spec.largest_turn),
        noise=draw_noise(generator),
        blur=draw_blur(generator, channels, dimensions),
        brightness=draw_brightness(generator, channels),
        contrast=draw_contrast(generator, channels),
        coarsening=draw_coarsening(generator, channels),
        inverted_gamma=draw_gamma(generator, INVERTED_GAMMA_PROBABILITY, channels),
        gamma=draw_gamma(generator, GAMMA_PROBABILITY, channels),
        mirrored_axes=draw_mirror(generator, spec.mirror_axes),
        previous=draw_previous(generator, len(spec.previous_values)) if spec.previous_values else PreviousChanges(),
    )


def augment(
    image: Tensor,
    labels: Tensor,
    spec: AugmentationSpec,
    generator: torch.Generator,
    previous: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A batch augmented for training, on the device of the image.

    Args:
        image: (b, c, *initial patch).
        labels: (b, *initial patch), signed integers, negative outside the nonzero mask.
        spec: of the configuration.
        generator: on the CPU; given the same state, the result is the same.
        previous: (b, *initial patch), the label map of a cascade's first stage, which is turned and mirrored alike.

    Returns:
        New tensors: image (b, c, *patch) float32, labels (b, *patch) of the given dtype, none negative. With `previous`
        the image has one more channel for each of the spec's `previous_values`.
    """
    drawn = [draw(generator, spec, image.shape[1]) for _ in image]
    new_image, new_labels = crop(image, labels, spec.patch_size)
    for i, parameters in enumerate(drawn):
        if parameters.affine is not None:
            sample = apply_affine(image[i].float(), labels[i], parameters.affine, spec.patch_size)
            new_image[i], new_labels[i] = sample
        _apply_intensity(new_image[i], parameters, spec.is_dummy_2d)
        if parameters.mirrored_axes:
            dimensions = len(spec.patch_size)
            new_image[i] = apply_mirror(new_image[i], parameters.mirrored_axes, dimensions)
            new_labels[i] = mirror_labels(new_labels[i], parameters.mirrored_axes, dimensions, spec.swap)
    new_image, new_labels = apply_mask(new_image, new_labels, spec.masked_channels)
    if previous is not None:
        moved = torch.stack([_move(own, parameters, spec) for own, parameters in zip(previous, drawn, strict=True)])
        new_image = append_previous(new_image, moved, spec.previous_values, [own.previous for own in drawn])
    return new_image, new_labels


def _move(labels: Tensor, drawn: Drawn, spec: AugmentationSpec) -> Tensor:
    """A label map (*initial patch) turned and mirrored as its image, cut to the patch."""
    moved = (
        apply_affine_to_labels(labels, drawn.affine, spec.patch_size)
        if drawn.affine is not None
        else center_crop(labels, spec.patch_size)
    )
    return mirror_labels(moved, drawn.mirrored_axes, len(spec.patch_size), spec.swap)


def crop_only(
    image: Tensor,
    labels: Tensor,
    spec: AugmentationSpec,
    _generator: torch.Generator,
    previous: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The middle of each patch, not augmented; arguments and result as for `augment`."""
    new_image, new_labels = apply_mask(*crop(image, labels, spec.patch_size), spec.masked_channels)
    if previous is not None:
        new_image = append_previous(new_image, center_crop(previous, spec.patch_size), spec.previous_values)
    return new_image, new_labels


def crop(image: Tensor, labels: Tensor, patch_size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Copies of the middle of a batch: image as float32, labels."""
    middle = center_crop(image, patch_size)
    return (
        middle.to(torch.float32, copy=True, memory_format=torch.contiguous_format),
        center_crop(labels, patch_size).clone(memory_format=torch.contiguous_format),
    )


def apply_mask(image: Tensor, labels: Tensor, masked_channels: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Sets masked channels of the image (b, c, *shape) to 0 where labels are negative, and these labels to 0."""
    if masked_channels:
        outside = labels < 0
        for channel in masked_channels:
            image[:, channel].masked_fill_(outside, 0.0)
    return image, labels.clamp_(min=0)


def _apply_intensity(image: Tensor, drawn: Drawn, is_dummy_2d: bool) -> None:
    if drawn.noise is not None:
        apply_noise(image, drawn.noise)
    if drawn.blur is not None:
        apply_blur(image, drawn.blur)
    if drawn.brightness is not None:
        apply_brightness(image, drawn.brightness)
    if drawn.contrast is not None:
        apply_contrast(image, drawn.contrast)
    if drawn.coarsening is not None:
        apply_coarsening(image, drawn.coarsening, is_dummy_2d)
    if drawn.inverted_gamma is not None:
        apply_gamma(image, drawn.inverted_gamma, is_inverted=True)
    if drawn.gamma is not None:
        apply_gamma(image, drawn.gamma, is_inverted=False)
