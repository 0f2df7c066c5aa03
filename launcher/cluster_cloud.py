"""Settings of clusters that have no login node: Kubernetes, machines of a cloud, jobs of Hugging Face."""

import re

from pydantic import Field, field_validator, model_validator

from data_tools.config import Location, Section
from launcher.words import (
    Gibibytes,
    HubId,
    HubName,
    Image,
    KubernetesLabel,
    KubernetesName,
    LabelKey,
    LabelValue,
    OneLine,
    PathInside,
    Variable,
    bytes_of,
)

_FIRST_WITH_TOKENS = (2, 52)
"""The first Ray that KubeRay gives a token."""


class KubernetesConfig(Section):
    """A cluster with the KubeRay operator, 1.5 or newer, for `--on kubernetes`."""

    image: Image | None = Field(None, examples=["registry.example/shardtune-gpu:0.1"])
    """Has shardtune in it; see docker/. Needed."""
    namespace: KubernetesLabel = "default"
    claim: KubernetesName | None = Field(None, examples=["runs"])
    """A PersistentVolumeClaim that all pods can write, for the folder of runs. Needed."""
    runs: PathInside = "/runs"
    """Where it is seen in the pods."""
    mounts: dict[KubernetesName, PathInside] = Field({}, examples=[{"datasets": "/data"}])
    """More claims, for data and models: name → folder."""
    cpus: int = Field(8, ge=1)
    """Of each pod: the head's, which drives, and those of the nodes that train."""
    memory: Gibibytes = "64Gi"
    """Of each pod."""
    shared_memory: Gibibytes = "16Gi"
    """/dev/shm, for NCCL and Ray's objects; it is part of `memory`."""
    secret: KubernetesName | None = Field(None, examples=["shardtune-keys"])
    """A Secret whose keys become environment variables: WANDB_API_KEY, HF_TOKEN."""
    service_account: KubernetesName | None = None
    """The account of the pods, for images and buckets."""
    node_selector: dict[LabelKey, LabelValue] = Field(
        {}, examples=[{"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}]
    )
    """Labels of the nodes that train."""
    queue: LabelValue | None = Field(None, examples=["gpus"])
    """Kueue's local queue: the job is suspended until it is admitted."""
    ttl: int = Field(600, ge=0, le=2**31 - 1)
    """Seconds for which the pods are kept after the end, with their output."""
    retries: int = Field(1, ge=0, le=100)
    """New clusters after one failed as a whole, by a lost head; each goes on from the newest checkpoint."""
    ray_version: str = "2.60.0"
    """The one in the image."""

    @field_validator("ray_version")
    @classmethod
    def _has_tokens(cls, version: str) -> str:
        if not re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", version):
            raise ValueError('a version of Ray is written as "2.60.0"')
        if tuple(map(int, version.split(".")))[:2] < _FIRST_WITH_TOKENS:
            raise ValueError("before Ray 2.52 anybody who reaches the cluster may use it; take a newer image")
        return version

    @model_validator(mode="after")
    def _fits(self) -> "KubernetesConfig":
        if bytes_of(self.shared_memory) >= bytes_of(self.memory):
            raise ValueError(f"shared_memory ({self.shared_memory}) is part of memory ({self.memory}): make it less")
        folders = [self.runs, *self.mounts.values()]
        if len(set(folders)) < len(folders):
            raise ValueError(f"two claims cannot be one folder ({', '.join(folders)})")
        if self.claim in self.mounts:
            raise ValueError(f"mounts: {self.claim} is `claim` already")
        return self


class CloudConfig(Section):
    """Machines that Ray's cluster launcher takes on AWS or GCP, for `shardtune cluster render`."""

    name: KubernetesLabel = "shardtune"
    """Of the cluster: machines are known by it."""
    region: LabelValue | None = Field(None, examples=["us-east-1"])
    """Needed."""
    zone: LabelValue | None = Field(None, examples=["us-east-1a"])
    """Needed on GCP; else one that Ray takes."""
    project: LabelValue | None = Field(None, examples=["my-project-7"])
    """Of GCP. Needed there."""
    machine: LabelValue | None = Field(None, examples=["p5.48xlarge"])
    """The type of the machines that train, `cluster.nodes` of them. Needed."""
    head_machine: LabelValue | None = None
    """The type of the head, which drives and exports; by default m5.4xlarge or n2-standard-16."""
    image: OneLine | None = Field(None, examples=["ami-0123456789abcdef0"])
    """Of the machines' disks: an AMI, or GCP's projects/…/global/images/…; needed on GCP, on AWS by default Ray's."""
    disk: int = Field(500, ge=20, le=65_536)
    """Gibibytes of each machine's disk."""
    spot: bool = False
    """Take machines that may be taken away; the head is none of them."""
    docker: Image | None = Field(None, examples=["registry.example/shardtune-gpu:0.1"])
    """An image in which everything runs; with it nothing is installed."""
    setup: tuple[OneLine, ...] = Field((), examples=[["sudo mount -t nfs4 fs-01.example:/ /shared"]])
    """Commands for the shell of each machine, before anything is installed: mount the folder of runs."""
    install: tuple[OneLine, ...] = ("shardtune[ray,prepare,train,s3,gcs]", "ray==2.60.0")
    """What pip installs."""
    ssh_user: LabelValue = "ubuntu"
    token: Location = Field("~/.ray/auth_token", validate_default=True)
    """The file of Ray's token, readable by you alone; it is copied to the machines by ssh."""


class HfJobsConfig(Section):
    """Machines of Hugging Face, for `--on hf-jobs`; one for each run."""

    image: Image | None = Field(None, examples=["registry.example/shardtune-gpu:0.1"])
    """Has shardtune in it; see docker/. Needed."""
    flavor: LabelValue | None = Field(None, examples=["a100x8"])
    """The kind of machine, with as many GPUs as `cluster.gpus_per_node`: `hf jobs hardware` lists them. Needed."""
    bucket: HubId | None = Field(None, examples=["me/runs"])
    """A bucket on the hub, for the folder of runs: machines have nothing that lasts. Needed."""
    runs: PathInside = "/runs"
    """Where the job sees it."""
    namespace: HubName | None = None
    """Whose jobs they are: yours, or an organization's; by default yours."""
    secrets: tuple[Variable, ...] = Field((), examples=[["HF_TOKEN", "WANDB_API_KEY"]])
    """Variables that are sent encrypted; their values are those of `cluster.secrets`, or of your environment."""
    attempts: int = Field(1, ge=1, le=100)
    """Starts in all, after a failure or a time limit; each goes on from the newest checkpoint."""
