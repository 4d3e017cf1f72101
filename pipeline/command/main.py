"""`python -m pipeline`: the commands. What they do lives elsewhere and is imported when one is called."""

from __future__ import annotations

from typing import NoReturn

import click

from pipeline.base.harness import Program, run
from pipeline.command.pack import pack
from pipeline.command.strategies import strategies
from pipeline.command.tokenize import tokenize
from pipeline.command.verify import verify

_PROGRAM = Program(
    name="python -m pipeline",
    extras={
        "faiss": "related",
        "sklearn": "related",
        "sentence_transformers": "embed",
        "torch": "embed",
        "transformers": "tokenize",
        "tokenizers": "tokenize",
        "jinja2": "tokenize",
        "botocore": "s3",
        "s3fs": "s3",
        "prometheus_client": "metrics",
        "ray": "ray",
    },
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tightpack", prog_name="tightpack")
def commands() -> None:
    """Tokenise and pack datasets for training, offline: full packs, no token lost, boundaries kept."""


for _command in (tokenize, pack, verify, strategies):
    commands.add_command(_command)


def main() -> NoReturn:
    """Run a command; every way in which it can end has its exit code."""
    run(commands, _PROGRAM)
