"""Count the library's lines of code: docstrings, comments and blanks left out."""

import ast
import io
import tokenize
from pathlib import Path

LIBRARY = Path(__file__).parent.parent / "optax_sam"
OPTIONAL = {"measure", "plot", "nnx"}
NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
)


def docstring_lines(tree: ast.AST) -> set[int]:
    documented = (ast.Module, ast.FunctionDef, ast.ClassDef)
    nodes = [n for n in ast.walk(tree) if isinstance(n, documented)]
    firsts = [n.body[0] for n in nodes if ast.get_docstring(n) is not None]
    return {i for d in firsts for i in range(d.lineno, d.end_lineno + 1)}


def code_lines(source: str) -> set[int]:
    """The numbers of the lines that hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    held = [t for t in tokens if t.type not in NO_CODE]
    lines = {i for t in held for i in range(t.start[0], t.end[0] + 1)}
    return lines - docstring_lines(ast.parse(source))


def library_files() -> list[Path]:
    return sorted(LIBRARY.rglob("*.py"))


def is_optional(path: Path) -> bool:
    """Whether a file belongs to a part that is imported alone."""
    first = path.relative_to(LIBRARY).parts[0]
    return first.removesuffix(".py") in OPTIONAL


def main() -> None:
    counts = {f: len(code_lines(f.read_text())) for f in library_files()}
    core = sum(n for f, n in counts.items() if not is_optional(f))
    print(f"library: {core} code lines, optional parts {sum(counts.values()) - core}")


if __name__ == "__main__":
    main()
