"""TPU VMs, through queued resources of Google Cloud (`gcloud compute tpus queued-resources`).

Create, wait, copy the code, install, run on all workers, follow the first; when the slice is
preempted it is deleted and asked for again, and the run goes on at its last checkpoint. At the end,
a good one or not, the slice is deleted, which ends what it costs. The launcher may die meanwhile:
the same command finds the slice and the run, and follows them again.
"""

from __future__ import annotations

import concurrent.futures
import json
import re
import shlex

from research.launch import clone, google
from research.launch.job import (
    STOPPED,
    Job,
    Shell,
    StudyJob,
    check_name,
    outcome,
    should_restart,
)
from research.runtime import environment

RUN = "graft-run"  # on each machine, beside the code
PREEMPTED = ("SUSPENDING", "SUSPENDED")
FAILED = ("FAILED",)
ABSENT = "NOT_FOUND"  # how gcloud says that there is no such request
GCLOUD = ("gcloud", "compute", "tpus", "queued-resources")
EVERYWHERE = ("--worker=all", "--node=all")
TRIES = 12  # of what may fail while machines come up, or once in a while
PATIENCE = 12  # looks at the state before a failure is believed: preemption is reported late

# Google's images have Ubuntu 22.04, whose Python is 3.10; does nothing where python3 is newer, or
# the second time
PYTHON = (
    "python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || "
    "{ python3 -m pip install --quiet --user uv && python3 -m uv python install 3.12; }"
)
SETUP = (
    "PYTHON=$(python3 -m uv python find --system --managed-python 3.12 2>/dev/null) "
    "tools/setup tpu buckets"
)


def add_flags(parser) -> None:
    parser.add_argument("--project", metavar="ID", help="Google Cloud project")
    parser.add_argument("--zone", metavar="ZONE", help="such as us-west4-a")
    parser.add_argument(
        "--runtime-version", metavar="NAME", help="software of the machines (default: by version)"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the slice (and its cost) when the run has ended"
    )


def check(job: Job, arguments, experiment) -> None:
    _check_flags(job, arguments)
    google.check_reachable(job, experiment, environment.ROOT)


def check_study(job: StudyJob, arguments, experiments) -> None:
    _check_flags(job, arguments)
    google.check_study(job, experiments, environment.ROOT)


def _check_flags(job: Job, arguments) -> None:
    check_name(job.name)
    if not arguments.project or not arguments.zone:
        raise ValueError("tpu-vm: give --project and --zone")
    if not google.find(job.topology).product.type:
        raise ValueError(f"tpu-vm: there are no TPU VMs of {job.topology}; take --target gke")


def start(job: Job, arguments, shell: Shell) -> int:
    """The whole life of the slice; the run's exit status."""
    resource = _Resource(job, arguments, shell)
    state = resource.request_state()  # what goes wrong here leaves everything as it was
    try:
        status = resource.run_to_end(state)
    except Exception:  # not Ctrl-C, which leaves it
        resource.end()
        raise
    return status if resource.end() or arguments.keep else status or 1


def start_study(job: StudyJob, arguments, shell: Shell) -> int:
    """A queued resource of its own for each share, side by side: each is asked for, preempted and
    deleted by itself. The first exit status that is not 0, or 0."""
    if shell.dry_run:
        statuses = [start(part, arguments, shell) for part in job.parts()]
    else:
        with concurrent.futures.ThreadPoolExecutor(job.shares) as pool:
            statuses = list(pool.map(lambda part: _start_part(part, arguments, shell), job.parts()))
    return next(filter(None, statuses), 0)


def _start_part(part: StudyJob, arguments, shell: Shell) -> int:
    try:
        return start(part, arguments, shell)
    except (ValueError, OSError) as error:  # the other shares go on
        print(f"launch: {part.name}: {error}", flush=True)
        return 1


def delete(job: Job, arguments, shell: Shell) -> None:
    check_name(job.name)
    for part in job.parts() if isinstance(job, StudyJob) else [job]:
        _Resource(part, arguments, shell).delete()


