"""`python -m server.deploy` against an imitation of AWS: what it creates, changes, returns to and deletes."""

import copy
import functools
import io
import json
import re
import shutil
import ssl
import subprocess
import textwrap
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
moto = pytest.importorskip("moto", reason="moto is not installed")

from botocore.exceptions import EndpointConnectionError  # noqa: E402
from botocore.stub import Stubber  # noqa: E402
from moto.cloudformation.models import ChangeSet  # noqa: E402
from moto.cloudformation.responses import CloudFormationResponse  # noqa: E402
from moto.emr.models import EXAMPLE_AMI_ID  # noqa: E402

from server.deploy import __main__ as deploy  # noqa: E402
from server.deploy import account, health, prices, stack, template  # noqa: E402
from server.deploy.errors import DeployError  # noqa: E402
from server.deploy.stack import Stack  # noqa: E402
from server.deploy.template import Template  # noqa: E402
from server.settings import Settings  # noqa: E402
from tests.server.deploy.limits import most_memory, with_environment  # noqa: E402

TEMPLATES = sorted((Path(deploy.__file__).parent / "cloudformation").glob("*.yaml"))
IMAGE = f"123456789012.dkr.ecr.us-east-1.amazonaws.com/jaxcnn@sha256:{'a' * 64}"
NEXT_IMAGE = IMAGE.replace("a" * 64, "b" * 64)
SOURCE = f"https://example.org/jaxcnn-0.1.0.tar.gz#sha256={'a' * 64}"
SECRET = "wJalrXUtnFEMIexample"
STACKS = [target for target in deploy._TARGETS if target != "kserve"]

# The imitation lacks these: cfn-lint alone checks them.
MISSING = {
    "AWS::ApplicationAutoScaling::ScalableTarget",
    "AWS::ApplicationAutoScaling::ScalingPolicy",
    "AWS::CloudWatch::Alarm",
    "AWS::Lambda::Url",
    "AWS::SSM::Association",
}
pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS.* but it's not supported:UserWarning")


FUNCTION_URL = "!GetAtt Url.FunctionUrl"

# It takes longer to make a client than to use it.
CREATE_CLIENT = boto3.client


@functools.cache
def client(service, region_name="us-east-1"):
    return CREATE_CLIENT(service, region_name=region_name or "us-east-1")


@pytest.fixture
def aws(monkeypatch):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "client", client)
    monkeypatch.setattr(health, "POLL_SECONDS", 0)
    monkeypatch.setattr(health, "HEALTHY_SECONDS", 0)
    monkeypatch.setattr(account, "_UBUNTU", "/ubuntu")
    # The imitation lacks the URLs of functions, so the output that is one would stop it.
    arguments = Template.to_arguments

    def replace(self):
        text = json.dumps(arguments(self)).replace(FUNCTION_URL, "none")
        # The imitation describes a list as Python prints it; AWS separates its elements by commas.
        return json.loads(re.sub(r"\['([^]\"]*)'\]", lambda found: found[1].replace("', '", ","), text))

    monkeypatch.setattr(Template, "to_arguments", replace)
    # It compares a change set with the parameters of the stack's creation, even after an update, and refuses one that
    # changes nothing, of which AWS says so when it is described.
    apply = ChangeSet.apply

    def update(self):
        apply(self)
        self.stack.parameters = self.parameters

    monkeypatch.setattr(ChangeSet, "apply", update)
    monkeypatch.setattr(CloudFormationResponse, "_validate_different_update", lambda *_: None)
    with moto.mock_aws():
        client("ssm").put_parameter(Name="/ubuntu", Value=EXAMPLE_AMI_ID, Type="String")
        yield


@pytest.fixture
def healthy(monkeypatch):
    """Whether deployments respond; the imitation has no servers."""
    answers = {"is_ready": True}
    monkeypatch.setattr(health, "ask", lambda url: 200 if answers["is_ready"] else 503)
    return answers


def run(capsys, *arguments):
    status = deploy.main(arguments)
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    return status, printed.out, printed.err


def named(target, image=IMAGE):
    """The options that name what is deployed."""
    digest = image.rpartition(":")[2]
    return ("--source", SOURCE.replace("a" * 64, digest)) if target == "ec2" else ("--image", image)


def render(target, **values):
    named = deploy._parse_source(SOURCE) if target == "ec2" else {"Image": IMAGE}
    return Template.render(target, named | values)


def properties(target, name):
    """The properties of a resource in its template, with references as the names that they refer to."""
    return yaml.load(render(target).text, template._Loader)["Resources"][name]["Properties"]


