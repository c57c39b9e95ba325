"""Command lines for graft launch."""

import pytest

from research.commands import launch

CONFIG = "configs/pretrain/smollm2_135m.py"
TEXT = "--config.data.sources[0].path=gs://made/web"
TOKENIZER = "--config.tokenizer=gs://made/tokenizer.json"
CHIPS = ("--workdir", "gs://made/run-1", "--topology", "v5e:4x4", "--anyway")
BUCKET = (*CHIPS, TEXT, TOKENIZER)
TPU_VM = ("--target", "tpu-vm", "--project", "p", "--zone", "z")
GKE = ("--target", "gke", "--image", "graft:1")
SLURM = ("--target", "slurm", "--workdir", "/shared/run 1", "--name", "run-1")
LOCAL = ("--target", "local", "--workdir", "runs/x")


def run(*flags, config=CONFIG):
    """The launcher's exit status."""
    with pytest.raises(SystemExit) as exit_info:
        launch.main(["--config", config, *flags])
    return exit_info.value.code
