"""The recipes to start a run on several machines: what they say fits together, and the schema of a JobSet."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from jaxcnn.presets import PRESETS
from jaxcnn.train import parse
from tests import custom_resources

ROOT = Path(__file__).parent.parent
README = (ROOT / "jaxcnn" / "README.md").read_text()


@pytest.fixture
def jobset():
    return json.loads(
        re.search(r"^```json\n(\{\n  \"apiVersion\": \"jobset.*?)^```", README, re.MULTILINE | re.DOTALL)[1]
    )


def test_the_jobset_starts_as_many_processes_as_it_says(jobset):
    name, (job,) = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (line,) = container["args"]
    *_, module, preset, options = re.fullmatch(r"(exec python3 -m) (\S+) (\S+) (.*)", line).groups()
    assert module == "jaxcnn.train"
    assert preset in PRESETS
    parallel = parse([preset, *shlex.split(options.replace("$JOB_COMPLETION_INDEX", "1"))]).config.parallel
    assert parallel.num_processes == spec["completions"] == spec["parallelism"]
    assert spec["completionMode"] == "Indexed"
    assert parallel.coordinator.partition(":")[0] == f"{name}-{job['name']}-0-0.{name}"


def test_pods_of_the_jobset_may_write_to_their_volume_and_little_else(jobset):
    yaml = pytest.importorskip("yaml")
    manifest = ROOT / "server" / "deploy" / "kubernetes" / "training" / "jobset.yaml"
    pods = [
        recipe["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        for recipe in (jobset, next(yaml.safe_load_all(manifest.read_text())))
    ]
    assert pods[0]["securityContext"] == pods[1]["securityContext"]
    assert [pod["automountServiceAccountToken"] for pod in pods] == [False, False]


def test_a_mistake_ends_the_jobset_and_a_lost_process_restarts_it(jobset):
    (rule,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [2]
    (policy,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (policy["action"], policy["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


@pytest.mark.parametrize(
    ("statuses", "complete", "status", "calls"),
    [
        ([0], True, 0, ["srun"]),
        ([75, 134, 0], True, 0, ["srun"] * 3),
        # Stopped before the time limit.
        ([0], False, 0, ["srun", "scontrol requeue 7"]),
        ([143], False, 0, ["srun", "scontrol requeue 7"]),
        ([75, 2], False, 2, ["srun"] * 2),
    ],
)
def test_slurm_starts_again_what_is_not_complete(tmp_path, statuses, complete, status, calls):
    (script,) = re.findall(r"^```\n(#!/bin/bash\n#SBATCH .*?)^```", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "statuses").write_text("".join(f"{number}\n" for number in statuses))
    for name, does in {
        "srun": 'echo srun >> calls; status=$(head -1 statuses); sed -i 1d statuses; exit "$status"',
        "scontrol": 'echo "scontrol $*" >> calls',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "run").mkdir()
    if complete:
        (tmp_path / "run" / "model.onnx").touch()
    done = subprocess.run(
        ["bash", "-c", script.replace("/shared/run", str(tmp_path / "run"))],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (status, "")
    assert (tmp_path / "calls").read_text().splitlines() == calls


@custom_resources.needs_definitions
def test_the_jobset_has_its_schema(jobset):
    assert custom_resources.find_errors(jobset) == []
    jobset["spec"]["replicas"] = 2
    assert any("'replicas'" in error for error in custom_resources.find_errors(jobset))
