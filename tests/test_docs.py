"""README and docs say what the code says, and what reads them would see a fault."""

from __future__ import annotations

import ast
import importlib
import json
import re
import signal
import typing
from pathlib import Path
from types import ModuleType

import datasets
import pytest

from pipeline.base.errors import ExitCode
from pipeline.command.metrics import LABELS, OF_ALL_RUNS, OF_SUCCESSES, PREFIX
from pipeline.format.columns import PACK_SCHEMA, SOURCED_PACK_SCHEMA, tokenized_schema
from pipeline.format.counts import REASONS
from pipeline.format.figures import Figures
from pipeline.format.identity import ALGORITHM_VERSION, FORMAT_VERSION
from pipeline.format.manifest import PackManifest, TokenizeManifest
from pipeline.format.options import TokenizeOptions
from pipeline.format.records import PackAppend, SplitEntry, Tally, TokenizeAppend, TokenizedSplit
from pipeline.packing.run import PackResult
from pipeline.packing.share import ShareResult
from pipeline.tokenizing.run import TokenizeResult
from pipeline.verifying.verify import VerifyResult
from tests import documents
from tests.conftest import Run
from tests.documents import ROOT, Flags
from tests.pipeline.chats import chat, save_tokenizer, template
from tests.pipeline.samples import random_rows, save

PAGES = documents.pages()
README, FORMAT, CONTRIBUTING = (PAGES[name] for name in ("README.md", "docs/format.md", "CONTRIBUTING.md"))
every_page = pytest.mark.parametrize("page", PAGES)


@pytest.fixture(scope="module")
def flags() -> Flags:
    return documents.all_flags()


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        return importlib.import_module("figures")


def test_all_pages_were_read() -> None:
    assert {"docs/commands.md", "docs/decisions.md", "docs/training.md"} < set(PAGES)


@every_page
def test_links_lead_somewhere(page: str) -> None:
    assert documents.links(page, PAGES[page]) == []


@pytest.mark.parametrize("link", ["docs/nowhere.md", "docs/format.md#nothing", "#nothing", "../README.md"])
def test_a_wrong_link_shows(link: str) -> None:
    assert documents.links("README.md", f"# Something\n[text]({link})") != []
    assert documents.links("README.md", "# Some thing\n[text](#some-thing) [text](docs/format.md#versions)") == []


@every_page
def test_flags_exist_on_their_command(page: str, flags: Flags) -> None:
    if page != "CHANGELOG.md":
        assert documents.unknown_flags(page, PAGES[page], flags) == []


@pytest.mark.parametrize(
    "text",
    [
        "```console\npython -m pipeline pack x --output y \\\n    --overlog split\n```",
        "```console\npython -m pipeline verify x --max-length 5\n```",
        "```console\ntightpack repack x\n```",
        "```console\ntorchrun --nproc 8 -m training train --stepps 5\n```",
        "```console\nscripts/figures --chek\n```",
        "`tokenize --max-length`",
        "`--max-lenth`",
        "`python -m pipeline strategies --overwrite`",
        "| a | with --packorder plan |",
    ],
)
def test_a_wrong_flag_shows(text: str, flags: Flags) -> None:
    assert len(documents.unknown_flags("a page", text, flags)) == 1


def test_flags_of_others_are_not_ours_to_know(flags: Flags) -> None:
    text = "```console\npip install --pre x\npython -m pipeline pack x --json  # --nothing\n```\n`torchrun --nproc 8`"
    assert documents.unknown_flags("a page", text, flags) == []
    assert {"pipeline pack", "training train"} <= set(flags)
    assert "--steps" in flags["training train"]


def test_every_flag_is_described(flags: Flags) -> None:
    assert documents.undescribed_flags("".join(PAGES.values()), flags) == []
    wrong = documents.undescribed_flags("".join(PAGES.values()).replace("--window-tokens", ""), flags)
    assert wrong == ["pipeline pack has --window-tokens, which no page names"]


@every_page
def test_paths_exist(page: str) -> None:
    assert documents.missing_paths(page, PAGES[page]) == []


def test_names_in_contributing_exist() -> None:
    where = documents.section(CONTRIBUTING, "## Where things are")
    assert where.count("`packing.") > 8
    assert documents.missing_names(where) == []


@pytest.mark.parametrize("name", ["packing.run.unpack", "packing.walk.pack", "strategies.contract.chek", "gone.x"])
def test_a_wrong_name_or_path_shows(name: str) -> None:
    assert documents.missing_names(f"see `{name}` and `packing.run.pack`") == [f"there is no {name}"]
    assert documents.missing_paths("a page", "`pipeline/manifest.py`, `tests/`, `scripts/test x`") == [
        "a page: there is no pipeline/manifest.py"
    ]


@every_page
def test_words_of_version_1_are_gone(page: str) -> None:
    if page != "CHANGELOG.md":
        assert documents.old_words(page, PAGES[page]) == []
    assert documents.old_words("a page", "`segment_starts`") == ["a page: segment_starts"]


