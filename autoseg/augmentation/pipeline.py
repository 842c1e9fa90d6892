"""A list of transforms on a batch: every random number is drawn first, then the transforms are applied in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from autoseg.augmentation.spec import AugmentationSpec


@dataclass(slots=True)
class Sample:
    """One patch of a batch while it is augmented; transforms change it.

    Attributes:
        image: (c, *shape) float32.
        labels: (*shape) signed integers, negative outside the nonzero mask.
        first_stage: (*shape), label map of a cascade's first stage; None without one.
    """

    image: Tensor
    labels: Tensor
    first_stage: Tensor | None = None


class Transform:
    """A transform is a record of its settings, probabilities among them, that draws and applies.

    What is drawn depends on the generator alone, and nothing is drawn while a transform is applied: so a batch does not
    depend on the thread or the device that makes it.
    """

    reads_margin: ClassVar[bool] = False
    """Whether it cuts the patch out of the larger initial patch; the others see the patch alone."""

    def draw(self, generator: torch.Generator, spec: AugmentationSpec, channels: int) -> Any:
        """The random parameters for one sample of so many image channels; None if it stays as it is."""
        raise NotImplementedError

    def apply(self, sample: Sample, drawn: Any, spec: AugmentationSpec) -> None:
        """Changes the sample; its tensors may be modified or replaced."""
        raise NotImplementedError

    def apply_to_all(self, samples: Sequence[Sample], drawn: Sequence[Any], spec: AugmentationSpec) -> None:
        """Changes the samples of a batch for which it has drawn; overridden where several at once are faster."""
        for sample, parameters in zip(samples, drawn, strict=True):
            self.apply(sample, parameters, spec)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Transforms in order; without any, the middle of each patch is cut and masked."""

    transforms: tuple[Transform, ...] = ()

    def __call__(
        self,
        image: Tensor,
        labels: Tensor,
        spec: AugmentationSpec,
        generator: torch.Generator,
        first_stage: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A batch augmented for training, on the device of the image.

        Args:
            image: (b, c, *initial patch).
            labels: (b, *initial patch), signed integers, negative outside the nonzero mask.
            spec: of the configuration.
            generator: on the CPU; given the same state, the result is the same.
            first_stage: (b, *initial patch), the label map of a cascade's first stage, which is moved like the labels.

        Returns:
            New tensors: image (b, c, *patch) float32, labels (b, *patch) of the given dtype, none negative. With
            `first_stage` the image has one more channel for each of the spec's `first_stage_values`.
        """
        drawn = [self.draw(generator, spec, image.shape[1]) for _ in image]
        maps = [None] * len(image) if first_stage is None else list(first_stage)
        samples = [Sample(*patch) for patch in zip(image, labels, maps, strict=True)]
        return finish(self._augmented(samples, drawn, spec), spec)

    def draw(self, generator: torch.Generator, spec: AugmentationSpec, channels: int) -> list[Any]:
        """What each transform drew for one sample."""
        return [transform.draw(generator, spec, channels) for transform in self.transforms]

    def _augmented(self, samples: list[Sample], drawn: Sequence[Sequence[Any]], spec: AugmentationSpec) -> list[Sample]:
        # A patch is cut as late as a transform allows that reads beyond it, and before any that works in place: what
        # was given is not modified.
        uncut = set(range(len(samples)))
        for transform, parameters in zip(self.transforms, zip(*drawn, strict=True), strict=True):
            chosen = [index for index, own in enumerate(parameters) if own is not None]
            for index in uncut.intersection(() if transform.reads_margin else chosen):
                samples[index] = cut(samples[index], spec.patch_size)
            uncut.difference_update(chosen)
            transform.apply_to_all([samples[i] for i in chosen], [parameters[i] for i in chosen], spec)
        return [cut(own, spec.patch_size) if index in uncut else own for index, own in enumerate(samples)]


def cut(sample: Sample, patch_size: tuple[int, ...]) -> Sample:
    """A copy of the middle of a sample, the image as float32."""
    image, labels = center_crop(sample.image, patch_size), center_crop(sample.labels, patch_size)
    return Sample(
        image.to(torch.float32, copy=True, memory_format=torch.contiguous_format),
        labels.clone(memory_format=torch.contiguous_format),
        None if sample.first_stage is None else center_crop(sample.first_stage, patch_size),
    )


def center_crop(batch: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """The middle (..., *patch_size) of (..., *shape), as a view; each axis of the shape at least the patch's."""
    first = batch.dim() - len(patch_size)
    for axis, size in enumerate(patch_size, start=first):
        batch = batch.narrow(axis, batch.shape[axis] // 2 - size // 2, size)
    return batch


def finish(samples: Sequence[Sample], spec: AugmentationSpec) -> tuple[Tensor, Tensor]:
    """Samples (c, *patch) as the batch that a network gets: masked, labels from 0 on, first stage as channels.

    Masked channels of the image are 0 where labels are negative. A first stage gets one channel per label value of the
    spec; other values appear nowhere.
    """
    image, labels = torch.stack([own.image for own in samples]), torch.stack([own.labels for own in samples])
    for channel in spec.masked_channels:
        image[:, channel].masked_fill_(labels < 0, 0.0)
    maps = [own.first_stage for own in samples if own.first_stage is not None]
    if maps:
        first_stage = torch.stack(maps)
        channels = torch.stack([first_stage == value for value in spec.first_stage_values], 1)
        image = torch.cat((image, channels.to(image.dtype)), 1)
    return image, labels.clamp_(min=0)
