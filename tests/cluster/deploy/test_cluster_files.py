"""The files for `ray up` start clusters: what Ray's own schema does not know about them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.deploy_files import (
    DEPLOY,
    DOCKER_SIZE,
    LOCK,
    ROOT,
    SIZE_OPTIONS,
    VERSION,
)

AWS, LOCAL = ROOT / "ray_cluster.yaml", DEPLOY / "existing_machines.yaml"
POLICIES = {
    name: json.loads((DEPLOY / "aws" / f"{name}.json").read_text())
    for name in ("head", "worker", "trust")
}


@pytest.fixture
def aws() -> dict[str, Any]:
    return yaml.safe_load(AWS.read_text())


def starts(content: dict[str, Any]) -> list[str]:
    commands = [*content["head_start_ray_commands"], *content["worker_start_ray_commands"]]
    return [command for command in commands if "ray start" in command]


def actions(policy: dict[str, Any]) -> set[str]:
    each = [statement["Action"] for statement in policy["Statement"]]
    return {action for of in each for action in ([of] if isinstance(of, str) else of)}


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)
def test_ray_accepts_the_file(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(path.read_text())))


@pytest.mark.parametrize(
    ("size", "good"), [("8gb", True), ("1.5GiB", True), ("64", True), ("30%", False), ("8x", False)]
)
def test_docker_takes_a_number_and_a_unit_as_a_size(size: str, good: bool) -> None:
    assert bool(DOCKER_SIZE.fullmatch(size)) == good


def test_docker_takes_the_options_and_ray_sizes_the_shared_memory(aws: dict[str, Any]) -> None:
    from ray.autoscaler._private.command_runner import DockerCommandRunner

    options = aws["docker"]["run_options"]
    runner = object.__new__(DockerCommandRunner)
    runner.docker_config = aws["docker"]
    runner.ssh_command_runner = type(
        "Node", (), {"run": lambda *_, **__: b"MemAvailable:   64000000 kB"}
    )()
    sized = runner._auto_configure_shm(options)
    assert len(sized) == len(options) + 1, "an option of ours switches Ray's own sizing off"
    sizes = re.findall(SIZE_OPTIONS, " ".join(sized))
    assert sizes and all(DOCKER_SIZE.fullmatch(size.strip("'")) for size in sizes), sizes


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)
def test_every_node_gets_the_token_and_asks_for_it(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert len(starts(content)) == 2
    for command in starts(content):
        assert "RAY_AUTH_MODE=token" in command
        (token,) = re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)/auth_token", command)
        # Ray copies these folders to the head, and from there to the workers.
        assert token in content["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in starts(content)[0]
    assert "--generate" not in path.read_text(), "a head that makes a token is alone with it"


def test_no_node_type_is_left_to_the_defaults_of_ray(aws: dict[str, Any]) -> None:
    """Without an image Ray takes one of 2023 with a driver too old for CUDA 13, without a security
    group it opens port 22 to the world, and without a subnet it takes public ones.
    """
    assert aws["provider"]["use_internal_ips"] is True
    for name, kind in aws["available_node_types"].items():
        assert kind["resources"], name
        node = kind["node_config"]
        assert node["ImageId"] and node["SubnetIds"] and node["SecurityGroupIds"], name
        assert node["MetadataOptions"] == {"HttpTokens": "required"}, name


def test_the_head_trains_nothing_and_is_not_on_spot(aws: dict[str, Any]) -> None:
    types = aws["available_node_types"]
    head = types.pop(aws["head_node_type"])
    assert head["resources"] == {"CPU": 0} and "InstanceMarketOptions" not in head["node_config"]
    for kind in types.values():
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["gpu_worker"]["resources"]["GPU"] == 1


def test_the_image_is_built_from_this_version_and_nothing_is_installed_at_boot(
    aws: dict[str, Any],
) -> None:
    assert aws["docker"]["image"].endswith(f"/retinaray:{VERSION}-gpu")
    # Not left out: Ray's defaults for AWS install a nightly wheel.
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert aws[commands] == []


def test_a_machine_that_is_there_gets_the_packages_of_the_lock() -> None:
    content = yaml.safe_load(LOCAL.read_text())
    (install,) = (line for line in content["setup_commands"] if "install" in line)
    assert "--require-hashes" in install and install.endswith("/requirements.lock")
    assert any(install.split()[-1].startswith(folder) for folder in content["file_mounts"])
    assert LOCK["ray"]


def test_head_and_workers_have_roles_of_their_own_with_least_rights(aws: dict[str, Any]) -> None:
    types = aws["available_node_types"]
    profiles = {
        name: kind["node_config"]["IamInstanceProfile"]["Name"] for name, kind in types.items()
    }
    assert profiles.pop("head") == "retinaray-head"
    assert set(profiles.values()) == {"retinaray-worker"}
    head, worker = actions(POLICIES["head"]), actions(POLICIES["worker"])
    assert not any("*" in action for action in head | worker)
    assert {action.partition(":")[0] for action in worker} == {"s3", "ecr"}
    assert {action.partition(":")[0] for action in head} == {"ec2", "iam"}
    for policy in ("head", "worker"):
        for statement in POLICIES[policy]["Statement"]:
            named = (
                {statement["Action"]}
                if isinstance(statement["Action"], str)
                else set(statement["Action"])
            )
            # These know no resources.
            listing = all(re.search(":Describe|GetAuthorizationToken", action) for action in named)
            assert (statement["Resource"] == "*") == listing, statement["Sid"]
    (passes,) = (s for s in POLICIES["head"]["Statement"] if s["Action"] == "iam:PassRole")
    assert passes["Resource"].endswith(":role/retinaray-worker")
    assert "AWS_SECRET" not in AWS.read_text()


@pytest.fixture
def account(s3: str) -> Iterator[dict[str, str]]:
    """An AWS account, as moto has it: what the words in capitals stand for."""
    import boto3

    ec2, iam = boto3.client("ec2"), boto3.client("iam")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"]
    group = ec2.create_security_group(GroupName="nodes", Description="nodes", VpcId=vpc)["GroupId"]
    ec2.create_key_pair(KeyName="key")
    for name in ("retinaray-head", "retinaray-worker"):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(POLICIES["trust"]))
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    yield {
        "AMI_ID": ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"],
        "SUBNET_ID": subnet,
        "SECURITY_GROUP_ID": group,
        "REGION": "us-east-1",
        "ACCOUNT": "123456789012",
    }
    for name in ("retinaray-head", "retinaray-worker"):
        iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=name)
        iam.delete_instance_profile(InstanceProfileName=name)
        iam.delete_role(RoleName=name)


def test_ray_starts_and_ends_nodes_with_the_rights_of_the_head_and_makes_nothing_of_its_own(
    account: dict[str, str], tmp_path: Path
) -> None:
    """Ray's own code against an EC2 that runs here: the account has what the file names, and every
    call that the head's autoscaler makes is in the head's policy.
    """
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    text = AWS.read_text()
    for word, value in account.items():
        text = re.sub(rf"\b{word}\b", value, text)
    config = prepare_config(yaml.safe_load(text))
    # A key of the test's own: Ray would make one, in this user's folder.
    (tmp_path / "key.pem").touch()
    config["auth"]["ssh_private_key"] = str(tmp_path / "key.pem")
    for kind in config["available_node_types"].values():
        kind["node_config"]["KeyName"] = "key"
    config = bootstrap_aws(deepcopy(config))

    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    called: set[str] = set()
    for resource in (provider.ec2, provider.ec2_fail_fast):
        resource.meta.client.meta.events.register(
            "before-call", lambda model, **_: called.add(f"ec2:{model.name}")
        )
    node = config["available_node_types"]["gpu_worker"]["node_config"]
    provider.create_node(node, {"ray-node-kind": "worker", "ray-node-name": "w"}, 1)
    (started,) = provider.non_terminated_nodes({"ray-node-kind": "worker"})
    (instance,) = boto3.client("ec2").describe_instances(InstanceIds=[started])["Reservations"][0][
        "Instances"
    ]
    provider.set_node_tags(started, {"ray-node-status": "up-to-date"})
    provider.terminate_nodes([started])
    assert provider.non_terminated_nodes({}) == []

    assert instance["ImageId"] == account["AMI_ID"]
    assert instance["SubnetId"] == account["SUBNET_ID"]
    assert [group["GroupId"] for group in instance["SecurityGroups"]] == [
        account["SECURITY_GROUP_ID"]
    ]
    assert instance["IamInstanceProfile"]["Arn"].endswith("/retinaray-worker")
    assert {"ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateTags"} <= called
    assert called <= actions(POLICIES["head"])
    groups = boto3.client("ec2").describe_security_groups()["SecurityGroups"]
    assert not [group for group in groups if "ray-autoscaler" in group["GroupName"]]


def test_the_set_up_makes_roles_and_image_and_fills_every_word_in(tmp_path: Path) -> None:
    """With `aws` and `docker` that note what they are told, and an account without anything."""
    told = tmp_path / "told"
    programs = {
        "aws": f"""
            printf '%s\\0' "$*" >> {told}
            case "$*" in
              sts*) echo 123456789012 ;;
              ssm*) echo ami-1 ;;
              *get-role*|*describe-repositories*) exit 254 ;;
            esac""",
        "docker": f"""printf '%s\\0' "docker $*" >> {told}""",
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    given = {
        "REGION": "eu-west-1",
        "BUCKET": "cells",
        "SUBNET_ID": "subnet-1",
        "SECURITY_GROUP_ID": "sg-1",
    }
    output = tmp_path / "cluster.yaml"
    subprocess.run(
        ["bash", str(DEPLOY / "aws" / "set_up.sh"), str(output)],
        env={**given, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
    )
    commands = told.read_text().split("\0")
    policies = [
        json.loads(command[command.index("{") :])
        for command in commands
        if "policy-document" in command
    ]
    # Two trusts, the workers' rights for both, the head's own.
    assert len(policies) == 5
    places = {"AMI_ID", "ACCOUNT", *given}
    for text in (output.read_text(), json.dumps(policies), "".join(commands)):
        assert not [word for word in places if re.search(rf"\b{word}\b", text)]
    image = yaml.safe_load(output.read_text())["docker"]["image"]
    assert image == f"123456789012.dkr.ecr.eu-west-1.amazonaws.com/retinaray:{VERSION}-gpu"
    assert f"docker push {image}" in commands
