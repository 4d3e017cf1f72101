"""Tokenise, pack and verify datasets for training, offline.

from pipeline import PackOptions, pack

result = pack("tokens", "packed", PackOptions(max_length=4096))
print(result.manifest.fill)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.base.errors import (
        BusyError,
        ConfigError,
        DataError,
        StorageError,
        StrategyError,
        TightpackError,
    )
    from pipeline.base.options import EngineOptions, RunOptions
    from pipeline.base.progress import Progress
    from pipeline.format.options import InputOptions, PackOptions, TokenizeOptions
    from pipeline.packing.run import PackResult, dry_run, pack
    from pipeline.packing.share import ShareResult, pack_share
    from pipeline.tokenizing.run import TokenizeResult, tokenize
    from pipeline.tokenizing.tokens.tokenizer import load_tokenizer
    from pipeline.verifying.verify import VerifyResult, verify

__all__ = [
    "BusyError",
    "ConfigError",
    "DataError",
    "EngineOptions",
    "InputOptions",
    "PackOptions",
    "PackResult",
    "Progress",
    "RunOptions",
    "ShareResult",
    "StorageError",
    "StrategyError",
    "TightpackError",
    "TokenizeOptions",
    "TokenizeResult",
    "VerifyResult",
    "dry_run",
    "load_tokenizer",
    "pack",
    "pack_share",
    "tokenize",
    "verify",
]

_HOMES = {
    "base.errors": ("BusyError", "ConfigError", "DataError", "StorageError", "StrategyError", "TightpackError"),
    "base.options": ("EngineOptions", "RunOptions"),
    "base.progress": ("Progress",),
    "format.options": ("InputOptions", "PackOptions", "TokenizeOptions"),
    "packing.run": ("PackResult", "dry_run", "pack"),
    "packing.share": ("ShareResult", "pack_share"),
    "tokenizing.run": ("TokenizeResult", "tokenize"),
    "tokenizing.tokens.tokenizer": ("load_tokenizer",),
    "verifying.verify": ("VerifyResult", "verify"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a name when it is used: the command line's help needs none of them."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(f"pipeline.{_HOME_OF[name]}"), name)
