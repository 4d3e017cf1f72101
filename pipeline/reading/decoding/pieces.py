"""Pieces of a file, which are read side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.base.storage import map_file
from pipeline.reading.decoding.batches import parquet_metadata, reading
from pipeline.reading.decoding.growth import sizes_of_batches
from pipeline.reading.decoding.json_lines import counts_before, is_plain_lines
from pipeline.reading.files import InputFile
from pipeline.reading.remote.ranges import Place, size_of

PIECE_BYTES, MOST_PIECES = 1 << 25, 64
"""About how many bytes a piece has at the least, decompressed if it is of parquet, and about how many pieces a file has
at the most: each of them looks at the file's footer, or at what comes before it."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a file that is read on its own."""

    part: range
    """Row groups of parquet, record batches of Arrow, or bytes of JSON lines, of which it has those that begin there.
    """

    first_row: int | None = None
    """The row of the file that it begins with; None where that is not known before all rows before it are counted."""

    first_line: int = 0
    """The same of lines, of JSON."""


def pieces_of(file: InputFile, path: Place) -> list[Piece | None]:
    """The pieces that a file is read in, in order; only None, which is all of it, where it is small or has no places
    to begin at.

    Where it is cut depends on its content alone. Raises `DataError` for damaged content.
    """
    with reading(file.shown, path):
        if file.format == "json":
            pieces = _ranges(file, path)
        elif file.format == "parquet":
            metadata = parquet_metadata(path)
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            pieces = _runs([(group.num_rows, group.total_byte_size) for group in groups])
        else:
            assert isinstance(path, str), "Arrow is mapped"
            with map_file(path) as opened:
                pieces = _runs(sizes_of_batches(opened.read_buffer()))
    return [*pieces] if len(pieces) > 1 else [None]


def numbered(piece: Piece, file: InputFile, path: Place) -> Piece:
    """A piece that knows its first row. O(bytes before it)."""
    if piece.first_row is not None:
        return piece
    num_rows, num_lines = counts_before(file, path, piece.part.start)
    return replace(piece, first_row=num_rows, first_line=num_lines)


def _ranges(file: InputFile, path: Place) -> list[Piece]:
    """Even parts of a file of JSON lines."""
    size = size_of(path)
    number = min(MOST_PIECES, size // PIECE_BYTES)
    if number < 2 or not is_plain_lines(file, path):
        return []
    edges = [size * i // number for i in range(number + 1)]
    return [Piece(part=range(*edges[i : i + 2]), first_row=None if i else 0) for i in range(number)]


def _runs(sizes: Sequence[tuple[int, int]]) -> list[Piece]:
    """Runs of parts that have so many rows and bytes each."""
    least = max(PIECE_BYTES, sum(num_bytes for _, num_bytes in sizes) // MOST_PIECES)
    pieces: list[Piece] = []
    begin = first_row = size = rows = 0
    for number, (num_rows, num_bytes) in enumerate(sizes):
        size, rows = size + num_bytes, rows + num_rows
        if size >= least or number == len(sizes) - 1:
            pieces.append(Piece(part=range(begin, number + 1), first_row=first_row))
            begin, first_row, size, rows = number + 1, first_row + rows, 0, 0
    return pieces
