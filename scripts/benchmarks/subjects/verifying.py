"""What `verify` costs beside reading and hashing the same bytes: calls in one process, and commands as processes."""

from __future__ import annotations

import sys
from functools import partial

from benchmarks.inputs import CAPACITY, reference_lengths, write_arrow
from benchmarks.measuring import Case, case, in_turn, of_call, of_process
from benchmarks.parts import Part, Setting, folder_in, pack_command
from pipeline import PackOptions, RunOptions, pack, verify
from pipeline.base.digests import hash_file
from pipeline.base.engine import LocalEngine


def hashing(setting: Setting, rounds: int) -> dict[str, Case]:
    """150,000 samples, 41 M tokens; warm: compiled, imported, and the files in the page cache."""
    with folder_in(setting.tmpfs) as folder:
        run = RunOptions(cache_dir=folder / "cache", num_workers=setting.workers)
        source = write_arrow(folder / "in", reference_lengths(setting.samples(150_000)))
        packed = folder / "packed"
        counts = pack(source, packed, PackOptions(max_length=CAPACITY), run=run).manifest.counts
        files = [path for path in packed.iterdir() if path.is_file()]

        def hash_all() -> None:
            with LocalEngine(setting.workers) as engine:
                list(engine.map(hash_file, files))

        def verify_all() -> None:
            assert verify(packed, run=run).status == "verified"

        hash_all()
        verify_all()
        ways = {"verify": partial(of_call, verify_all), "hashing the files": partial(of_call, hash_all)}
        size = sum(file.stat().st_size for file in files)
        name = f"{counts.samples_in:,} samples, in one process"
        return {name: case(in_turn(ways, rounds), tokens=counts.tokens_packed, bytes=size)}


def reference(setting: Setting, rounds: int) -> dict[str, Case]:
    """The reference, 1 M, on tmpfs: its invariants, and with every token compared."""
    with folder_in(setting.tmpfs) as folder:
        count = setting.samples(1_000_000)
        source, packed = write_arrow(folder / "in", reference_lengths(count)), folder / "packed"
        of_process(pack_command(source, packed))
        command = [sys.executable, "-m", "pipeline", "verify", packed]
        ways = {
            "verify": partial(of_process, command),
            "verify --source": partial(of_process, [*command, "--source", source, "--cache-dir", folder / "cache"]),
            "xxhsum by one thread": partial(of_process, [sys.executable, "-c", _HASH, packed]),
        }
        return {f"{count:,} samples, as processes": case(in_turn(ways, rounds), samples=count)}


_HASH = """
import pathlib, sys, xxhash
for path in pathlib.Path(sys.argv[1]).iterdir():
    with open(path, "rb") as file:
        digest = xxhash.xxh3_128()
        while block := file.read(1 << 22):
            digest.update(block)
"""

PARTS = (
    Part(name="hashing", measure=hashing, rounds=7, minutes=0.5),
    Part(name="reference", measure=reference, rounds=5, minutes=1),
)
