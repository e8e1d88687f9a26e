"""The server under schemathesis, KServe's own client, and clients generated from the OpenAPI document."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.wire import COLOURS, encode

HERE = Path(__file__).parent
NODE = shutil.which("node")
NODE_MODULES = os.environ.get("TEST_NODE_MODULES", "")


@pytest.mark.run
def test_schemathesis_finds_no_failure(server, tmp_path):
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            f"--config-file={HERE / 'schemathesis.toml'}",
            "run",
            f"http://127.0.0.1:{server.port}/openapi.json",
            "--max-examples=20",
            "--seed=1",
            "--no-color",
        ],
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(HERE / "schemathesis_hooks.py")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "Tested: 22" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_generated_client(server, tmp_path):
    """Uses a separate environment, as the generator brings many packages."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "openapi-python-client>=0.26"], check=True)
    url = f"http://127.0.0.1:{server.port}/openapi.json"
    generate = [python.with_name("openapi-python-client"), "generate", "--url", url]
    subprocess.run([*generate, "--output-path", "generated", "--meta", "none"], cwd=tmp_path, check=True)
    picture = tmp_path / "red.png"
    picture.write_bytes(encode(COLOURS["red"]))
    command = [python, HERE / "generated_client.py", str(server.port), "colours", picture]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


@pytest.mark.run
@pytest.mark.skipif(NODE is None, reason="there is no Node: `apt-get install nodejs`")
@pytest.mark.skipif(not NODE_MODULES, reason="TEST_NODE_MODULES is not set")
def test_a_generated_typescript_client(server, tmp_path):
    for name in ("typescript_types.mjs", "generated_client.ts"):
        shutil.copy(HERE / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(NODE_MODULES, target_is_directory=True)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    picture = tmp_path / "red.png"
    picture.write_bytes(encode(COLOURS["red"]))

    def node(*command: str | Path) -> str:
        done = subprocess.run([NODE, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    node("typescript_types.mjs", f"http://127.0.0.1:{server.port}/openapi.json", "schema.d.ts")
    strict = ["--strict", "--noUncheckedIndexedAccess", "--module", "nodenext", "--target", "es2022"]
    node("node_modules/typescript/bin/tsc", *strict, "--types", "node", "generated_client.ts")
    assert node("generated_client.js", str(server.port), "colours", picture) == "ok\n"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kserves_client(server, tmp_path):
    """Uses a separate environment, as kserve requires older versions of some packages."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "kserve>=0.15"], check=True)
    picture = tmp_path / "red.png"
    picture.write_bytes(encode(COLOURS["red"]))
    command = [python, HERE / "kserve_client.py", str(server.port), "colours", picture]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
