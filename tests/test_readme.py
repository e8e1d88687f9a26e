"""The READMEs: their code runs, their commands and options exist, and their links lead somewhere.

Blocks of `bash` and `python` are run in order, in a copy of the repository. The Python blocks of a section are one
program, which runs after its `bash`. Blocks of other kinds are only read: their commands are parsed, not run.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from pictures import make_picture, write_class_folders, write_tiny_imagenet_zip
from ports import free_port

import export.__main__ as export_command
from jaxcnn import options
from jaxcnn.compare import Arguments as CompareArguments
from jaxcnn.compare import split_arguments as split_runs
from jaxcnn.errors import UserError
from jaxcnn.evaluate import Arguments as EvaluateArguments
from jaxcnn.inspect import Arguments as InspectArguments
from jaxcnn.plan import parse as parse_plan
from jaxcnn.predict import Arguments as PredictArguments
from jaxcnn.predict import parse as parse_predict
from jaxcnn.presets import PRESETS
from jaxcnn.sweep import parse as parse_sweep
from jaxcnn.train import parse as parse_train
from server.deploy.__main__ import make_parser as deploy_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SETUP = """\
python3 -m venv .venv && . .venv/bin/activate
pip install --require-hashes -r requirements.lock
"""
SHORTER = {
    "folder": "--epochs 4",
    "finetune": "--epochs 1",
    "tiny_imagenet": "--epochs 1 --model.widths 8 --model.blocks 1",
}
"""What makes a preset's run cheap enough for a test."""
PRINTED = {
    "python -m jaxcnn.evaluate": r"top-1 +[01]\.\d+",
    "127.0.0.1:8000/predict": "predicted_class",
    'predict("photo.jpg")': r"^(cat|dog) [01]\.\d+$",
    "best = int(probabilities[0].argmax())": r"^[\w' -]+ [01]\.\d+$",
}
"""What code has to print, by a part of the code."""
OF_OTHERS = set(
    "--depth --help --host --json --fail --prefix --port --require-hashes --silent --workers --data-binary "
    "--no-server-header --repo --timeout-keep-alive --xla_force_host_platform_device_count "
    "--url --build-arg --cap-drop --format --forwarded-allow-ips --read-only --target "
    "--nodes --ntasks-per-node --gpus-per-node --requeue --signal --kill-on-bad-exit --worker --command --filename "
    "--logdir --body --caddy --cli-input-json --content-type --endpoint-name --template-file "
    "--aws-sigv4 --capabilities --force --from --password-stdin --platform --provenance --repository-name "
    "--parameter-overrides --stack-name --user --username "
    "--auto-scaling-group-name --desired-capacity --min-size --file-system-id --secret-string --from-literal "
    "--follow --selector --now --unit --yes".split()
)
"""Options of git, gh, pip, npm, curl, uvicorn, XLA, docker, buildah, Slurm, gcloud, kubectl, aws, apt-get, systemctl,
journalctl and shell scripts."""


class Block(NamedTuple):
    """A code block of a document."""

    language: str
    code: str


def tracked_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


TRACKED = tracked_files()
DOCUMENTS = [name for name in TRACKED if name.endswith(".md")] or ["README.md"]
READMES = [name for name in DOCUMENTS if name.endswith("README.md")]
WITH_CODE = [name for name in READMES if re.search(r"^```(bash|python)$", (ROOT / name).read_text(), re.MULTILINE)]


