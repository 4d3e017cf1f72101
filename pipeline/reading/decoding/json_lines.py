"""JSON lines, or one JSON array of objects, as blocks of whole lines.

Lines end at LF only: texts hold U+2028, U+2029 and U+0085, at which other splitters break too.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from pipeline.base.errors import DataError
from pipeline.format.options import TOKENS
from pipeline.reading.decoding.foreign import compression_of, refuse_foreign_text, refuse_wrapped_rows
from pipeline.reading.decoding.growth import GrowingText, require_short
from pipeline.reading.files import InputFile
from pipeline.reading.remote.ranges import Place, head_of, open_place, size_of

_ROW_COLUMNS = frozenset((TOKENS, "messages", "conversations", "conversation", "prompt", "instruction", "text"))
"""What an object has that is a row, and no envelope of rows."""

_BETWEEN = re.compile(r"[ \t\r\n,]*")

_BUFFER_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16
_COUNTED_BYTES = 1 << 23  # of lines that are counted together


def text_blocks(
    file: InputFile, path: Place, size: int, part: range | None = None, first_line: int = 0
) -> Iterator[bytes]:
    """The blocks of a file, as `line_blocks` gives them.

    part: bytes of a file that `is_plain_lines`, if not all are read: the lines that begin there; first_line: how many
    lines are before them.
    """
    if part is None:
        with open_text(file, path) as text:
            yield from line_blocks(text, file.shown, size)
        return
    with io.BufferedReader(_LinesOf(open_place(path, [part]), part), _BUFFER_BYTES) as text:
        if not part.start and text.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
            text.read(len(codecs.BOM_UTF8))
        yield from _line_blocks(text, file.shown, size, first_line)


def is_plain_lines(file: InputFile, path: Place) -> bool:
    """Whether a file of JSON can be read from any line on: it is not compressed, and no array."""
    if compression_of(file) is not None:
        return False
    return not _begins_array(head_of(path, _BUFFER_BYTES).removeprefix(codecs.BOM_UTF8))


def counts_before(file: InputFile, path: Place, end: int) -> tuple[int, int]:
    """The rows, and the lines, that begin before a byte of a file that `is_plain_lines`."""
    num_rows = num_lines = 0
    with io.BufferedReader(_LinesOf(open_place(path), range(end)), _BUFFER_BYTES) as text:
        while block := text.read(_COUNTED_BYTES) + text.readline():
            num_rows += sum(1 for _ in lines_of(block))
            num_lines += block.count(b"\n")
    return num_rows, num_lines


class _LinesOf(io.RawIOBase):
    """The lines of a text that begin in a part of its bytes."""

    def __init__(self, text: pa.NativeFile, part: range) -> None:
        self._text = text
        self._last = part.stop - 1
        """The first LF from here on ends the last line."""
        self._is_over = not len(part)
        if part.start:
            self._begin(part)

    def _begin(self, part: range) -> None:
        at = part.start - 1
        self._text.seek(at)
        while at < self._last:
            block = self._text.read(min(_HEAD_BYTES, self._last - at))
            found = block.find(b"\n") + 1
            at += found or len(block)
            if found:
                self._text.seek(at)
                return
            if not block:
                break
        self._is_over = True

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read the next bytes; 0 at the end."""
        if self._is_over:
            return 0
        room = self._last - self._text.tell()
        if room > 0:
            return int(self._text.readinto(memoryview(buffer)[:room]))
        block = self._text.read(min(len(buffer), _HEAD_BYTES))
        end = block.find(b"\n") + 1
        self._is_over = end > 0
        block = block[: end or len(block)]
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        """Close the text, too."""
        self._text.close()
        super().close()


def first_block(file: InputFile, path: Place, size: int) -> bytes:
    """The first of its blocks, and nothing behind it; empty where the file holds no line."""
    spans = [range(min(size, size_of(path)))]
    with open_text(file, path, spans) as text:
        return next(line_blocks(text, file.shown, size), b"")


def open_text(file: InputFile, path: Place, spans: Sequence[range] | None = None) -> io.BufferedReader:
    """The file's bytes, decompressed as its name says. spans: what will be read of it, if not all."""
    compression = compression_of(file)
    text = pa.input_stream(open_place(path, spans), compression=compression)
    if compression is None:
        return io.BufferedReader(text, _BUFFER_BYTES)
    return io.BufferedReader(GrowingText(text, size_of(path), file.shown), _BUFFER_BYTES)


