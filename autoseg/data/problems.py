"""Every kind of problem that data can have: a stable code, how severe it is, what it means, and what helps."""

from __future__ import annotations

from typing import NamedTuple

from autoseg.core.limits import printable
from autoseg.data.model import Problem


class Explanation(NamedTuple):
    """What a code stands for.

    Attributes:
        severity: "refused" (the case is not used), "warning" (used, look at it) or "note" (handled, for the record).
        meaning: what was found, and why it matters.
        remedy: what to do about it.
    """

    severity: str
    meaning: str
    remedy: str


PROBLEM_CODES: dict[str, Explanation] = {
    "E0202": Explanation(
        "refused",
        "The folder is in none of the layouts that AutoSeg knows.",
        "arrange it as one of the examples shows, or write a manifest.csv with the columns case,image,label",
    ),
    "E0203": Explanation(
        "refused",
        "An image file of the case is missing; with several channels, all of them are needed.",
        "add the file under the name given, or remove the case",
    ),
    "E0204": Explanation(
        "refused",
        "The case has no label file, so nothing can be learned from it.",
        "add the label file, named as the image is, or remove the image",
    ),
    "E0205": Explanation(
        "warning",
        "The dataset announces another number of training cases than there are: some may have been lost in copying.",
        "copy the missing cases, or correct numTraining in dataset.json",
    ),
    "E0206": Explanation(
        "warning",
        "A file lies among the images or labels but belongs to no case.",
        "add its partner, rename it, or move it elsewhere; it is not used",
    ),
    "E0207": Explanation(
        "warning",
        "An image in imagesTr carries no channel index; nnU-Net's format knows an image by <case>_0000 only.",
        "rename it to <case>_0000 with the same ending; until then it is not used",
    ),
    "E0208": Explanation(
        "warning",
        "Two cases have the same image, byte for byte. In different folds they make the validation scores too good.",
        "remove one of them; where their labels differ, find out which one is right",
    ),
    "E0211": Explanation(
        "refused",
        "The channels of the case do not share one grid (shape, spacing, origin or direction differ).",
        "resample the channels onto the grid of the first one, or remove the case",
    ),
    "E0212": Explanation(
        "refused",
        "The labels lie on another grid than the image, so that voxels cannot be compared.",
        "find out which of them states its position wrongly (was the label map drawn on this image?). Only if both are "
        "right, resample the labels onto the image with nearest neighbors, for example with SimpleITK: "
        "sitk.Resample(labels, image, sitk.Transform(), sitk.sitkNearestNeighbor); or remove the case",
    ),
    "E0213": Explanation(
        "note",
        "Image and labels differ in their geometry by less than a thousandth of a voxel: rounding of a writer.",
        "nothing: the image's geometry is used",
    ),
    "E0214": Explanation(
        "note",
        "The labels lie on the image's voxels, but are stored along other axes of the body (flipped or exchanged).",
        "nothing: they are turned as the image is stored, which interpolates nothing",
    ),
    "E0215": Explanation(
        "refused",
        "The file has a fourth axis (time or channels), and the dataset does not say that it holds the channels.",
        "split it into one 3D file per channel (<case>_0000, <case>_0001, ...), or declare the channels in the "
        'description of a Decathlon dataset or in a manifest.json with "four_d": true',
    ),
    "E0216": Explanation(
        "refused",
        "The image holds another number of channels than the dataset declares.",
        "add the missing channel files, convert the image (RGBA to RGB, RGB to gray), or correct channel_names",
    ),
    "E0217": Explanation(
        "note",
        "The reader left out or converted something unusual in the file, for example an alpha channel.",
        "nothing, if the sentence describes what you expect; otherwise convert the file",
    ),
    "E0218": Explanation(
        "note",
        "Image and labels have the same shape, and one of them does not state where its voxels lie (formats without "
        "geometry, NIfTI without qform and sform), or the labels lie on the image's other NIfTI form (qform, sform).",
        "nothing: they are matched voxel by voxel on the image's geometry; look at one case if you are unsure",
    ),
    "E0219": Explanation(
        "note",
        "No file says how it lies in the body: NIfTI without qform and sform, NRRD without a space, TIFF.",
        "nothing, if all images are stored alike; else give them their orientation, as left and right cannot be told",
    ),
    "E0220": Explanation(
        "warning",
        "The case does not say how it lies in the body, others do. It is used as stored, which may be otherwise than "
        "they are used; lateral classes are then not exchanged in mirrored images.",
        "give its files their orientation (NIfTI: qform or sform; NRRD: space and space directions), or remove it",
    ),
    "E0221": Explanation(
        "note",
        "The case is stored along other axes of the body than most (such as R-A-S instead of L-P-S).",
        "nothing: it is turned as most cases are stored, which interpolates nothing; so are new images, and their "
        "predictions are turned back",
    ),
    "E0222": Explanation(
        "note",
        "An entry of dataset.json or of a manifest is spelled otherwise than AutoSeg spells it, or is not read.",
        "nothing, if the sentence says what you mean; otherwise correct the entry",
    ),
    "E0223": Explanation(
        "refused",
        "The name of a file cannot be the name of a case: it is not UTF-8, holds control characters, begins with a "
        "dot, or is too long for the files that are made of the case.",
        "rename the files of the case",
    ),
    "E0224": Explanation(
        "refused",
        "The dataset mixes volumes and pictures (single slices without thickness). A plan is for one kind, and a "
        "picture has no spacing along its missing axis that a network of volumes could use.",
        "make two datasets of them; or store each picture as a volume of one slice with its true thickness",
    ),
    "E0225": Explanation(
        "warning",
        "The label file and the image are the same file, or copies of it: a network would learn to copy.",
        "correct the path in the list of cases, or put the image where its labels were copied to",
    ),
    "E0226": Explanation(
        "warning",
        "Label maps with a foreground are equal, byte for byte, although their images differ: one was probably copied "
        "under the name of another case. Training on it teaches the wrong places.",
        "look at these cases in a viewer, and put the right label map in the place of the copy",
    ),
    "E0301": Explanation(
        "refused",
        "The label map holds values that the dataset does not declare.",
        "correct the label map, or declare the values as classes or as `ignore` in dataset.json",
    ),
    "E0302": Explanation(
        "refused",
        "The label map does not hold whole numbers, or not one number per voxel (fractions, NaN, colors).",
        "export it as integers, one value per class, without smoothing or interpolation",
    ),
    "E0303": Explanation(
        "warning",
        "The label map is background everywhere. This is right for a case without findings, and a fault otherwise.",
        "make sure that the case shows none of the classes; it is used",
    ),
    "E0305": Explanation(
        "note",
        "The label values in the files have gaps. Training uses consecutive values; predictions get the originals.",
        "nothing: values are mapped in memory and mapped back on output",
    ),
    "E0306": Explanation(
        "note",
        "The label files number single objects. They are read as one class `object`; predictions hold 0 and 1.",
        "declare `labels` in a dataset.json or manifest.json if the values are classes",
    ),
    "E0307": Explanation(
        "warning",
        "Every voxel of the label map has the ignore value, so nothing can be learned from the case or tested on it.",
        "annotate something in it, or remove the case; it is used, but only costs time",
    ),
    "E0308": Explanation(
        "warning",
        "A class is declared, but no case shows it: nothing can be learned about it, and it is never predicted.",
        "correct its value in the labels, add cases that show it, or leave the class out",
    ),
    "E0309": Explanation(
        "warning",
        "One case alone shows a class: the fold that validates this case has never seen the class in training.",
        "add cases that show it, and do not rely on the class's score",
    ),
    "E0311": Explanation(
        "warning",
        "A few voxels of the image are NaN or infinite (less than 0.1 % of a channel).",
        "nothing: they are replaced by the channel's smallest finite value; look where they come from",
    ),
    "E0312": Explanation(
        "refused",
        "At least 0.1 % of a channel's voxels are NaN or infinite.",
        "export the image again, or replace these voxels yourself; or remove the case",
    ),
    "E0313": Explanation(
        "warning",
        "A channel of the image has the same value everywhere: it shows nothing.",
        "make sure that the export worked; the case is used",
    ),
    "E0314": Explanation(
        "refused",
        "Voxels hold numbers so large (beyond 1e18) that mean and deviation of the image leave the range of single "
        "precision: padding such as -3.4e38, or a damaged voxel. All other voxels would become zeros.",
        "replace these voxels by the value of the background (np.where(abs(image) > 1e18, background, image)), or "
        "export the image again without padding",
    ),
    "E0315": Explanation(
        "refused",
        "The label file itself names its values (segments of 3D Slicer), and otherwise than the dataset: classes would "
        "be exchanged.",
        "export the segments in the order of the dataset's classes (3D Slicer: Export to files, with a color table), "
        "or correct the names in the file or in the dataset",
    ),
    "E0316": Explanation(
        "warning",
        "Label files themselves say what a value stands for (names of segments, colors of a palette), and not all "
        "say the same: classes may be exchanged in some of them. The numbers are used as they are.",
        "look at these cases; where the numbers differ, save all label maps with the same number for each class",
    ),
    "E0317": Explanation(
        "warning",
        "Nothing declares the classes, so each value in the label files became one. Some of them have less than 2 % of "
        "the labeled voxels (gray edges of a drawn or resampled mask, slips of the pen, ids of objects), or no "
        "case holds two of them (1 in some and 255 in others, for the same thing).",
        "declare the classes in a dataset.json, if only to confirm them; correct label maps that hold other values; "
        "write 1 for every object where values number objects",
    ),
    "E0401": Explanation(
        "refused",
        "A file is damaged, truncated, of an unsupported kind, or its header cannot be true. Many programs read such "
        "files without an error and return zeros or wrong voxels for the missing part.",
        "copy the file again from its source and compare the sizes, or remove the case",
    ),
    "E0402": Explanation(
        "refused",
        "Examining the case ended its process, twice: memory ran out, the reader crashed on the file, or it hung.",
        "look at the file with another program; if memory ran out, use fewer --jobs; or remove the case",
    ),
}
"""Code -> explanation; `autoseg explain E0401` shows it. Codes are never reused for something else."""


def problem(code: str, case: str | None, file: str | None, what: str, do: str | None = None) -> Problem:
    """A problem of a kind that is known, with the kind's severity and, unless there is a better one, its remedy.

    Args:
        code: a key of `PROBLEM_CODES`.
        case: case identifier, or None if the whole dataset is concerned.
        file: path relative to the dataset's root, or None.
        what: one sentence with the values found.
        do: a remedy that fits better than the kind's own.
    """
    kind = PROBLEM_CODES[code]
    file = None if file is None else printable(file)  # a name that is not UTF-8 could not be read back from check.json
    return Problem(code, kind.severity, case, file, printable(what, kept="\n"), do or kind.remedy)