def test_exit_codes() -> None:
    rows = documents.table(README, "## Exit codes and JSON")
    assert [int(code) for row in rows for code in row[0].split(",")] == sorted(ExitCode)


def test_metrics() -> None:
    told = [[cell.strip("`") for cell in row] for row in documents.table(PAGES["docs/jobs.md"], "## Metrics")]
    metrics = {**OF_ALL_RUNS, **OF_SUCCESSES}
    assert told == [[PREFIX + name, LABELS.get(name, ""), text] for name, text in metrics.items()]


def test_exit_codes_for_schedulers() -> None:
    rows = documents.table(PAGES["docs/jobs.md"], "## Exit codes: what to retry")
    told = {int(code) for row in rows for code in row[0].split(",") if code.strip().isdigit()}
    assert told == {*ExitCode, 128 + signal.SIGKILL}


def test_statuses(run: Run) -> None:
    after = README.partition("## Exit codes and JSON")[2].partition("`status`:\n")[2]
    told = {status for row in documents.first_table(after) for status in documents.marked(row[0])}
    hints = [typing.get_type_hints(result)["status"] for result in (PackResult, ShareResult, TokenizeResult)]
    hints.append(typing.get_type_hints(vars(VerifyResult)["status"].fget)["return"])
    error = run("pack", "nowhere", "--json").json
    assert set(error) == {"status", "exit_code", "message"}
    assert told == {error["status"]}.union(*map(typing.get_args, hints))


def test_json_keys(run: Run, tmp_path: Path) -> None:
    rows = documents.table(PAGES["docs/commands.md"], "## What `--json` prints")
    told = {documents.marked(row[0])[0]: documents.marked(row[1]) for row in rows if row[0].startswith("`")}
    source, text = save(random_rows(20), tmp_path / "in"), tmp_path / "text.jsonl"
    text.write_text('{"text": "one"}')
    pack = ["pack", source, "--output", tmp_path / "out", "--max-length", 60]
    model = save_tokenizer(tmp_path / "model")
    commands: dict[str, list[object]] = {
        "pack": pack,
        "pack --task-index": [*pack, "--output", tmp_path / "shared", "--task-index", 0, "--task-count", 2],
        "pack --dry-run": [*pack, "--dry-run"],
        "tokenize": ["tokenize", text, "--output", tmp_path / "tokens", "--tokenizer", model],
        "verify": ["verify", tmp_path / "out"],
        "strategies": ["strategies"],
    }
    assert set(commands) == set(told)
    for command, words in commands.items():
        assert set(run(*words, "--json").json) <= set(told[command]), command


COLUMNS = {
    "## Columns of packs": documents.columns_of(SOURCED_PACK_SCHEMA),
    "## Columns of tokens": documents.columns_of(tokenized_schema(text=True, source_row=True, source_turn=True)),
}


@pytest.mark.parametrize("heading", COLUMNS)
def test_columns(heading: str) -> None:
    told = documents.columns_in(documents.table(FORMAT, heading))
    assert documents.differences(told, COLUMNS[heading]) == []
    assert list(told) == list(COLUMNS[heading])


def test_columns_in_the_readme() -> None:
    rows = documents.table(README, "## What comes out")
    assert [name for row in rows for name in documents.marked(row[0])] == PACK_SCHEMA.names


FIGURES = documents.keys_of(Figures)
OF_PACKS = documents.keys_of(PackManifest, whole=(PackAppend, SplitEntry, TokenizeOptions, Tally))
KEYS = {
    "## manifest.json of packs": {key: kind for key, kind in OF_PACKS.items() if key not in FIGURES},
    "### Figures": FIGURES,
    "## manifest.json of tokens": documents.keys_of(TokenizeManifest, whole=(TokenizedSplit, TokenizeAppend)),
}


@pytest.mark.parametrize("heading", KEYS)
def test_manifest_keys(heading: str) -> None:
    assert documents.differences(documents.keys_in(documents.table(FORMAT, heading)), KEYS[heading]) == []


def test_records_told_elsewhere() -> None:
    assert set(documents.keys_of(SplitEntry)) - set(FIGURES) == {
        f"windows[].{key}" for key in ("rows", "tokens", "packs")
    }
    assert documents.keys_of(TokenizedSplit) == documents.keys_of(Tally, "counts.")
    options = documents.keys_of(TokenizeOptions, "config.")
    assert options.items() <= KEYS["## manifest.json of tokens"].items()


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("| `packs` | number | rows |", "packs: number in the text, integer in the code"),
        ("| `pakcs` | integer | rows |", "pakcs: integer in the text, nothing in the code"),
        ("", "packs: nothing in the text, integer in the code"),
    ],
)
def test_a_wrong_key_shows(line: str, wrong: str) -> None:
    text = FORMAT.replace("| `packs` | integer | rows of the dataset |\n", f"{line}\n" if line else "")
    assert text != FORMAT
    assert wrong in documents.differences(documents.keys_in(documents.table(text, "### Figures")), FIGURES)