def line_blocks(file: io.BufferedReader, where: str, size: int) -> Iterator[bytes]:
    """Runs of whole lines with something in them, of about `size` bytes each.

    The objects of an array become lines. Raises `DataError` for an array that is malformed, and for what is no JSON
    lines and no array.
    """
    refuse_foreign_text(file.peek(_HEAD_BYTES), where)
    if file.peek(_HEAD_BYTES).startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    if _begins_array(file.peek(_HEAD_BYTES)):
        yield from _array_blocks(file, where, size)
        return
    blocks = _line_blocks(file, where, size)
    first = next(blocks, b"")
    lines = list(itertools.islice(lines_of(first), 2))
    second = next(blocks, b"") if len(lines) == 1 else b""
    if len(lines) == 1 and not second:
        _refuse_envelope(lines[0], where)
    yield from (block for block in (first, second) if block)
    yield from blocks


def _begins_array(head: bytes) -> bool:
    return head.lstrip()[:1] == b"["


def lines_of(block: bytes) -> Iterator[bytes]:
    """The lines of a block; blank ones are no rows."""
    return (line for line in block.split(b"\n") if line.strip())


def parse_line(line: bytes) -> dict[str, Any]:
    """One row. Raises `ValueError` for what is no JSON object."""
    try:
        row = _json_of(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg}, character {error.pos})") from None
    except UnicodeDecodeError as error:
        found = f"byte {line[error.start]:#04x} at position {error.start}"
        raise ValueError(f"not in UTF-8 ({found}); convert the file with iconv -f ENCODING -t UTF-8 FILE") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is needed, not {type(row).__name__}")
    return row


def _json_of(text: bytes) -> Any:
    """What a text in JSON holds. Raises as `json.loads`, which reads what msgspec does not take, such as NaN."""
    try:
        return msgspec.json.decode(text)  # a third of the time
    except (msgspec.DecodeError, ValueError, RecursionError):
        return json.loads(text)


def _refuse_envelope(line: bytes, where: str) -> None:
    """Refuse a file's only line whose rows stand in a list inside it; what is no JSON is told with its row later."""
    with contextlib.suppress(ValueError):
        refuse_wrapped_rows(parse_line(line), _ROW_COLUMNS, where)


def _line_blocks(file: io.BufferedReader[Any], where: str, size: int, first_line: int = 0) -> Iterator[bytes]:
    parts: list[bytes] = []  # of a line that goes on
    line, length = first_line + 1, 0  # its number, and what is there of it
    while block := file.read(size):
        cut = block.rfind(b"\n") + 1
        if cut:
            whole = b"".join([*parts, block[:cut]])
            if not whole.isspace():
                yield whole
            parts, length, line = [], 0, line + whole.count(b"\n")
        parts.append(block[cut:])
        length += len(block) - cut
        require_short(length, f"{where}, line {line}")
    rest = b"".join(parts)
    if rest.strip():
        yield rest


def _array_blocks(file: io.BufferedReader, where: str, block_size: int) -> Iterator[bytes]:
    decoder = json.JSONDecoder()
    characters = io.TextIOWrapper(file, encoding="utf-8")
    text = characters.read(block_size)
    position = text.index("[") + 1
    lines: list[str] = []
    row = size = 0
    while True:
        position = _BETWEEN.match(text, position).end()  # type: ignore[union-attr]
        if position < len(text) and text[position] == "]":
            rest = text[position + 1 :]
            while not rest.strip():
                rest = characters.read(block_size)
                if not rest:
                    break
            if rest:
                raise DataError(f"{where}: there is more after the end of the JSON array; rows are objects, one a line")
            break
        try:
            value, end = decoder.raw_decode(text, position)
        except RecursionError:
            raise DataError(f"{where}: the JSON array is nested too deeply") from None
        except json.JSONDecodeError as error:
            more = _until_object_ends(characters, text[position:], block_size, f"{where}, row {row}")
            if len(more) == len(text) - position:
                raise DataError(f"{where}: the JSON array is truncated or malformed ({error.msg})") from None
            text, position = more, 0
            continue
        row += 1
        lines.append(json.dumps(value))
        size += end - position
        position = end
        if size >= block_size:
            yield "\n".join(lines).encode()
            lines, size = [], 0
    if lines:
        yield "\n".join(lines).encode()


def _until_object_ends(characters: io.TextIOWrapper, text: str, block_size: int, where: str) -> str:
    """A text that is longer by as much as an object may end in; as long as it was at the end of the file.

    Raises `DataError` for a row that is too long.
    """
    more = text
    while more:
        require_short(len(text), where)
        more = characters.read(max(block_size, len(text)))
        text += more
        if "}" in more:
            break
    return text
