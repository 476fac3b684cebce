"""Pages whose Python blocks run, as by a reader who pastes one after the other."""

import re

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """The code of every block, moved down to the line where it stands."""
    text = page.read_text(encoding="utf-8")
    found = BLOCK.finditer(text)
    return ["\n" * text[: block.start(1)].count("\n") + block[1] for block in found]


def run(page, **names):
    """The names that exist when all blocks have run, from top to bottom."""
    namespace = {"__name__": "__main__", **names}
    for code in blocks(page):
        exec(compile(code, str(page), "exec"), namespace)
    return namespace
