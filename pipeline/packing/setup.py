"""What the options of a run ask for: strategy, tokenization and embedder, ready to be used, and who does the tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.dealing.shares import FinishingDealer, Share, SharingDealer
from pipeline.base.dealing.stages import Dealer, Kind, LocalDealer
from pipeline.base.engine import LocalEngine
from pipeline.base.errors import ConfigError
from pipeline.base.options import EngineOptions, RunOptions
from pipeline.base.words import did_you_mean
from pipeline.embedding.embedders import Embedder, make_embedder
from pipeline.format.identity import EMBEDDING_MODEL, PACKED, FileHash, Identity, Origin
from pipeline.format.options import PackOptions, TokenizeOptions
from pipeline.publishing.place import Place
from pipeline.publishing.target import AnyPlace
from pipeline.reading.cache import FileCache
from pipeline.reading.inputs import Input
from strategies import Draws, Strategy, find
from strategies.contract import Embedding

if TYPE_CHECKING:
    from pipeline.tokenizing.tokenization import Tokenization
    from pipeline.tokenizing.tokens.tokenizer import TextTokenizer

_MOST_CAPACITY = 1 << 30
"""Values in one list column of one pack: far enough from the 2^31 of Arrow's 32-bit offsets."""


@dataclass(frozen=True, kw_only=True)
class ConfiguredStrategy:
    """A strategy with its options and what follows from them."""

    strategy: Strategy
    options: Any
    capacity: int
    """Tokens that a pack may hold."""

    max_segments: int | None
    """Segments that a pack may hold; None for any number."""

    @property
    def cuts_stream(self) -> bool:
        """Whether it cuts samples as one stream of tokens."""
        return self.strategy.stream_order is not None

    @property
    def embedding(self) -> Embedding | None:
        """The vectors that it wants to see of samples, if it does."""
        return self.strategy.embedding(self.options) if self.strategy.embedding else None

    def draws(self, seed: int, window: int, purpose: str) -> Draws:
        """The stream of random integers for one purpose in one window."""
        return Draws(f"seed={seed}/window={window}/{purpose}")


def configure(options: PackOptions) -> ConfiguredStrategy:
    """The strategy that the options name, with its own.

    Raises `ConfigError` for an unknown name (suggesting the nearest), option or value, and for options of the run that
    have no effect with it.
    """
    try:
        strategy = find(options.strategy)
    except ValueError as error:
        raise ConfigError(f"--strategy: {error}") from None
    own = _own_options(strategy, options.set)
    capacity = strategy.capacity(options.max_length, own)
    if capacity > _MOST_CAPACITY:
        most = f"at most {_MOST_CAPACITY}"
        raise ConfigError(f"a pack of strategy {strategy.name!r} would hold {capacity} tokens; {most}")
    try:
        strategy.check_max_segments(options.max_segments, own)
    except ValueError as error:
        raise ConfigError(f"--max-segments {options.max_segments}: {error}") from None
    configured = ConfiguredStrategy(
        strategy=strategy, options=own, capacity=capacity, max_segments=options.max_segments
    )
    if configured.cuts_stream and options.overlong != "error":
        raise ConfigError(
            f"--overlong {options.overlong} has no effect: strategy {strategy.name} cuts the stream of tokens"
        )
    return configured


def _own_options(strategy: Strategy, settings: Mapping[str, Any]) -> Any:
    """The strategy's options dataclass. Raises `ConfigError`."""
    fields = {field.name: field for field in dataclasses.fields(strategy.options)}
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in fields:
            hint = did_you_mean(key, fields) if fields else "; it has none"
            raise ConfigError(f"--set {key}: strategy {strategy.name!r} has no such option{hint}")
        values[key] = _typed(key, value, type(fields[key].default))
    try:
        return strategy.options(**values)
    except ValueError as error:
        raise ConfigError(f"--set: {error}") from None


def _typed(key: str, value: Any, kind: type) -> Any:
    """A setting's value, from text where it is no text by itself. Raises `ConfigError`."""
    if isinstance(value, str) and kind is bool:
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise ConfigError(f"--set {key}: {value!r} is neither true nor false")
    if isinstance(value, str) or (kind is float and type(value) is int):
        try:
            return kind(value)
        except ValueError:
            raise ConfigError(f"--set {key}: {value!r} is no {kind.__name__}") from None
    if type(value) is not kind:
        raise ConfigError(f"--set {key}: {value!r} is no {kind.__name__}")
    return value


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything that a run's options ask for, ready to be used."""

    options: PackOptions
    strategy: ConfiguredStrategy
    tokenization: Tokenization | None
    """How raw rows are tokenised; None for inputs that are tokenised."""

    embedder: Embedder | None
    """What makes vectors of samples; None where the strategy wants none."""

    @property
    def recorded_options(self) -> PackOptions:
        """The options as the manifest records them: the strategy by its own name, with all its settings but paths."""
        strategy = self.strategy.strategy
        tokenize = None if self.tokenization is None else self.options.tokenize or TokenizeOptions()
        settings = strategy.settings(self.strategy.options)
        return replace(self.options, strategy=strategy.name, set=settings, tokenize=tokenize)

    def identity(self, batches: Sequence[Sequence[FileHash]], of_inputs: Origin) -> Identity:
        """What makes this run another than others.

        batches: the data files, append by append; of_inputs: what inputs that are tokenised say of their tokenizer.
        """
        options = self.recorded_options
        settings = self.strategy.strategy.changed(options.set)
        return Identity(kind=PACKED, config=options, settings=settings, batches=batches, origin=self._origin(of_inputs))

    def _origin(self, of_inputs: Origin) -> Origin:
        """Tokenizer, chat template and embedding model."""
        origin = dict(self.tokenization.origin if self.tokenization else of_inputs)
        if self.embedder is not None and self.embedder.model is not None:
            origin[EMBEDDING_MODEL] = self.embedder.model
        return origin


