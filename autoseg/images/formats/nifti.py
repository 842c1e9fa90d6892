"""NIfTI-1 and -2, plain and gzip-compressed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import SLICE_SPACING_OF_2D, Geometry, NiftiForms, geometry_of, is_picture
from autoseg.images.compare import ROUNDING_VOXELS, SAME_FORM_VOXELS, displacement
from autoseg.images.format import Format
from autoseg.images.formats import grids, headers, voxel_data
from autoseg.images.image_errors import unreadable
from autoseg.images.volume import Volume, is_plane

_SAME_SPACING = 1e-3
"""Relative difference up to which pixdim and the form state the same spacing; that of pixdim is used then."""

_LONGEST_QUATERNION = 1 + 1e-4
"""Length up to which b, c, d are a rotation that was rounded."""

_LARGEST_CODE = 32767
"""Of qform and sform: what 16 bits hold."""

_LONGEST_AXIS = 32767
"""Voxels: NIfTI-1 counts them in 16 bits."""

_GZIP_MAGIC = b"\x1f\x8b"

_LENGTHS = (348, 540)
"""What the first field says in the headers of NIfTI-1 (and ANALYZE) and NIfTI-2: their bytes."""

_FIRST_VOXEL = 352
"""Byte of the first voxel that is written: behind the header, and four zeros that say that there are no extensions."""

_KINDS = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
"""Types of a voxel by the header's `datatype`."""

_CODE_OF_KIND = {kind: code for code, kind in _KINDS.items()}

_COLORS = {128: 3, 2304: 4}
"""Numbers of one byte each that make a voxel of RGB and RGBA."""

_UNSUPPORTED = {
    1: ("single bits", "export it with 8-bit integers"),
    32: ("complex numbers", "export their magnitude (or real and imaginary part as two channels)"),
    1792: ("complex numbers", "export their magnitude (or real and imaginary part as two channels)"),
    2048: ("complex numbers", "export their magnitude (or real and imaginary part as two channels)"),
    1536: ("floats of 128 bits", "convert them to float32"),
}

_MEANINGS = {1004: "matrices", 1005: "symmetric matrices", 1006: "displacement vectors", 1007: "vectors"}
"""What the header's intent code says of several numbers per voxel."""

_CIFTI = range(3000, 3100)
"""Intent codes of CIFTI-2 (connectivity, time series, scalars, labels of the brain's surface)."""

_CODES = ("unknown", "scanner", "aligned", "Talairach", "MNI", "template")
"""What codes of qform and sform say."""

_NAMES = (
    *("length", "kind", "bits", "dims", "steps", "offset", "slope", "inter", "intent", "units", "qform", "sform"),
    *("quaternion", "place", "rows", "magic"),
)
"""Fields sizeof_hdr, datatype, bitpix, dim, pixdim, vox_offset, scl_slope, scl_inter, intent_code, xyzt_units,
qform_code, sform_code, quatern_b to _d, qoffset_x to _z, srow_x to _z, and magic of the standards."""


def _header(formats: str, offsets: tuple[int, ...], size: int) -> np.dtype[np.void]:
    return np.dtype({"names": _NAMES, "formats": formats.split(), "offsets": offsets, "itemsize": size})


_NIFTI_1 = _header(
    "i4 i2 i2 8i2 8f4 f4 f4 f4 i2 u1 i2 i2 3f4 3f4 12f4 S4",
    (0, 70, 72, 40, 76, 108, 112, 116, 68, 123, 252, 254, 256, 268, 280, 344),
    348,
)
_NIFTI_2 = _header(
    "i4 i2 i2 8i8 8f8 i8 f8 f8 i4 i4 i4 i4 3f8 3f8 12f8 S4",
    (0, 12, 14, 16, 104, 168, 176, 184, 504, 500, 344, 348, 352, 376, 400, 4),
    540,
)
"""Type and first byte of the fields, bytes of the header. Source: nifti1.h and nifti2.h of the standards."""


def _verify(path: Path) -> None:
    voxel_data.verify_data(_layout(_fields(path), path), path)


def _fields(path: Path) -> Any:
    """The header's fields.

    Raises:
        UnreadableFile: there is no such header; the reason where it is that of another kind of file.
    """
    header = _first_bytes(path)
    for fields, magic in ((_NIFTI_1, b"n+1"), (_NIFTI_2, b"n+2")):
        for layout in (fields, fields.newbyteorder()) if len(header) >= fields.itemsize else ():
            found = np.frombuffer(header, layout, count=1)[0]
            if (found["length"], found["magic"]) == (fields.itemsize, magic):
                return found
    if not _is_header(header):
        raise unreadable(path, "is not a NIfTI file, or its header is damaged")
    is_pair = header[344:347] == b"ni1" or header[4:7] == b"ni2"
    kind = "the header of a NIfTI pair (.hdr and .img)" if is_pair else "ANALYZE 7.5, or its header is damaged"
    raise unreadable(path, f"is {kind}", do="convert it to .nii.gz; of ANALYZE, find out first which side is left")


