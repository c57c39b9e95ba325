"""Our losses of answers against TRL's trainers themselves. Needs `tools/setup interop evaluate`."""

import numpy as np
import pytest

from research.benchmarks import harness

pytest.importorskip("trl", reason="tools/setup evaluate")
pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("loss", ["dpo", "grpo"])
def test_three_steps_have_the_losses_of_trls_trainer(loss, tmp_path, monkeypatch):
    """The later two depend on the gradients; LoRA, clipping and AdamW are in between."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # one device: two rows
    settings = {"shape": "tiny", "loss": loss, "dtype": "float32", "method": "lora"}
    settings["weights"] = str(tmp_path / "weights.npz")
    modules = ("graft_losses", "trl_losses")
    with harness.contenders(
        {name: (f"research.benchmarks.{name}", settings) for name in modules}
    ) as ready:
        mine, theirs = (contender.info["losses"] for contender in ready)
    # sums of some thousand products in float32; Adam turns rounding of small gradients into more
    np.testing.assert_allclose(mine, theirs, rtol=1e-4)
    assert abs(mine[0] - mine[2]) > 1e-2  # they have learnt