def set_up(
    options: PackOptions, tokenizer: str | Path | TextTokenizer | None, chat_template: str | Path | None
) -> Setup:
    """Resolve a run's options; see `pack`.

    Raises `ConfigError` for what does not exist or does not go together, `BusyError` where the Hub is out of reach.
    """
    strategy = configure(options)
    embedding = strategy.embedding
    embedder = make_embedder(embedding) if embedding else None
    if options.unpack and (tokenizer is not None or (embedder is not None and embedder.column is not None)):
        of_what = "raw rows are no packs" if tokenizer is not None else "a packed row has one embedding for all samples"
        raise ConfigError(f"--unpack takes tokens of packed rows apart, and {of_what}; leave it out")
    tokenization = None
    if tokenizer is not None:
        from pipeline.tokenizing.tokenization import load_tokenization

        tokenize = _tokenize_options(options, embedding)
        tokenization = load_tokenization(tokenizer, chat_template, tokenize)
    elif chat_template is not None or options.tokenize is not None:
        changed = options.tokenize.changed() if options.tokenize else ()
        flag = "chat-template" if chat_template is not None else next(iter(changed), "tokenize")
        raise ConfigError(f"--{flag.replace('_', '-')} is for raw rows and has no effect without --tokenizer")
    return Setup(
        options=options,
        strategy=strategy,
        tokenization=tokenization,
        embedder=embedder,
    )


def _tokenize_options(options: PackOptions, embedding: Embedding | None) -> TokenizeOptions:
    """How raw rows are tokenised to be packed; their text is kept where it is embedded."""
    tokenize = options.tokenize or TokenizeOptions()
    if options.column:
        raise ConfigError("--column names columns of tokenised input; with --tokenizer name those of raw rows by --map")
    if tokenize.keep_text:
        raise ConfigError("--keep-text has no effect on packs, which hold no text; it is for `tokenize`")
    if embedding is None:
        return tokenize
    if embedding.embedder == "column" or embedding.column not in ("", "text"):
        raise ConfigError(
            f"--set: column {embedding.column!r} is not kept where raw rows are tokenised; raw rows are embedded by"
            " their tokens, or with embedder=sentence-transformers by their prompts"
        )
    return replace(tokenize, keep_text=embedding.embedder == "sentence-transformers")


@contextmanager
def dealer_of(
    options: EngineOptions, run: RunOptions, threads: LocalEngine, place: AnyPlace, folders: Mapping[Path, str]
) -> Iterator[Dealer]:
    """Who does the tasks of a run that builds an output at a place.

    folders: which all who do tasks have to see, with what to do otherwise. Raises `ConfigError` and `BusyError` for a
    cluster that cannot.
    """
    if options.engine == "ray":
        from pipeline.base.dealing.cluster import RayDealer, parse_resources
        from pipeline.base.dealing.connection import connected

        resources = parse_resources(options.resources)
        with connected(options.ray_address, threads.num_workers) as ray:
            dealer = RayDealer(ray, resources, run.num_workers)
            for folder, way_out in folders.items():
                dealer.require_seen(folder, way_out)
            yield dealer
    elif options.finish:
        # What is published from a store may be finished on a machine that has nothing but the shards there.
        everything: tuple[Kind, ...] = ("decode", "embed", "plan", "write")
        yield FinishingDealer(threads, everything if isinstance(place, Place) else ("write",))
    elif (share := share_of(options)) is not None:
        yield SharingDealer(threads, share, options.wait)
    else:
        yield LocalDealer(threads)


def shared_folders(place: AnyPlace, setup: Setup, sources: Sequence[Input], cache: FileCache) -> dict[Path, str]:
    """The folders in which workers read and write, and what to do where they do not see them."""
    shared = "must lie on a file system that all nodes share"
    folders = {place.scratch: f"{'--output' if isinstance(place, Place) else '--cache-dir'} {shared}"}
    is_remote = not all(file.is_local for source in sources for file in source.files())
    if setup.embedder is not None or is_remote:
        folders[cache.folder] = f"--cache-dir {shared}"
    return folders


def share_of(options: EngineOptions) -> Share | None:
    """The share of the run that this process has; None for all of it."""
    if options.task_index is None or options.task_count is None:
        return None
    return Share(options.task_index, options.task_count)
