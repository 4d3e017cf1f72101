"""Strategies are found by name: ours always, those of other packages where they keep to the rules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from strategies import all_strategies, find
from strategies.registry import BUILT_IN

Install = Callable[..., str]


def source(name: str, *aliases: str) -> str:
    """The module of a sound strategy."""
    return (
        "from strategies.by_length.padding import place\n"
        "from strategies.contract import Strategy\n"
        f'STRATEGY = Strategy(name={name!r}, aliases={aliases!r}, place=place, summary="alone", when="in tests")\n'
    )


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution with one module and an entry point, and return where that leads."""
    before = set(sys.modules)

    def call(name: str, content: str, *, point: str = "") -> str:
        folder = tmp_path / f"site-{name}"
        metadata = folder / f"{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[pipeline.strategies]\n{point or name} = plug_{name}:STRATEGY\n")
        (folder / f"plug_{name}.py").write_text(content)
        monkeypatch.syspath_prepend(folder)
        return f"plug_{name}:STRATEGY"

    yield call
    for module in set(sys.modules) - before:
        if module.startswith("plug_"):
            del sys.modules[module]


def refusal(name: str) -> str:
    with pytest.raises(ValueError) as refused:
        find(name)
    return str(refused.value)


def broken_reasons() -> dict[str, str]:
    return {plug_in.entry_point: plug_in.reason for plug_in in all_strategies()[1]}


def test_ours_have_different_names_and_are_found_by_each() -> None:
    names = [name for strategy in BUILT_IN for name in strategy.names]
    assert len(set(names)) == len(names)
    assert [find(name) for name in names] == [strategy for strategy in BUILT_IN for _ in strategy.names]
    assert find("random").name == "wrapped"
    assert all_strategies() == (list(BUILT_IN), [])


def test_a_plug_in_is_found_by_name_and_alias_and_listed_after_ours(install: Install) -> None:
    install("solo", source("solo", "alone", "single"))
    assert find("solo").name == "solo"
    assert find("alone") is find("single") is find("solo")
    assert all_strategies() == ([*BUILT_IN, find("solo")], [])


def test_asking_for_ours_loads_no_plug_in(install: Install) -> None:
    install("loud", "raise AssertionError('loaded')")
    for strategy in BUILT_IN:
        for name in strategy.names:
            assert find(name) is strategy
    assert "plug_loud" not in sys.modules
    assert "AssertionError: loaded" in refusal("loud"), "it must have been installed"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("import nowhere", r"cannot be loaded from plug_bad:STRATEGY (ModuleNotFoundError: No module named 'nowhere')"),
        ("raise SystemExit(3)", "cannot be loaded from plug_bad:STRATEGY (SystemExit: 3)"),
        ("SOLO = 1", "cannot be loaded from plug_bad:STRATEGY (AttributeError"),
        ("STRATEGY = 1", "it is no Strategy but of type int"),
        (source("bad").replace("()", "'solo'"), "its aliases must be a tuple"),
        (source("bad").replace("place=place", "place=place, options=int"), "its options must be a frozen dataclass"),
        (source("other", "solo"), "entry point 'bad' (plug_bad:STRATEGY) leads to strategy 'other'"),
        (source("bad", "greedy", "solo"), "'bad' (plug_bad:STRATEGY) claims the name 'greedy', which belongs to our"),
        (source("bad", "padding", "solo"), "claims the name 'padding', which belongs to our 'padding'"),
    ],
)
def test_a_broken_plug_in_is_refused_and_harms_no_other(install: Install, content: str, reason: str) -> None:
    install("bad", content)
    install("solo", source("solo"))
    assert reason in refusal("bad")
    assert find("solo").name == "solo"
    strategies, broken = all_strategies()
    assert [strategy.name for strategy in strategies[len(BUILT_IN) :]] == ["solo"]
    assert [(plug_in.name, plug_in.reason) for plug_in in broken] == [("bad", refusal("bad"))]


def test_a_plug_in_with_another_name_than_its_entry_point_is_refused_under_both(install: Install) -> None:
    install("wheel", source("spoke", "hub"))
    assert refusal("wheel") == refusal("spoke") == refusal("hub")
    assert "entry point 'wheel' (plug_wheel:STRATEGY) leads to strategy 'spoke'" in refusal("spoke")


def test_a_plug_in_with_one_of_our_names_is_listed_as_broken(install: Install) -> None:
    where = install("padding", source("padding"))
    assert find("padding") in BUILT_IN
    assert "claims the name 'padding', which belongs to our 'padding'" in broken_reasons()[where]


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [(("left", "right"), ("right",), "right"), (("left", "middle"), ("right", "middle"), "middle")],
)
def test_plug_ins_that_share_a_name_are_both_refused(
    install: Install, one: tuple[str, ...], other: tuple[str, ...], name: str
) -> None:
    for names in (one, other):
        install(names[0], source(*names))
    install("solo", source("solo"))
    for each in {*one, *other}:
        for part in ("'left' (plug_left:STRATEGY)", "'right' (plug_right:STRATEGY)", f"the same name {name!r}"):
            assert part in refusal(each)
    assert set(broken_reasons()) == {"plug_left:STRATEGY", "plug_right:STRATEGY"}
    assert find("solo").name == "solo"


def test_two_entry_points_of_one_name_are_both_refused(install: Install) -> None:
    places = {install("first", source("twice"), point="twice"), install("second", source("twice"), point="twice")}
    for part in ("'twice' (plug_first:STRATEGY)", "'twice' (plug_second:STRATEGY)"):
        assert part in refusal("twice")
    assert set(broken_reasons()) == places


def test_an_unknown_name_suggests_the_nearest_and_tells_what_is_broken(install: Install) -> None:
    install("solo", source("solo", "alone"))
    install("bad", "import nowhere")
    assert "unknown strategy 'sol'; did you mean 'solo'?" in refusal("sol")
    assert "'alone'" in refusal("alon")
    assert "solo, alone; broken: bad)" in refusal("nothing-like-it")
