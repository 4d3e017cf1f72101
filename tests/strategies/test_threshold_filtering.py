"""Threshold filtering: exact about every sample, full packs, related samples together, redundant ones apart."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from strategies import find, pack
from strategies.related import threshold_filtering
from strategies.related.affinity import MOST_DIMENSIONS, ONE, affinities, products, quantise
from strategies.related.clusters import chain, learn_centroids, nearest_centroid, neighbours_first
from strategies.related.relatedness import rates
from strategies.related.threshold_filtering import ThresholdFilteringOptions, prepare
from strategies.related.walk import walk, walk_lists
from strategies.testing import StrategyConformance, packs_of
from tests.strategies import reference

Vectors = np.ndarray[Any, np.dtype[np.float64]]


class TestThresholdFiltering(StrategyConformance):
    strategy = "threshold-filtering"
    many = 3_000
    option_sets = (
        {},
        {"threshold": "cosine:0.9"},
        {"threshold": "none", "block": 16},
        {"threshold": "percentile:30", "block": 8},
        {"mode": "path"},
    )


def clustered(num: int, num_clusters: int, spread: float = 0.6, seed: int = 0) -> tuple[Vectors, Vectors]:
    """(vectors around as many centres, lengths)."""
    draws = np.random.default_rng(seed)
    centres = draws.normal(size=(num_clusters, 32))
    vectors = centres[draws.integers(0, num_clusters, num)] + spread * draws.normal(size=(num, 32))
    return vectors, np.clip(np.exp(draws.normal(4.8, 0.8, num)), 8, 1024).astype(np.int32)


def brute_force(packs: list[list[int]], lengths: Vectors, vectors: Vectors, threshold: float) -> tuple[float, float]:
    """(mean in-pack similarity, conflict rate) by their definitions."""
    unit = quantise(vectors).astype(np.float64)
    total = tokens = conflicts = pairs = 0.0
    for one in packs:
        if len(one) > 1:
            between = (unit[one] @ unit[one].T)[np.triu_indices(len(one), 1)]
            total += between.mean() / ONE * lengths[one].sum()
            tokens += lengths[one].sum()
            conflicts += (between > threshold).sum()
            pairs += len(between)
    return total / max(1, tokens), conflicts / max(1, pairs)


def test_products_are_exact_at_any_width() -> None:
    draws = np.random.default_rng(0)
    for width in (1, 3, 384, MOST_DIMENSIONS):
        vectors = draws.normal(size=(40, width)) + 3  # nearly parallel: the largest sums there are
        embeddings = quantise(vectors)
        exact = embeddings.astype(np.int64) @ embeddings.astype(np.int64).T
        assert exact.max() < 2**24
        assert np.array_equal(products(embeddings), exact)


def test_quantised_vectors_have_length_scale_and_zero_stays_zero() -> None:
    embeddings = quantise(np.array([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]]))
    assert embeddings.tolist() == [[2400, 3200], [0, 0], [4000, 0]]


def test_affinities_tell_conflicts_from_all_other_pairs() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.001], [-1.0, 0.0]])
    affinity, num_conflicts = affinities(quantise(vectors), int(0.9 * ONE))
    assert num_conflicts.tolist() == [1, 1, 0]
    assert affinity[0, 1] < affinity[0, 2], "a conflict must be worse than the most unlike pair"
    assert affinity[0, 0] == ONE, "nothing conflicts with itself"


@pytest.mark.parametrize("options", [{}, {"threshold": "cosine:0.8"}, {"mode": "path"}])
def test_the_report_has_the_definitions(options: dict[str, Any]) -> None:
    vectors, lengths = clustered(600, 20)
    plan = pack(lengths, 2048, "tfp", embeddings=vectors, **options)
    preparation = prepare(quantise(vectors), 600, ThresholdFilteringOptions(**options))
    if "threshold" in options:
        assert int(preparation["threshold"]) == int(0.8 * ONE)
        similarity, conflict_rate = brute_force(packs_of(plan), lengths, vectors, int(preparation["threshold"]))
        assert plan.report["conflict_rate"] == pytest.approx(conflict_rate, abs=1e-12)
    else:
        similarity, _ = brute_force(packs_of(plan), lengths, vectors, 0)
    assert plan.report["mean_in_pack_similarity"] == pytest.approx(similarity, rel=1e-9)
    baseline = packs_of(pack(lengths, 2048, "best-fit-decreasing"))
    similarity, _ = brute_force(baseline, lengths, vectors, 0)
    assert plan.report["best_fit_decreasing_mean_in_pack_similarity"] == pytest.approx(similarity, rel=1e-9)


def test_the_percentile_is_that_of_all_distances() -> None:
    vectors, _ = clustered(500, 10)
    embeddings = quantise(vectors)
    every = np.sort((embeddings.astype(np.int64) @ embeddings.T)[np.triu_indices(500, 1)])[::-1]
    for percentile in (0.5, 2, 50):
        found = int(
            prepare(embeddings, 500, ThresholdFilteringOptions(threshold=f"percentile:{percentile}"))["threshold"]
        )
        share = (every > found).mean()
        assert share == pytest.approx(percentile / 100, abs=2e-4)


@pytest.mark.parametrize("capacity", [1024, 4096])
def test_packs_are_as_full_as_sorted_bins_and_more_related_than_the_walk(capacity: int) -> None:
    vectors, lengths = clustered(3000, 100)
    plan = pack(lengths, capacity, "tfp", embeddings=vectors, num_threads=2)
    walked = pack(lengths, capacity, "tfp", embeddings=vectors, mode="path")
    bound = -(-int(lengths.sum()) // capacity)
    assert plan.num_packs <= bound + max(3, 0.002 * bound)
    assert plan.report["mean_in_pack_similarity"] > 1.05 * walked.report["mean_in_pack_similarity"]
    assert plan.report["mean_in_pack_similarity"] > plan.report["shuffled_mean_in_pack_similarity"]
    assert plan.report["conflict_rate"] < walked.report["conflict_rate"] / 4


@pytest.mark.parametrize("share", [0.05, 0.5, 2.9])
def test_a_cosine_is_a_limit_where_a_percentile_is_none(share: float) -> None:
    vectors, lengths = clustered(3000, 150, spread=0.8)
    loose = pack(lengths, 1024, "tfp", embeddings=vectors, threshold=f"percentile:{share}", block=1000).report
    threshold = f"cosine:{loose['threshold']:.6f}"
    strict = pack(lengths, 1024, "tfp", embeddings=vectors, threshold=threshold, block=1000).report
    assert strict["conflict_rate"] <= min(loose["conflict_rate"], 0.0005)


@pytest.mark.parametrize(("threshold", "is_clustered"), [("0.99", True), ("0.5", False)])
def test_samples_are_dealt_by_clusters_where_few_pairs_conflict(threshold: str, is_clustered: bool) -> None:
    options = ThresholdFilteringOptions(threshold=f"cosine:{threshold}", block=1000)
    prepared = prepare(quantise(clustered(3000, 150, spread=0.8)[0]), 3000, options)
    assert ("centroids" in prepared) == is_clustered


def test_near_duplicates_never_meet_where_that_can_be() -> None:
    draws = np.random.default_rng(0)
    vectors = np.repeat(draws.normal(size=(400, 16)), 3, axis=0)
    lengths = draws.integers(20, 300, 1200)
    plan = pack(lengths, 2048, "tfp", embeddings=vectors, threshold="cosine:0.99")
    assert plan.report["conflict_rate"] == 0
    assert "conflict_rate" not in pack(lengths, 2048, "tfp", embeddings=vectors, threshold="none").report
    assert plan.report["forced_placements"] == 0


def test_equal_vectors_conflict_at_the_highest_threshold() -> None:
    draws = np.random.default_rng(0)
    for width in (2, 64, 1024):
        vectors = np.repeat(draws.normal(size=(200, width)), 2, axis=0)
        plan = pack(np.full(400, 50), 1000, "tfp", embeddings=vectors, threshold="cosine:0.999")
        assert plan.report["conflict_rate"] == 0
        assert all(len({sample // 2 for sample in one}) == len(one) for one in packs_of(plan))


def test_related_samples_meet_where_nothing_is_too_close() -> None:
    vectors, lengths = clustered(3000, 30, spread=0.3)
    plan = pack(lengths, 2048, "tfp", embeddings=vectors, threshold="none")
    assert plan.report["mean_in_pack_similarity"] > 0.75
    assert plan.report["shuffled_mean_in_pack_similarity"] < 0.2


def test_identical_samples_fill_packs_and_are_reported() -> None:
    lengths = np.random.default_rng(0).integers(10, 400, 3000)
    plan = pack(lengths, 2048, "tfp", embeddings=np.ones((3000, 4)), threshold="cosine:0.9", block=1024)
    assert plan.num_packs <= -(-int(lengths.sum()) // 2048) + 3
    assert plan.report["conflict_rate"] == 1
    assert plan.report["forced_placements"] == 3000


def test_samples_that_leave_room_in_every_pack_do_not_pile_up() -> None:
    vectors = np.random.default_rng(0).normal(size=(2000, 4))
    plan = pack(np.full(2000, 700), 2048, "tfp", embeddings=vectors, block=256)
    assert plan.num_packs == 1000


@pytest.mark.parametrize("options", [{"block": 300}, {"block": 300, "threshold": "cosine:0.7"}, {"mode": "path"}])
def test_no_number_of_threads_changes_the_plan(options: dict[str, Any]) -> None:
    vectors, lengths = clustered(1500, 20)
    plans = []
    for num_threads, blas_threads in ((1, 1), (2, 2), (7, 1)):
        with threadpool_limits(blas_threads):
            plans.append(pack(lengths, 1024, "tfp", embeddings=vectors, num_threads=num_threads, **options))
    for other in plans[1:]:
        assert np.array_equal(plans[0].segment, other.segment)
        assert np.array_equal(plans[0].pack_offsets, other.pack_offsets)
        assert plans[0].report == other.report


def test_the_seed_changes_the_plan() -> None:
    vectors, lengths = clustered(1500, 20)
    plans = [pack(lengths, 1024, "tfp", embeddings=vectors, block=300, seed=seed) for seed in (0, 1)]
    assert not np.array_equal(plans[0].segment, plans[1].segment)


def test_golden_plan() -> None:
    """Integers in, so the same plan on every machine. It changes only together with `ALGORITHM_VERSION`."""
    numbers = (np.arange(900 * 12).reshape(900, 12) * 2654435761 % 2**32) / 2**31 - 1
    lengths = np.arange(900) * 7919 % 500 + 10
    plan = pack(lengths, 2048, "tfp", embeddings=numbers, block=400)
    digest = hashlib.sha256(plan.segment.tobytes() + plan.pack_offsets.tobytes()).hexdigest()[:16]
    assert digest == "dad2c4fe1a0c58aa"


@settings(max_examples=60)
@given(
    num=st.integers(1, 60), seed=st.integers(0, 99), spread=st.floats(0.2, 2), percentile=st.sampled_from([2, 10, 40])
)
def test_the_walk_is_the_published_one_where_that_loses_nothing(
    num: int, seed: int, spread: float, percentile: int
) -> None:
    vectors, _ = clustered(num, 5, spread, seed)
    embeddings = quantise(vectors)
    options = ThresholdFilteringOptions(threshold=f"percentile:{percentile}")
    threshold = int(prepare(embeddings, num, options)["threshold"])
    published, again = reference.published_walk(embeddings.astype(np.int64) @ embeddings.T.astype(np.int64), threshold)
    order, num_forced = walk(embeddings, threshold, 0)
    assert sorted(order) == list(range(num))
    if not again:
        assert order.tolist() == published
        assert num_forced == 0
    else:
        same = published.index(0, 1)
        assert order[:same].tolist() == published[:same]
        assert num_forced > 0


def test_the_walk_keeps_what_the_published_one_loses() -> None:
    draws = np.random.default_rng(0)
    vectors = draws.normal(size=(300, 8))
    vectors[:30] = vectors[30:31] + 1e-3 * draws.normal(size=(30, 8))  # a tenth are near-duplicates
    embeddings = quantise(vectors)
    threshold = int(0.95 * ONE)
    published, again = reference.published_walk(embeddings.astype(np.int64) @ embeddings.T.astype(np.int64), threshold)
    assert again > 0
    assert len(set(published)) == 300 - again
    order, num_forced = walk(embeddings, threshold, 0)
    assert sorted(order) == list(range(300))
    assert num_forced > 0
    plan = pack(np.full(300, 10), 100, "tfp", embeddings=vectors, mode="path", threshold="cosine:0.95")
    assert plan.segment.tolist() == order.tolist()
    assert plan.report["forced_placements"] == num_forced


def test_a_forced_step_takes_the_least_close() -> None:
    angles = np.array([0.0, 0.02, 0.01])  # all too close to sample 0; 1 is farther than 2
    embeddings = quantise(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert walk(embeddings, int(0.5 * ONE), 0)[0].tolist() == [0, 1, 2]


def test_centroids_are_near_their_samples_and_chain_names_each_once() -> None:
    vectors, _ = clustered(2000, 16, spread=0.2)
    embeddings = quantise(vectors)
    centroids = learn_centroids(embeddings, 16)
    nearest = nearest_centroid(embeddings, centroids)
    close = (embeddings.astype(np.int64) * centroids[nearest]).sum(axis=1) / ONE
    assert np.median(close) > 0.9
    assert sorted(chain(centroids)) == list(range(16))
    near = neighbours_first(centroids)
    assert near[:, 0].tolist() == list(range(16))
    assert all(sorted(row) == list(range(16)) for row in near)


def test_clusters_keep_related_samples_in_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, lengths = clustered(2500, 40, spread=0.3)
    with_clusters = pack(lengths, 1024, "tfp", embeddings=vectors, threshold="cosine:0.99", block=500)
    monkeypatch.setattr(threshold_filtering, "_MOST_CONFLICTS_IN_BLOCK", -1)
    at_random = pack(lengths, 1024, "tfp", embeddings=vectors, threshold="cosine:0.99", block=500)
    assert with_clusters.report["mean_in_pack_similarity"] > 1.1 * at_random.report["mean_in_pack_similarity"]


def test_the_walk_over_lists_visits_everything_and_is_nearly_as_related(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, lengths = clustered(3000, 30)
    exact = pack(lengths, 1024, "tfp", embeddings=vectors, mode="path")
    monkeypatch.setattr(threshold_filtering, "_EXACT_WALK", 1000)
    monkeypatch.setattr("strategies.related.walk._ENOUGH_CANDIDATES", 200)
    near = pack(lengths, 1024, "tfp", embeddings=vectors, mode="path")
    assert sorted(near.segment) == list(range(3000))
    assert not np.array_equal(near.segment, exact.segment)
    assert near.report["mean_in_pack_similarity"] > 0.8 * exact.report["mean_in_pack_similarity"]
    assert near.report["mean_in_pack_similarity"] > 2 * near.report["shuffled_mean_in_pack_similarity"]


def test_the_walk_over_one_list_is_the_walk() -> None:
    vectors, _ = clustered(400, 5)
    embeddings = quantise(vectors)
    threshold = int(0.6 * ONE)
    whole, num_forced = walk(embeddings, threshold, 0)
    lists, near = np.zeros(400, np.int32), np.zeros((1, 1), np.int32)
    order, forced = walk_lists(embeddings, threshold, 0, lists, near)
    assert forced == num_forced
    until = next((i for i in range(400) if order[i] != whole[i]), 400)
    assert until > 300, "they may part only where equally near candidates are found in another order"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "walk"}, "mode must be pack or path, not 'walk'"),
        ({"threshold": "2"}, "threshold must be percentile:P"),
        ({"threshold": "percentile:0"}, "P between 0 and 100"),
        ({"threshold": "cosine:1.5"}, "X from 0 to 0.999"),
        ({"embedder": "bert"}, "embedder must be tokens, sentence-transformers or column"),
        ({"embedder": "column"}, "needs column=NAME"),
        ({"embedder": "sentence-transformers"}, "needs model=PATH_OR_ID"),
        ({"model": "minilm"}, "model has no effect with embedder tokens"),
        ({"column": "vector"}, "column has no effect"),
        ({"embedder": "sentence-transformers", "model": "m", "max_tokens": -1}, "max_tokens must be at least 1"),
        ({"max_tokens": 9}, "max_tokens has no effect"),
        ({"text": "prompt"}, "text has no effect with embedder tokens"),
        ({"mode": "path", "block": 9}, "block has no effect with mode path"),
        ({"threshold": 0.9}, "must be a text such as 'cosine:0.9', not 0.9"),
        ({"threshold": "cosine:0.9999"}, "cosine:0.999 is the highest"),
        ({"threshold": "cosine:-0.5"}, "X from 0 to 0.999"),
        ({"block": 1}, "block must be 0 or from 2"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ThresholdFilteringOptions(**options)


def test_pack_needs_one_finite_vector_for_each_sample() -> None:
    with pytest.raises(ValueError, match="give it their embeddings"):
        pack([1, 2], 4, "tfp")
    for wrong in (np.ones((3, 2)), np.ones(2)):
        with pytest.raises(ValueError, match=r"a vector for each of 2 samples, not of shape \("):
            pack([1, 2], 4, "tfp", embeddings=wrong)
    with pytest.raises(ValueError, match="8192 dimensions at most, not 8193"):
        pack([1, 2], 4, "tfp", embeddings=np.ones((2, MOST_DIMENSIONS + 1)))
    with pytest.raises(ValueError, match="sample 1 holds a number that is not finite"):
        pack([1, 2], 4, "tfp", embeddings=np.array([[1, 1], [1, np.nan]]))
    with pytest.raises(ValueError, match="no use for embeddings"):
        pack([1, 2], 4, embeddings=np.ones((2, 2)))
    with pytest.raises(ValueError, match="embedder says where a command finds vectors"):
        pack([1, 2], 4, "tfp", embeddings=np.ones((2, 2)), embedder="column")
    with pytest.raises(TypeError, match="no option 'treshold'"):
        pack([1, 2], 4, "tfp", embeddings=np.ones((2, 2)), treshold="none")
    with pytest.raises(ValueError, match="num_threads must be at least 1"):
        pack([1, 2], 4, "tfp", embeddings=np.ones((2, 2)), num_threads=0)
    assert pack([], 4, "tfp", embeddings=[]).num_packs == 0


def test_rates_of_nothing_are_zero() -> None:
    assert rates({"pairs": 0}, "") == {"mean_in_pack_similarity": 0.0, "conflict_rate": 0.0}
    assert find("tfp").name == "threshold-filtering"
