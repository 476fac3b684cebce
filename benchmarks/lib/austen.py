"""Jane Austen's six novels, cut once and for all: to train on, to choose, and to test.

Of each novel the last tenth is the test, the tenth before it chooses settings, and what
comes before is trained on. Test text is handed out only for settings that are committed
(`blind.Committed`). A character is its place in the alphabet of all novels.
"""

import functools
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.lib.blind import Committed

FOLDER = Path("/usr/lib/R/site-library/janeaustenr/data")
FILES = ("Rdata.rdx", "Rdata.rdb")  # an index, and the objects that it points to
PARTS = (0.8, 0.9)  # of each novel: where choosing begins, and testing
PACKAGE = "r-cran-janeaustenr"


class Text(NamedTuple):
    """What may be looked at while settings are chosen; characters as numbers."""

    train: np.ndarray
    validation: np.ndarray
    symbols: int


def text(folder: Path = FOLDER, *names: str) -> Text:
    """The text that trains and the text that chooses; of all novels, or of some."""
    parts, symbols = _parts(Path(folder), *names)
    return Text(parts[0], parts[1], symbols)


def test_text(folder: Path, permit: Committed) -> np.ndarray:
    """The text that tests: for committed settings only."""
    if not isinstance(permit, Committed):
        raise TypeError(
            "Test text is for reporting, and what is reported was chosen blind: give "
            "the settings as blind.Committed(path), which refuses a file that is not "
            f"committed, instead of {permit!r}."
        )
    return _parts(Path(folder))[0][2]


@functools.cache
def _parts(folder: Path, *names: str) -> tuple[list[np.ndarray], int]:
    return cut(novels(folder, *names))


def cut(books: dict[str, str]) -> tuple[list[np.ndarray], int]:
    """The three parts of all books, one book after the other, and how many symbols
    there are."""
    alphabet = sorted(set().union(*books.values()))
    number = {symbol: i for i, symbol in enumerate(alphabet)}
    parts: list[list[np.ndarray]] = [[], [], []]
    for book in books.values():
        coded = np.array([number[symbol] for symbol in book], np.uint8)
        ends = [round(share * len(coded)) for share in PARTS]
        for part, piece in zip(parts, np.split(coded, ends), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts], len(alphabet)


def novels(folder: Path = FOLDER, *names: str) -> dict[str, str]:
    """The whole text of each novel, in the order of their names; of all, or of some."""
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}. Jane Austen's novels are the "
            f"files {' and '.join(FILES)} of Debian's package {PACKAGE}: install it "
            f"(apt-get install {PACKAGE}), or unpack it without R (apt-get download "
            f"{PACKAGE}; dpkg -x {PACKAGE}_*.deb FOLDER) and give --data its folder "
            "FOLDER/usr/lib/R/site-library/janeaustenr/data."
        )
    index, objects = (folder / name for name in FILES)
    places = _converted(index.read_bytes())["variables"]
    data = objects.read_bytes()
    return {
        str(name): "\n".join(_converted(_stored(data, *map(int, place))))
        for name, place in sorted(places.items())
        if not names or name in names
    }


def _stored(data: bytes, start: int, size: int) -> bytes:
    """An object of R's lazy-load database: four bytes of length, then zlib's."""
    return zlib.decompress(data[start + 4 : start + size])


def _converted(data: bytes):
    """An object of R, of its serialized form."""
    try:
        import rdata  # only this study needs it
    except ImportError as error:
        raise ImportError(
            "The novels are stored as R stores objects, which the package rdata reads: "
            "pip install 'optax-sam[text]', or pip install rdata."
        ) from error
    parsed = rdata.parser.parse_data(data, extension=".rds")
    return rdata.conversion.convert(parsed)
