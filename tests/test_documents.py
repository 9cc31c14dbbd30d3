"""The documents: their links lead somewhere, and what a user can set is in them."""

import dataclasses
import re
from pathlib import Path

import click
import pytest

from autotune.best_config import BestConfig, Performance
from autotune.cli import cli
from autotune.config import ThroughputConfig
from autotune.study.definition import StudyDefinition

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("mm_rec/*.md")],
    key=lambda path: path.relative_to(ROOT),
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# What a path in a code span looks like: it names a folder of the project, or a file in one.
CODE_PATH = re.compile(r"`((?:autotune|mm_rec|benchmarks|tests|docs|examples|studies)/[\w./-]*)`")


def anchors(path):
    """The names under which the headings of a document can be linked to."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings
    }


def broken_links(path):
    """Links of a document to files or headings that are not there."""
    broken = []
    for link in LINK.findall(path.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path):
    assert broken_links(path) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_in_the_text_exist(path):
    if path.name == "CHANGELOG.md":
        pytest.skip("the changelog tells of what was")
    # What a run makes there is not in a clone.
    made = {"studies/autotune.db", "studies/fleet"}
    named = set(CODE_PATH.findall(path.read_text())) - made
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# One heading\n")
    document = tmp_path / "document.md"
    document.write_text("[a](there.md#one-heading) [b](there.md#none) [c](gone.md) [d](#none)")
    assert broken_links(document) == ["there.md#none", "gone.md", "#none"]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


def test_every_option_is_documented_and_none_that_is_not_there():
    text = (ROOT / "docs" / "command_line.md").read_text()
    sections = dict(re.findall(r"^## autotune (\w+)[^\n]*\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert sections.keys() == cli.commands.keys()
    for name, section in sections.items():
        options = {
            option
            for parameter in cli.commands[name].params
            if isinstance(parameter, click.Option)
            for option in parameter.opts
        }
        rows = "\n".join(line for line in section.splitlines() if line.startswith("| `-"))
        assert set(re.findall(r"`(--?[a-z-]+)", rows)) == options, name


def rows_of(text, heading):
    """First cells of the rows below a heading, each of the names in it."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.M | re.S).group(1)
    cells = re.findall(r"^\| (`[^|]+`) \|", section, re.M)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def names_of(cls):
    return {field.name for field in dataclasses.fields(cls)}


def test_every_key_of_both_files_is_documented_and_none_that_is_not_there():
    text = (ROOT / "docs" / "files.md").read_text()
    # In a file, the budget is a duration.
    assert rows_of(text, "Study file") == names_of(StudyDefinition) - {"budget_s"} | {"budget"}
    assert rows_of(text, "Settings file") == names_of(BestConfig) | names_of(Performance)


def test_every_setting_is_documented():
    text = (ROOT / "docs" / "your_loop.md").read_text()
    assert rows_of(text, "The settings") == names_of(ThroughputConfig)
