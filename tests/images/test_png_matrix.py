"""PNG in all combinations of color, depth, interlace, filter and further chunks, whole and cut, as they were written.

The writer below follows the specification and shares nothing with the decoders; what it was given is the truth.
"""

import struct
import zlib

import numpy as np

from autoseg.images.readers import read_image, read_labels
from tests.images.examples import check_cells, matrix_cells, refused

GRAY, RGB, INDEX, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
SAMPLES = {GRAY: 1, RGB: 3, INDEX: 1, GRAY_ALPHA: 2, RGBA: 4}
KINDS = [
    *((GRAY, bits) for bits in (1, 2, 4, 8, 16)),
    *((INDEX, bits) for bits in (1, 2, 4, 8)),
    *((color, bits) for color in (RGB, GRAY_ALPHA, RGBA) for bits in (8, 16)),
]
SIZES = [(13, 11), (1, 1), (3, 2), (2, 9)]
"""Columns and rows; interlaced, the small ones have passes without a pixel."""

ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
FILTERS = [0, 1, 2, 3, 4, "mixed"]
EXTRAS = ["", "tRNS", "sBIT", "gAMA tRNS sBIT"]
DAMAGES = ["", "half", "row", "byte", "no end", "checksum", "excess"]
PALETTE = np.random.default_rng(5).integers(0, 256, (256, 3)).astype(np.uint8)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def packed(row, bits):
    """The bytes of a row of numbers, the first in the highest bits."""
    digits = "".join(f"{number:0{bits}b}" for number in row.ravel())
    length = -(-len(digits) // 8)
    return int(digits.ljust(8 * length, "0"), 2).to_bytes(length, "big")


def prediction(number, left, above, corner):
    """What a filter predicts for a byte from three neighbors."""
    paeth = min((left, above, corner), key=lambda neighbor: abs(left + above - corner - neighbor))
    return (0, left, above, (left + above) // 2, paeth)[number]


def filtered(rows, kind, step):
    """The rows of a picture or of a pass, each behind the number of its filter."""
    former, result = bytes(len(rows[0])), b""
    for place, row in enumerate(rows):
        number = place % 5 if kind == "mixed" else kind
        left, corner = bytes(step) + row, bytes(step) + former
        neighbors = zip(left, former, corner, strict=False)
        result += bytes([number, *((row[i] - prediction(number, *near)) % 256 for i, near in enumerate(neighbors))])
        former = row
    return result


def scanlines(pixels, bits, is_interlaced, kind):
    """All bytes before compression of (y, x, c) numbers, and those of the last row."""
    step = max(1, pixels.shape[2] * bits // 8)
    parts = []
    for left, top, right, down in ADAM7 if is_interlaced else [(0, 0, 1, 1)]:
        part = pixels[top::down, left::right]
        if part.size:
            parts.append(filtered([packed(row, bits) for row in part], kind, step))
            last = 1 + len(packed(part[-1], bits))
    return b"".join(parts), last


def chunks_before(names, color, bits):
    contents = {
        "gAMA": struct.pack(">I", 45455),
        "sBIT": bytes([max(1, min(bits, 8) - 2)] * (3 if color == INDEX else SAMPLES[color])),
        "tRNS": bytes([7, 0]) if color == INDEX else struct.pack(">H", 1) * SAMPLES[color],
    }
    palette = chunk(b"PLTE", PALETTE[: 2**bits].tobytes()) if color == INDEX else b""
    early = [chunk(name.encode(), contents[name]) for name in ("gAMA", "sBIT") if name in names]
    return b"".join((*early, palette, chunk(b"tRNS", contents["tRNS"]) if "tRNS" in names else b""))


def png_bytes(pixels, color, bits, is_interlaced, kind, extra, damage):
    """The file, and bytes of pixels found and due."""
    lines, last = scanlines(pixels, bits, is_interlaced, kind)
    due = len(lines)
    lines = lines[: {"half": due // 2, "row": due - last, "byte": due - 1}.get(damage, due)]
    stream = zlib.compress(lines + bytes(5 * (damage == "excess")))
    if damage == "no end":
        stream = stream[:-5]
    if damage == "checksum":
        stream = stream[:-1] + bytes([stream[-1] ^ 1])
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, color, 0, 0, is_interlaced)
    data = b"".join(chunk(b"IDAT", stream[start : start + 50]) for start in range(0, len(stream), 50))
    content = chunk(b"IHDR", header) + chunks_before(extra, color, bits) + data + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content, len(lines), due


def notes_expected(color, bits, extra):
    """A word of each note that has to be there."""
    return {
        *(["stretched"] if color == GRAY and bits in (2, 4) else []),
        *(["transparency"] if "tRNS" in extra else []),
        *(["palette"] if color == INDEX else []),
        *(["alpha"] if color == GRAY_ALPHA else []),
    }


def check_whole(path, pixels, color, bits, extra):
    volume = read_image([path])
    numbers = PALETTE[pixels[..., 0]] if color == INDEX else pixels[..., :1] if color == GRAY_ALPHA else pixels
    assert np.array_equal(volume.array[:, 0], np.moveaxis(numbers, -1, 0))
    words = notes_expected(color, bits, extra)
    assert len(volume.notes) == len(words)
    assert all(any(word in note for note in volume.notes) for word in words)
    if color in (GRAY, INDEX, GRAY_ALPHA):
        assert np.array_equal(read_labels(path).array[0], pixels[..., 0])
    return "equal"


def test_every_combination_is_read_as_written_or_refused_for_what_is_missing(tmp_path):
    path = tmp_path / "case.png"

    def check(cell):
        (color, bits), (width, height), is_interlaced, kind, extra, damage = cell
        if color in (GRAY_ALPHA, RGBA):
            extra = extra.replace("tRNS", "")  # which the format does not allow beside alpha
        random = np.random.default_rng(bits)
        pixels = random.integers(0, 2**bits, (height, width, SAMPLES[color]))
        content, found, due = png_bytes(pixels, color, bits, is_interlaced, kind, extra, damage)
        path.write_bytes(content)
        if not damage:
            return check_whole(path, pixels, color, bits, extra)
        reasons = {"no end": "end in the middle", "checksum": "do not match", "excess": f"promises ({due} bytes)"}
        reason = reasons.get(damage, f"cut short: {found} bytes of pixels where its header promises {due}")
        for read in (read_image, lambda paths: read_labels(*paths)):
            refused(read, path, reason)
        return damage

    counts = check_cells(matrix_cells(20, KINDS, SIZES, (False, True), FILTERS, EXTRAS, DAMAGES), check)
    assert counts.keys() == {"equal", *DAMAGES[1:]}
    assert counts.total() >= 1000