def resources(name="jaxcnn"):
    listed = client("cloudformation").list_stack_resources(StackName=name)["StackResourceSummaries"]
    return {item["LogicalResourceId"]: item for item in listed if item.get("LogicalResourceId")}


def remains():
    """What a stack creates and must delete, by service; the imitation never deletes clusters, target groups and elastic
    addresses."""
    return [
        client("elbv2").describe_load_balancers()["LoadBalancers"],
        client("iam").list_roles()["Roles"],
        client("logs").describe_log_groups()["logGroups"],
        client("lambda").list_functions()["Functions"],
        client("sagemaker").list_models()["Models"],
        client("sagemaker").list_endpoints()["Endpoints"],
        client("cloudwatch").describe_alarms()["MetricAlarms"],
        client("sns").list_topics()["Topics"],
        client("iam").list_instance_profiles()["InstanceProfiles"],
        client("ec2").describe_launch_templates()["LaunchTemplates"],
        [
            instance
            for reservation in client("ec2").describe_instances()["Reservations"]
            for instance in reservation["Instances"]
            if instance["State"]["Name"] != "terminated"
        ],
        [
            group
            for group in client("ec2").describe_security_groups()["SecurityGroups"]
            if group["GroupName"] != "default"
        ],
    ]


def statements():
    """Every statement of every policy of every role, with the role's name."""
    iam = client("iam")
    for role in iam.list_roles()["Roles"]:
        for name in iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]:
            document = iam.get_role_policy(RoleName=role["RoleName"], PolicyName=name)["PolicyDocument"]
            content = yaml.safe_load(document) if isinstance(document, str) else document
            # The imitation keeps `AWS::NoValue` in lists, as the text None.
            yield from ((role["RoleName"], item) for item in content["Statement"] if isinstance(item, dict))


