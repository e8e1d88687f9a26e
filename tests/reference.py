"""Builds the API reference from the docstrings: python -m tests.reference FOLDER.

A warning of pdoc is an error, and so is a reference that leads nowhere: a name in backticks that begins with one of the
packages or with one of their classes, such as `export.to_onnx`.
"""

import importlib
import pkgutil
import re
import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

PACKAGES = ("jaxcnn", "export", "server")

_DOTTED_NAME = re.compile(r"<code>(\w+(?:\.\w+)+)(?:\(\))?</code>")  # Without a link: pdoc found no target.
_TARGET = re.compile(r'\bid="([\w.]+)"')


def build(folder: Path, packages: tuple[str, ...] = PACKAGES) -> None:
    """Writes one HTML page for each public module.

    Raises:
      UserWarning: pdoc cannot import a module, evaluate an annotation or render a docstring.
    """
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Attributes that hold values of optax and jax, whose annotations only their own modules can resolve.
        warnings.filterwarnings("ignore", r"Error parsing type annotation .*(_init\. Import of|of ArrayTree failed)")
        # The stand-in for TensorFlow raises ImportError for every name that it lacks, __qualname__ too.
        warnings.filterwarnings("ignore", r"getattr\(Names\(")
        for package in packages:
            _open(package)
        pdoc.pdoc(*packages, output_directory=folder)


def _open(package: str) -> None:
    """Lets pdoc see a package whole: names that it imports on demand, and modules that its `__all__` leaves out."""
    module = importlib.import_module(package)
    exported = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    public = [name for _, name, _ in pkgutil.iter_modules(module.__path__) if not name.startswith("_")]
    for name in public:
        child = importlib.import_module(f"{package}.{name}")
        if hasattr(child, "__path__"):
            _open(child.__name__)
    # Last, since importing `jaxcnn.train` puts the module in the place of the function.
    vars(module).update(exported)
    if exported:
        module.__all__ = list(dict.fromkeys([*exported, *public]))


def broken_references(folder: Path, packages: tuple[str, ...] = PACKAGES) -> list[str]:
    """Lists the references on the pages in a folder that lead nowhere, each with the module it stands in."""
    pages = {page: page.read_text() for page in sorted(folder.rglob("*.html"))}
    targets = {target for text in pages.values() for target in _TARGET.findall(text)}
    classes = {target for target in targets if target[0].isupper()}
    return [
        f"{'.'.join(page.relative_to(folder).with_suffix('').parts)}: {name}"
        for page, text in pages.items()
        for name in _DOTTED_NAME.findall(text)
        if name.split(".")[0] in packages or (name.split(".")[0] in classes and name not in targets)
    ]


def main() -> None:
    """Builds the reference in the folder that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.reference FOLDER")
    folder = Path(sys.argv[1])
    build(folder)
    broken = broken_references(folder)
    if broken:
        sys.exit("\n".join(["These references in docstrings lead nowhere:", *broken]))
    print(f"API reference: {folder / 'index.html'}")


if __name__ == "__main__":
    main()
