"""A run's identity: every option that changes bytes changes it, and nothing else does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from pipeline import InputOptions, PackOptions, RunOptions, TokenizeOptions, pack, tokenize
from pipeline.base.errors import ConfigError
from pipeline.base.options import Options, default_of
from pipeline.format.identity import PACKED, TOKENIZED, FileHash, Identity, NamedHash
from pipeline.format.manifest import TokenizeConfig
from pipeline.packing.setup import set_up
from strategies import all_strategies, find
from tests.pipeline.samples import random_rows, save

CONTENT = [FileHash(name="in", xxh3_128="0" * 32)]
BASE = PackOptions(max_length=60)

OTHER: dict[type[Options], dict[str, Any]] = {
    InputOptions: {"split": "train", "subset": "small", "revision": "main"},
    TokenizeOptions: {
        "format": "text",
        "train_on": "all",
        "paths": "best",
        "map": {"text": "body"},
        "on_error": "drop",
        "max_row_bytes": 7,
        "append_eos": True,
        "history": "as-rendered",
        "reasoning": "mask",
        "reasoning_inline": True,
        "reasoning_marks": "[THINK],[/THINK]",
        "tool_calls": "mask",
        "inserted": "mask",
        "turn_end": "next",
        "unsaid": "allow",
        "special_in_text": "error",
        "template_kwargs": {"enable_thinking": False},
        "template_date": "2026-11-21",
        "keys": {"role": "speaker"},
        "roles": {"user": "customer"},
        "keep_text": True,
    },
    PackOptions: {
        "max_length": 61,
        "strategy": "next-fit",
        "set": {"batch_size": 9},
        "overlong": "drop",
        "max_segments": 9,
        "keep_untrainable": True,
        "seed": 1,
        "pack_order": "plan",
        "column": {"labels": "goals"},
        "unpack": True,
        "window_samples": 7,
        "window_tokens": 7,
        "shard_size": 7,
        "compression": "lz4",
        "tokenize": TokenizeOptions(),
    },
}
"""For every option another value than its default."""

_MODEL = {"embedder": "sentence-transformers", "model": "m"}

OF_STRATEGIES: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "minibatch": {"batch_size": ({}, {"batch_size": 9}), "shuffle": ({}, {"shuffle": True})},
    "wrapped": {"shuffle": ({}, {"shuffle": True})},
    "threshold-filtering": {
        "mode": ({}, {"mode": "path"}),
        "threshold": ({}, {"threshold": "none"}),
        "embedder": ({}, _MODEL),
        "column": ({"embedder": "column", "column": "a"}, {"embedder": "column", "column": "b"}),
        "text": (_MODEL, {**_MODEL, "text": "question"}),
        "max_tokens": (_MODEL, {**_MODEL, "max_tokens": 7}),
        "block": ({}, {"block": 7}),
    },
}
"""The same for the options of strategies: settings without and with a change. Of paths only the content counts."""


def of_packing(options: PackOptions) -> str:
    """The run_id of packing with some options, without making an embedder."""
    strategy = find(options.strategy)
    settings = strategy.changed(strategy.settings(strategy.options(**options.set)))
    return Identity(kind=PACKED, config=options, settings=settings, batches=[CONTENT], origin={}).run_id


def of_tokenizing(**options: Any) -> str:
    config = TokenizeConfig(**options)
    return Identity(kind=TOKENIZED, config=config, settings={}, batches=[CONTENT], origin={}).run_id


def test_no_option_was_forgotten() -> None:
    for options, others in OTHER.items():
        own = {field.name for field in dataclasses.fields(options)}
        own -= {field.name for field in dataclasses.fields(InputOptions)} if options is PackOptions else set()
        assert set(others) == own
    for strategy in all_strategies()[0]:
        paths = {field.name for field in dataclasses.fields(strategy.options) if field.metadata.get("is_path")}
        own = {field.name for field in dataclasses.fields(strategy.options)} - paths
        assert set(OF_STRATEGIES.get(strategy.name, {})) == own


def test_each_option_changed_alone_makes_another_run() -> None:
    seen = {of_packing(BASE): "the defaults"}
    for name, value in {**OTHER[InputOptions], **OTHER[PackOptions]}.items():
        if name == "set":
            continue
        run_id = of_packing(replace(BASE, **{name: value}))
        assert run_id not in seen, f"{name} makes the same run as {seen[run_id]}"
        seen[run_id] = name
    for name, value in OTHER[TokenizeOptions].items():
        run_id = of_packing(replace(BASE, tokenize=TokenizeOptions(**{name: value})))
        assert run_id not in seen, f"tokenize.{name} makes the same run as {seen[run_id]}"
        seen[run_id] = name
    tokens = {of_tokenizing(): "the defaults"}
    for name, value in {**OTHER[InputOptions], **OTHER[TokenizeOptions]}.items():
        run_id = of_tokenizing(**{name: value})
        assert run_id not in tokens, f"{name} makes the same run as {tokens[run_id]}"
        tokens[run_id] = name
    assert not set(tokens) & set(seen)


@pytest.mark.parametrize("name", OF_STRATEGIES)
def test_each_option_of_a_strategy_makes_another_run(name: str) -> None:
    base = replace(BASE, strategy=name)
    runs = {
        option: [of_packing(replace(base, set=part)) for part in parts] for option, parts in OF_STRATEGIES[name].items()
    }
    assert all(before != after for before, after in runs.values())
    assert len({after for _, after in runs.values()}) == len(runs)


def test_an_option_at_its_default_is_not_hashed() -> None:
    """So that a release with one option more finds the outputs of the one before up to date."""

    @dataclass(frozen=True, kw_only=True)
    class MoreOptions(PackOptions):
        brand_new: int = 5

    run_id = of_packing(BASE)
    more = Identity(kind=PACKED, config=MoreOptions(max_length=60), settings={}, batches=[CONTENT], origin={})
    assert more.run_id == run_id
    assert replace(more, config=MoreOptions(max_length=60, brand_new=6)).run_id != run_id
    defaults = {f.name: default_of(f) for f in dataclasses.fields(PackOptions) if f.name != "max_length"}
    assert of_packing(PackOptions(max_length=60, **defaults)) == run_id
    assert of_packing(replace(BASE, strategy="minibatch", set={"batch_size": 8, "shuffle": False})) == of_packing(
        replace(BASE, strategy="minibatch")
    )


def test_another_name_of_a_strategy_and_a_text_for_a_number_are_the_same_run() -> None:
    runs = [
        set_up(options, None, None).identity([CONTENT], {}).run_id
        for options in (
            replace(BASE, strategy="wrapped", set={"shuffle": True}),
            replace(BASE, strategy="random", set={"shuffle": "true"}),
        )
    ]
    assert runs[0] == runs[1]


def test_content_and_versions_count() -> None:
    base = Identity(kind=PACKED, config=BASE, settings={}, batches=[CONTENT], origin={})
    assert replace(base, format_version=99).run_id != base.run_id
    assert replace(base, algorithm_version=99).run_id != base.run_id
    other = [FileHash(name="in", xxh3_128="1" * 32)]
    assert replace(base, batches=[CONTENT, CONTENT]).run_id != replace(base, batches=[CONTENT * 2]).run_id
    assert replace(base, batches=[[structs.replace(CONTENT[0], split="train")]]).run_id != base.run_id
    assert replace(base, batches=[other]).run_id != base.run_id
    assert replace(base, batches=[CONTENT * 2]).run_id != base.run_id
    for key in ("tokenizer", "chat_template", "embedding_model"):
        known = replace(base, origin={key: NamedHash(name="x", xxh3_128="2" * 32)})
        assert known.run_id != base.run_id
        assert replace(base, origin={key: NamedHash(name="y", xxh3_128="2" * 32)}).run_id == known.run_id


def test_how_a_run_is_done_is_no_part_of_it(tmp_path: Path) -> None:
    source = save(random_rows(40), tmp_path / "in")
    ways = [RunOptions(num_workers=1, cache_dir=tmp_path / "a"), RunOptions(num_workers=3, cache_dir=tmp_path / "b")]
    assert {field.name for field in dataclasses.fields(RunOptions)} == {"num_workers", "cache_dir", "rehash"}
    results = [pack(source, tmp_path / "out", BASE, run=run, overwrite=bool(i)) for i, run in enumerate(ways)]
    assert [result.status for result in results] == ["packed", "up_to_date"]
    elsewhere = pack(source, tmp_path / "other-name", BASE, run=ways[0], progress=lambda progress: None)
    assert elsewhere.manifest == results[0].manifest


def test_what_a_user_said_and_has_no_effect_is_refused_instead(tmp_path: Path) -> None:
    source = save(random_rows(4), tmp_path / "in")
    for options, more in (
        (replace(BASE, strategy="wrapped", overlong="drop"), {}),
        (replace(BASE, revision="main"), {}),
        (replace(BASE, tokenize=TokenizeOptions(append_eos=True)), {}),
        (BASE, {"chat_template": "x.jinja"}),
    ):
        with pytest.raises(ConfigError, match="has no effect"):
            pack(source, tmp_path / "out", options, **more)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no such file"):
        tokenize(source, tmp_path / "out", tmp_path / "nowhere")
