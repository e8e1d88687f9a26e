"""Moves packages into an empty folder, with the Python that they need: `python rootfs.py /rootfs /opt/jaxcnn`.

The result is the root of the server's image: no shell, no package manager, and nothing that the server does not load.
"""

import importlib.util
import marshal
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

# Parts of the standard library for developers and desktops; their extension modules need further libraries.
_UNUSED = re.compile(
    r"(config-.*|ensurepip|idlelib|lib2to3|pydoc_data|site-packages|dist-packages|sqlite3|test|tests|tkinter|turtle.*"
    r"|__pycache__|(_curses.*|_dbm|_gdbm|_sqlite3|_tkinter|_test.*|readline|xx.*)\.cpython-.*\.so)"
)

# How the root of Debian leads to /usr.
_LINKS = ("bin", "lib", "lib64", "sbin")

_LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x")

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

_USERS = "root:x:0:0::/:/nologin\njaxcnn:x:10001:10001::/tmp:/nologin\n"
_GROUPS = "root:x:0:\njaxcnn:x:10001:\n"


def libraries(path: Path) -> Iterator[Path]:
    """Yields the shared libraries that the dynamic linker loads with a program or a library.

    Raises:
      ValueError: one is missing.
    """
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout  # noqa: S603, S607
    for line in listed.splitlines():
        if "not found" in line:
            raise ValueError(f"{path} needs {line.split()[0]}, which the base image does not have.")
        if found := _LIBRARY.search(line):
            yield Path(found[1])


def copy_file(path: Path, root: Path) -> None:
    """Copies a file to the same place below `root`; a link becomes a link, beside the file that it leads to."""
    real = path.resolve()
    # /lib is a link in every Debian, so the place of a library is below /usr.
    place = path.parent.resolve() / path.name
    for source in {place, real}:
        copy = root / source.relative_to("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink() and not copy.is_symlink():
            copy.symlink_to(real)
        elif not source.is_symlink():
            shutil.copy(source, copy)


def copy_certificates(root: Path, bundle: Path = _CERTIFICATES) -> None:
    """Copies the certificates of authorities, and makes the links to them at the places where OpenSSL looks.

    The links of Debian are in its package openssl, which is not copied. Certificates that are mounted over the
    bundle or its folder are found, too.
    """
    copy_file(bundle, root)
    paths = ssl.get_default_verify_paths()
    for place, target in ((paths.openssl_cafile, bundle), (paths.openssl_capath, bundle.parent)):
        link = root / Path(place).relative_to("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)


def make_root(root: Path, packages: Path) -> None:
    """Fills `root` with what a Python program needs whose packages are in the folder `packages`.

    Raises:
      ValueError: a library that the packages need is missing.
    """
    # The interpreter and its standard library.
    python = Path(sys.executable)
    copy_file(python, root)
    copy_file(python.with_name("python3"), root)
    folders = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    for folder in folders:
        shutil.copytree(folder, root / folder.relative_to("/"), ignore=_unused, symlinks=True, dirs_exist_ok=True)
    # The shared libraries, but not the ones that the packages bring along.
    modules = [path for folder in (*_below(folders, root), packages) for path in folder.rglob("*.so*")]
    for library in {library for path in (python, *modules) for library in libraries(path)}:
        if packages not in library.parents:
            copy_file(library, root)
    # What the C library and TLS expect.
    for name in _LINKS:
        if (link := Path("/", name)).is_symlink():
            (root / name).symlink_to(link.readlink())
    copy_certificates(root)
    (root / "etc" / "passwd").write_text(_USERS)
    (root / "etc" / "group").write_text(_GROUPS)
    shutil.copytree("/etc/ld.so.conf.d", root / "etc" / "ld.so.conf.d")
    shutil.copy("/etc/ld.so.conf", root / "etc")
    subprocess.run(["ldconfig", "-X", "-r", root], check=True)  # noqa: S603, S607
    shutil.rmtree(root / "var", ignore_errors=True)
    for name in ("dev", "proc", "sys", "tmp"):
        (root / name).mkdir()
    # The packages, and byte code for all.
    (root / packages.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(packages, root / packages.relative_to("/"))
    compile_all(root)
    (root / "tmp").chmod(0o1777)


def compile_all(root: Path) -> None:
    """Writes the byte code of every module below `root`, the same bytes whenever it is called.

    Python's own compileall is not reproducible: from its version 3 on, the format notes which objects happen to be
    shared. The byte code is valid whatever times the files have.
    """
    for path in sorted(root.rglob("*.py")):
        source = path.read_bytes()
        try:
            code = compile(source, Path("/", path.relative_to(root)), "exec", dont_inherit=True, optimize=0)
        except SyntaxError:
            # A template, or a module for another version.
            continue
        unchecked = (1).to_bytes(4, "little")
        head = importlib.util.MAGIC_NUMBER + unchecked + importlib.util.source_hash(source)
        target = Path(importlib.util.cache_from_source(path))
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(head + marshal.dumps(code, 2))


def _below(folders: Iterable[Path], root: Path) -> list[Path]:
    return [root / folder.relative_to("/") for folder in folders]


def _unused(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if _UNUSED.fullmatch(name)]


if __name__ == "__main__":
    make_root(Path(sys.argv[1]), Path(sys.argv[2]))
