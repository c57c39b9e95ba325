"""The manifest that clusters get, against the schemas of Kubernetes and JobSet. Needs
`tools/setup services`."""

import argparse
import copy

import pytest
import yaml

from research.launch import gke
from research.launch.job import Job, StudyJob, should_restart

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="tools/setup services")
models = pytest.importorskip("kubeflow_trainer_api.models", reason="tools/setup services")
pytestmark = pytest.mark.heavy


def make_manifest(**changes):
    defaults = {"image": "graft:1", "queue": "team", "namespace": "default", "spot": True}
    arguments = argparse.Namespace(**{**defaults, "service_account": "reader", **changes})
    job = Job("run-1", "configs/a.py", "gs://b/run", ("a='b c'",), "v5p:4x4x4", 2, {"A": "b c"})
    return yaml.safe_load(gke.to_yaml(gke.manifest(job, arguments)))


@pytest.mark.parametrize("changes", [{}, {"queue": "", "spot": False, "service_account": ""}])
def test_every_field_is_one_that_jobset_knows(changes):
    manifest = make_manifest(**changes)
    assert models.JobsetV1alpha2JobSet.from_dict(copy.deepcopy(manifest)).to_dict() == manifest


def test_the_child_job_passes_kubernetes_own_schema():
    manifest = make_manifest()
    (child,) = manifest["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
    kubernetes_validate.validate(job | child["template"], "1.33", strict=True)
    assert child["replicas"] == 2 and child["template"]["spec"]["parallelism"] == 16


def make_study_manifest(**changes):
    defaults = {"image": "graft:1", "queue": "team", "namespace": "default", "spot": True}
    arguments = argparse.Namespace(**{**defaults, "service_account": "reader", **changes})
    job = StudyJob(
        "s-1", "configs/a.py", "gs://b/s", topology="v5e:2x4", study="experiments/s", shares=3
    )
    return yaml.safe_load(gke.to_yaml(gke.study_manifest(job, arguments)))


@pytest.mark.parametrize("queue", ["team", ""])
def test_the_job_of_a_study_passes_kubernetes_own_schema_and_waits_for_kueue(queue):
    manifest = make_study_manifest(queue=queue)
    kubernetes_validate.validate(manifest, "1.33", strict=True)
    spec = manifest["spec"]
    assert manifest["metadata"]["labels"] == ({gke.QUEUE: queue} if queue else {})
    assert spec["suspend"] == bool(queue) and spec["completions"] == spec["parallelism"] == 3
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"][-2:] == ["--share", f"$({gke.SHARE})/3"]
    assert gke.SHARE in [variable["name"] for variable in container["env"]]


def test_what_a_pod_of_a_study_ends_with_decides_what_counts():
    rules = make_study_manifest()["spec"]["podFailurePolicy"]["rules"]

    def action(status, *conditions):
        """Of the first rule that fits, as the Job controller goes through them."""
        for rule in rules:
            types = [condition["type"] for condition in rule.get("onPodConditions", [])]
            codes = rule.get("onExitCodes", {}).get("values", [])
            if status in codes or set(types) & set(conditions):
                return rule["action"]
        return "Count"  # by backoffLimitPerIndex

    assert action(75) == "Ignore" and action(137, "DisruptionTarget") == "Ignore"
    assert action(1, "DisruptionTarget") == "Ignore" and action(137) == "Count"
    ends = [n for n in range(1, 256) if action(n) == "FailIndex"]
    assert ends == [n for n in range(1, 256) if not should_restart([n])]


def test_an_account_of_its_own_is_not_lost_on_the_nodes_network():
    for account in ("reader", ""):
        (child,) = make_manifest(service_account=account)["spec"]["replicatedJobs"]
        pod = child["template"]["spec"]["template"]["spec"]
        assert pod.get("serviceAccountName", "") == account
        assert pod.get("hostNetwork", False) != bool(account)


def test_an_error_of_the_run_ends_the_jobset_and_nothing_else_does():
    spec = make_manifest()["spec"]
    (rule,) = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In"
    ends = [n for n in range(1, 256) if n in rule["onExitCodes"]["values"]]
    assert ends == [n for n in range(1, 256) if not should_restart([n])]
    (then,) = spec["failurePolicy"]["rules"]
    assert then["action"] == "FailJobSet" and then["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert spec["failurePolicy"]["maxRestarts"] == 10


@pytest.mark.parametrize("path", ["spec", "spec.template.spec", "spec.template.spec.containers.0"])
def test_the_schemas_notice_a_field_that_is_none(path):
    (child,) = make_manifest()["spec"]["replicatedJobs"]
    place = child["template"]
    for part in path.split("."):
        place = place[int(part) if part.isdecimal() else part]
    place["imagine"] = 1
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
    with pytest.raises(kubernetes_validate.ValidationError, match="imagine"):
        kubernetes_validate.validate(job | child["template"], "1.33", strict=True)
