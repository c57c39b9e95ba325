"""TPU slices of a GKE cluster, as a JobSet (jobset.sigs.k8s.io) that Kueue may queue; the shares of
a study as an indexed Job.

One child job a slice, one pod a machine. When a run is stopped, a pod killed or a node taken away,
the JobSet starts all of them again, and the run goes on at its last checkpoint. An error of the run
itself, which its exit status tells, ends the JobSet.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from research.launch import google
from research.launch.job import OWN_ERRORS, STOPPED, Job, Shell, StudyJob, check_name
from research.runtime import environment

CONTAINER = "train"
SHARE = "GRAFT_SHARE"  # the variable with the index of a pod of a Job
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
    _check_flags(job, arguments)
    google.find(job.topology)
    google.check_reachable(job, experiment, environment.ROOT)


def check_study(job: StudyJob, arguments, experiments) -> None:
    _check_flags(job, arguments)
    google.check_study(job, experiments, environment.ROOT)


def _check_flags(job: Job, arguments) -> None:
    check_name(job.name)
    if not arguments.image:
        raise ValueError(
            "gke: give --image, a container that has Graft in /graft (docs/guides/launch_gke.md)"
        )


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


def start_study(job: StudyJob, arguments, shell: Shell) -> int:
    """Applies the Job of the shares, and tells how many are done until all are."""
    where = ("--namespace", arguments.namespace)
    if end := _job_end(_job_status(job, where, shell)):
        print(f"launch: a Job of this name is there and has ended ({end})", flush=True)
        delete(job, arguments, shell)  # applied again it would stay as it is
    shell.call("kubectl", "apply", *where, "-f", "-", stdin=to_yaml(study_manifest(job, arguments)))
    last_message = ""
    while not shell.dry_run:
        status = _job_status(job, where, shell)
        if end := _job_end(status):
            print(f"launch: the Job has ended: {end}", flush=True)
            return 0 if end == "Complete" else 1
        counts = f"{status.get('succeeded', 0)} of {job.shares} shares are done"
        if (message := f"launch: {counts}, {status.get('active', 0)} run") != last_message:
            print(last_message := message, flush=True)
        shell.rest()
    return 0


def _job_status(job: Job, where: tuple[str, ...], shell: Shell) -> dict[str, Any]:
    line = ("kubectl", "get", *where, f"job/{job.name}", "-o=json", "--ignore-not-found")
    return json.loads(shell.call(*line, echo=False, tries=TRIES) or "{}").get("status", {})


def _job_end(status: dict[str, Any]) -> str:
    """Complete or Failed; empty: it has not ended."""
    conditions = {c["type"] for c in status.get("conditions", []) if c["status"] == "True"}
    return next((end for end in ("Complete", "Failed") if end in conditions), "")


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
    kind = "job" if isinstance(job, StudyJob) else "jobset"
    shell.call("kubectl", "delete", "--namespace", arguments.namespace, f"{kind}/{job.name}")


def pod(job: Job, arguments, chips: google.Slice) -> dict[str, Any]:
    """A pod that has all chips of one machine."""
    container = {
        "name": CONTAINER,
        "image": arguments.image,
        "workingDir": "/graft",
        "command": job.on_cluster(),
        "env": [{"name": name, "value": value} for name, value in job.environment.items()],
        "resources": {
            "requests": {"google.com/tpu": str(chips.chips_of_host)},
            "limits": {"google.com/tpu": str(chips.chips_of_host)},
        },
    }
    content: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": chips.product.label,
            "cloud.google.com/gke-tpu-topology": chips.shape,
        },
        "containers": [container],
    }
    if arguments.spot:
        content["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
    if arguments.service_account:
        content["serviceAccountName"] = arguments.service_account
    else:  # faster between slices; but there GKE gives a pod the node's account, whatever it names
        content |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return content


def on_own_errors(action: str) -> dict[str, Any]:
    """What a Job does when the run ends with an error of its own."""
    codes = {"containerName": CONTAINER, "operator": "In", "values": list(OWN_ERRORS)}
    return {"action": action, "onExitCodes": codes}


def manifest(job: Job, arguments) -> dict[str, Any]:
    """The JobSet."""
    chips = google.find(job.topology)
    child = {
        "parallelism": chips.hosts,
        "completions": chips.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [on_own_errors("FailJob")]},
        "template": {"spec": pod(job, arguments, chips)},
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


def study_manifest(job: StudyJob, arguments) -> dict[str, Any]:
    """An indexed Job: each index is a share, and starts again by itself.

    A pod that is taken away, or was told to stop and has saved, does not count as a failure; an
    error of its own ends its index alone. Where Kueue queues the Job, it starts suspended.
    """
    chips = google.find(job.topology)
    content = pod(job, arguments, chips)
    (container,) = content["containers"]
    # the kubelet puts the variable's value in
    container["command"] += ["--share", f"$({SHARE})/{job.shares}"]
    path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    container["env"].append({"name": SHARE, "valueFrom": {"fieldRef": {"fieldPath": path}}})
    codes = {"containerName": CONTAINER, "operator": "In", "values": [STOPPED]}
    was_taken = {"type": "DisruptionTarget", "status": "True"}
    rules = [
        {"action": "Ignore", "onPodConditions": [was_taken]},
        {"action": "Ignore", "onExitCodes": codes},
        on_own_errors("FailIndex"),
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job.name,
            "namespace": arguments.namespace,
            "labels": {QUEUE: arguments.queue} if arguments.queue else {},
        },
        "spec": {
            "suspend": bool(arguments.queue),
            "completionMode": "Indexed",
            "completions": job.shares,
            "parallelism": job.shares,
            "backoffLimitPerIndex": job.restarts,
            "podFailurePolicy": {"rules": rules},
            "template": {"spec": content},
        },
    }


def to_yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, width=100)