def blocks(text: str) -> list[Block]:
    """The code blocks of a document in their order."""
    return [Block(*found) for found in re.findall(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def spans(text: str) -> list[str]:
    """The code spans of a document, each in one line."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def commands(text: str) -> list[str]:
    """The command lines of a document that begin with `python -m`, in spans and blocks."""
    lines = [line for block in blocks(text) for line in block.code.replace("\\\n", " ").splitlines()]
    return [line for line in (*spans(text), *lines) if line.startswith("python -m ")]


def programs(text: str) -> list[Block]:
    """What is to be run of a document, in order."""
    found = []
    for part in text.split("\n## "):
        found += [block for block in blocks(part) if block.language == "bash"]
        python = [block.code for block in blocks(part) if block.language == "python"]
        found += [Block("python", "\n".join(python))] if python else []
    return found


def section(title: str, text: str = README) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# What a README says of the code.


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_documents_of_a_checkout_are_found():
    # Where git refuses a folder of another user, only the front page would be read.
    assert {"jaxcnn/README.md", "export/README.md", "server/README.md"} <= {*WITH_CODE}


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= 200


def test_quick_start_is_two_blocks_that_set_up_alike():
    first, second = [block.code for block in blocks(section("Quick start")) if block.language == "bash"]
    assert first == SETUP + "python -m jaxcnn.train\n"
    assert second == SETUP + "python -m pytest\n"


def test_continuous_integration_runs_the_same_commands():
    script = (ROOT / ".ci" / "run").read_text()
    # Its environment is elsewhere: a developer's may have more than the lock.
    script = re.sub(r'"\$folder/venv([^"]*)"', r".venv\1", script)
    for line in f"{SETUP}python -m pytest".replace(" && ", "\n").splitlines():
        assert f"\n{line}\n" in script.replace(" --quiet", "")
    assert "\npython -m pytest -m run\n" in script


def test_every_preset_is_described():
    described = re.findall(r"^\| `(\w+)` \| ", section("Presets and options", training_readme()), re.MULTILINE)
    assert described == list(PRESETS)


def training_readme() -> str:
    return (ROOT / "jaxcnn" / "README.md").read_text()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files_and_headings(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if urllib.parse.urlsplit(target).scheme:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{name} links to {target}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_blocks_are_run_or_read(name):
    for block in blocks((ROOT / name).read_text()):
        assert block.language in ("", "bash", "json", "python", "sh"), block
        if block.language == "json":
            json.loads(block.code)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_can_be_given(name):
    for command in commands((ROOT / name).read_text()):
        _, _, module, *arguments = shlex.split(command, comments=True)
        assert importlib.util.find_spec(module), f"{name}: {command}"
        if "[" in command or "--help" in arguments:  # A summary of what may be given.
            continue
        if module in PARSERS and (arguments or module not in WITH_ARGUMENTS):
            PARSERS[module](["tiny_imagenet" if word == "PRESET" else word for word in arguments])


def check_training_options(arguments: list[str]) -> None:
    """Parses a command line without the weights that it starts from, which need not be here."""
    if "--init_from" in arguments:
        place = arguments.index("--init_from")
        arguments = arguments[:place] + arguments[place + 2 :]
    parse_train(arguments)


PARSERS: dict[str, Callable[[list[str]], object]] = {
    "jaxcnn.train": check_training_options,
    "jaxcnn.plan": parse_plan,
    "jaxcnn.sweep": parse_sweep,
    "jaxcnn.compare": lambda words: options.parse(CompareArguments(), split_runs(words)[1], prog=""),
    "jaxcnn.evaluate": lambda words: options.parse(EvaluateArguments(), words[1:], prog=""),
    "jaxcnn.predict": parse_predict,
    "jaxcnn.inspect": lambda words: options.parse_with_words(InspectArguments(), words, prog=""),
    "server.deploy": lambda words: deploy_parser().parse_args(words),
    "export": lambda words: options.parse(export_command.Arguments(), words[1:], prog=""),
}
"""Reads the command line of each module, without running it."""
WITH_ARGUMENTS = ("jaxcnn.sweep", "server.deploy", "export")
"""Modules that are named alone where nothing but their name is meant."""


@pytest.fixture(scope="module")
def known_options() -> set[str]:
    """Every option of every command and benchmark."""
    values = (
        parse_train([]),
        parse_plan([]),
        CompareArguments(),
        EvaluateArguments(),
        PredictArguments(),
        InspectArguments(),
        export_command.Arguments(),
    )
    ours = {flag for value in values for option in options.find_options(value) for flag in option.flags}
    others = [
        *ROOT.glob("tests/bench/*.py"),
        ROOT / "tests/conformance/__main__.py",
        *(ROOT / "tests" / name for name in ("faults/__main__.py", "mutants.py", "soak/__main__.py")),
        ROOT / "server/deploy/__main__.py",
        ROOT / "jaxcnn/sweep.py",
    ]
    return ours | {flag for path in others for flag in re.findall(r'"(--[\w-]+)"', path.read_text())} | OF_OTHERS


@pytest.mark.parametrize("name", DOCUMENTS)
def test_options_exist(name, known_options):
    text = (ROOT / name).read_text()
    code = [*spans(text), *(block.code for block in blocks(text) if block.language != "python")]
    written = {option for part in code for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*", part)}
    assert written - known_options == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_values_of_options_are_valid(name):
    """Parses spans such as `--epochs 20` where they are options of training."""
    known = {f"--{option.name}" for option in options.find_options(parse_train([]))} - {"--init_from"}
    for span in spans((ROOT / name).read_text()):
        words = span.split()
        if words[0] in known and len(words) > 1:
            try:
                check_training_options(["tiny_imagenet", *words])
            except UserError as error:
                raise AssertionError(f"{name}: {span}") from error


# The code, run.


class Clone:
    """A copy of the repository in which blocks are run, each but once."""

    def __init__(self, folder: Path, *, timeout: int = 300):
        self.folder = folder
        self._timeout = timeout
        self._done: dict[str, str] = {}
        self._server: subprocess.Popen[str] | None = None
        self._port = free_port()

    def run(self, block: Block, folder: Path | None = None) -> str:
        """Runs a block and returns what it printed. A server goes on until `stop`."""
        code = self._prepared(block)
        if code not in self._done:
            self._done[code] = self._run(block.language, code, folder or self.folder)
        return self._done[code]

    def stop(self) -> None:
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGTERM)
            self._server.wait(30)
            self._server = None
            self._done = {code: said for code, said in self._done.items() if str(self._port) not in code}

    def _prepared(self, block: Block) -> str:
        """The code of a block without set-up and tests, with shorter trainings, and on a port that is free."""
        code = block.code.removeprefix(SETUP)
        code = re.sub(r"^python -m pytest.*\n", "", code, flags=re.MULTILINE)
        code = re.sub(
            r"^python -m jaxcnn\.train (\w+)",
            lambda command: f"{command[0]} {SHORTER[command[1]]}",
            code,
            flags=re.MULTILINE,
        )
        code = re.sub(
            r"jaxcnn\.presets\.\w+\(\)", lambda call: f"__import__('dataclasses').replace({call[0]}, epochs=4)", code
        )
        code = re.sub(r"uvicorn server\.app:app", f"uvicorn server.app:app --port {self._port}", code)
        return code.replace("127.0.0.1:8000", f"127.0.0.1:{self._port}")

    def _run(self, language: str, code: str, folder: Path) -> str:
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
        if "uvicorn" in code:
            self.stop()
            self._server = subprocess.Popen(
                command, cwd=folder, env=self._environment(), start_new_session=True, text=True
            )
            wait_until_ready(self._server, self._port)
            return ""
        done = subprocess.run(
            command, cwd=folder, env=self._environment(), capture_output=True, text=True, timeout=self._timeout
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def _environment(self) -> dict[str, str]:
        """This interpreter as `python`, and another home, so that nothing is read from earlier runs."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PATH": path, "HOME": str(self.folder)}


def wait_until_ready(server: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5)
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not become ready")


def copy_repository(folder: Path) -> Path:
    """Copies what a clone of the working tree as it stands would hold."""
    if not TRACKED:
        pytest.skip("not a git checkout")
    for name in TRACKED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Iterator[Clone]:
    """A clone with what the READMEs take for granted: pictures, a photograph, a data set's zip, a trained model."""
    folder = copy_repository(tmp_path_factory.mktemp("clone"))
    write_class_folders(folder / "pictures", count=80, size=48)
    write_class_folders(folder / "new_pictures", count=4, size=48, seed=80)
    write_tiny_imagenet_zip(folder / "tiny-imagenet-200.zip", train=90)
    for place in (folder, folder / "server" / "models"):
        make_picture(1, seed=1234, size=300).save(place / "photo.jpg")
    clone = Clone(folder)
    for block in (*programs(section("Your own pictures")), *programs(section("Export"))):
        clone.run(block)
    yield clone
    clone.stop()


@pytest.mark.skipif(not TRACKED, reason="not a git checkout")
def test_every_expected_output_is_of_code_in_a_document():
    codes = [block.code for name in WITH_CODE for block in programs((ROOT / name).read_text())]
    assert [part for part in PRINTED if not any(part in code for code in codes)] == []


@pytest.mark.run
@pytest.mark.timeout(900)  # One test runs all the code of a document.
@pytest.mark.parametrize("name", WITH_CODE)
def test_code_blocks_run(clone, name):
    text = (ROOT / name).read_text()
    # The code of a model card is for the folder that the model is in.
    is_card = text.startswith("---")
    folder = (clone.folder / name).parent.parent if is_card else clone.folder
    for block in programs(text):
        printed = clone.run(block, folder)
        for code, expected in PRINTED.items():
            assert code not in block.code or re.search(expected, printed, re.MULTILINE), f"{block}\n{printed}"
        for workdir in re.findall(r"^python -m jaxcnn\.train .*--workdir (\S+)", block.code, re.MULTILINE):
            assert (clone.folder / workdir / "model.onnx").exists(), block
    clone.stop()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_runs(tmp_path):
    """Runs every line of it, with the real pictures."""
    pytest.importorskip("elpv_dataset", reason="elpv-dataset is not installed; run `pip install elpv-dataset`")
    tutorial = Clone(copy_repository(tmp_path), timeout=900)
    printed = []
    for block in blocks(section("Tutorial", training_readme())):
        start = time.monotonic()
        printed.append(tutorial.run(block))
        print(f"{block.code}{printed[-1]}{time.monotonic() - start:.0f} s\n")
    tutorial.stop()
    _, inspected, trained, exported, _, answer = printed
    assert "2,223 pictures in 2 classes" in inspected
    assert "in several splits" not in inspected
    accuracy = re.search(r"validation top-1 (0\.\d+), loss \S+ on (\d+) pictures", trained)
    assert accuracy
    assert float(accuracy[1]) > 0.72
    assert int(accuracy[2]) == 426
    assert re.search(r"solar.onnx: \d\.\d MB, verified", exported)
    assert json.loads(answer)["predicted_class"] in ("defective", "functional")


@pytest.mark.run
def test_the_main_job_learns_the_digits(clone):
    said = clone.run(programs(section("Quick start"))[0])
    top1 = float(re.findall(r"validation top-1 (\d\.\d+)", said)[-1])
    assert top1 >= 0.97, said
    assert "skipped" not in said
    named = re.findall(r"^\| (`.*?`) \|", section("The run's folder", training_readme()), re.MULTILINE)
    assert named
    for name in re.findall(r"`(.*?)`", ", ".join(named)):
        assert list((clone.folder / "runs" / "digits").glob(name)), name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_main_job_from_nothing_but_python_and_pip(tmp_path):
    folder = copy_repository(tmp_path)
    (code,) = [block.code for block in blocks(section("Quick start")) if block.code.endswith("jaxcnn.train\n")]
    environment = os.environ | {"HOME": str(folder)}
    subprocess.run(["bash", "-euc", code], cwd=folder, env=environment, check=True, timeout=1200)
    assert (folder / "runs" / "digits" / "model.onnx").exists()