def test_templates_pass_cfn_lint():
    if shutil.which("cfn-lint") is None:
        pytest.skip("cfn-lint is not installed")
    spot = Path(deploy.__file__).parent / "training" / "spot.yaml"
    done = subprocess.run(["cfn-lint", *TEMPLATES, spot], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_target_has_a_template_that_keeps_nothing(path):
    assert path.stem in deploy._TARGETS
    rendered = render(path.stem)
    # SageMaker makes its log itself, and the machine keeps one.
    assert "AWS::Logs::LogGroup" in rendered.resources.values() or path.stem in ("sagemaker", "ec2")
    assert "Retain" not in rendered.text


@pytest.mark.run
@pytest.mark.parametrize("target", ["ecs", "ec2", "lambda", "sagemaker"])
def test_create_update_and_delete(aws, healthy, capsys, target):
    before = remains()
    assert run(capsys, "status")[:2] == (1, "There is no stack jaxcnn.\n")
    # Create.
    status, printed, error = run(capsys, target, *named(target))
    assert (status, error) == (0, "")
    assert "deployed\n" in printed
    created = resources()
    expected = render(target).resources
    conditional = {"Topic", "Budget", "PublicPermission", "PublicInvocation", "HttpsRule"}
    assert set(created) == {name for name, kind in expected.items() if kind not in MISSING} - conditional
    # The same again changes nothing.
    assert "already up to date\n" in run(capsys, target, *named(target))[1]
    assert run(capsys, "status")[1].startswith("jaxcnn: CREATE_COMPLETE\n")
    # Update in place: only what uses the image is another.
    assert "deployed\n" in run(capsys, target, *named(target, NEXT_IMAGE))[1]
    assert resources().keys() == created.keys()
    for name in {"Cluster", "Balancer", "Role", "Logs", "Machine", "Address"} & created.keys():
        assert resources()[name]["PhysicalResourceId"] == created[name]["PhysicalResourceId"]
    assert named(target, NEXT_IMAGE)[1][-64:] in json.dumps(
        client("cloudformation").describe_stacks()["Stacks"], default=str
    )
    # Delete.
    assert run(capsys, "destroy")[:2] == (0, "destroyed\n")
    assert remains() == before
    assert run(capsys, "destroy")[:2] == (0, "There is no stack jaxcnn.\n")


@pytest.mark.run
def test_the_service_drains_and_is_reached_only_by_the_load_balancer(aws, healthy, capsys):
    run(capsys, "ecs", "--image", IMAGE, "--set", "DrainSeconds=30")
    ids = {name: item["PhysicalResourceId"] for name, item in resources().items()}
    task = client("ecs").describe_task_definition(taskDefinition=ids["Task"])["taskDefinition"]
    (container,) = task["containerDefinitions"]
    environment = {item["name"]: item["value"] for item in filter(None, container["environment"])}
    assert container["image"] == IMAGE
    assert container["readonlyRootFilesystem"] is True
    assert container["stopTimeout"] > int(environment["JAXCNN_DRAIN_SECONDS"]) + 10 + 30
    assert container["healthCheck"]["command"] == ["CMD", "python3", "-m", "server.deploy.container", "health"]
    elb = client("elbv2")
    (targets,) = elb.describe_target_groups(TargetGroupArns=[ids["Targets"]])["TargetGroups"]
    assert targets["HealthCheckPath"] == "/readyz"
    # The server is not ready for longer than the load balancer needs to notice.
    noticed = targets["HealthCheckIntervalSeconds"] * targets["UnhealthyThresholdCount"]
    assert int(environment["JAXCNN_DRAIN_SECONDS"]) > noticed
    groups = client("ec2").describe_security_groups(GroupIds=[ids["TaskGroup"]])["SecurityGroups"]
    (rule,) = groups[0]["IpPermissions"]
    assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [ids["BalancerGroup"]]
    assert not rule["IpRanges"]
    assert "DeploymentCircuitBreaker: { Enable: true, Rollback: true }" in Template.render("ecs", {"Image": IMAGE}).text


def test_an_express_service_has_ended_before_ecs_kills_it():
    environment = properties("express", "Service")["PrimaryContainer"]["Environment"]
    (drain,) = [int(item["Value"]) for item in environment if "DRAIN" in str(item)]
    assert drain + Settings().deadline_ms / 1000 < 30


@pytest.mark.parametrize("endpoint", ["jaxcnn.ecs.us-east-1.on.aws", "https://jaxcnn.ecs.us-east-1.on.aws"])
def test_the_url_of_an_express_service_has_one_scheme(endpoint):
    url = yaml.load(render("express").text, template._Loader)["Outputs"]["Url"]["Value"]
    separator, (scheme, (inner, (delimiter, attribute))) = url
    assert (attribute, delimiter, inner) == ("Service.Endpoint", "https://", "")
    assert separator.join([scheme, inner.join(endpoint.split(delimiter))]) == "https://jaxcnn.ecs.us-east-1.on.aws"


def test_an_update_keeps_the_number_of_tasks_that_the_scaling_chose():
    # The imitation never changes the number, and has no scaling, which raises it to its least.
    assert "DesiredCount" not in properties("ecs", "Service")
    assert properties("ecs", "ScalableTarget")["MinCapacity"] == "MinTasks"


def test_alarms_may_publish_to_their_topic():
    # CloudWatch may not use the key that AWS manages for SNS, and its policy cannot be changed.
    assert properties("ecs", "ErrorAlarm")["AlarmActions"][1] == ["Topic"]
    assert "KmsMasterKeyId" not in properties("ecs", "Topic")


def test_an_endpoint_is_isolated_unless_it_is_serverless():
    # The imitation ignores the property of a model that a template makes.
    assert properties("sagemaker", "Model")["EnableNetworkIsolation"] == ["IsServerless", False, True]


@pytest.mark.run
@pytest.mark.parametrize(("access", "actions"), [("AWS_IAM", []), ("NONE", ["InvokeFunction", "InvokeFunctionUrl"])])
def test_a_public_function_has_both_permissions_that_its_url_needs(aws, healthy, capsys, access, actions):
    assert run(capsys, "lambda", "--image", IMAGE, "--set", f"Access={access}")[0] == 0
    created = resources().keys() & {"PublicPermission", "PublicInvocation"}
    granted = [properties("lambda", name) for name in created]
    assert sorted(item["Action"] for item in granted) == [f"lambda:{action}" for action in actions]
    for item in granted:
        assert item["Principal"] == "*"
        # Nobody may invoke it but through its URL.
        assert item["Action"] == "lambda:InvokeFunctionUrl" or item["InvokedViaFunctionUrl"] is True


@pytest.mark.run
@pytest.mark.parametrize("target", ["ecs", "lambda", "sagemaker"])
def test_roles_may_do_little(aws, healthy, capsys, target):
    run(capsys, target, "--image", IMAGE)
    listed = list(statements())
    assert listed
    without_resource = {"ecr:GetAuthorizationToken", "cloudwatch:PutMetricData"}
    for role, statement in listed:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not [action for action in actions if "*" in action], role
        assert statement["Resource"] != "*" or set(actions) <= without_resource, role
    assert not [role for role, _ in listed if "TaskRole" in role]


@pytest.mark.run
@pytest.mark.parametrize(("memory", "megabytes"), [("2048", 2147), ("512", 537)])
def test_what_the_server_may_take_is_within_the_memory_of_its_task(aws, healthy, capsys, memory, megabytes):
    run(capsys, "ecs", "--image", IMAGE, "--set", f"Memory={memory}", "Cpu=256" if memory == "512" else "Cpu=1024")
    task = client("ecs").describe_task_definition(taskDefinition=resources()["Task"]["PhysicalResourceId"])
    (container,) = task["taskDefinition"]["containerDefinitions"]
    settings = with_environment({item["name"]: item["value"] for item in filter(None, container["environment"])})
    assert (settings == Settings()) is (memory != "512")
    assert most_memory(settings, 1) < megabytes * 1e6
    assert 21 * settings.max_pixels + 1_000_000 <= settings.max_decode_bytes


def test_the_load_balancer_lets_go_of_idle_connections_before_the_server_does():
    text = Template.render("ecs", {"Image": IMAGE}).text
    idle = re.search(r'idle_timeout.timeout_seconds, Value: "(\d+)"', text)
    kept = re.search(r"timeout_keep_alive=(\d+)", Path(deploy.__file__).with_name("container.py").read_text())
    assert int(idle[1]) < int(kept[1])


@pytest.mark.run
def test_the_machine_is_small_without_ssh_and_its_role_is_reached_by_tokens(aws, healthy, capsys):
    run(capsys, "ec2", *named("ec2"), "--set", "Domain=birds.example.org", "Model=/srv/birds.onnx")
    ids = {name: item["PhysicalResourceId"] for name, item in resources().items()}
    ec2 = client("ec2")
    (reservation,) = ec2.describe_instances(InstanceIds=[ids["Machine"]])["Reservations"]
    (machine,) = reservation["Instances"]
    assert machine["InstanceType"] == "t3.small"
    (group,) = ec2.describe_security_groups(GroupIds=[ids["Group"]])["SecurityGroups"]
    assert sorted(rule["FromPort"] for rule in group["IpPermissions"]) == [80, 443]
    (launch,) = ec2.describe_launch_template_versions(LaunchTemplateId=ids["Launch"])["LaunchTemplateVersions"]
    options = launch["LaunchTemplateData"]["MetadataOptions"]
    assert (options["HttpTokens"], options["HttpPutResponseHopLimit"]) == ("required", 1)
    (role,) = client("iam").list_roles()["Roles"]
    # The imitation lacks the policies that AWS manages.
    assert re.findall(r"iam::aws:policy/(\w+)", render("ec2").text) == ["AmazonSSMManagedInstanceCore"]
    assert not client("iam").list_role_policies(RoleName=role["RoleName"])["PolicyNames"]
    printed = run(capsys, "status")[1]
    assert "Url: https://birds.example.org\n" in printed
    assert f"Session: aws ssm start-session --target {ids['Machine']}\n" in printed


def test_what_the_machine_installs_is_checked_first():
    script = re.search(r"- \|\n(.*?)- Site", render("ec2").text, re.DOTALL)[1]
    script = textwrap.dedent(script).replace("${Source}", "https://example.org/a").replace("${SourceSha256}", "0" * 64)
    done = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    fetched, checked, unpacked, installed = map(script.index, ("curl", "sha256sum --check", "tar ", "install.sh"))
    assert script.startswith("set -eu\n")
    assert fetched < checked < unpacked < installed
    assert "sh server/deploy/systemd/install.sh --caddy" in script
    assert (Path(deploy.__file__).parent / "systemd" / "install.sh").exists()


def parameters():
    (deployed,) = client("cloudformation").describe_stacks()["Stacks"]
    return {item["ParameterKey"]: item["ParameterValue"] for item in deployed["Parameters"]}


@pytest.mark.run
def test_an_update_keeps_what_was_set_before(aws, healthy, capsys):
    run(capsys, "lambda", "--image", IMAGE, "--set", "Access=NONE", "Memory=2048")
    printed = run(capsys, "lambda", "--image", NEXT_IMAGE, "--set", "Memory=3008")[1]
    assert "Parameters stay as they are, unless --set says otherwise: Concurrency=10, Access=NONE\n" in printed
    assert parameters() == {"Image": NEXT_IMAGE, "Access": "NONE", "Memory": "3008", "Concurrency": "10"}


@pytest.mark.run
def test_a_newer_ubuntu_does_not_replace_the_machine_and_its_settings(aws, healthy, capsys):
    run(capsys, "ec2", *named("ec2"))
    machine = resources()["Machine"]["PhysicalResourceId"]
    client("ssm").put_parameter(Name="/ubuntu", Value="ami-00000000", Type="String", Overwrite=True)
    run(capsys, "ec2", *named("ec2", NEXT_IMAGE))
    assert parameters()["Ubuntu"] == EXAMPLE_AMI_ID
    assert parameters()["SourceSha256"] == "b" * 64
    assert resources()["Machine"]["PhysicalResourceId"] == machine


@pytest.mark.run
def test_an_update_that_is_not_healthy_is_taken_back(aws, healthy, capsys):
    run(capsys, "ecs", "--image", IMAGE)
    healthy["is_ready"] = False
    status, _, error = run(capsys, "ecs", "--image", NEXT_IMAGE)
    assert status == 1
    assert error == (
        "server.deploy: The stack jaxcnn did not become healthy, and is as it was before: see its log, and correct the"
        " image.\n"
    )
    (stack,) = client("cloudformation").describe_stacks()["Stacks"]
    assert {"ParameterKey": "Image", "ParameterValue": IMAGE}.items() <= next(
        item for item in stack["Parameters"] if item["ParameterKey"] == "Image"
    ).items()
    assert run(capsys, "status")[0] == 1


@pytest.mark.run
def test_a_first_deployment_that_is_not_healthy_stays_to_be_looked_at(aws, healthy, capsys):
    healthy["is_ready"] = False
    status, _, error = run(capsys, "ecs", "--image", IMAGE, "--name", "trial")
    assert status == 1
    assert "python -m server.deploy destroy --name trial" in error
    assert run(capsys, "destroy", "--name", "trial")[1] == "destroyed\n"


@pytest.mark.run
def test_an_account_without_a_default_network_has_to_name_one(aws, healthy, capsys):
    ec2 = client("ec2")
    for subnet in ec2.describe_subnets()["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    expected = "server.deploy: The default VPC has no default subnets: name some with --set.\n"
    assert run(capsys, "ecs", *named("ecs"))[::2] == (1, expected)
    for network in ec2.describe_vpcs()["Vpcs"]:
        ec2.delete_vpc(VpcId=network["VpcId"])
    expected = "server.deploy: This region has no default VPC: name one with --set Vpc=ID Subnets=ID,ID.\n"
    assert run(capsys, "ecs", *named("ecs"))[::2] == (1, expected)
    assert client("cloudformation").describe_stacks()["Stacks"] == []


def test_a_part_of_a_network_is_not_completed_by_another(aws, capsys):
    expected = "server.deploy: Vpc and its subnets go together: name Subnets with --set, too.\n"
    assert run(capsys, "ecs", *named("ecs"), "--set", "Vpc=vpc-1")[::2] == (1, expected)


def test_what_only_some_addresses_reach_is_not_asked(monkeypatch):
    monkeypatch.setattr(health, "ask", lambda url: None)
    monkeypatch.setattr(health, "HEALTHY_SECONDS", 0)
    monkeypatch.setattr(health, "POLL_SECONDS", 0)
    assert health.is_healthy("ecs", "http://10.0.0.1", {"Clients": "10.0.0.0/8"})
    assert not health.is_healthy("ecs", "http://10.0.0.1", render("ecs").parameters)
    assert not health.is_healthy("express", "http://10.0.0.1", render("express").parameters)


def test_a_missing_region_is_reported_in_one_line(monkeypatch, capsys, tmp_path):
    for name in ("AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "absent"))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    expected = "server.deploy: You must specify a region. Set --region, or AWS_DEFAULT_REGION.\n"
    assert run(capsys, "status")[::2] == (1, expected)


@pytest.mark.parametrize("target", STACKS)
def test_a_dry_run_needs_no_account(monkeypatch, capsys, target):
    monkeypatch.setattr(boto3, "client", None)
    status, printed, error = run(capsys, target, *named(target), "--dry-run")
    assert (status, error) == (0, "")
    for kind in render(target).resources.values():
        assert kind in printed
    assert f"list prices of {prices.DATE} in us-east-1 (check them: https://calculator.aws)" in printed
    assert len(re.findall(r"at .*: \d+\.\d\d dollars a month", printed)) == 2


def test_no_parameter_is_forgotten_if_they_are_given_one_by_one():
    command = ["ecs", "--image", IMAGE, "--set", "Certificate=arn", "MinTasks=3", "--set", "Email=ops@example.org"]
    assert deploy.make_parser().parse_args(command).set == ["Certificate=arn", "MinTasks=3", "Email=ops@example.org"]
    assert deploy.make_parser().parse_args(["ecs", "--image", IMAGE]).set == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--image", "jaxcnn:latest"], "--image needs the image's digest, as REPOSITORY@sha256:DIGEST"),
        (["--image", IMAGE, "--set", "Cpu=100"], "Cpu is '100': set it to one of 256, 512, 1024, 2048, 4096."),
        (["--image", IMAGE, "--set", "MinTasks=0"], 'MinTasks is "0": set it to an integer from 1 to 1000000000.'),
        (["--image", IMAGE, "--set", "MinTasks=5"], "MinTasks is above MaxTasks, which is 4: lower it."),
        (["--image", IMAGE, "--set", "Tasks=2"], "ecs has no parameter Tasks: use one of Image, Vpc, "),
        (["--image", IMAGE, "--set", "Cpu"], "--set 'Cpu' has no value: write NAME=VALUE."),
        (["--image", IMAGE, "--set", f"https://me:{SECRET}@a.b/c"], "--set 'https://***@a.b/c' has no value: "),
        (["--image", IMAGE, "--set", f"https://{SECRET}@a.b/c="], "ecs has no parameter https://***@a.b/c: use one of"),
        (["--image", IMAGE, "--name", "My_stack"], "--name is 'My_stack': use up to 32 lowercase letters"),
    ],
)
def test_a_mistake_is_reported_in_one_line(capsys, arguments, complaint):
    status, _, error = run(capsys, "ecs", *arguments)
    assert status == 1
    assert error.startswith(f"server.deploy: {complaint}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("target", ["ecs", "express"])
def test_memory_that_is_no_number_is_refused(capsys, target):
    status, printed, error = run(capsys, target, "--image", IMAGE, "--set", "Memory=2G", "--dry-run")
    assert (status, printed) == (1, "")
    assert re.fullmatch(r'server.deploy: Memory is "2G": [^\n]*\n', error)


@pytest.mark.parametrize(
    ("source", "values", "complaint"),
    [
        ("http://example.org/a#sha256=" + "a" * 64, [], "--source is 'http://example.org/a#sha256="),
        ("https://example.org/a", [], "--source is 'https://example.org/a': write https://HOST/PATH#sha256=CHECKSUM"),
        (f"http://me:{SECRET}@a.b/c?key={SECRET}", [], "--source is 'http://***@a.b/c?***': write https://HOST/PATH#"),
        (
            SOURCE.replace("//", f"//me:{SECRET}@"),
            [],
            'Source is "https://***@example.org/jaxcnn-0.1.0.tar.gz": it must',
        ),
        (SOURCE, ["Model=$(reboot)"], 'Model is "$(reboot)": it must match '),
        (SOURCE, ["Domain=';reboot'"], "Domain is \"';reboot'\": it must match "),
        (SOURCE, ["Instance=t2.nano"], "Instance is 't2.nano': set it to one of t3.micro, t3.small, "),
    ],
)
def test_what_would_reach_the_shell_of_the_machine_is_refused(capsys, source, values, complaint):
    status, _, error = run(capsys, "ec2", "--source", source, *(["--set", *values] if values else []))
    assert status == 1
    assert error.startswith(f"server.deploy: {complaint}")
    assert error.count("\n") == 1


def test_an_interrupt_is_reported_in_one_line(monkeypatch, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(deploy, "_status", interrupt)
    expected = "server.deploy: interrupted; what has begun goes on, see the command status.\n"
    assert run(capsys, "status") == (130, "", expected)


def test_refusals_of_aws_are_reported_in_one_line(aws, capsys, monkeypatch):
    def refuse(self, operation, arguments):
        response = {"Error": {"Code": "AccessDenied", "Message": "User is not\nauthorized"}}
        raise ClientError(response, operation)

    from botocore.exceptions import ClientError

    monkeypatch.setattr("botocore.client.BaseClient._make_api_call", refuse)
    for command in (["status"], ["destroy"], ["lambda", "--image", IMAGE], ["ecs", "--image", IMAGE]):
        status, _, error = run(capsys, *command)
        assert status == 1
        assert re.fullmatch(r"server.deploy: AWS refuses: .*AccessDenied.* Check the credentials[^\n]*\n", error)


@pytest.mark.run
def test_a_failed_creation_is_explained_and_replaced(aws, healthy, capsys, monkeypatch):
    # A stack that a failure has left is deleted first.
    run(capsys, "lambda", "--image", IMAGE)
    described = Stack.describe

    def stillborn(self):
        description = described(self)
        monkeypatch.setattr(Stack, "describe", described)
        return description | {"StackStatus": "ROLLBACK_COMPLETE"}

    monkeypatch.setattr(Stack, "describe", stillborn)
    first = client("cloudformation").describe_stacks()["Stacks"][0]["StackId"]
    Stack(client("cloudformation"), "jaxcnn", 0).deploy(Template.render("lambda", {"Image": IMAGE}))
    assert client("cloudformation").describe_stacks()["Stacks"][0]["StackId"] != first


@pytest.fixture
def answers():
    """A stack, and what CloudFormation will answer to it in turn."""
    keys = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": SECRET}
    api = CREATE_CLIENT("cloudformation", region_name="us-east-1", **keys)
    with Stubber(api) as stubber:
        yield Stack(api, "jaxcnn", 5), stubber
        stubber.assert_no_pending_responses()


def described(status):
    found = {"StackName": "jaxcnn", "CreationTime": datetime.now(UTC), "StackStatus": status}
    return "describe_stacks", {"Stacks": [found]}


def event(name, status, reason=""):
    return {
        "StackId": "id",
        "EventId": "event",
        "StackName": "jaxcnn",
        "Timestamp": datetime.now(UTC),
        "LogicalResourceId": name,
        "PhysicalResourceId": "id" if name == "jaxcnn" else "other",
        "ResourceStatus": status,
        "ResourceStatusReason": reason,
    }


def test_a_failure_is_explained_by_its_own_events(answers):
    deployed, stubber = answers
    stubber.add_response("delete_stack", {})
    stubber.add_response(*described("DELETE_FAILED"))
    events = [
        event("jaxcnn", "DELETE_FAILED", "The following resources failed to delete: [Group]"),
        event("Role", "DELETE_FAILED", "Resource deletion cancelled"),
        event("Group", "DELETE_FAILED", "It has a dependent object."),
        event("Service", "DELETE_IN_PROGRESS"),
        event("jaxcnn", "DELETE_IN_PROGRESS", "User Initiated"),
        event("jaxcnn", "UPDATE_ROLLBACK_COMPLETE"),
        event("Service", "UPDATE_FAILED", "The image does not exist"),
        event("jaxcnn", "UPDATE_IN_PROGRESS", "User Initiated"),
    ]
    stubber.add_response("describe_stack_events", {"StackEvents": events})
    expected = r"^The stack jaxcnn failed: Group: It has a dependent object\. Correct it, and run "
    with pytest.raises(DeployError, match=expected):
        deployed.delete()


def test_an_operation_that_takes_long_has_not_failed(answers, monkeypatch):
    deployed, stubber = answers
    monkeypatch.setattr(stack, "_LONGEST_SECONDS", 15)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    stubber.add_response("delete_stack", {})
    for _ in range(3):
        stubber.add_response(*described("DELETE_IN_PROGRESS"))
    with pytest.raises(
        DeployError, match=r"^CloudFormation has worked on .* goes on: see `.* status --name jaxcnn`\.$"
    ):
        deployed.delete()


@pytest.mark.parametrize(("state", "kept"), [("UPDATE_COMPLETE", True), ("ROLLBACK_COMPLETE", False)])
def test_a_stack_knows_what_it_was_deployed_with(answers, state, kept):
    deployed, stubber = answers
    operation, response = described(state)
    values = [
        {"ParameterKey": "Domain", "ParameterValue": "birds.example.org"},
        {"ParameterKey": "Ubuntu", "ParameterValue": "/ubuntu", "ResolvedValue": "ami-1"},
        {"ParameterKey": "Removed", "ParameterValue": "1"},
    ]
    for description in (render("ec2").description, "Another template"):
        response["Stacks"][0] |= {"Description": description, "Parameters": values}
        stubber.add_response(operation, copy.deepcopy(response))
    expected = {"Domain": "birds.example.org", "Ubuntu": "ami-1"} if kept else {}
    assert deployed.parameters(render("ec2")) == expected
    # An update would delete what the other one is made of; a failed creation has left nothing.
    if kept:
        with pytest.raises(
            DeployError, match=r"^The stack jaxcnn is another one \(Another template\): choose another --name"
        ):
            deployed.parameters(render("ec2"))
    else:
        assert deployed.parameters(render("ec2")) == {}


def test_a_machine_has_the_time_that_its_template_gives_it():
    # The installation may fail at its end, and is then taken back.
    assert 2 * properties("ec2", "Install")["WaitForSuccessTimeoutSeconds"] < stack._LONGEST_SECONDS


def test_credentials_that_expire_meanwhile_are_reported_in_one_line(answers):
    deployed, stubber = answers
    stubber.add_response("delete_stack", {})
    stubber.add_client_error("describe_stacks", "ExpiredToken", "The security token has expired")
    with pytest.raises(DeployError, match=r"^AWS refuses: .*ExpiredToken.* Check the credentials"):
        deployed.delete()


def test_a_network_that_fails_meanwhile_is_reported_in_one_line(answers, monkeypatch):
    deployed, stubber = answers

    def fail(name):
        raise EndpointConnectionError(endpoint_url="https://cloudformation")

    monkeypatch.setattr(deployed._api, "get_waiter", fail)
    stubber.add_response("delete_stack", {})
    with pytest.raises(DeployError, match=r"^AWS refuses: Could not connect to the endpoint URL"):
        deployed.delete()


def test_prices_grow_with_the_load_but_for_a_machine():
    for target in STACKS:
        parameters = render(target).parameters
        low, high = (prices.monthly(target, parameters, load) for load in prices.LOADS.values())
        assert 0 < low.total < high.total or (target == "ec2" and low == high)
    ecs = Template.render("ecs", {"Image": IMAGE, "Cpu": "256", "Memory": "512", "MinTasks": "1"}).parameters
    assert prices.monthly("ecs", ecs, 0).total == pytest.approx(
        730 * (0.25 * 0.04048 + 0.5 * 0.004445) + 730 * 0.0305 + 3 * 730 * 0.005 + 25 * 0.30 + 0.10, abs=0.01
    )
    # Ten pictures a second are 3.6 GB an hour.
    busy = prices.monthly("ecs", ecs, 10).items["load balancer"]
    assert busy == pytest.approx(730 * (0.0225 + 3.6 * 0.008), abs=0.01)
    serverless = prices.monthly("sagemaker", render("sagemaker").parameters, 1).items
    assert serverless["data"] == pytest.approx(730 * 3600 * 1e5 / 1e9 * 0.016, abs=0.01)
    assert serverless["compute"] == pytest.approx(730 * 3600 * 0.05 * 2 * 20e-6, abs=0.01)
    sagemaker = Template.render("sagemaker", {"Image": IMAGE, "Instance": "ml.p9.large"}).parameters
    assert prices.monthly("sagemaker", sagemaker, 1) is None


@pytest.mark.run
@pytest.mark.parametrize(
    ("command", "response", "status", "printed"),
    [
        (["lambda", "--set", "Access=AWS_IAM"], 403, 0, "it responds to signed requests alone"),
        (["lambda", "--set", "Access=NONE"], 403, 1, "it is not ready: it responds with status 403"),
        (["lambda", "--set", "Access=NONE"], 200, 0, "it is ready"),
        (["ecs"], 403, 1, "it is not ready: it responds with status 403"),
        (["ecs"], None, 1, "it does not respond"),
    ],
)
def test_a_refusal_is_no_failure_of_a_function_that_wants_signed_requests(
    aws, healthy, capsys, monkeypatch, command, response, status, printed
):
    run(capsys, *command, "--image", IMAGE)
    monkeypatch.setattr(health, "ask", lambda url: response)
    returned, output, _ = run(capsys, "status")
    assert returned == status
    assert output.endswith(f"{printed}\n")


@pytest.mark.parametrize("status", [200, 503])
def test_a_deployment_responds_if_it_is_ready(status):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/readyz"
            self.send_response(status)
            self.end_headers()
            self.wfile.write(io.BytesIO(b"{}").read())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        assert health.ask(f"http://127.0.0.1:{server.server_port}/") == status
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("is_trusted", "responds"), [(True, True), (False, False)])
def test_a_load_balancer_may_have_a_certificate_for_another_name(monkeypatch, tmp_path, is_trusted, responds):
    key, certificate = tmp_path / "key", tmp_path / "crt"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
    ]
    options = ["-keyout", key, "-out", certificate, "-subj", "/CN=birds.example.org"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    class Server(HTTPServer):
        def get_request(self):
            accepted, address = super().get_request()
            return context.wrap_socket(accepted, server_side=True), address

        def handle_error(self, *_):
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        assert (health.ask(f"https://127.0.0.1:{server.server_port}") == 200) is responds
        server.shutdown()
        thread.join()
