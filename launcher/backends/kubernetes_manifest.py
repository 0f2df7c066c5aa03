"""One RayJob of KubeRay (ray.io/v1) for all stages of a run; a pure function of the chain.

    RayJob ─► RayCluster ─┬─ head: the driver, and who submits it; has no work of Ray's itself
                          └─ `cluster.nodes` workers: prepare's actors, the ranks of training
    ConfigMap ─► run.yaml, lock.json      claim ─► the folder of runs      Secret ─► keys

KubeRay's controller has rules beyond the schema of its resources; those that settings could break are here and in
`launcher.cluster_cloud`: names, Ray's version, suspending, variables that it reads itself.
"""

import re
from typing import Any

from data_tools.errors import UserError
from launcher.backends.travel import driver
from launcher.cluster import ClusterConfig
from launcher.cluster_cloud import KubernetesConfig
from launcher.config import RUN_FILE
from launcher.jobs import Chain
from launcher.network import network_variables

FILES = "/etc/shardtune"
"""Where the ConfigMap is seen in the pods."""

_LONGEST = 47
"""Of the name of a RayJob: KubeRay appends to it, and services get the name."""
_IDENTITY = 8
_USER = 1000
"""Of the images in docker/: what is in a claim belongs to its group."""
_OWN_VARIABLES = re.compile(r"RAY_AUTH_\w+|RAY_REDIS_ADDRESS|REDIS_USERNAME|REDIS_PASSWORD|RAY_enable_autoscaler_v2")


def name_of(chain: Chain) -> str:
    """The RayJob's: the same for the same configuration.

    Raises:
        UserError: the run's name cannot be part of one.
    """
    longest = _LONGEST - _IDENTITY - 1
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", chain.name) or len(chain.name) > longest:
        better = re.sub(r"[^a-z0-9]+", "-", chain.name.lower()).lstrip("-0123456789")[:longest].rstrip("-") or "run"
        raise UserError(
            f"name={chain.name}: on Kubernetes a name is a-z, 0-9 and -, begins with a letter and is at most "
            f"{longest} long; give name={better}"
        )
    return f"{chain.name}-{chain.identity[:_IDENTITY]}"


def manifest(chain: Chain) -> dict[str, Any]:
    """The RayJob.

    Raises:
        UserError: a setting is missing, or KubeRay would refuse it.
    """
    cluster, settings = chain.cluster, chain.cluster.kubernetes
    name = name_of(chain)
    _check(cluster)
    labels = {"app.kubernetes.io/managed-by": "shardtune", "app.kubernetes.io/instance": chain.name}
    queue = {"kueue.x-k8s.io/queue-name": settings.queue} if settings.queue else {}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "namespace": settings.namespace, "labels": {**labels, **queue}},
        "spec": {
            "entrypoint": driver(chain, "python", f"{FILES}/{RUN_FILE}", settings.runs),
            "metadata": {"run": chain.name, "identity": chain.identity},
            "submissionMode": "SidecarMode",  # its output is a pod's, and it does not go without its head
            "backoffLimit": settings.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": settings.ttl,
            **({"suspend": True} if settings.queue else {}),  # until Kueue lets it go
            "rayClusterSpec": _ray_cluster(chain, name),
        },
    }


def _check(cluster: ClusterConfig) -> None:
    settings = cluster.kubernetes
    for key, example in (("image", "registry.example/shardtune-gpu:0.1"), ("claim", "runs")):
        if getattr(settings, key) is None:
            raise UserError(f"cluster.kubernetes.{key} is missing; for example `{key}: {example}`")
    if own := next((name for name in cluster.variables if _OWN_VARIABLES.fullmatch(name)), None):
        raise UserError(f"cluster.variables.{own}: KubeRay sets it or refuses it; leave it out")
    wanted = cluster.ranks * (cluster.cpus_per_rank or 1)
    if wanted > settings.cpus:
        raise UserError(
            f"cluster.kubernetes.cpus={settings.cpus}: {cluster.ranks} ranks on a node take {wanted}, so that training "
            f"would wait for ever; raise it, or lower cluster.cpus_per_rank"
        )


def _ray_cluster(chain: Chain, name: str) -> dict[str, Any]:
    nodes, settings = chain.cluster.nodes, chain.cluster.kubernetes
    return {
        "rayVersion": settings.ray_version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "template": _pod(chain, name, gpus=0, restarts="Never"),
        },
        "workerGroupSpecs": [
            {
                "groupName": "nodes",
                "replicas": nodes,
                "minReplicas": nodes,
                "maxReplicas": nodes,
                "rayStartParams": {},
                "template": _pod(chain, name, chain.cluster.gpus_per_node, settings.node_selector),
            }
        ],
    }


def _pod(
    chain: Chain, name: str, gpus: int, selector: dict[str, str] | None = None, restarts: str | None = None
) -> dict[str, Any]:
    settings = chain.cluster.kubernetes
    volumes = _volumes(settings, name)
    resources = {
        "cpu": str(settings.cpus),
        "memory": settings.memory,
        **({"nvidia.com/gpu": str(gpus)} if gpus else {}),
    }
    container = {
        "name": "ray",
        "image": settings.image,
        "env": [{"name": key, "value": _literal(value)} for key, value in _variables(chain).items()],
        **({"envFrom": [{"secretRef": {"name": settings.secret}}]} if settings.secret else {}),
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [mount for mount, _ in volumes],
    }
    return {
        "spec": {
            **({"restartPolicy": restarts} if restarts else {}),
            **({"serviceAccountName": settings.service_account} if settings.service_account else {}),
            "automountServiceAccountToken": False,  # nothing in them asks Kubernetes for anything
            **({"nodeSelector": selector} if selector else {}),
            **({"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]} if gpus else {}),
            "securityContext": {"fsGroup": _USER},
            "containers": [container],
            "volumes": [{"name": mount["name"], **source} for mount, source in volumes],
        }
    }


def _volumes(settings: KubernetesConfig, name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Where each is seen, and what it is."""
    shared = {"emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}}
    claims = {str(settings.claim): settings.runs, **settings.mounts}
    return [
        ({"name": "files", "mountPath": FILES, "readOnly": True}, {"configMap": {"name": name}}),
        ({"name": "shared-memory", "mountPath": "/dev/shm"}, shared),
        *(
            ({"name": f"claim-{number}", "mountPath": folder}, {"persistentVolumeClaim": {"claimName": claim}})
            for number, (claim, folder) in enumerate(claims.items())
        ),
    ]


def _variables(chain: Chain) -> dict[str, str]:
    cluster = chain.cluster
    return {
        "PYTHONPATH": FILES,  # modules of the run's functions
        "PYTHONUNBUFFERED": "1",
        "HF_HOME": f"{cluster.kubernetes.runs}/.huggingface",  # what one pod downloads, all have
        **dict(chain.variables),
        **dict(network_variables(cluster.network)),
        **cluster.variables,
    }


def _literal(value: str) -> str:
    """Kubernetes replaces `$(NAME)` in values, and takes `$$` for `$`."""
    return value.replace("$", "$$")
