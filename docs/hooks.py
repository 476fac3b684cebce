"""What MkDocs leaves to us: pictures, links into the repository, formulas.

A picture that has a dark variant beside it, `name-dark.png`, is put in twice: the theme
hides the one that does not fit.

Nothing is fetched, neither while the site is built nor while it is read: formulas
become MathML, which browsers draw themselves.
"""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
REPOSITORY_LINK = re.compile(r"(?<=\]\()\.\./([^)\s]+)")
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>', re.DOTALL
)
PICTURE = re.compile(r"!\[([^]]*)\]\(([^)\s#]+)\.png\)")
LIMITS = re.compile(r"\\(max|min)_")


def on_files(files, config):
    """Add the pictures of the benchmarks."""
    for path in sorted(RESULTS.glob("*.png")):
        files.append(
            File.generated(config, f"results/{path.name}", abs_src_path=str(path))
        )
    return files


def on_page_markdown(markdown, page, config, files):
    """Links out of docs/, which GitHub follows by itself, lead to GitHub."""
    markdown = REPOSITORY_LINK.sub(
        lambda found: target(found[1], page, config), markdown
    )
    known = set(files.src_uris)
    return PICTURE.sub(lambda found: light_and_dark(*found.groups(), known), markdown)


def light_and_dark(words, path, known):
    light, dark = f"{path}.png", f"{path}-dark.png"
    if dark not in known:
        return f"![{words}]({light})"
    return f"![{words}]({light}#only-light)![{words}]({dark}#only-dark)"


def on_page_content(content, page, config, files):
    """Formulas as MathML."""
    return FORMULA.sub(lambda found: mathml(*found.groups()), content)


def target(path, page, config):
    if not (DOCS.parent / path.split("#")[0]).exists():
        raise FileNotFoundError(f"{page.file.src_uri} links to ../{path}")
    if path.startswith("benchmarks/results/") and path.endswith(".png"):
        return path.removeprefix("benchmarks/")
    return f"{config.extra['repository']}/blob/main/{path}"


def mathml(_, inline, block):
    # The converter does not know \arg, and sets limits beside \max unless told.
    tex = html.unescape(inline or block).replace(r"\arg", r"\operatorname{arg}")
    if inline:
        return convert(tex)
    tex = LIMITS.sub(r"\\\1\\limits_", tex)
    return f'<div class="formula">{convert(tex, display="block")}</div>'