def _first_bytes(path: Path) -> bytes:
    """The decompressed header, or as much as there is of it.

    Raises:
        UnreadableFile: the file is compressed and does not say so in its name, or the other way round, or a pair's.
    """
    is_named_gz = path.name.lower().endswith(".gz")
    with path.open("rb") as stream:
        stored = stream.read(_NIFTI_2.itemsize)
        if is_named_gz and stored[:2] == _GZIP_MAGIC:
            stream.seek(0)
            return voxel_data.start_of(voxel_data.inflated(stream, "gzip", path, _NIFTI_2.itemsize), _NIFTI_2.itemsize)
    if stored[:2] == _GZIP_MAGIC:
        raise unreadable(path, "is gzip-compressed, which its name does not say", do="name it .nii.gz")
    if is_named_gz and _is_header(stored):
        raise unreadable(path, "is not compressed, although its name says so", do="name it .nii")
    return stored


def _is_header(stored: bytes) -> bool:
    """Whether bytes begin as the header of NIfTI or of ANALYZE, from which it came."""
    return int.from_bytes(stored[:4], "little") in _LENGTHS or int.from_bytes(stored[:4], "big") in _LENGTHS


def _layout(fields: Any, path: Path) -> voxel_data.Layout:
    """The layout that a header promises.

    Raises:
        UnreadableFile: what it says cannot be true, or is no image of numbers.
    """
    headers.check_place((*_qform(fields), *_sform(fields)), path)
    (count, *dims), (_, *steps) = fields["dims"].tolist(), fields["steps"].tolist()
    offset = float(fields["offset"])
    _check_kind(int(fields["kind"]), int(fields["intent"]), path)
    if not 0 <= min(fields["qform"], fields["sform"]) <= max(fields["qform"], fields["sform"]) <= _LARGEST_CODE:
        codes = f"qform_code {fields['qform']}, sform_code {fields['sform']}"
        raise unreadable(path, f"has an impossible header: {codes}")
    if not 1 <= count <= 7:
        raise unreadable(path, f"has an impossible header: {count} dimensions")
    if not 348 <= offset < 2**31 or offset != int(offset):  # NaN is not
        raise unreadable(path, f"has an impossible header: voxel data at byte {offset}")
    sizes = tuple(dims[:count])
    # a single slice often carries a spacing of 0; there is no second slice for it to misplace
    spacing = tuple(1.0 if size == 1 and step == 0 else step for size, step in zip(sizes[:3], steps, strict=False))
    colors = _COLORS.get(int(fields["kind"]))
    return voxel_data.checked(
        voxel_data.Layout(
            dims=sizes if colors is None else (colors, *sizes),
            kind=np.dtype(_KINDS.get(int(fields["kind"]), "u1")).newbyteorder(fields.dtype["length"].byteorder),
            spacing_mm=spacing,
            data=path,
            encoding="gzip" if path.name.lower().endswith(".gz") else "raw",
            skip=int(offset),
        ),
        path,
    )


def _check_kind(kind: int, intent: int, path: Path) -> None:
    if intent in _CIFTI:
        raise unreadable(
            path,
            "is a CIFTI-2 file: values on the surface of the brain, not an image",
            do="export the volume, for example with wb_command -cifti-separate ... -volume-all, or remove the case",
        )
    if kind not in _KINDS and kind not in _COLORS:
        what, do = _UNSUPPORTED.get(kind, ("an unknown kind, or its header is damaged", "export it again as numbers"))
        raise unreadable(path, f"holds voxels of a kind that is not supported (NIfTI datatype {kind}: {what})", do=do)


def _read(path: Path, four_d: bool) -> Volume:
    fields = _fields(path)
    layout, is_color = _layout(fields, path), int(fields["kind"]) in _COLORS
    _check_axes(fields, four_d, path)
    scaling = _scaling(fields, path)
    stored = voxel_data.read_data(layout, path)
    array, is_2d = grids.channels_first(stored, stored.ndim - 1 if is_color else None, four_d, path)
    geometry, notes = _grid(_forms(fields), array.shape[1:], is_2d, path)
    if is_color:
        return Volume(array, geometry, (*notes, f"its colors were read as {len(array)} channels"))
    return Volume(array, geometry, notes) if scaling is None else Volume(_scaled(array, *scaling), geometry, notes)


