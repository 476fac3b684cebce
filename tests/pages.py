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


def chapters(page):
    """Of each chapter its title and [(heading, code), ...]; the first is the intro."""
    pattern = r"^(?P<level>##+|#) (?P<title>[^\n]*)$|^```python\n(?P<code>.*?)^```$"
    text, chapter, heading, found = page.read_text("utf-8"), None, None, {}
    for part in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        if part["code"] is None:
            heading = part["title"]
            if part["level"] != "###":
                chapter = heading
                found[chapter] = []
        else:
            lines = text[: part.start("code")].count("\n")
            found[chapter].append((heading, "\n" * lines + part["code"]))
    return found


def run_chapter(page, chapter):
    """The names that exist after each block of a chapter, by the block's heading.

    The blocks of the introduction run before it.
    """
    intro, *_ = chapters(page).values()
    names, seen = {"__name__": "page"}, {}
    for heading, code in [*intro, *chapters(page)[chapter]]:
        exec(compile(code, str(page), "exec"), names)
        seen.setdefault(heading, []).append(dict(names))
    return seen
