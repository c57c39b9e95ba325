"""TPU VMs, through queued resources of Google Cloud (`gcloud compute tpus queued-resources`).

Create, wait, copy the code, install, run on all workers, follow the first; when the slice is
preempted it is deleted and asked for again, and the run goes on at its last checkpoint. At the end
the slice is deleted, which ends what it costs.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

from tools import environment
from tools.launching import google
from tools.launching.job import STOPPED, Job, Shell

RUN = "graft-run"  # on each machine, beside the code
GONE = ("SUSPENDING", "SUSPENDED", "DELETING")
FAILED = ("FAILED",)
GCLOUD = ("gcloud", "compute", "tpus", "queued-resources")


def add_flags(parser) -> None:
    parser.add_argument("--project", metavar="ID", help="Google Cloud project")
    parser.add_argument("--zone", metavar="ZONE", help="such as us-west4-a")
    parser.add_argument(
        "--runtime-version", metavar="NAME", help="software of the machines (default: by version)"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the slice (and its cost) when the run has ended"
    )


def check(job: Job, arguments) -> None:
    if not arguments.project or not arguments.zone:
        raise ValueError("tpu-vm: give --project and --zone")
    google.check_shared(job.workdir)
    if not google.find(job.topology).product.type:
        raise ValueError(f"tpu-vm: there are no TPU VMs of {job.topology}; take --target gke")


def start(job: Job, arguments, shell: Shell) -> int:
    """The whole life of the slice; the run's exit status."""
    resource = _Resource(job, arguments, shell)
    there, status = False, None
    for attempt in range(job.restarts + 1):
        if not there:
            if attempt:
                print(
                    f"launch: preempted; asked for again ({attempt} of {job.restarts})", flush=True
                )
                resource.delete()
            resource.create()
            there = resource.wait()
            if not there:
                continue
            resource.prepare()
        status = resource.run()
        if status not in (None, STOPPED):
            break
        there = status == STOPPED  # told to stop, but not taken away
    else:
        print(f"launch: {job.restarts} restarts are used up", flush=True)
        status = STOPPED
    if arguments.keep:
        print(f"launch: {job.name} is kept, and costs: --delete ends that", flush=True)
    else:
        resource.delete()
    return status or 0


def delete(job: Job, arguments, shell: Shell) -> None:
    _Resource(job, arguments, shell).delete()


class _Resource:
    """A queued resource: one node a slice, several machines a node."""

    def __init__(self, job: Job, arguments, shell: Shell):
        self.job, self.shell = job, shell
        self.chips = google.find(job.topology) if job.topology else None
        self.spot = arguments.spot
        self.version = arguments.runtime_version
        self.where = (f"--project={arguments.project}", f"--zone={arguments.zone}")

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

    def state(self) -> str:
        """Such as WAITING_FOR_RESOURCES, ACTIVE or SUSPENDED."""
        text = self._call("describe", "--format=json", said=False)
        return json.loads(text)["state"]["state"] if text else "ACTIVE"  # of a dry run

    def wait(self) -> bool:
        """Whether the machines are there; False if they were taken away again.

        Raises:
          ValueError: they will not come.
        """
        said = ""
        while (state := self.state()) != "ACTIVE":
            if state in GONE:
                return False
            if state in FAILED:
                raise ValueError(
                    f"{self.job.name} was refused ({state}): gcloud compute tpus queued-resources "
                    f"describe {self.job.name} {shlex.join(self.where)} says why; --delete removes "
                    "the request"
                )
            if state != said:
                print(f"launch: {state}", flush=True)
                said = state
            self.shell.rest()
        return True

    def prepare(self) -> None:
        """Copies the code as it is here, and installs what the lock says."""
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "graft.tar.gz"
            if not self.shell.dry_run:
                pack(environment.ROOT, archive)
            self._call("scp", str(archive), f"{self.job.name}:graft.tar.gz", *self._everywhere())
        self._call("ssh", "--command=mkdir -p graft", *self._everywhere())
        self._ssh("tar -xzf ../graft.tar.gz && tools/setup tpu buckets", *self._everywhere())

    def run(self) -> int | None:
        """Starts the run on all machines and follows the first; its exit status, or None if the
        machines were taken away."""
        variables = [f"{name}={value}" for name, value in self.job.environment.items()]
        train = self.job.command(".venv/bin/python", "--distributed")
        self._ssh(_remote("start", "env", *variables, *train), *self._everywhere())
        verb = "follow"
        while True:
            self.shell.follow(*self._ssh_words(_remote(verb), "--worker=0"))
            if self.shell.dry_run:
                return 0
            status = self._status()
            if self.state() in GONE:
                return None
            if status is not None:
                return status
            verb = "follow-on"  # the connection was lost
            self.shell.rest()

    def _status(self) -> int | None:
        """The run's exit status; None while it runs, or nothing answers. What ssh returns is not
        always that of the command."""
        try:
            said = self._ssh(_remote("status"), "--worker=0", said=False)
        except ValueError as error:
            print(f"launch: {error}", flush=True)
            return None
        found = re.search(r"^graft-status (-?\d+)$", said, re.MULTILINE)
        return int(found[1]) % 256 if found else None

    def delete(self) -> None:
        self._call("delete", "--force")

    def _everywhere(self) -> tuple[str, ...]:
        return ("--worker=all", "--node=all")

    def _call(self, verb: str, *words: str, said: bool = True) -> str:
        name = () if verb == "scp" else (self.job.name,)
        return self.shell.call(*GCLOUD, verb, *name, *words, *self.where, "--quiet", said=said)

    def _ssh_words(self, command: str, *flags: str) -> tuple[str, ...]:
        return (
            *(*GCLOUD, "ssh", self.job.name, *flags, *self.where),
            *("--quiet", f"--command=cd graft && {command}"),
        )

    def _ssh(self, command: str, *flags: str, said: bool = True) -> str:
        return self.shell.call(*self._ssh_words(command, *flags), said=said)


def _remote(verb: str, *words: str) -> str:
    """A command for a machine's shell."""
    return shlex.join(["python3", "tools/launching/remote.py", verb, f"../{RUN}", *words])


def pack(folder: Path, archive: Path) -> None:
    """The files of a clone, changed and new ones too, without those that git ignores.

    Raises:
      ValueError: it is no clone.
    """
    words = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others"]
    found = subprocess.run([*words, "--exclude-standard"], capture_output=True)
    if found.returncode:
        raise ValueError(f"{folder} is no git clone: {found.stderr.decode().strip()}")
    names = [name for name in found.stdout.split(b"\0") if name]
    there = b"\0".join(name for name in names if (folder / name.decode()).exists())
    line = ["tar", "-czf", str(archive), "-C", str(folder), "--null", "--files-from=-"]
    subprocess.run(line, input=there, check=True)
