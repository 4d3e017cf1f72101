"""Planning against sorting, against the same algorithm sample by sample, and against LightBinPack.

What is timed is the plan alone, compiled before; its check is timed apart. Cold start is a process of its own with an
empty cache of compiled code.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from benchmarks.inputs import CAPACITY, Lengths, distributions, reference_lengths
from benchmarks.measuring import Case, Cost, case, in_turn, of_call, of_process
from benchmarks.parts import Part, Setting
from benchmarks.peers import lightbinpack_variants, per_sample
from strategies import Draws, Request, Strategy, find
from strategies.arrays import Int32Array
from strategies.contract import check

TRIED, KEPT = 200_000, 3
"""Samples on which every variant of LightBinPack is tried, and how many of its fastest are timed on all."""


def request_of(strategy: Strategy, lengths: Lengths | Int32Array, capacity: int = CAPACITY) -> Request:
    """What a strategy is asked, at its default options."""
    options = strategy.options()
    return Request(
        lengths=lengths.astype(np.int32),
        capacity=strategy.capacity(capacity, options),
        draws=Draws("bench"),
        options=options,
    )


def _against_sorting(name: str, count: int, rounds: int, **peers: Callable[[Lengths], object]) -> Case:
    """A strategy on the reference, a stable argsort of the same lengths, and what else there is to compare with."""
    lengths, strategy = reference_lengths(count), find(name)
    request = request_of(strategy, lengths)
    plan = check(strategy.place(request), request, name)
    for peer in peers.values():
        peer(lengths)
    ways: dict[str, Callable[[], Cost]] = {
        name: lambda: of_call(lambda: strategy.place(request)),
        "np.argsort, stable": lambda: of_call(lambda: np.argsort(lengths, kind="stable")),
        "the check of the plan": lambda: of_call(lambda: check(plan, request, name)),
        **{called.replace("_", " "): partial(of_call, partial(peer, lengths)) for called, peer in peers.items()},
    }
    bound = -(-int(lengths.sum()) // request.capacity)
    fill = float(lengths.sum()) / (plan.num_packs * request.capacity)
    return case(in_turn(ways, rounds), samples=count, packs=plan.num_packs, lower_bound=bound, fill=fill)


def sorting(setting: Setting, rounds: int) -> dict[str, Case]:
    """Best-fit-decreasing on the reference, 1 M and 10 M."""
    return {
        f"{count:,} samples": _against_sorting(
            "best-fit-decreasing", count, rounds, sample_by_sample=lambda lengths: per_sample(lengths, CAPACITY)
        )
        for count in map(setting.samples, (1_000_000, 10_000_000))
    }


def strategies(setting: Setting, rounds: int) -> dict[str, Case]:
    """The other strategies by length, 1 M."""
    names = ("first-fit", "first-fit-decreasing", "next-fit")
    return {name: _against_sorting(name, setting.samples(1_000_000), rounds) for name in names}


def lightbinpack(setting: Setting, rounds: int) -> dict[str, Case]:
    """Best-fit-decreasing against the fastest variants of LightBinPack, for lengths of four distributions."""
    cases, count = {}, setting.samples(1_000_000)
    strategy = find("best-fit-decreasing")
    for name, lengths in distributions(count).items():
        request = request_of(strategy, lengths)
        packs = check(strategy.place(request), request, strategy.name).num_packs
        few = lightbinpack_variants(lengths[:TRIED], CAPACITY)
        tried = {variant: min(of_call(pack).seconds for _ in range(3)) for variant, pack in few.items()}
        # Next fit is no rival: it leaves packs half empty.
        fastest = sorted((variant for variant in tried if variant != "nf"), key=tried.__getitem__)[:KEPT]
        variants = lightbinpack_variants(lengths, CAPACITY)
        ways: dict[str, Callable[[], Cost]] = {strategy.name: partial(of_call, partial(strategy.place, request))}
        ways |= {f"LightBinPack, {variant}": partial(of_call, variants[variant]) for variant in fastest}
        cases[name] = case(
            in_turn(ways, rounds),
            samples=count,
            packs=packs,
            lower_bound=-(-int(lengths.sum()) // CAPACITY),
            packs_of_lightbinpack={variant: variants[variant]() for variant in fastest},
            seconds_of_all_variants={"samples": min(TRIED, count), **tried},
        )
    return cases


def capped(setting: Setting, rounds: int) -> dict[str, Case]:
    """Best-fit-decreasing under a cap on the segments of a pack, against itself without one."""
    ours, greedy = find("best-fit-decreasing"), find("first-fit-decreasing")
    cases = {}
    for name, lengths, capacity, caps in _capped_cases(setting):
        for cap in caps:
            free = Request(lengths=lengths, capacity=capacity, draws=Draws("bench"))
            under = replace(free, max_segments=cap)
            plan, without = check(ours.place(under), under, ours.name), ours.place(free)
            calls = {f"cap {cap}": partial(ours.place, under), "without a cap": partial(ours.place, free)}
            bound = max(-(-int(lengths.sum()) // capacity), -(-len(lengths) // cap))
            cases[f"{name}, capacity {capacity}, cap {cap}"] = case(
                in_turn({called: partial(of_call, call) for called, call in calls.items()}, rounds),
                packs=plan.num_packs,
                lower_bound=bound,
                over=plan.num_packs / bound - 1,
                over_by_first_fit_decreasing=check(greedy.place(under), under, greedy.name).num_packs / bound - 1,
                packs_without_a_cap=without.num_packs,
                most_segments_without_a_cap=int(np.diff(without.pack_offsets).max()),
            )
    return cases


def _capped_cases(setting: Setting) -> list[tuple[str, Int32Array, int, tuple[int, ...]]]:
    """Name, lengths, capacity and caps."""
    draws, some = np.random.default_rng(0), setting.samples(200_000)
    tiny = draws.integers(1, 9, some).astype(np.int32)
    even = np.clip(np.exp(draws.normal(4.9, 0.45, some)), 20, 600).astype(np.int32)
    heavy = np.clip(np.exp(draws.normal(4.5, 1.6, setting.samples(300_000))), 1, CAPACITY).astype(np.int32)
    reference = reference_lengths(setting.samples(1_000_000)).astype(np.int32)
    return [
        (f"{len(tiny):,} of 1 to 8 tokens", tiny, 131_072, (64, 1024, 3072)),
        (f"{len(reference):,} of the reference", reference, CAPACITY, (16, 32, 64)),
        (f"{len(even):,} of even lengths", even, 2048, (8, 14, 16)),
        (f"{len(heavy):,} with a heavy tail", heavy, CAPACITY, (16, 24, 32)),
    ]


def cold(setting: Setting, rounds: int) -> dict[str, Case]:
    """A first plan in a new process, imports included: nothing compiled before, and with what the first one left."""
    del setting
    cases = {}
    for name in ("best-fit-decreasing", "first-fit"):
        command = [sys.executable, "-c", f"from strategies import pack; pack([1, 2, 3], 4, {name!r})"]

        def compiling(command: list[str] = command) -> Cost:
            with tempfile.TemporaryDirectory() as cache:
                return of_process(command, {"NUMBA_CACHE_DIR": cache})

        ways: dict[str, Callable[[], Cost]] = {
            "nothing compiled": compiling,
            "compiled before": partial(of_process, command),
        }
        cases[name] = case(in_turn(ways, rounds))
    return cases


PARTS = (
    Part(name="sorting", measure=sorting, rounds=7, minutes=1),
    Part(name="lightbinpack", measure=lightbinpack, rounds=7, minutes=2),
    Part(name="strategies", measure=strategies, rounds=7, minutes=0.2),
    Part(name="capped", measure=capped, rounds=7, minutes=0.3),
    Part(name="cold", measure=cold, rounds=3, minutes=1),
)