def _check_axes(fields: Any, four_d: bool, path: Path) -> None:
    """Checks the axes before anything is decoded, and says what several numbers per voxel mean if the header does."""
    sizes = tuple(fields["dims"][1 : fields["dims"][0] + 1].tolist())
    meaning = _MEANINGS.get(int(fields["intent"]))
    if meaning is not None and len(sizes) > 4 and sizes[4] > 1:
        raise unreadable(
            path,
            f"holds {meaning} of {sizes[4]} numbers (NIfTI intent {int(fields['intent'])}), not intensities",
            do="store each component as a channel, in a file of its own, or remove the case",
        )
    grids.check_axes(sizes, four_d, _COLORS.get(int(fields["kind"]), 1), path)


def _scaling(fields: Any, path: Path) -> tuple[float, float] | None:
    """Slope and intercept of the stored numbers; None where the slope is 0 or no number, which means no scaling.

    Raises:
        UnreadableFile: there is a slope, but the intercept is no number.
    """
    slope, inter = float(fields["slope"]), float(fields["inter"])
    if not np.isfinite(slope) or slope == 0 or (slope, inter) == (1.0, 0.0) or int(fields["kind"]) in _COLORS:
        return None
    if not np.isfinite(inter):
        raise unreadable(path, f"has an impossible header: scl_slope {slope:g} with scl_inter {inter}")
    return slope, inter


def _scaled(array: NDArray[Any], slope: float, inter: float) -> NDArray[Any]:
    """Stored numbers times the slope plus the intercept, computed in double precision, slice by slice."""
    scaled = np.empty(array.shape, np.result_type(array.dtype, np.float32))
    for source, target in zip(array.reshape(-1, *array.shape[2:]), scaled.reshape(-1, *array.shape[2:]), strict=True):
        with np.errstate(over="ignore"):
            target[...] = source.astype(np.float64) * slope + inter
    return scaled


def _qform(fields: Any) -> Any:
    """The rotation and place of the qform; zeros where its code says that nothing is meant and no number is there."""
    return _stated_numbers(int(fields["qform"]), (*fields["quaternion"].tolist(), *fields["place"].tolist()))


def _sform(fields: Any) -> Any:
    """The rows of the sform; zeros as in `_qform`."""
    return _stated_numbers(int(fields["sform"]), tuple(fields["rows"].tolist()))


def _stated_numbers(code: int, numbers: tuple[float, ...]) -> tuple[float, ...]:
    return numbers if code != 0 or headers.is_place(numbers) else (0.0,) * len(numbers)


def _forms(fields: Any) -> NiftiForms:
    b, c, d, *place = _qform(fields)
    handedness, *steps = fields["steps"][:4].tolist()  # those of axes that are not there were not checked
    x, y, z = (step if headers.is_plausible(step) else 0.0 for step in steps)
    return NiftiForms(
        qform_code=int(fields["qform"]),
        sform_code=int(fields["sform"]),
        unit_code=int(fields["units"]) % 8,
        pixdim=(-1.0 if handedness < 0 else 1.0, x, y, z),
        quaternion=(b, c, d),
        offset=tuple(place),
        sform=_sform(fields),
    )


def _grid(forms: NiftiForms, shape: tuple[int, int, int], is_2d: bool, path: Path) -> tuple[Geometry, tuple[str, ...]]:
    """The grid of a header: of its sform if that has a code, else of its qform, else one of unknown orientation.

    Spacings are those of pixdim, except where the form has others.

    Raises:
        UnreadableFile: the grid is sheared, or its rotation is none.
    """
    stated = forms.grids(shape)
    name, grid = next(iter(stated.items()), ("", geometry_of(shape, forms.steps_mm, (0.0, 0.0, 0.0), np.eye(3))))
    if name == "qform" and np.linalg.norm(forms.quaternion) > _LONGEST_QUATERNION:
        raise unreadable(path, f"has an impossible header: {forms.quaternion} is no rotation (quatern_b, _c, _d)")
    notes, steps = _notes(forms, stated), forms.steps_mm
    count = 2 if is_2d else 3
    if not np.allclose(grid.spacing_mm[::-1][:count], steps[:count], rtol=_SAME_SPACING, atol=0):
        stated_mm, own_mm = (" x ".join(f"{step:.6g}" for step in three) for three in (steps, grid.spacing_mm[::-1]))
        notes = (*notes, f"its pixdim says {stated_mm} mm (x, y, z), its {name} {own_mm} mm; the {name} is used")
        z, y, x = grid.spacing_mm
        steps = (x, y, z)
    geometry, more = grids.grid_of(shape, *_placed(grid, steps, is_2d), path)
    notes = (*notes, *more, *grids.unit_notes(forms.unit_mm, geometry.spacing_mm))
    return replace(geometry, has_orientation=bool(stated), unit_mm=forms.unit_mm, forms=forms), notes


