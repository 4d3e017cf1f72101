"""Columns beside the tokens of an input: told by name, or refused where they change what should be trained."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import DataError
from pipeline.base.storage import arrow_file
from pipeline.base.words import counted
from pipeline.format.columns import SOURCE_COLUMNS
from pipeline.format.options import ROLES
from pipeline.reading.columns import PACK_NAMES, Selection
from pipeline.reading.decoding.batches import arrow_batches, reading
from pipeline.reading.decoding.growth import refuse_growing_groups
from pipeline.reading.decoding.json_lines import line_blocks, lines_of, open_text, parse_line
from pipeline.reading.decoding.unread import rows_with_content
from pipeline.reading.files import InputFile

log = logging.getLogger(__name__)

_MEDIA = "its tokens stand for pictures, videos or sound, which packs do not hold; leave such rows out"
_WEIGHTS = (
    "tokens that do not all count alike are not supported; where they are 0 and 1, give them as integers with"
    " --column loss_mask=NAME, else drop the column"
)
_UNUSABLE = {
    **dict.fromkeys(("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"), _MEDIA),
    **dict.fromkeys(("input_features", "audio_values", "image", "images", "videos", "audio", "audios"), _MEDIA),
    **dict.fromkeys(("loss_weights", "loss_weight", "token_weights", "label_weights"), _WEIGHTS),
}
"""Columns whose content changes what should be trained -> why rows that have it are refused."""

_SHOWN = 8  # names in a message
_BLOCK_BYTES = 1 << 20


def unread_columns(files: Iterable[tuple[InputFile, str]], selection: Selection) -> Counter[str]:
    """The columns that nobody reads, with the number of files that have them; found before anything is decoded.

    files: each with the path where it can be opened.

    Raises `DataError` for a row with content in a column that changes what should be trained.
    """
    roles = {selection.names.get(role, role) for role in ROLES}
    read = {*roles, *PACK_NAMES, *SOURCE_COLUMNS.values(), selection.extra}
    found: Counter[str] = Counter()
    for file, path in files:
        with reading(file.shown, path):
            names = {name for name in _names(file, path) if name not in read}
            for name in names & _UNUSABLE.keys():
                _refuse_content(file, path, name)
        found.update(sorted(names - _UNUSABLE.keys()))
    return found


def tell_unread(found: Counter[str]) -> None:
    """Warn of such columns, in one line."""
    if found:
        told = [f"{name} ({counted(number, 'file')})" for name, number in found.items()]
        more = f", and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        log.warning("columns that are not read: %s%s", ", ".join(told[:_SHOWN]), more)


def _names(file: InputFile, path: str) -> list[str]:
    """The columns of a file, or of its first row where it is of JSON; those of nulls alone are none."""
    if file.format == "json":
        first: dict[str, object] = next(_rows(file, path), {})
        return [name for name, value in first.items() if value is not None or name in _UNUSABLE]
    if file.format == "parquet":
        schema = pq.read_schema(arrow_file(path))
    else:
        schema = next((batch.schema for batch in arrow_batches(path, file.shown)), pa.schema([]))
    return [field.name for field in schema if not pa.types.is_null(field.type)]


def _refuse_content(file: InputFile, path: str, name: str) -> None:
    """Raise `DataError` for the first row that has content in a column."""
    row = 0
    for values in _values(file, path, name):
        if rows_with_content(values):
            row += next(i for i in range(len(values)) if rows_with_content(values.slice(i, 1)))
            raise DataError(f"{file.shown}, row {row}: column {name!r} has content: {_UNUSABLE[name]}")
        row += len(values)


def _values(file: InputFile, path: str, name: str) -> Iterator[pa.Array]:
    """A column of a file, in pieces."""
    if file.format == "json":
        for row in _rows(file, path):
            yield pa.array([None if row.get(name) in (None, [], "") else True])
    elif file.format == "parquet":
        with pq.ParquetFile(arrow_file(path)) as opened:
            refuse_growing_groups(path, opened.metadata, [name], file.shown)
            for batch in opened.iter_batches(batch_size=1024, columns=[name], use_threads=False):
                yield batch.column(0)
    else:
        for batch in arrow_batches(path, file.shown):
            yield batch.column(batch.schema.get_field_index(name))


def _rows(file: InputFile, path: str) -> Iterator[dict[str, object]]:
    """The rows of a file of JSON. Raises `DataError` for one that cannot be read."""
    with open_text(file, path) as opened:
        lines = (line for block in line_blocks(opened, file.shown, _BLOCK_BYTES) for line in lines_of(block))
        for number, line in enumerate(lines):
            try:
                yield parse_line(line)
            except ValueError as error:
                raise DataError(f"{file.shown}, row {number}: {error}") from None
