from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.chats import save_tokenizer


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as a directory of transformers, without a chat template."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer") / "small")
