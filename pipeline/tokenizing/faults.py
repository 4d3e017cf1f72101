"""What of a block of rows gives no sample, and why."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.reading.decoding.raw import RawBlock
from pipeline.tokenizing.rows.gathering import TreeBlock
from pipeline.tokenizing.rows.messages import RowFault
from pipeline.tokenizing.rows.trees import LEFT_OUT, Paths


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that gives no sample."""

    row: int
    """Counted from the block's first, or from the file's where rows are gathered into trees."""

    reason: str
    detail: str
    is_error: bool = True
    """Whether it cannot be used; otherwise it is left out because of another row, or as its format has it."""


class Unused:
    """What of a block gives no sample, noted by row of the block, or by tree where rows are gathered."""

    def __init__(self, block: RawBlock | TreeBlock) -> None:
        self._gathered = block.trees if isinstance(block, TreeBlock) else None
        self._faults: dict[int, Fault] = {}
        self.paths: dict[int, Paths] = {}
        """What each tree gives."""

    def add(self, number: int, fault: RowFault, source_row: int | None = None) -> None:
        """Note what is wrong with a row or tree. source_row: the row of the file that it was found in, of a tree."""
        row = next((row for row in (fault.row, source_row) if row is not None), number)
        self._faults.setdefault(number, Fault(row, fault.reason, str(fault)))

    def __contains__(self, number: int) -> bool:
        """Whether something is wrong with a row or tree, so that none of its samples is used."""
        return number in self._faults

    def faults(self) -> list[Fault]:
        """Every row that gives no sample, in order."""
        faults = list(self._faults.values())
        if self._gathered is not None:
            for number, fault in self._faults.items():
                others = [row for row in self._gathered[number].rows if row != fault.row]
                told = f"it belongs to the tree of row {fault.row}, which cannot be used"
                faults += [Fault(row, fault.reason, told, is_error=False) for row in others]
        for number, paths in self.paths.items():
            if number in self:
                continue
            if self._gathered is not None:
                rows = self._gathered[number].rows
                faults += [Fault(rows[at], why, LEFT_OUT[why], is_error=False) for at, why in paths.left_out.items()]
            elif not paths.chats:
                why = paths.left_out[0]
                faults.append(Fault(number, why, f"its first message: {LEFT_OUT[why]}", is_error=False))
        return sorted(faults, key=lambda fault: fault.row)

    def messages(self) -> dict[str, list[int]]:
        """The rows, once for each of their messages, that are trees with samples of which messages are left out."""
        rows: dict[str, list[int]] = {}
        if self._gathered is None:
            for row, paths in self.paths.items():
                if paths.chats and row not in self:
                    for why in paths.left_out.values():
                        rows.setdefault(why, []).append(row)
        return rows
