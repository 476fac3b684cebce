"""Jane Austen's novels: read as Debian stores them, cut once for all."""

import hashlib

import numpy as np
import pytest

from benchmarks.lib import austen

SIZES, HASH = (3_220_018, 402_501), "164bab5ac502b944"
BOOKS = {"a": "abcdefghij" * 10, "b": "KLMNO" * 8}


def test_no_text_that_trains_or_chooses_is_tested():
    (train, validation, test), symbols = austen.cut(BOOKS)
    assert symbols == 15
    assert [len(part) for part in (train, validation, test)] == [112, 14, 14]
    alphabet = np.array(sorted("abcdefghijKLMNO"))
    pieces = ["".join(alphabet[part]) for part in (train, validation, test)]
    for name, size in (("a", 100), ("b", 40)):
        a, b = size * 8 // 10, size * 9 // 10
        book = BOOKS[name]
        for piece, expected in zip(
            pieces, (book[:a], book[a:b], book[b:]), strict=True
        ):
            assert expected in piece


def test_test_text_is_handed_out_for_committed_settings_only():
    with pytest.raises(TypeError, match="Committed"):
        austen.test_text(austen.FOLDER, {"rho": 0.1})


def test_missing_files_are_named_with_the_package(tmp_path):
    with pytest.raises(FileNotFoundError, match="r-cran-janeaustenr") as error:
        austen.text(tmp_path)
    assert all(name in str(error.value) for name in austen.FILES)


@pytest.mark.slow  # a study's machinery, not the library
def test_the_novels_and_their_cut_never_change():
    if not austen.FOLDER.is_dir():
        pytest.skip("no r-cran-janeaustenr here")
    pytest.importorskip("rdata", reason="extra `text`")
    books = austen.novels()
    assert list(books) == [
        *("emma", "mansfieldpark", "northangerabbey", "persuasion"),
        *("prideprejudice", "sensesensibility"),
    ]
    assert books["prideprejudice"].startswith("PRIDE AND PREJUDICE\n\nBy Jane Austen")
    text = austen.text()
    assert text.symbols == 81  # the end of a line, too
    assert (len(text.train), len(text.validation)) == SIZES
    whole = np.concatenate([text.train, text.validation]).tobytes()
    assert hashlib.sha256(whole).hexdigest()[:16] == HASH
