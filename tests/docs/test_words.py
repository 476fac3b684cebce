"""Words of the project: none that only its authors know, and every paper's number."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
SOURCES = sorted((ROOT / "optax_sam").rglob("*.py"))
GLOSSARY = ROOT / "docs" / "glossary.md"

NOT_WORDS = (
    r"\bdoors?\b",
    r"\brooms?\b",
    r"\bwho owns\b",
    r"\bwhat came out\b",
    r"\brules? of hand\b",
    r"\bother codes\b",
    r"\bown a full anneal\b",
    r"\bfinding to confirm\b",
    r"\btake signs\b|\bread signs\b",
    r"\bseams?\b",
)
PAPER = re.compile(r"([A-Z]\w+ (?:et\s+al\.|and\s+[A-Z]\w+)),?\s+\(?(20\d\d)")
#: A number beside each name would hide the verdicts: the papers are in the glossary.
LISTED_ELSEWHERE = {"claims.md"}


def name_of(path):
    return str(path.relative_to(ROOT))


def papers():
    """The arXiv numbers of each name, from the glossary."""
    row = re.compile(r"^\| ([^|]+?) \| [^|]+ \| \[(\d{4}\.\d{4,5})\]", re.MULTILINE)
    found = {}
    for name, number in row.findall(GLOSSARY.read_text("utf-8")):
        found.setdefault(name, set()).add(number)
    return found


def named_in(text):
    return {f"{' '.join(who.split())} {year}" for who, year in PAPER.findall(text)}


@pytest.mark.parametrize("path", TEXTS + SOURCES, ids=name_of)
def test_plain_words(path):
    text = " ".join(path.read_text("utf-8").split()).lower()
    assert not [word for word in NOT_WORDS if re.search(word, text)]


def test_the_glossary_lists_papers_once():
    rows = re.findall(r"\[(\d{4}\.\d{4,5})\]\((\S+)\)", GLOSSARY.read_text("utf-8"))
    numbers = [number for number, _ in rows]
    assert len(numbers) > 20
    assert len(set(numbers)) == len(numbers)
    assert all(link == f"https://arxiv.org/abs/{number}" for number, link in rows)


@pytest.mark.parametrize("path", TEXTS + SOURCES, ids=name_of)
def test_every_paper_that_is_named_has_its_number(path):
    text, known = path.read_text("utf-8"), papers()
    for name in named_in(text):
        assert name in known
        if path.name not in LISTED_ELSEWHERE:
            assert any(number in text for number in known[name]), name
