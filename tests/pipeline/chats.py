"""Chats, chat templates and a tokenizer for the tests."""

from __future__ import annotations

from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"
STYLES = ("chatml", "llama3", "mistral", "gemma")
SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "extra_special_tokens": [
        "<|im_start|>",
        "<|im_end|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<start_of_turn>",
        "<end_of_turn>",
    ],
}
CORPUS = [
    "The quick brown fox jumps over the lazy dog, 12 times out of 345.\r\n\tWhy? Because it can!",
    "user assistant model system [INST] [/INST] a question and its answer",
    "der schnelle braune Fuchs springt über den faulen Hund",
    "быстрая коричневая лиса 敏捷的棕色狐狸 الثعلب البني 😀🎉",
]


def template(style: str, *, marks: bool) -> str:
    """A chat template, with or without its generation marks."""
    text = (TEMPLATES / f"{style}.jinja").read_text(encoding="utf-8")
    return text if marks else text.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")


def chat(*contents: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def save_tokenizer(folder: Path) -> Path:
    """A small byte-level BPE as a directory of transformers, without a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS * 3, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL).save_pretrained(str(folder))
    return folder
