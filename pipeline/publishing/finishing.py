"""The last step before a dataset is published: what it grows from is put beside what was made, and all is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.base.errors import ConfigError
from pipeline.base.storage import FileFacts, link_or_copy, map_file
from pipeline.format.appends import joined, shards_of
from pipeline.format.dataset_files import finish_dataset
from pipeline.format.manifest import AnyManifest, Manifest
from pipeline.format.records import FileEntry


@dataclass(frozen=True)
class Base:
    """The dataset that is appended to."""

    output: Path | str
    manifest: Manifest

    def with_shards(self, new: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """The names of its shards and of new ones by split, in order."""
        old = {split: [Path(path).name for _, _, path in shards_of(self.manifest, split)] for split in new}
        return {split: [*old[split], *names] for split, names in new.items()}

    def link_shards(self, folder: Path, schema: pa.Schema) -> dict[str, FileEntry]:
        """Put its shards into a folder, too; returns them by path.

        schema: of those that are to stand beside them. Raises `ConfigError` if they have other columns, and `OSError`.
        """
        entries = {path: entry for path, entry in self.manifest.files.items() if entry.is_shard}
        for path in entries:
            with map_file(Path(self.output, path)) as file:
                self.require_same(pa.ipc.open_stream(file).schema.names, schema)
            link_or_copy(Path(self.output, path), folder / path)
        return entries

    def require_same(self, columns: Sequence[str], schema: pa.Schema) -> None:
        """Raise `ConfigError` if a shard of it has other columns than those that are to stand beside it."""
        if columns != schema.names:
            raise ConfigError(
                f"--append: the shards in {self.output} have the columns {', '.join(columns)}, and new ones would"
                f" have {', '.join(schema.names)}; make it anew with --overwrite"
            )


def finish(
    folder: Path,
    manifest: AnyManifest,
    schema: pa.Schema,
    shards: Mapping[str, Sequence[str]],
    files: Mapping[str, FileFacts],
    only_split: str | None,
    base: Base | None,
) -> AnyManifest:
    """Make a folder of shards a dataset; returns its manifest.

    manifest, shards, files, only_split: see `finish_dataset`; base: what is appended to, whose shards stand first; None
    for a first run. Raises `ConfigError` if its shards have other columns than the new ones, and `OSError`.
    """
    if base is None:
        return finish_dataset(folder, manifest, schema, shards, files, only_split)
    before = base.link_shards(folder, schema)
    whole = joined(base.manifest, manifest)
    return finish_dataset(folder, whole, schema, base.with_shards(shards), {**before, **files}, only_split)
