from __future__ import annotations

from tests.pipeline.tokenizing.conftest import chatml, flags, lines

__all__ = ["chatml", "flags", "lines"]
