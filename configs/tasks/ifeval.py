"""Instructions: prompts whose instructions a program can check (IFEval).

    tools/setup evaluate
    graft evaluate --task ifeval --run runs/smollm2 --config.tasks.ifeval.max_questions=100

Of its 834 instructions 77 need a sentence splitter that has to be downloaded; where it is not
there, they and their 64 prompts are counted and not scored.

Questions: 541, for evaluation only. Licence: Apache-2.0.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.tasks = dict(
        ifeval=dict(
            kind="generation",
            source=dict(name="graft_instructions"),
            scorers=[dict(kind="ifeval")],
            max_tokens=512,
        )
    )
    return config
