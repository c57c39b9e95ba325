"""Targets that a run can be started on: each drives an engine that exists, and schedules nothing.

A target is a module with `add_flags(parser)`, `check(job, arguments, experiment)`, which raises
ValueError before anything is started, `start(job, arguments, shell) -> int`, an exit status, and
`delete(job, arguments, shell)`; for the shares of a study also `check_study` and `start_study`.
Adding one costs one file and one line here.
"""

from research.launch import gke, local, slurm, tpu_vm

TARGETS = {"local": local, "tpu-vm": tpu_vm, "gke": gke, "slurm": slurm}
