"""The library's docstrings as the site's Markdown reads them (an extension of griffe).

They are written for `help()`: formulas stand in Sphinx's `.. math::`, a reference on a
line of its own, an option list may go over two lines.
"""

import re
from textwrap import dedent

import griffe

MATH = re.compile(r"^( *)\.\. math::(.*\n(?:\1 +.*\n)*)", re.MULTILINE)
INLINE_MATH = re.compile(r":math:`([^`]+)`")
REFERENCE = re.compile(r"^Reference: (.*(?:\n +.*)*)", re.MULTILINE)
NAMES_OF_TWO_LINES = re.compile(r"^( +(?:\w+, )*\w+,)\n +(?=\w)", re.MULTILINE)


def as_markdown(text):
    """Formulas between dollars, examples that are run as code, references as text."""
    text = MATH.sub(lambda found: formula(found[2]), text + "\n")
    text = INLINE_MATH.sub(r"$\1$", text)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    text = REFERENCE.sub(lambda found: "**Reference.** " + one_line(found[1]), text)
    return NAMES_OF_TWO_LINES.sub(r"\1 ", text)


def formula(tex):
    tex = dedent(one_line(tex))
    return f"\n$$\n{aligned(tex) if '&' in tex else tex}\n$$\n"


def aligned(tex):
    return rf"\begin{{align*}} {tex} \end{{align*}}"


def one_line(text):
    return " ".join(line.strip() for line in text.strip().splitlines())


class Docstrings(griffe.Extension):
    """Rewrites every docstring when its object has been read."""

    def on_instance(self, *, obj, **others):
        """Called by griffe for each module, class and function."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
