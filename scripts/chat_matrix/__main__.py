"""Try kinds of chats under chat templates, and write docs/templates.md."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from chat_matrix.cells import benches, matrix
from chat_matrix.marks import followed
from chat_matrix.page import PAGE, page_of


@click.command()
@click.option("--tokenizer", type=click.Path(path_type=Path, exists=True), required=True, help="A tokenizer.json.")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if the page would change.")
@click.option("--marks", type=click.Path(path_type=Path, exists=True), help="Compare marks over these chats instead.")
def main(tokenizer: Path, check: bool, marks: Path | None) -> None:
    """Try everything and write docs/templates.md."""
    with tempfile.TemporaryDirectory() as folder:
        trial = benches(tokenizer, Path(folder))
        if marks is not None:
            print(followed(trial, marks))
            return
        page = page_of(matrix(trial))
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
        return
    if not check:
        PAGE.write_text(page, encoding="utf-8")
    print(f"{PAGE}: {'is not what scripts/templates writes' if check else 'written'}")
    sys.exit(int(check))


if __name__ == "__main__":
    main()
