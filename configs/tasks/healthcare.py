"""Healthcare: questions of a medical entrance examination, and what surveys say of diabetes.

    graft evaluate --task healthcare --run runs/smollm2

Questions: 299 with four options each (MedMCQA, as OpenAI's evals have it), and 1,000 patients'
records, half of them with diabetes. Licence: MIT.
"""

from ml_collections import ConfigDict

RECORD = "A patient's record: {prompt}\nDoes the patient have diabetes? Answer yes or no."


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.tasks = dict(
        examination=dict(
            kind="multiple_choice",
            source=dict(name="graft_medicine", unused_fields=["subject"]),
            reference="completion",
            reference_kind="text",
            letters=True,
        ),
        diabetes=dict(
            kind="multiple_choice",
            source=dict(
                name="graft_diabetes",
                fields=dict(prompt="text", completion="label"),
                transforms=[dict(kind="template", fields=dict(prompt=RECORD))],
            ),
            labels=["no", "yes"],
            reference="completion",
        ),
    )
    return config
