"""TPU slices of a GKE cluster, as a JobSet (jobset.sigs.k8s.io) that Kueue may queue.

One child job a slice, one pod a machine. When one pod fails, or a node is taken away, the JobSet
starts all of them again, and the run goes on at its last checkpoint; a run that a signal stopped
exits with a status of its own, so it counts as failed too.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from tools.launching import google
from tools.launching.job import Job, Shell

QUEUE = "kueue.x-k8s.io/queue-name"
EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
NODE_POOL = "cloud.google.com/gke-nodepool"
GRACE = 120  # seconds between SIGTERM and the end, in which a checkpoint is written


def add_flags(parser) -> None:
    parser.add_argument("--image", metavar="IMAGE", help="container with Graft in /graft")
    parser.add_argument("--queue", default="", metavar="NAME", help="the local queue of Kueue")
    parser.add_argument("--namespace", default="default", metavar="NAME")
    parser.add_argument(
        "--service-account",
        default="",
        metavar="NAME",
        help="Kubernetes account that may use the bucket (workload identity)",
    )


def check(job: Job, arguments) -> None:
    if not arguments.image:
        raise ValueError("gke: give --image, a container that has Graft in /graft (docs/gke.md)")
    google.check_shared(job.workdir)
    google.find(job.topology)


def start(job: Job, arguments, shell: Shell) -> int:
    """Applies the manifest, and follows the first process."""
    where = ("--namespace", arguments.namespace)
    shell.call("kubectl", "apply", *where, "-f", "-", given=to_yaml(manifest(job, arguments)))
    said = ""
    while True:  # queued, waiting for nodes, running, started again
        text = shell.call("kubectl", "get", *where, f"jobset/{job.name}", "-o=json", said=False)
        status = json.loads(text or "{}").get("status", {})
        if end := status.get("terminalState"):
            print(f"launch: the JobSet has ended: {end}", flush=True)
            return 0 if end == "Completed" else 1
        ready = sum(child.get("ready", 0) for child in status.get("replicatedJobsStatus", []))
        if (now := f"launch: {ready} of {job.slices} slices are ready") != said:
            print(said := now, flush=True)
        if ready >= job.slices or shell.dry_run:
            first = f"job/{job.name}-slice-0"
            shell.follow("kubectl", "logs", *where, "--follow", "--all-pods=false", first)
        if shell.dry_run:
            return 0
        shell.rest()


def delete(job: Job, arguments, shell: Shell) -> None:
    shell.call("kubectl", "delete", "--namespace", arguments.namespace, f"jobset/{job.name}")


def manifest(job: Job, arguments) -> dict[str, Any]:
    """The JobSet."""
    chips = google.find(job.topology)
    container = {
        "name": "train",
        "image": arguments.image,
        "workingDir": "/graft",
        "command": job.command(".venv/bin/python", "--distributed"),
        "env": [{"name": name, "value": value} for name, value in job.environment.items()],
        "resources": {
            "requests": {"google.com/tpu": str(chips.chips_of_host)},
            "limits": {"google.com/tpu": str(chips.chips_of_host)},
        },
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": chips.product.label,
            "cloud.google.com/gke-tpu-topology": chips.shape,
        },
        "containers": [container],
    }
    if arguments.spot:
        pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
    if arguments.service_account:
        pod["serviceAccountName"] = arguments.service_account
    child = {
        "parallelism": chips.hosts,
        "completions": chips.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "namespace": arguments.namespace,
            "labels": {QUEUE: arguments.queue} if arguments.queue else {},
            "annotations": {EXCLUSIVE: NODE_POOL},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": job.restarts},
            "replicatedJobs": [
                {"name": "slice", "replicas": job.slices, "template": {"spec": child}}
            ],
        },
    }


def to_yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, width=100)
