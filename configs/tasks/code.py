"""Code: Python functions from their beginnings, run against their tests (HumanEval).

    graft evaluate --task code --run runs/smollm2 --config.tasks.code.max_questions=40
    graft evaluate --task code --run runs/smollm2 --config.tasks.code.samples=10 \\
        --config.tasks.code.sampling.temperature=0.8 --config.tasks.code.pass_at=1,10

A model is asked for the whole function. A base goes on from its beginning:

    graft evaluate --task code:base --run runs/base

Programs run in a sandbox, where the machine makes one (docs/guides/evaluate.md).

Questions: 164, for evaluation only. Licence: MIT.

Expected: the solutions that come with it pass, 164 of 164.
"""

from ml_collections import ConfigDict

INSTRUCTION = (
    "Complete this Python function. Answer with the whole function.\n\n```python\n{prompt}```"
)


def get_config(model: str = "") -> ConfigDict:
    if model not in ("", "base"):
        raise ValueError(f"code.py:{model}: there is base")
    config = ConfigDict()
    config.tasks = dict(
        code=dict(
            kind="generation",
            source=dict(name="graft_functions"),
            scorers=[dict(kind="code", beginning="beginning")],
            max_tokens=384,
        )
    )
    if model == "base":
        config.tasks.code.objective = dict(kind="supervised", template="{prompt}")
    else:
        instruct = dict(kind="template", fields=dict(prompt=INSTRUCTION))
        config.tasks.code.source.transforms = [instruct]
    return config
