"""Exports every network and runs it in every runtime: `python -m tests.conformance [--cache DIR] [--only TEXT]`.

Prints a table of the largest difference of a logit from JAX, relative to the largest logit, for each network and
runtime. Exits with status 1 if a runtime refuses a file, differs by more than the bar, or has another top class, and if
none can be run. The first run is slow: it creates an environment for each runtime, which is kept with its versions.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.conformance import networks, peers

BAR = 1e-3
"""Largest difference of a logit, relative to the largest absolute logit."""


def main(arguments: Sequence[str]) -> int:
    """Runs the suite, prints the table, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cache", type=Path, default=Path("~/.cache/jaxcnn/conformance"), help="where the environments are kept"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="run only runtimes whose name contains this")
    options = parser.parse_args(arguments)
    cache = options.cache.expanduser()
    chosen = [peer for peer in peers.PEERS if options.only in peer.name]
    if not chosen:
        parser.error(
            f"no runtime has {options.only!r} in its name; there are: {', '.join(p.name for p in peers.PEERS)}"
        )
    with tempfile.TemporaryDirectory() as folder:
        files = networks.write(Path(folder))
        facts = {file: json.loads((Path(folder) / f"{file}.json").read_text()) for file in files}
        found = {peer.name: outcomes(peer, cache, Path(folder), facts) for peer in chosen}
    report(facts, found)
    cells = {cell for row in found.values() for cell in row.values()}
    return int(cells == {"skipped"} or any(cell.startswith(("refused", "differs")) for cell in cells))


def outcomes(peer: peers.Peer, cache: Path, folder: Path, facts: dict[str, dict]) -> dict[str, str]:
    """Runs a runtime on all files; returns the outcome of each in a few words."""
    # Make the environment, or skip the runtime if this machine cannot have it.
    try:
        command = peers.command(peer, cache)
        environment = os.environ | ({"CHROMIUM": peers.browser()} if peer.runner == "browser.mjs" else {})
    except peers.UnavailableError as error:
        print(f"{peer.name}: skipped, {error}", file=sys.stderr)
        return dict.fromkeys(facts, "skipped")

    # Its program prints one JSON object for each file.
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, env=environment)
    answers = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            answer = json.loads(line)
            answers[answer["file"]] = answer
    if len(answers) < len(facts):
        print(f"{peer.name}: ended with status {done.returncode}: {done.stderr[-500:]}", file=sys.stderr)
    return {file: judge(peer, facts[file], answers.get(file, {"error": "no answer"})) for file in facts}


def judge(peer: peers.Peer, facts: dict, answer: dict) -> str:
    """Returns the largest relative difference, or what is wrong."""
    if "error" in answer:
        print(f"{peer.name}: {facts['name']}: {answer['error']}", file=sys.stderr)
        return "refused"
    expected, found = np.array(facts["logits"]), np.array(answer["logits"])
    if found.shape != expected.shape:
        return f"differs: {found.shape}"
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    same = np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    return f"{difference:.0e}" if same and difference <= BAR else f"differs: {difference:.0e}, top-1 {same}"


def report(facts: dict[str, dict], found: dict[str, dict[str, str]]) -> None:
    """Prints the table, a row for each network and a column for each runtime, and the outcomes as JSON."""
    table = Table("network", *found)
    for file, network in facts.items():
        table.add_row(network["name"], *(row[file] for row in found.values()))
    Console(width=220).print(table)
    print(json.dumps({"bar": BAR, "outcomes": {name: [row[file] for file in facts] for name, row in found.items()}}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