def test_reasons_in_their_order() -> None:
    text = FORMAT.partition("Reasons apply in")[2]
    assert [documents.marked(row[0])[0] for row in documents.first_table(text)] == list(REASONS)


def test_dropped_rows(tmp_path: Path, run: Run) -> None:
    raw = {"train": ["one", ""], "test": ["two"]}
    rows = {split: datasets.Dataset.from_dict({"text": texts}) for split, texts in raw.items()}
    datasets.DatasetDict(rows).save_to_disk(str(tmp_path / "raw"))
    model = save_tokenizer(tmp_path / "model")
    done = run("tokenize", tmp_path / "raw", "--output", tmp_path / "out", "--tokenizer", model, "--on-error", "drop")
    assert done.code == 0, done.err
    (line,) = (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()
    words = {str: "text", int: "integer"}
    true = {key: words[type(value)] for key, value in json.loads(line).items()}
    assert documents.keys_in(documents.table(FORMAT, "## dropped.jsonl")) == true


def test_the_reader_reads(tmp_path: Path, run: Run) -> None:
    code = documents.code_block(FORMAT, "## A reader")
    imported = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imported] == [
        "import json",
        "from pathlib import Path",
        "import pyarrow as pa",
    ]
    assert code.count("\n") <= 20
    rows = random_rows(300)
    save(rows, tmp_path / "in")
    options = ("--max-length", 40, "--overlong", "split", "--keep-untrainable", "--shard-size", "20KB")
    assert run("pack", tmp_path / "in", "--output", tmp_path / "out", *options).code == 0
    assert len(list((tmp_path / "out").glob("*.arrow"))) > 1
    names: dict[str, typing.Any] = {}
    exec(compile(code, "docs/format.md", "exec"), names)
    packs = list(names["read_packs"](tmp_path / "out"))
    assert len(packs) == json.loads((tmp_path / "out" / "manifest.json").read_bytes())["packs"]
    segments = sorted(segment for pack in packs for segment in pack)
    assert any(offset for _, offset, _, _ in segments)
    for number, row in enumerate(rows):
        own = [segment for segment in segments if segment[0] == number]
        assert [token for _, _, tokens, _ in own for token in tokens] == row["input_ids"]
        begins = {offset for _, offset, _, _ in own}
        wanted = [-100 if at in begins else label for at, label in enumerate(row["labels"])]
        assert [label for *_, labels in own for label in labels] == wanted


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_tokenizer(Path("YOUR_MODEL"))
    Path("YOUR_MODEL/chat_template.jinja").write_text(template("chatml", marks=True))
    chats = [chat("Why?", "Because."), chat("Why?")]
    Path("chats.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in chats))
    exec(compile(documents.code_block(README, "## From Python"), "README.md", "exec"), {})
    *progress, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"packed 1 0\.\d+ \[\]", last)
    assert {line.partition(":")[0] for line in progress} == {"hashing inputs", "planning", "writing"}


@every_page
def test_written_parts_are_as_they_would_be_written(page: str, figures: ModuleType) -> None:
    assert figures.renewed(PAGES[page]) == PAGES[page], "run scripts/figures"


def test_every_part_stands_somewhere(figures: ModuleType) -> None:
    assert {found[2] for text in PAGES.values() for found in figures.PART.finditer(text)} == set(figures.PARTS)


@pytest.mark.parametrize(
    ("true", "wrong"), [("66,241", "66,240"), ("`wrapped`, `random`", "`wrapped`"), ("743", "742")]
)
def test_a_changed_part_shows_and_is_mended(true: str, wrong: str, tmp_path: Path, figures: ModuleType) -> None:
    page = tmp_path / "README.md"
    page.write_text(README.replace(true, wrong))
    for arguments, code in (["--check"], 1), ([], 0), (["--check"], 0):
        with pytest.raises(SystemExit) as ended:
            figures.main([*arguments, str(page)], standalone_mode=False)
        assert ended.value.code == code
    assert page.read_text() == README


def test_versions() -> None:
    changelog = PAGES["CHANGELOG.md"]
    assert f"**`FORMAT_VERSION`** ({FORMAT_VERSION}," in changelog
    assert f"**`ALGORITHM_VERSION`** ({ALGORITHM_VERSION}," in changelog
    assert FORMAT.startswith(f"# What lies on disk\n\nFormat version {FORMAT_VERSION}.")


def test_the_issue_form_names_the_log_that_a_bug_leaves() -> None:
    form = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()
    prefix = re.search(r'prefix="([\w-]+)"', (ROOT / "pipeline" / "base" / "harness.py").read_text())
    assert prefix is not None
    assert prefix[1] in form
