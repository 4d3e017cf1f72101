"""Builds a dataset for fine-tuning from the documentation of the Python that runs it: signature → docstring.

Source files of the standard library are parsed, never imported. Writes OUT_DIR/dataset (`save_to_disk`) and
OUT_DIR/tokenizer.json; the same Python and the same library versions give the same files.
"""

from __future__ import annotations

import ast
import inspect
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|end|>"
VOCABULARY = 8_000
IGNORED = -100
SKIPPED_FOLDERS = {"dist-packages", "idlelib", "lib2to3", "site-packages", "test", "tests", "turtledemo"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Pair:
    """What one documented name teaches: its signature, and the docstring to be written for it."""

    module: str
    signature: str
    docstring: str


def main(out_dir: Path) -> None:
    """Collect the pairs, train the tokenizer on them, save it and the tokenised pairs."""
    warnings.simplefilter("ignore", SyntaxWarning)
    pairs = list(documented_pairs(Path(sysconfig.get_path("stdlib"))))
    tokenizer = train_tokenizer(pairs)
    dataset = tokenised(pairs, tokenizer)
    out_dir.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    dataset.save_to_disk(out_dir / "dataset")
    tokenizer.save(str(out_dir / "tokenizer.json"))
    lengths = [len(ids) for ids in dataset["input_ids"]]
    print(
        f"built from the documentation of Python {platform.python_version()}: {len(pairs):,} samples of"
        f" {len({pair.module for pair in pairs}):,} modules, {sum(lengths):,} tokens"
        f" (mean {sum(lengths) / len(lengths):.0f}, longest {max(lengths):,})",
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


def tokenised(pairs: list[Pair], tokenizer: Tokenizer) -> datasets.Dataset:
    """One row a pair; the docstring and the end token are targets, the signature is not."""
    prompts = [encoding.ids for encoding in tokenizer.encode_batch([pair.signature for pair in pairs])]
    replies = [encoding.ids for encoding in tokenizer.encode_batch([pair.docstring + END for pair in pairs])]
    tokens = datasets.List(datasets.Value("int32"))
    return datasets.Dataset.from_dict(
        {
            "module": [pair.module for pair in pairs],
            "input_ids": [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)],
            "labels": [[IGNORED] * len(prompt) + reply for prompt, reply in zip(prompts, replies, strict=True)],
        },
        features=datasets.Features({"module": datasets.Value("string"), "input_ids": tokens, "labels": tokens}),
    )


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
