"""What was planned, and what came of it: a figure that is absent is a failed check, as is one beyond its bar."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was to be found out."""

    name: str
    outcome: Literal["passed", "failed", "not judged"]
    value: float | str | None = None
    bar: str | None = None
    reason: str | None = None
    """Why it failed, or is not judged."""


@dataclass
class Report:
    """What was measured, written after every step: a run that is cut short has measured that much."""

    path: Path | None
    figures: dict[str, Any]
    judged: bool = True
    """Whether figures are held against their bars: those of a tiny model say nothing."""

    checks: list[Check] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    _planned: dict[str, str] = field(default_factory=dict)
    """What has not come yet, and why it would not."""

    def plan(self, names: Iterable[str]) -> None:
        """Say what will be measured: what then is not, has failed."""
        self._planned |= dict.fromkeys(names, "it was not measured")

    def check(
        self, name: str, passed: bool, value: float | str | None = None, bar: str | None = None, reason: str = ""
    ) -> None:
        """Say what was found."""
        self._planned.pop(name, None)
        said = None if passed else reason or f"{value} is not {bar}"
        self.checks.append(
            Check(name=name, outcome="passed" if passed else "failed", value=value, bar=bar, reason=said)
        )

    def hold(self, name: str, value: float, *, at_least: float | None = None, below: float | None = None) -> None:
        """Hold a figure against its bar."""
        bar = f"at least {at_least}" if at_least is not None else f"below {below}"
        reached = value >= at_least if at_least is not None else below is None or value < below
        if self.judged:
            self.check(name, reached, value, bar, f"{value:.3g} is not {bar}")
            return
        self._planned.pop(name, None)
        said = "a tiny model is no measure: unmeasured on a GPU"
        self.checks.append(Check(name=name, outcome="not judged", value=value, bar=bar, reason=said))

    def absent(self, name: str, why: str) -> None:
        """Say why a planned figure is not there."""
        self.check(name, False, reason=f"absent: {why}")

    def abandon(self, why: str) -> None:
        """Say why all that is still planned will not come."""
        for name in list(self._planned):
            self.absent(name, why)

    def keep(self, step: str, figures: Any) -> None:
        """Add a step's figures to the file."""
        self.figures[step] = figures
        self.write()
        print(f"[{self.figures['seconds']:6.1f} s] {step}", flush=True)

    def failed(self) -> list[str]:
        """What failed, with reasons; what is planned and has not come is among it."""
        told = [f"{each.name}: {each.reason}" for each in self.checks if each.outcome == "failed"]
        return told + [f"{name}: absent: {why}" for name, why in self._planned.items()]

    def write(self) -> None:
        """Write all that is known."""
        self.figures["checks"] = [asdict(each) for each in self.checks]
        self.figures["planned"] = list(self._planned)
        self.figures["failed"], self.figures["seconds"] = self.failed(), time.perf_counter() - self.started
        if self.path is not None:
            self.path.write_text(json.dumps(self.figures, indent=1) + "\n")