def _placed(grid: Geometry, steps: tuple[float, ...], is_2d: bool) -> tuple[Any, NDArray[np.float64], Any]:
    """Steps, direction columns and origin; only two of each of a 2D image that lies in the plane of x and y."""
    if not is_2d:
        return steps, grid.columns, grid.origin_mm
    if np.allclose(grid.columns[2, :2], 0, atol=grids.LARGEST_SHEAR):
        return steps[:2], grid.columns[:2, :2], grid.origin_mm[:2]
    return (*steps[:2], SLICE_SPACING_OF_2D * max(steps[:2])), grid.columns, grid.origin_mm


def _notes(forms: NiftiForms, stated: dict[str, Geometry]) -> tuple[str, ...]:
    """Says so when a form cannot be used, or when there are two that differ."""
    codes = {"sform": forms.sform_code, "qform": forms.qform_code}
    named = {form: f"{form} ({_CODES[code] if 0 <= code < len(_CODES) else code})" for form, code in codes.items()}
    unusable = [form for form, code in codes.items() if code > 0 and form not in stated]
    notes = [f"its {named[form]} holds a vector of zeros and was not used" for form in unusable]
    if len(stated) == 2 and displacement(stated["sform"], stated["qform"]) > SAME_FORM_VOXELS:
        notes.append(
            f"its {named['sform']} and {named['qform']} state two different grids; the sform is used, as most programs "
            "do, and label maps written for it keep both"
        )
    return tuple(notes)


def _write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Several channels become a fourth axis: few programs read NIfTI's vectors; it has no 2D images of several."""
    forms, is_flat = _stated_for(geometry, len(array), path)
    voxels = np.ascontiguousarray(array[0, 0] if is_flat else array[0] if len(array) == 1 else array)
    header = np.zeros((), _NIFTI_1)
    header["length"], header["magic"], header["offset"] = _NIFTI_1.itemsize, b"n+1", _FIRST_VOXEL
    header["kind"], header["bits"] = _CODE_OF_KIND[voxels.dtype.str[1:]], 8 * voxels.dtype.itemsize
    header["dims"], header["steps"] = 1, 1
    header["dims"][: voxels.ndim + 1] = (voxels.ndim, *voxels.shape[::-1])
    header["steps"][:4], header["units"] = forms.pixdim, forms.unit_code
    header["qform"], header["quaternion"], header["place"] = forms.qform_code, forms.quaternion, forms.offset
    header["sform"], header["rows"] = forms.sform_code, forms.sform
    start = header.tobytes() + bytes(_FIRST_VOXEL - _NIFTI_1.itemsize)
    with path.open("wb") as stream:
        if path.name.lower().endswith(".gz"):
            voxel_data.write_gzip(stream, start, voxels)
        else:
            stream.writelines((start, voxels.data))


def _stated_for(geometry: Geometry, channels: int, path: Path) -> tuple[NiftiForms, bool]:
    """What a header says of a grid, and whether it is that of a 2D image.

    It is what the NIfTI file said that the grid was read from, if it was: other programs then see image and label map
    in the same place, whichever form they follow. Else both forms have the code 1, or 0 where orientation is unknown.
    """
    forms, is_single = geometry.forms, channels == 1
    if forms is not None:
        is_2d = is_picture(geometry.shape, geometry.spacing_mm)
        if displacement(geometry, _grid(forms, geometry.shape, is_2d, path)[0]) < ROUNDING_VOXELS:
            return forms, is_2d and is_single
    return _made_forms(geometry), is_plane(geometry) and is_single


def _made_forms(geometry: Geometry) -> NiftiForms:
    from scipy.spatial.transform import Rotation

    rotation = np.array([[-1.0], [-1.0], [1.0]]) * geometry.columns
    handedness = 1.0 if np.linalg.det(rotation) > 0 else -1.0
    steps, place = geometry.spacing_mm[::-1], np.multiply(geometry.origin_mm, (-1, -1, 1))
    b, c, d, a = Rotation.from_matrix(rotation * (1.0, 1.0, handedness)).as_quat().tolist()
    b, c, d = (-b, -c, -d) if a < 0 else (b, c, d)  # the standard leaves a out, as it is never negative
    x, y, z = place.tolist()
    return NiftiForms(
        qform_code=int(geometry.has_orientation),
        sform_code=int(geometry.has_orientation),
        unit_code=2,
        pixdim=(handedness, *steps),
        quaternion=(b, c, d),
        offset=(x, y, z),
        sform=tuple(np.column_stack((rotation * steps, place)).ravel().tolist()),
    )


def _limit(array: NDArray[Any], _geometry: Geometry) -> str | None:
    if max(array.shape) > _LONGEST_AXIS:
        return f"{max(array.shape)} voxels along an axis"
    return grids.unknown_type(array, _CODE_OF_KIND)


NIFTI = Format(
    endings=(".nii.gz", ".nii"),
    verify=_verify,
    read=_read,
    read_verifies=True,
    write=_write,
    limit=_limit,
    ending_is_compression=True,
)
