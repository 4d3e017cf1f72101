"""Builds raw data for fine-tuning from the documentation of the Python that runs it: signature → docstring.

Source files of the standard library are parsed, never imported. Writes OUT_DIR/pairs.jsonl and, trained on these texts,
OUT_DIR/tokenizer.json; the same Python and the same library versions give the same files.
"""

from __future__ import annotations

import ast
import inspect
import json
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|end|>"
VOCABULARY = 8_000
SKIPPED_FOLDERS = {"dist-packages", "idlelib", "lib2to3", "site-packages", "test", "tests", "turtledemo"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Pair:
    """What one documented name teaches: its signature, and the docstring to be written for it."""

    module: str
    signature: str
    docstring: str


def main(out_dir: Path) -> None:
    """Collect the pairs, train the tokenizer on them, save both."""
    warnings.simplefilter("ignore", SyntaxWarning)
    pairs = list(documented_pairs(Path(sysconfig.get_path("stdlib"))))
    out_dir.mkdir(parents=True, exist_ok=True)
    with open(out_dir / "pairs.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for pair in pairs:
            row = {"prompt": pair.signature, "completion": pair.docstring, "module": pair.module}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    train_tokenizer(pairs).save(str(out_dir / "tokenizer.json"))
    print(
        f"built from the documentation of Python {platform.python_version()}: {len(pairs):,} pairs of signature and"
        f" docstring, of {len({pair.module for pair in pairs}):,} modules",
        file=sys.stderr,
    )


def documented_pairs(library: Path) -> Iterator[Pair]:
    """Every public function, method and class that has a docstring; modules in sorted order, names as written."""
    for path in sorted(library.rglob("*.py")):
        *folders, name = path.relative_to(library).with_suffix("").parts
        if SKIPPED_FOLDERS.isdisjoint(folders):
            module = ".".join(folders if name == "__init__" else [*folders, name])
            yield from _pairs(ast.parse(path.read_bytes()), module, module)


def train_tokenizer(pairs: list[Pair]) -> Tokenizer:
    """A byte-level BPE that has seen nothing but these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for pair in pairs for text in (pair.signature, pair.docstring)), trainer)
    return tokenizer


def _pairs(parent: ast.AST, module: str, prefix: str) -> Iterator[Pair]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, Definition):
            if node.name.startswith("_"):
                continue
            name = f"{prefix}.{node.name}"
            if docstring := inspect.cleandoc(ast.get_docstring(node, clean=False) or ""):
                yield Pair(module, _signature(node, name) + "\n", docstring)
            if isinstance(node, ast.ClassDef):
                yield from _pairs(node, module, name)
        elif isinstance(node, ast.stmt | ast.excepthandler):
            yield from _pairs(node, module, prefix)


def _signature(node: Definition, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {name}({', '.join(map(ast.unparse, node.bases))})"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {name}({ast.unparse(node.args)}){returns}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: demo_dataset.py OUT_DIR")
    main(Path(sys.argv[1]))
