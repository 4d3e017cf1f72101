"""Columns beside the tokens of an input: told by name, or refused where they change what should be trained."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipeline.base.errors import DataError
from pipeline.base.words import counted
from pipeline.format.columns import SOURCE_COLUMNS
from pipeline.format.options import ROLES
from pipeline.reading.columns import PACK_NAMES, Selection
from pipeline.reading.decoding.batches import arrow_batches, open_columns, parquet_metadata, reading
from pipeline.reading.decoding.growth import refuse_growing_groups
from pipeline.reading.decoding.json_lines import first_block, lines_of, parse_line, text_blocks
from pipeline.reading.decoding.unread import rows_with_content
from pipeline.reading.files import InputFile
from pipeline.reading.remote.ranges import Place

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


def unread_columns(files: Iterable[tuple[InputFile, Place]], selection: Selection) -> Counter[str]:
    """The columns that nobody reads, with the number of files that have them; found before anything is decoded.

    files: each with where it is opened.

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


def _names(file: InputFile, path: Place) -> list[str]:
    """The columns of a file, or of its first row where it is of JSON; those of nulls alone are none."""
    if file.format == "json":
        first: dict[str, object] = next(_rows([first_block(file, path, _BLOCK_BYTES)], file.shown), {})
        return [name for name, value in first.items() if value is not None or name in _UNUSABLE]
    if file.format == "parquet":
        schema = parquet_metadata(path).schema.to_arrow_schema()
    else:
        assert isinstance(path, str), "Arrow is mapped"
        schema = next((batch.schema for batch in arrow_batches(path, file.shown)), pa.schema([]))
    return [field.name for field in schema if not pa.types.is_null(field.type)]


def _refuse_content(file: InputFile, path: Place, name: str) -> None:
    """Raise `DataError` for the first row that has content in a column."""
    row = 0
    for values in _values(file, path, name):
        if rows_with_content(values):
            row += next(i for i in range(len(values)) if rows_with_content(values.slice(i, 1)))
            raise DataError(f"{file.shown}, row {row}: column {name!r} has content: {_UNUSABLE[name]}")
        row += len(values)


def _values(file: InputFile, path: Place, name: str) -> Iterator[pa.Array]:
    """A column of a file, in pieces."""
    if file.format == "json":
        for row in _rows(text_blocks(file, path, _BLOCK_BYTES), file.shown):
            yield pa.array([None if row.get(name) in (None, [], "") else True])
    elif file.format == "parquet":
        metadata = parquet_metadata(path)
        refuse_growing_groups(path, metadata, [name], file.shown)
        with open_columns(path, metadata, [name], range(metadata.num_row_groups)) as opened:
            for batch in opened.iter_batches(batch_size=1024, columns=[name], use_threads=False):
                yield batch.column(0)
    else:
        assert isinstance(path, str), "Arrow is mapped"
        for batch in arrow_batches(path, file.shown):
            yield batch.column(batch.schema.get_field_index(name))


def _rows(blocks: Iterable[bytes], where: str) -> Iterator[dict[str, object]]:
    """The rows of a file of JSON. Raises `DataError` for one that cannot be read."""
    for number, line in enumerate(line for block in blocks for line in lines_of(block)):
        try:
            yield parse_line(line)
        except ValueError as error:
            raise DataError(f"{where}, row {number}: {error}") from None
