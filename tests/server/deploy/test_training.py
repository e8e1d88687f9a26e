"""Training in the cloud: the recipes name what exists, and resume where they left off."""

import json
import re
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


def test_a_spot_instance_saves_before_it_goes_and_ends_the_group_after_the_last_epoch():
    script = re.search(r"Fn::Base64: !Sub \|\n(.*?)\n\n", SPOT, re.DOTALL)[1]
    assert "docker stop --time 100 train" in script
    assert "/training:/training" in script
    finished = script.index("--desired-capacity 0")
    assert script.index("if docker run") < finished
    workdir = parse(list(commands())[-1]).workdir
    assert str(workdir).startswith("/training/")
