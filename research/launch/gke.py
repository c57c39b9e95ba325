"""TPU slices of a GKE cluster, as a JobSet (jobset.sigs.k8s.io) that Kueue may queue.

One child job a slice, one pod a machine. When a run is stopped, a pod killed or a node taken away,
the JobSet starts all of them again, and the run goes on at its last checkpoint. An error of the run
itself, which its exit status tells, ends the JobSet.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from research.launch import google
from research.launch.job import OWN_ERRORS, Job, Shell, check_name
from research.runtime import environment

QUEUE = "kueue.x-k8s.io/queue-name"
EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
NODE_POOL = "cloud.google.com/gke-nodepool"
GRACE = 120  # seconds from SIGTERM to the end, to save in; a spot node that is taken gives 15 or so
TRIES = 6  # of a question to the cluster


def add_flags(parser) -> None:
    parser.add_argument("--image", metavar="IMAGE", help="container with Graft in /graft")
    parser.add_argument("--queue", default="", metavar="NAME", help="the local queue of Kueue")
    parser.add_argument("--namespace", default="default", metavar="NAME")
    parser.add_argument(
        "--service-account",
        default="",
        metavar="NAME",
        help="Kubernetes account that may use the bucket (workload identity; default: the nodes')",
    )


def check(job: Job, arguments, experiment) -> None:
    check_name(job.name)
    if not arguments.image:
        raise ValueError(
            "gke: give --image, a container that has Graft in /graft (docs/guides/launch_gke.md)"
        )
    google.find(job.topology)
    google.check_reachable(job, experiment, environment.ROOT)


def start(job: Job, arguments, shell: Shell) -> int:
    """Applies the manifest, and follows the first process."""
    where = ("--namespace", arguments.namespace)
    if end := _status(job, where, shell).get("terminalState"):
        print(f"launch: a JobSet of this name is there and has ended ({end})", flush=True)
        delete(job, arguments, shell)  # applied again it would stay as it is
    shell.call("kubectl", "apply", *where, "-f", "-", stdin=to_yaml(manifest(job, arguments)))
    last_message, followed_start = "", -1
    while True:  # queued, waiting for nodes, running, started again
        status = _status(job, where, shell)
        if end := status.get("terminalState"):
            print(f"launch: the JobSet has ended: {end}", flush=True)
            return 0 if end == "Completed" else 1
        ready = sum(child.get("ready", 0) for child in status.get("replicatedJobsStatus", []))
        if (message := f"launch: {ready} of {job.slices} slices are ready") != last_message:
            print(last_message := message, flush=True)
        if ready >= job.slices or shell.dry_run:
            restarts = status.get("restarts", 0)
            # the connection was lost, or a new start
            tail = 20 if followed_start == restarts else -1
            followed_start = restarts
            line = ("kubectl", "logs", *where, "--follow", f"--tail={tail}")
            shell.follow(*line, f"--selector={','.join(_first_pod_labels(job))}")
        if shell.dry_run:
            return 0
        shell.rest()


def _status(job: Job, where: tuple[str, ...], shell: Shell) -> dict[str, Any]:
    """The status of the JobSet; empty: it is new, or there is none."""
    line = ("kubectl", "get", *where, f"jobset/{job.name}", "-o=json", "--ignore-not-found")
    return json.loads(shell.call(*line, echo=False, tries=TRIES) or "{}").get("status", {})


def _first_pod_labels(job: Job) -> tuple[str, ...]:
    """The labels of the pod whose process is the first of the run, which alone prints."""
    return (
        f"jobset.sigs.k8s.io/jobset-name={job.name}",
        "jobset.sigs.k8s.io/job-index=0",
        "batch.kubernetes.io/job-completion-index=0",
    )


def delete(job: Job, arguments, shell: Shell) -> None:
    check_name(job.name)
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
    else:  # faster between slices; but there GKE gives a pod the node's account, whatever it names
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    child = {
        "parallelism": chips.hosts,
        "completions": chips.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": container["name"],
                        "operator": "In",
                        "values": list(OWN_ERRORS),
                    },
                }
            ]
        },
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
            "failurePolicy": {
                "maxRestarts": job.restarts,
                "rules": [
                    {
                        "name": "own_error",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": job.slices, "template": {"spec": child}}
            ],
        },
    }


def to_yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, width=100)
