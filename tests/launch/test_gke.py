"""graft launch --target gke against a kubectl that records and answers. The manifest itself:
test_manifests.py."""

import json

import pytest

from tests.launch import launching

FLAGS = (*launching.GKE, *launching.BUCKET)
BUSY = {"complains": "etcdserver: request timed out", "status": 1}
ABSENT = {"says": ""}


def run(*flags):
    return launching.run(*FLAGS, *flags)


def jobset(ready=0, **status):
    content = {"status": {"replicatedJobsStatus": [{"name": "slice", "ready": ready}], **status}}
    return {"says": json.dumps(content)}


def end_state(how="Completed"):
    return jobset(terminalState=how)


def verbs(stand_ins):
    return [call[1] for call in stand_ins.calls()]


@pytest.mark.parametrize(("end", "status"), [("Completed", 0), ("Failed", 1)])
def test_a_jobset_is_applied_and_followed_through_restarts(stand_ins, capfd, end, status):
    stand_ins.add(
        "kubectl",
        (["get"], ABSENT, jobset(), jobset(1), jobset(1), jobset(1, restarts=1), end_state(end)),
        (["logs"], {"says": "step 1\n"}, {"says": "step 2\n", "status": 1}, {"says": "step 1\n"}),
        reads=True,
    )
    assert run("--namespace", "team") == status
    (apply,) = [call for call in stand_ins.calls() if call[1] == "apply"]
    assert apply[:6] == ["kubectl", "apply", "--namespace", "team", "-f", "-"]
    assert "kind: JobSet" in apply[6]
    assert f"has ended: {end}" in capfd.readouterr().out
    logs = [call for call in stand_ins.calls() if call[1] == "logs"]
    # the process that prints; its whole log once, then what is new, then that of the new start
    assert all("batch.kubernetes.io/job-completion-index=0" in call[-1] for call in logs)
    assert all("jobset.sigs.k8s.io/job-index=0" in call[-1] for call in logs)
    assert [call[-2] for call in logs] == ["--tail=-1", "--tail=20", "--tail=-1"]


def test_a_jobset_of_the_name_that_has_ended_is_replaced(stand_ins, capfd):
    answers = end_state("Failed"), jobset(), end_state()
    stand_ins.add("kubectl", (["get"], *answers), reads=True)
    assert run() == 0
    assert verbs(stand_ins) == ["get", "delete", "apply", "get", "get"]
    assert "has ended (Failed)" in capfd.readouterr().out


def test_a_jobset_of_the_name_that_runs_is_followed(stand_ins):
    stand_ins.add("kubectl", (["get"], jobset(1), jobset(1), end_state()), reads=True)
    assert run() == 0
    assert verbs(stand_ins) == ["get", "apply", "get", "logs", "get"]


def test_a_question_that_fails_once_is_asked_again(stand_ins):
    answers = BUSY, ABSENT, BUSY, BUSY, end_state()
    stand_ins.add("kubectl", (["get"], *answers), reads=True)
    assert run() == 0
    assert verbs(stand_ins) == ["get", "get", "apply", "get", "get", "get"]


def test_a_cluster_without_jobset_says_so(stand_ins):
    error = 'no matches for kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"'
    stand_ins.add("kubectl", (["apply"], {"complains": error, "status": 1}), reads=True)
    assert 'no matches for kind "JobSet"' in run()
