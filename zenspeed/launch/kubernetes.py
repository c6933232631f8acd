"""`zenspeed launch --on kubernetes`: manifests for a JobSet, or for the PyTorchJob of Kubeflow's training operator.

    ConfigMap               the recipe, mounted at /recipe
    PersistentVolumeClaim   where data and runs lie, when `size` asks for a new one
    JobSet | PyTorchJob     one pod a machine; each runs `zenspeed launch`, and all meet at the first pod's name

Fields: jobset.x-k8s.io/v1alpha2 and kubeflow.org/v1 (training operator 1.9); tests hold them against the published schemas.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from zenspeed.config import Config, read_text
from zenspeed.errors import InputError
from zenspeed.launch.job import Job

Manifest = dict[str, Any]
PORT = 29500
RECIPE = "/recipe/recipe.yaml"


class KubernetesSettings(Config):
    """`--with` of `--on kubernetes`."""

    image: str
    """Container image with zenspeed in it."""
    kind: Literal["jobset", "pytorchjob"] = "jobset"
    """Controller that runs the pods: JobSet, or the PyTorchJob of Kubeflow's training operator."""
    namespace: str = "default"
    """Namespace of all objects."""
    volume: str | None = None
    """Claim of a volume that all machines can write; data and runs lie on it."""
    size: str | None = None
    """Such as 200Gi: `volume` is made with this size; without it, it must be there."""
    storage_class: str | None = None
    """Class of a volume that is made; it must offer ReadWriteMany for several machines."""
    mount: str = "/work"
    """Where the volume is mounted; relative paths of the recipe start here."""
    cpus: int = Field(4, ge=1)
    """Cores of a machine."""
    memory: str = "16Gi"
    """Memory of a machine."""
    gpus: int = Field(0, ge=0)
    """GPUs of a machine."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name under which the cluster offers GPUs."""
    secret: str | None = None
    """Secret whose keys become variables, such as AWS_ACCESS_KEY_ID for s3:// paths."""


def manifests(job: Job, settings: KubernetesSettings) -> list[Manifest]:
    """All objects, in the order they are applied.

    Raises:
        InputError: a path of the recipe is on no machine of the cluster.
    """
    _check_paths(job, settings)
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{job.name}-recipe", "namespace": settings.namespace},
            "data": {"recipe.yaml": read_text(job.recipe_file)},
        },
        *([_claim(settings)] if settings.size else []),
        _jobset(job, settings) if settings.kind == "jobset" else _pytorchjob(job, settings),
    ]


def _check_paths(job: Job, settings: KubernetesSettings) -> None:
    if settings.size and not settings.volume:
        raise InputError(f"--with size={settings.size}: of which volume? name it: --with volume=NAME")
    data = job.recipe.data
    sources = [s.source for s in data.sources] or [data.source]
    run = job.recipe.run.storage or str(job.folder)
    for key, path in [("run.folder", run), *(("data.source", source) for source in sources)]:
        if path == "python-docs" or path.startswith("hf:") or "://" in path:
            continue
        if settings.volume is None:
            raise InputError(f"{key}: {path}: pods have no folder in common; name a volume for it: --with volume=NAME")
        if Path(path).expanduser().is_absolute() and not Path(path).is_relative_to(settings.mount):
            raise InputError(
                f"{key}: {path}: is not on the volume, which is mounted at {settings.mount}; "
                f"give a path below it, as --set {key}={settings.mount}/…, or mount it elsewhere: --with mount=…"
            )


def _claim(settings: KubernetesSettings) -> Manifest:
    spec: Manifest = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": settings.size}}}
    if settings.storage_class:
        spec["storageClassName"] = settings.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": settings.volume, "namespace": settings.namespace},
        "spec": spec,
    }


def _jobset(job: Job, settings: KubernetesSettings) -> Manifest:
    pods = job.nodes[1]
    work = {
        "parallelism": pods,
        "completions": pods,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one pod that fails starts all of them anew, which is failurePolicy's
        "template": {"spec": _pod(job, settings, f"{job.name}-node-0-0.{job.name}") | {"restartPolicy": "Never"}},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": job.name, "namespace": settings.namespace},
        "spec": {
            "failurePolicy": {"maxRestarts": max(1, job.max_restarts)},
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": work}}],
        },
    }


def _pytorchjob(job: Job, settings: KubernetesSettings) -> Manifest:
    pod = _pod(job, settings, f"{job.name}-master-0")

    def replicas(count: int) -> Manifest:
        return {"replicas": count, "restartPolicy": "OnFailure", "template": {"spec": pod}}

    workers = job.nodes[1] - 1
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": job.name, "namespace": settings.namespace},
        "spec": {
            "runPolicy": {"backoffLimit": max(1, job.max_restarts), "cleanPodPolicy": "Running"},
            "pytorchReplicaSpecs": {"Master": replicas(1)} | ({"Worker": replicas(workers)} if workers else {}),
        },
    }


def _pod(job: Job, settings: KubernetesSettings, first: str) -> Manifest:
    meet = ["--nnodes", job.span(), "--rdzv-endpoint", f"{first}:{PORT}", "--rdzv-id", job.name] if job.nodes[1] > 1 else []
    restarts = ["--max-restarts", str(job.max_restarts)]
    resources = {"cpu": str(settings.cpus), "memory": settings.memory}
    if settings.gpus:
        resources[settings.gpu_resource] = str(settings.gpus)
    mounts = [{"name": "recipe", "mountPath": str(Path(RECIPE).parent), "readOnly": True}]
    volumes: list[Manifest] = [{"name": "recipe", "configMap": {"name": f"{job.name}-recipe"}}]
    container: Manifest = {
        "name": "pytorch",  # the training operator looks for this name
        "image": settings.image,
        "command": ["zenspeed", "launch", "-n", str(job.processes), *restarts, *meet],
        "args": ["train", RECIPE, *job.arguments],
        "ports": [{"containerPort": PORT, "name": "meet", "protocol": "TCP"}],
        "resources": {"requests": resources, "limits": dict(resources)},
        "volumeMounts": mounts,
    }
    if settings.volume:
        mounts.append({"name": "work", "mountPath": settings.mount})
        volumes.append({"name": "work", "persistentVolumeClaim": {"claimName": settings.volume}})
        container["workingDir"] = settings.mount
    if settings.secret:
        container["envFrom"] = [{"secretRef": {"name": settings.secret}}]
    return {"containers": [container], "volumes": volumes}


class _Plain(yaml.SafeDumper):
    """YAML for people: no anchors, texts of several lines as they are."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _text)


def submit(job: Job, settings: KubernetesSettings, *, dry_run: bool) -> int:
    """Hands the manifests to kubectl; with `dry_run`, prints them instead.

    Raises:
        InputError: there is no kubectl here, or it refuses them.
    """
    text = yaml.dump_all(manifests(job, settings), Dumper=_Plain, sort_keys=False, allow_unicode=True)
    if dry_run:
        print(text, end="")
        return 0
    if shutil.which("kubectl") is None:
        raise InputError("--on kubernetes: there is no kubectl here; write the manifests with --dry-run > job.yaml")
    done = subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True, capture_output=True, check=False)
    if done.returncode:
        raise InputError(f"kubectl refused the manifests: {done.stderr.strip()}")
    print(done.stdout, end="")
    space = f"-n {settings.namespace}"
    print(f"watch   kubectl {space} get pods -w\nend     kubectl {space} delete {settings.kind} {job.name}")
    return 0
