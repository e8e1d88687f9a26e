"""The house style, where no linter has a rule for it: names of loop variables, length, comments, docstrings, words."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("jaxcnn", "export", "server")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PROSE = sorted(
    path
    for folder in (*PACKAGES, "tests", ".github", ".")
    for ending in ("md", "html", "js", "css")
    for path in ((ROOT / folder).glob(f"*.{ending}") if folder == "." else (ROOT / folder).rglob(f"*.{ending}"))
)

LONGEST_FUNCTION = 50

SECTION = re.compile(r"^( *)(Args|Attributes|Example|Examples|Note|Notes|Raises|References|Returns|Yields):$")
"""A section of a docstring in Google's form."""

DIRECTIVE = re.compile(r"#\s*(!|noqa\b|type:|fmt:|pragma:)")
"""A comment for a tool."""

BANNED = {
    r"sittings?": "session",
    r"(?<!\.)tells?(?! \w+ from)|told|telling": "report, print or record",
    r"learnt": "learned",
    r"(?<!there )(?:is|are|was|were|be) none(?! of)": "name what is missing",
    r"(?:of|on) (?:its|their|one's|\w+'s) own": "say whose, or leave it out",
    r"theirs": "name the things",
    r"those of": "name the things",
    r"(?-i:Of) \w+": "begin the sentence with who does what",
}
"""Regular expressions of words that a stranger stumbles over, with what to write instead."""


def relative(path: Path) -> str:
    """The path as a reader of the repository writes it."""
    return str(path.relative_to(ROOT))


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each comment; the lines of a block are one comment."""
    last_line = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or DIRECTIVE.match(token.string):
            continue
        line = token.start[0]
        stands_alone = token.line.lstrip().startswith("#")
        if not (stands_alone and line == last_line + 1):
            yield line, token.string.removeprefix("#").strip()
        last_line = line if stands_alone else -1


def imported_libraries(source: str) -> Iterator[str]:
    """Names of the libraries that a module imports: a comment may begin with one, as in `jax traces this twice`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line number and text of each docstring, and of each string that stands below a constant to describe it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def loop_variables_called_each(source: str) -> Iterator[int]:
    """Line numbers of names and arguments called `each`."""
    for node in ast.walk(ast.parse(source)):
        is_name = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == "each"
        if is_name or (isinstance(node, ast.arg) and node.arg == "each"):
            yield node.lineno


def long_functions(source: str) -> Iterator[tuple[int, str]]:
    """Line number and name of each function that does not fit a screen, its docstring not counted."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            described = ast.get_docstring(node, clean=False) or ""
            lines = len(ast.get_source_segment(source, node).splitlines()) - len(described.splitlines())
            if lines > LONGEST_FUNCTION:
                yield node.lineno, node.name


def misindented_sections(docstring: str) -> Iterator[str]:
    """Names of a docstring's sections whose text is not indented by two spaces, or which have no text."""
    lines = docstring.splitlines()
    for number, line in enumerate(lines):
        section = SECTION.match(line)
        if section is None:
            continue
        below = lines[number + 1] if number + 1 < len(lines) else ""
        if len(below) - len(below.lstrip()) != len(section[1]) + 2:
            yield section[2]


def banned_words(text: str) -> Iterator[tuple[int, str]]:
    """Line number and a remark for each word that has a plainer one."""
    for pattern, instead in BANNED.items():
        at_start = r"(?:^|[.:;!?*#\"] |\"\"\")\W*" if pattern.startswith("(?-i:Of)") else r"\b"
        for found in re.finditer(rf"{at_start}({pattern})\b", text, re.IGNORECASE | re.MULTILINE):
            if "None" not in found[1]:  # `x is None` is code.
                yield text.count("\n", 0, found.start(1)) + 1, f"{found[1]!r}: {instead}"


def test_there_is_something_to_check():
    assert len(MODULES) > 100
    assert {"README.md", "server/page/page.js", ".github/CONTRIBUTING.md"} <= {relative(path) for path in PROSE}


def test_loop_variables_are_named_for_what_they_hold():
    found = [f"{relative(path)}:{line}" for path in MODULES for line in loop_variables_called_each(path.read_text())]
    assert not found, "\n".join(found)


def test_functions_fit_a_screen():
    found = [f"{relative(path)}:{line}: {name}" for path in MODULES for line, name in long_functions(path.read_text())]
    assert not found, "\n".join(found)


def test_comments_start_with_a_capital_letter():
    sources = {path: path.read_text() for path in MODULES}
    libraries = {name for source in sources.values() for name in imported_libraries(source)}
    found = [
        f"{relative(path)}:{line}: {text}"
        for path, source in sources.items()
        for line, text in comments(source)
        if text[:1].islower() and re.split(r"\W", text)[0] not in libraries
    ]
    assert not found, "\n".join(found)


def test_sections_of_docstrings_are_indented_by_two_spaces():
    found = [
        f"{relative(path)}:{line}: {name}"
        for path in MODULES
        for line, text in docstrings(ast.parse(path.read_text()))
        for name in misindented_sections(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("paths", [MODULES, PROSE], ids=["code", "prose"])
def test_words_are_plain(paths):
    found = [f"{relative(path)}:{line}: {remark}" for path in paths for line, remark in banned_words(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    ["for each in (): pass", "[each for each in ()]", "lambda each: 0", "with open('') as each: pass"],
)
def test_each_is_found(source):
    assert list(loop_variables_called_each(source)) == [1]


def test_a_long_function_is_found():
    assert list(long_functions("def f():\n" + "    x = 1\n" * 49)) == []
    assert list(long_functions("def f():\n" + "    x = 1\n" * 50)) == [(1, "f")]
    assert list(long_functions('def f():\n    """One.\n\n    Two.\n    """\n' + "    x = 1\n" * 49)) == []


def test_the_first_line_of_a_comment_counts():
    source = "# One\n# two\nx = 1  # three\n# four\ny = 2  # noqa: E501\n"
    assert list(comments(source)) == [(1, "One"), (3, "three"), (4, "four")]


@pytest.mark.parametrize(
    ("docstring", "names"),
    [
        ("One.\n\n    Args:\n      x: two.\n\n    Returns:\n      x.\n    ", []),
        ("One.\n\n    Args:\n        x: four.\n    ", ["Args"]),
        ("One.\n\n    Raises:\n\n      ValueError: late.\n    ", ["Raises"]),
    ],
)
def test_an_indentation_of_four_is_found(docstring, names):
    assert list(misindented_sections(docstring)) == names


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("x is None", []),
        ("A part of integers", []),
        ("there is none of these; it is none of PNG, JPEG", []),
        ("it cannot tell left from right", []),
        ("study.tell(score)", []),
        ("the file is none; it tells", [1, 1]),
        ("\nIt has learnt", [2]),
        ('"""Of integers that."""', [1]),
        ("Done. Of those", [1]),
        ("# Of all", [1]),
        ("it comes from the run's own", []),
        ("a copy of the run's own", []),
        ("a copy of its own", [1]),
    ],
)
def test_banned_words_are_found(text, lines):
    assert [line for line, _ in banned_words(text)] == lines
