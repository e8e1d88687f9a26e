"""Training in the cloud: the recipes name what exists, and resume where they left off."""

import json
import os
import re
import subprocess
import textwrap
from pathlib import Path

import pytest

from jaxcnn.train import parse
from server.deploy import container

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
moto = pytest.importorskip("moto", reason="moto is not installed")
yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")

from moto.emr.models import EXAMPLE_AMI_ID  # noqa: E402

FOLDER = Path(container.__file__).parent
SPOT = (FOLDER / "training" / "spot.yaml").read_text()
JOB = json.loads((FOLDER / "training" / "sagemaker.json").read_text())
JOBSET = next(yaml.safe_load_all((FOLDER / "kubernetes" / "training" / "jobset.yaml").read_text()))
IMAGE = f"123456789012.dkr.ecr.us-east-1.amazonaws.com/jaxcnn-train@sha256:{'a' * 64}"

pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS.* but it's not supported:UserWarning")


@pytest.fixture
def aws(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "example")
    with moto.mock_aws():
        yield lambda service: boto3.client(service, region_name="us-east-1")


def commands():
    """The command lines of all recipes."""
    (job,) = JOBSET["spec"]["replicatedJobs"]
    yield job["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
    yield JOB["AlgorithmSpecification"]["ContainerArguments"]
    yield re.search(r"Command: \{ Type: String, Default: ([^,]+),", SPOT)[1].split()


def test_commands_are_commands_of_the_image():
    for arguments in commands():
        assert Path(parse(arguments).workdir).is_absolute()
    entrypoint = re.search(
        r'^ENTRYPOINT (\["python3", "-m", "jaxcnn.train"\])$', (FOLDER / "Dockerfile").read_text(), re.M
    )
    assert JOB["AlgorithmSpecification"]["ContainerEntrypoint"] == json.loads(entrypoint[1])


def test_the_readme_has_the_whole_command_of_the_spot_stack():
    text = (FOLDER / "README.md").read_text()
    command = re.search(r"^aws cloudformation deploy (?:.*\\\n)*.*training/spot.yaml(?:.*\\\n)*.*$", text, re.M)[0]
    assert "--stack-name " in command
    assert "--capabilities CAPABILITY_IAM" in command
    parameters = re.search(r"^Parameters:\n((?:  .*\n)+)", SPOT, re.M)[1]
    described = re.findall(r"^  (\w+):(.*(?:\n    .*)*)", parameters, re.M)
    needed = {name for name, description in described if "Default" not in description}
    assert {"Image", "Vpc"} <= needed <= set(re.findall(r"(\w+)=", command))


def test_sagemaker_keeps_the_workdir_of_a_spot_instance(aws):
    sagemaker = aws("sagemaker")
    sagemaker.create_training_job(**JOB)
    described = sagemaker.describe_training_job(TrainingJobName=JOB["TrainingJobName"])
    assert described["EnableManagedSpotTraining"] is True
    arguments = JOB["AlgorithmSpecification"]["ContainerArguments"]
    assert arguments[arguments.index("--workdir") + 1] == described["CheckpointConfig"]["LocalPath"]
    limits = described["StoppingCondition"]
    assert limits["MaxWaitTimeInSeconds"] > limits["MaxRuntimeInSeconds"]


@pytest.mark.run
def test_spot_instances_share_one_file_system(aws):
    ec2 = aws("ec2")
    network = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    subnets = sorted(subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"])[:2]
    aws("ssm").put_parameter(Name="/machine", Value=EXAMPLE_AMI_ID, Type="String")
    values = {"Image": IMAGE, "Vpc": network, "Subnets": ",".join(subnets), "Machine": "/machine"}
    stacks = aws("cloudformation")
    stacks.create_stack(
        StackName="digits",
        TemplateBody=SPOT,
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in values.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    (group,) = aws("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    assert (group["AutoScalingGroupName"], group["MinSize"], group["MaxSize"]) == ("digits", 1, 1)
    (files,) = aws("efs").describe_file_systems()["FileSystems"]
    assert files["Encrypted"] is True
    mounted = aws("efs").describe_mount_targets(FileSystemId=files["FileSystemId"])["MountTargets"]
    assert sorted(target["SubnetId"] for target in mounted) == subnets
    (launch,) = ec2.describe_launch_template_versions(Versions=["$Latest"])["LaunchTemplateVersions"]
    assert launch["LaunchTemplateData"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert launch["LaunchTemplateData"]["MetadataOptions"]["HttpTokens"] == "required"


STUB = """#!/bin/bash
name=$(basename "$0")
echo "$name $*" >> calls
case "$name $1" in
  "sleep 5") /bin/sleep .02 ;;
  "mountpoint --quiet") exit 1 ;;
  "curl --silent") [ -e noticed ] || [ "$2" = --request ]; exit ;;
  # The run goes on until it is stopped, if there will be a notice.
  "docker run") touch started; while [ -e will_be_noticed ] && [ ! -e stopped ]; do /bin/sleep .02; done
    exit "$(cat status)" ;;
  "docker stop") touch stopped ;;
  "docker logs") echo the log ;;
  "systemctl is-system-running") cat state; exit ;;
  "aws autoscaling") name=autoscaling ;;
esac
# The first commands of a name fail, as often as its file says.
left=$(cat "fails_$name" 2> /dev/null || echo 0)
if [ "$left" -gt 0 ]; then echo $((left - 1)) > "fails_$name"; exit 1; fi
"""


@pytest.fixture
def instance(tmp_path):
    """Runs the script of an instance with imitations of all commands, and returns its calls of these."""
    for name in ("dnf", "systemctl", "mountpoint", "mount", "chown", "aws", "docker", "curl", "sleep"):
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(STUB)
        (tmp_path / "bin" / name).chmod(0o755)
    script = textwrap.dedent(re.search(r"Fn::Base64: !Sub \|\n(.*?)\n\n  Instances:", SPOT, re.DOTALL)[1])
    values = {"Files": "fs-1", "Image": IMAGE, "Command": "digits", "AWS::Region": "us-east-1", "AWS::StackName": "run"}
    script = re.sub(r"\$\{(.*?)\}", lambda match: values[match[1]], script)
    script = re.sub(r"(?<=[ :])/(?=training|run/)", f"{tmp_path}/", script)
    (tmp_path / "run").mkdir()

    def run(status, *, is_noticed=False, state="running", **fails):
        (tmp_path / "status").write_text(str(status))
        (tmp_path / "state").write_text(state)
        for name, times in fails.items():
            (tmp_path / f"fails_{name}").write_text(str(times))
        if is_noticed:
            (tmp_path / "will_be_noticed").touch()
            (tmp_path / "noticed").touch()
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        subprocess.run(["bash"], input=script, text=True, cwd=tmp_path, env=environment, check=False, timeout=20)
        return (tmp_path / "calls").read_text().splitlines()

    return run


def count(calls, beginning):
    return sum(call.startswith(beginning) for call in calls)


END = "aws autoscaling update-auto-scaling-group --region us-east-1 --auto-scaling-group-name run --min-size 0"


@pytest.mark.parametrize(
    ("status", "is_noticed", "state", "ends"),
    [
        (0, False, "running", True),
        (0, True, "running", True),
        (2, False, "running", True),
        (137, False, "running", True),
        (143, False, "running", False),
        (143, True, "running", False),
        (137, True, "running", False),
        (75, True, "running", False),
        # The instance is shut down without a notice, and kills what does not end in time.
        (137, False, "stopping", False),
    ],
)
def test_only_a_run_that_was_stopped_goes_on_on_another_spot_instance(
    instance, tmp_path, status, is_noticed, state, ends
):
    calls = instance(status, is_noticed=is_noticed, state=state)
    assert count(calls, "docker run --name train --volume ") == 1
    assert count(calls, END) == ends
    assert (tmp_path / "training" / "last.log").read_text() == "the log\n"
    # It saves its state before AWS takes the instance back.
    assert (count(calls, "docker stop --time 100 train") > 0) is is_noticed


def test_an_error_that_may_pass_is_tried_five_times(instance):
    calls = instance(75)
    assert count(calls, "docker run --name train ") == 5
    assert count(calls, "docker rm train") == count(calls, "sleep 60") == 4
    assert count(calls, END) == 1


@pytest.mark.parametrize("name", ["dnf", "mount", "docker"])
def test_the_preparation_of_a_spot_instance_is_repeated(instance, name):
    calls = instance(0, **{name: 2})
    assert count(calls, "dnf") == 3
    assert count(calls, "docker run") == count(calls, END) == 1


def test_a_spot_instance_that_cannot_be_prepared_ends_the_group(instance):
    calls = instance(0, dnf=99)
    assert (count(calls, "dnf"), count(calls, "docker run"), count(calls, END)) == (5, 0, 1)


def test_the_end_of_the_group_is_repeated(instance):
    assert count(instance(0, autoscaling=2), END) == 3


def test_the_workdir_of_a_spot_instance_is_on_the_file_system():
    assert "/training:/training" in SPOT
    workdir = parse(list(commands())[-1]).workdir
    assert str(workdir).startswith("/training/")