class _Resource:
    """A queued resource: one node a slice, several machines a node."""

    def __init__(self, job: Job, arguments, shell: Shell):
        self.job, self.shell = job, shell
        self.chips = google.find(job.topology) if job.topology else None
        self.spot, self.keep = arguments.spot, arguments.keep
        self.version = arguments.runtime_version
        self.where = (f"--project={arguments.project}", f"--zone={arguments.zone}")
        self.is_packed = False
        self.description = ""  # its state, as Google last said it

    def run_to_end(self, state: str) -> int:
        """From any state that the resource is in to the end of the run; the run's exit status.

        Raises:
          ValueError: it was refused or deleted, or the machines cannot be made ready.
        """
        why = ""
        for attempt in range(self.job.restarts + 1):
            if attempt:
                print(f"launch: {why}; again ({attempt} of {self.job.restarts})", flush=True)
                self._is_preempted(state := self.state())  # or deleted
            statuses = None
            if self.obtain(state):
                statuses = self.run(may_be_running=state == "ACTIVE" and not attempt)
            if statuses is not None and not should_restart(statuses):
                return outcome(statuses)
            why = "preempted" if statuses is None else f"it ended with {statuses}"
        print(f"launch: {why}, and {self.job.restarts} restarts are used up", flush=True)
        return STOPPED

    def obtain(self, state: str) -> bool:
        """Asks for the machines where that is not done, and waits for them; False if they were
        taken away again."""
        if state in (*PREEMPTED, *FAILED):
            self.delete()
            state = ""
        while state == "DELETING":
            self.shell.rest()
            state = self.state()
        if not state:
            self.create()
        elif state != "ACTIVE":
            print("launch: it was asked for already", flush=True)
        return self.wait()

    def create(self) -> None:
        assert self.chips is not None
        nodes = [f"--node-id={self.job.name}"]
        if self.job.slices > 1:
            nodes = [f"--node-count={self.job.slices}", f"--node-prefix={self.job.name}"]
        self._call(
            "create",
            *nodes,
            f"--accelerator-type={self.chips.accelerator_type}",
            f"--runtime-version={self.version or self.chips.product.runtime}",
            *(["--spot"] if self.spot else []),
        )

    def request_state(self) -> str:
        """The request's state, such as WAITING_FOR_RESOURCES or ACTIVE; empty: there is none."""
        text = self._call("describe", "--format=json", echo=False, tries=3, absent=ABSENT)
        state = json.loads(text)["state"] if text else {"state": ""}
        self.description = json.dumps(state)
        return state["state"]

    def state(self) -> str:
        """The same, asked until there is an answer, so that no network failure ends a run."""
        while True:
            try:
                return self.request_state()
            except ValueError as error:
                print(f"launch: {error}; asked again", flush=True)
                self.shell.rest()

    def wait(self) -> bool:
        """Whether the machines are there; False if they were taken away again.

        Raises:
          ValueError: they will not come.
        """
        last_state = ""
        while (state := self.state()) != "ACTIVE" and not self.shell.dry_run:
            if self._is_preempted(state):
                return False
            if state in FAILED:
                raise ValueError(f"{self.job.name} was refused: {self.description}")
            if state != last_state:
                print(f"launch: {state}", flush=True)
                last_state = state
            self.shell.rest()
        return True

    def prepare(self) -> None:
        """Copies the code as it was here at the launch, and installs what the lock says."""
        archive = environment.ROOT / ".cache" / "launch" / f"{self.job.name}.tar.gz"
        if not self.is_packed:  # a restart gets the same code
            clone.pack(environment.ROOT, archive, self.shell)
            self.is_packed = True
        self._call("ssh", *EVERYWHERE, "--command=mkdir -p graft", tries=TRIES)
        self._call("scp", str(archive), f"{self.job.name}:graft.tar.gz", *EVERYWHERE, tries=3)
        self._ssh("tar -xzf ../graft.tar.gz", *EVERYWHERE, tries=3)
        self._ssh(PYTHON, *EVERYWHERE, tries=3)
        self._ssh(SETUP, *EVERYWHERE, tries=3)

    def run(self, may_be_running: bool) -> list[int] | None:
        """Starts the run on all machines and follows the first; how its processes ended, or None if
        the machines were taken away.

        Args:
          may_be_running: whether it may be running there already.

        Raises:
          ValueError: the machines cannot be made ready.
        """
        try:
            if may_be_running and "running" in self._statuses(tries=3):
                print("launch: it is running there already", flush=True)
            else:
                self.prepare()
                self._ssh(_remote("start", *self._training()), *EVERYWHERE, tries=3)
        except ValueError:
            if self._is_preempted_soon():
                return None
            raise
        verb = "follow"
        while True:
            self.shell.follow(*self._ssh_command(_remote(verb), "--worker=0"))
            if self.shell.dry_run:
                self._statuses()
                return [0]
            statuses = self._statuses()
            if any(status != "running" for status in statuses):
                return self._final_statuses(statuses)
            if self._is_preempted(self.state()):
                return None
            verb = "follow-on"  # the connection was lost
            self.shell.rest()

    def _final_statuses(self, statuses: list[str]) -> list[int] | None:
        """The processes' last statuses, once the first ended; None if the machines were taken away,
        which Google may report a while after they are gone."""
        final: list[int] = []
        for _ in range(PATIENCE):
            final = [int(status) for status in statuses if status != "running"] or final
            if statuses and not any(final) and "running" not in statuses:
                return final
            if self._is_preempted(self.state()):
                return None
            self.shell.rest()
            statuses = self._statuses()
        return final

    def _is_preempted_soon(self) -> bool:
        for _ in range(PATIENCE):
            if self._is_preempted(self.state()):
                return True
            self.shell.rest()
        return False

    def _is_preempted(self, state: str) -> bool:
        if state in ("", "DELETING"):
            raise ValueError(f"{self.job.name} was deleted by another command")
        return state in PREEMPTED

    def _statuses(self, tries: int = 1) -> list[str]:
        """Statuses of processes that ended, "running" of others; empty if nothing answers. What ssh
        returns is not always that of the command."""
        try:
            output = self._ssh(_remote("status"), *EVERYWHERE, echo=False, tries=tries)
        except ValueError as error:
            print(f"launch: {error}", flush=True)
            return []
        return re.findall(r"graft-status (-?\d+|running)\b", output)

    def _training(self) -> list[str]:
        variables = [f"{name}={value}" for name, value in self.job.environment.items()]
        return ["env", *variables, *self.job.on_cluster()]

    def end(self) -> bool:
        """Ends what the slice costs, or says how that is done; whether it is."""
        why = f"{self.job.name} is kept"
        if not self.keep:
            try:
                self.delete()
                return True
            except ValueError as error:
                why = f"{error}; {self.job.name} could not be deleted"
        line = shlex.join(self._delete_command())
        print(f"launch: {why}, and costs while it is there. This ends it: {line}", flush=True)
        return False

    def delete(self) -> None:
        self.shell.call(*self._delete_command(), tries=3, absent=ABSENT)

    def _delete_command(self) -> tuple[str, ...]:
        return (*GCLOUD, "delete", self.job.name, "--force", *self.where, "--quiet")

    def _call(self, verb: str, *flags: str, echo: bool = True, tries: int = 1, absent="") -> str:
        name = () if verb == "scp" else (self.job.name,)
        line = (*GCLOUD, verb, *name, *flags, *self.where, "--quiet")
        return self.shell.call(*line, echo=echo, tries=tries, absent=absent)

    def _ssh_command(self, command: str, *flags: str) -> tuple[str, ...]:
        return (
            *(*GCLOUD, "ssh", self.job.name, *flags, *self.where),
            *("--quiet", f"--command=cd graft && {command}"),
        )

    def _ssh(self, command: str, *flags: str, echo: bool = True, tries: int = 1) -> str:
        return self.shell.call(*self._ssh_command(command, *flags), echo=echo, tries=tries)


def _remote(verb: str, *command: str) -> str:
    """A command for a machine's shell."""
    return shlex.join(["python3", "research/launch/remote.py", verb, f"../{RUN}", *command])
