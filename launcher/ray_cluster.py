"""`shardtune cluster render aws|gcp`: the YAML of Ray's cluster launcher (`ray up`), a pure function of settings.

    ray up ─► head: the driver, the dashboard on loopback ─► `cluster.nodes` workers, all or none of the ranks
    ray dashboard ─► a tunnel to it ─► shardtune launch --on ray

Ray's own defaults open the dashboard to the network, without a token, and install a nightly build: all are replaced.
"""

from pathlib import Path
from shlex import quote
from typing import Any, Literal

from rich.console import Console

from data_tools.errors import UserError
from data_tools.store import write_text
from launcher.cluster import ClusterConfig
from launcher.cluster_cloud import CloudConfig
from launcher.plain_yaml import plain_yaml

Provider = Literal["aws", "gcp"]

_TOKEN = "~/.ray/auth_token"
"""Where Ray looks for it on the machines."""
_HEADS: dict[Provider, str] = {"aws": "m5.4xlarge", "gcp": "n2-standard-16"}
_NEEDED: dict[Provider, dict[str, str]] = {
    "aws": {"region": "us-east-1", "machine": "p5.48xlarge"},
    "gcp": {
        "region": "us-central1",
        "zone": "us-central1-a",
        "project": "my-project-7",
        "machine": "a3-highgpu-8g",
        "image": "projects/deeplearning-platform-release/global/images/family/NAME",
    },
}


def ray_cluster(cluster: ClusterConfig, provider: Provider) -> dict[str, Any]:
    """What `ray up` reads.

    Raises:
        UserError: a setting is missing.
    """
    cloud, nodes = cluster.cloud, cluster.nodes
    for key, example in _NEEDED[provider].items():
        if getattr(cloud, key) is None:
            raise UserError(f"cluster.cloud.{key} is missing; for example cluster.cloud.{key}={example}")
    node_config = _on_aws if provider == "aws" else _on_gcp
    worker = {"CPU": cluster.ranks * (cluster.cpus_per_rank or 1), "GPU": cluster.gpus_per_node}
    head = cloud.head_machine or _HEADS[provider]
    return {
        "cluster_name": cloud.name,
        "max_workers": nodes,
        "idle_timeout_minutes": 30,
        "provider": _provider(cloud, provider),
        "auth": {"ssh_user": cloud.ssh_user},
        **({"docker": _docker(cloud.docker)} if cloud.docker else {}),
        "head_node_type": "head",
        "available_node_types": {
            # Ranks are never placed on the head, which would be another machine than the others.
            "head": {"resources": {"CPU": 0}, "node_config": node_config(cloud, head, False, gpus=False)},
            "node": {
                "min_workers": nodes,
                "max_workers": nodes,
                "resources": {name: count for name, count in worker.items() if count},
                "node_config": node_config(cloud, str(cloud.machine), cloud.spot, gpus=bool(cluster.gpus_per_node)),
            },
        },
        "file_mounts": {_TOKEN: cloud.token},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": _setup(cloud),
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": _start(
            "--head --port=6379 --num-cpus=0 --dashboard-host=127.0.0.1 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml"
        ),
        "worker_start_ray_commands": _start('--address="$RAY_HEAD_IP:6379"'),
    }


def _provider(cloud: CloudConfig, provider: Provider) -> dict[str, Any]:
    place = {"type": provider, "region": cloud.region, **({"availability_zone": cloud.zone} if cloud.zone else {})}
    own = {"cache_stopped_nodes": False} if provider == "aws" else {"project_id": cloud.project}
    return {**place, **own}


def _docker(image: str) -> dict[str, Any]:
    """The GPUs and the size of /dev/shm are found by Ray."""
    options = ["--ulimit", "nofile=65536:65536"]
    return {"image": image, "container_name": "shardtune", "pull_before_run": True, "run_options": options}


def _on_aws(cloud: CloudConfig, machine: str, spot: bool, gpus: bool) -> dict[str, Any]:
    disk = {"VolumeSize": cloud.disk, "VolumeType": "gp3", "Encrypted": True}
    return {
        "InstanceType": machine,
        **({"ImageId": cloud.image} if cloud.image else {}),
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
        "MetadataOptions": {"HttpTokens": "required"},
        **({"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {}),
    }


def _on_gcp(cloud: CloudConfig, machine: str, spot: bool, gpus: bool) -> dict[str, Any]:
    disk = {"diskSizeGb": cloud.disk, "sourceImage": cloud.image}
    scheduling = {
        **({"onHostMaintenance": "TERMINATE"} if gpus or spot else {}),  # these cannot be moved
        **({"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"} if spot else {}),
    }
    return {
        "machineType": machine,
        "disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}],
        **({"scheduling": scheduling} if scheduling else {}),
    }


def _setup(cloud: CloudConfig) -> list[str]:
    """Commands for each machine; they may be run again."""
    place = "/opt/shardtune" if cloud.docker else "$HOME/shardtune"
    first = f'export PATH="{place}/bin:$PATH"'
    install = [
        f'[ -x "{place}/bin/python" ] || python3 -m venv "{place}"',
        f'"{place}/bin/python" -m pip install --quiet {" ".join(map(quote, cloud.install))}',
    ]
    return [
        f"chmod 600 {_TOKEN}",
        *cloud.setup,
        *([] if cloud.docker else install),
        f"grep -qxF {quote(first)} ~/.bashrc || echo {quote(first)} >> ~/.bashrc",
    ]


def _start(options: str) -> list[str]:
    # The machines are this cluster's alone, so that all of Ray on them may be stopped.
    return ["ray stop", f"ulimit -n 65536; RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 ray start {options}"]


def cluster_stage(cluster: ClusterConfig, provider: Provider, path: Path | None, console: Console) -> dict[str, Any]:
    """Write the YAML.

    Args:
        path: the file; by default `ray-aws.yaml` or `ray-gcp.yaml` here.

    Raises:
        UserError: a setting is missing, the token can be read by others, or another file is in the way.
    """
    text = plain_yaml(ray_cluster(cluster, provider))
    _check_token(Path(cluster.cloud.token).expanduser())
    path = path or Path(f"ray-{provider}.yaml")
    if path.exists() and path.read_text("utf-8") != text:
        raise UserError(f"{path} is there and says something else; remove it, or give --output FILE")
    write_text(path, text)
    console.print(f"wrote {path}; ray up {path}, then ray dashboard {path}", markup=False, highlight=False)
    return {"file": str(path.absolute()), "provider": provider, "nodes": cluster.nodes}


def _check_token(path: Path) -> None:
    make = f"(umask 077; mkdir -p {quote(str(path.parent))}; openssl rand -hex 32 > {quote(str(path))})"
    if not path.exists():
        raise UserError(
            f"cluster.cloud.token: there is no {path}, so that anybody could use the cluster; make it: {make}"
        )
    if path.stat().st_mode & 0o077:
        raise UserError(f"cluster.cloud.token: {path} can be read by others; run chmod 600 on it")
