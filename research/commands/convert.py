"""Converts models from and for other projects, and quantizes bases.

    graft convert inspect FOLDER                           what is in it, what maps to what
    graft convert import --from FOLDER --out runs/base     a base that runs start from
    graft convert import --from ADAPTER --base runs/base --out runs/theirs
    graft convert quantize --from runs/base --to nf4 --out runs/small     a base in 4 bits
    graft convert export --from runs/lora --out FOLDER     adapters merged, for transformers
                                                           (a classifier as its own class there)
    graft convert export --from runs/lora --format peft --out FOLDER
    graft convert export --from runs/lora --format gguf --out FILE.gguf
    graft convert export --from runs/lora --format gguf-adapter --out FILE.gguf

FOLDER is one as transformers writes it (config.json, safetensors, tokenizer.json); a GGUF file of
llama.cpp does as well, and so does `smollm2`, which a package carries (SmolLM2-135M-Instruct,
Apache-2.0, instruction-tuned, in 4 bits). Nothing that could run code is read: no pickles, no code
from a folder. `--dry-run` checks all, writes nothing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from research.config import cli
from research.runtime.terminal import show


def main(argv: Sequence[str] | None = None) -> None:
    arguments = cli.complete(_parser()).parse_args(argv)
    with cli.clear_errors():
        commands = {
            "inspect": inspect,
            "import": import_model,
            "quantize": quantize_base,
            "export": export_model,
        }
        commands[arguments.verb](arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graft convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    look = verbs.add_parser("inspect", help="what is in a model, and what maps to what")
    look.add_argument("path", help="a model's folder or file, smollm2, or a run's folder")
    for verb, source, help_text in (
        ("import", "a model's folder or file, or smollm2", "a base that runs start from"),
        ("export", "a run's folder", "a model that others serve"),
    ):
        command = verbs.add_parser(verb, help=help_text)
        command.add_argument("--from", dest="source", required=True, metavar="PATH", help=source)
        if verb == "import":
            where = "an adapter of PEFT or llama.cpp needs it: the run's folder of its base"
            cuts = "of a GGUF file that does not say it: how its tokenizer cuts text, as llama-bpe"
            command.add_argument("--pre-tokenizer", metavar="NAME", help=cuts)
        else:
            where = "where a tuned run's base is, if it moved"
        command.add_argument("--base", metavar="RUN", help=where)
        command.add_argument("--out", required=True, metavar="DIR", help="a new folder, or file")
        command.add_argument("--dry-run", action="store_true", help="check all, write nothing")
    smaller = verbs.add_parser("quantize", help="a base whose frozen weights take fewer bits")
    smaller.add_argument("--from", dest="source", required=True, metavar="RUN", help="its folder")
    smaller.add_argument("--base", metavar="RUN", help="where a tuned run's base is, if it moved")
    kinds = (
        "nf4 (4 bits, QLoRA's, scales in 8) or int8 (one scale a column) for linears, with tables "
        "in bfloat16; bfloat16 for all"
    )
    smaller.add_argument("--to", choices=("nf4", "int8", "bfloat16"), required=True, help=kinds)
    smaller.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    formats = "hf, gguf: a whole model, adapters merged; peft, gguf-adapter: the adapter alone"
    choices = ("hf", "gguf", "peft", "gguf-adapter")
    command.add_argument("--format", choices=choices, default="hf", help=formats)
    command.add_argument("--evaluation", metavar="FILE", help="of graft evaluate, for the card")
    types = ("float32", "bfloat16", "float16")
    command.add_argument("--dtype", choices=types, help="default: the imported model's, or float32")
    return parser


def inspect(arguments: argparse.Namespace) -> None:
    """Prints a model's shape and where each parameter comes from, or would go to."""
    from research.checkpoints import runs
    from research.interop import exporting, importing
    from research.runtime import storage

    step_dirs = (storage.absolute(arguments.path) / name for name in ("checkpoints", "model"))
    if not any(map(storage.is_folder, step_dirs)):
        _describe(importing.open_model(_resolve(arguments.path)), with_sources=True)
        return
    run = runs.open_run(arguments.path)
    origin = f", from {run.origin['source']}" if run.origin else ""
    base = f", tuned on {run.base.path}" if run.base else ""
    show(f"{run.path}: a run of Graft, method {run.method.kind}{origin}{base}")
    name, sources = exporting.plan_huggingface(run)
    show(f"{_shape(run.model)}\nas an export ({name}):")
    _print_sources(sources)


def import_model(arguments: argparse.Namespace) -> None:
    """Imports a model, or an adapter."""
    from research.checkpoints import runs
    from research.interop import importing
    from research.runtime import storage

    storage.require_local(arguments.source, "--from")
    if arguments.base:
        _import_adapter(arguments)
        return
    runs.check_free(arguments.out)
    model = importing.open_model(_resolve(arguments.source), arguments.pre_tokenizer)
    tokenizer = importing.load_tokenizer(model)
    _describe(model, with_sources=arguments.dry_run)
    show(f"tokenizer  {tokenizer.vocabulary_size:,} tokens, {tokenizer.roles}")
    template_note = importing.template_note(tokenizer)
    for note in (*tokenizer.notes, *([template_note] if template_note else [])):
        show(f"note       {note}")
    if arguments.dry_run:
        importing.check_numbers(model)
        return
    with _bar(len(model.sources)) as bar:
        path = importing.import_model(model, arguments.out, lambda name, size: bar.update())
    show(f"written to {path}: start from it with --config.init_from={arguments.out}, or")
    show(f"  graft generate --run {arguments.out}")


def _import_adapter(arguments: argparse.Namespace) -> None:
    from research.checkpoints import runs
    from research.interop.gguf import adapters
    from research.interop.peft import importing as peft_importing

    base = runs.open_run(arguments.base)
    if adapters.is_file(arguments.source):
        _import_gguf_adapter(arguments, base)
        return
    adapter = peft_importing.open_adapter(arguments.source, base)
    show(f"{arguments.source}: {adapter.run_method}")
    for note in adapter.notes:
        show(f"note       {note}")
    if arguments.dry_run:
        for name, part in adapter.sources.items():
            show(f"  {name:52} {part.name} {list(adapter.tensors.shapes[part.name])}")
        peft_importing.read_arrays(adapter, arguments.source)
        return
    path = peft_importing.import_adapter(arguments.source, base, arguments.out)
    show(f"written to {path}: graft generate --run {arguments.out}")


def _import_gguf_adapter(arguments: argparse.Namespace, base) -> None:
    from research.interop.gguf import adapters

    adapter = adapters.open_adapter(arguments.source, base)
    show(f"{arguments.source}: {adapter.method}")
    if arguments.dry_run:
        for name, tensor in adapter.tensors.items():
            show(f"  {name:52} {tensor}")
        return
    path = adapters.import_adapter(arguments.source, base, arguments.out)
    show(f"written to {path}: graft generate --run {arguments.out}")


def quantize_base(arguments: argparse.Namespace) -> None:
    """Stores a base's weights in fewer bits."""
    from research.adapters import quantizing
    from research.checkpoints import runs
    from research.models.quantization import PRESETS

    run = runs.open_run(arguments.source, arguments.base)
    with _bar(len(run.checksums())) as bar:
        reports = quantizing.store(
            run, arguments.out, PRESETS[arguments.to], lambda name: bar.update()
        )
    for kind, report in reports.items():
        show(
            f"{kind:9} {report.parameters:>15,} parameters, {report.bytes:>15,} bytes, "
            f"{report.bytes / report.parameters:.4f} each, error {report.error:.2%}"
        )
    count = sum(report.parameters for report in reports.values())
    size = sum(report.bytes for report in reports.values())
    show(f"{'total':9} {count:>15,} parameters, {size:>15,} bytes, {size / count:.4f} each")
    show(f"written to {arguments.out}: tune adapters on it with --config.init_from={arguments.out}")


def export_model(arguments: argparse.Namespace) -> None:
    """Exports a run."""
    from research.checkpoints import runs
    from research.interop import exporting, huggingface, model_card
    from research.runtime import storage

    exporting.check_free(arguments.out, file=arguments.format.startswith("gguf"))
    run = runs.open_run(arguments.source, arguments.base)
    evaluation = None
    if arguments.evaluation:
        evaluation = huggingface.read_json(
            storage.require_local(arguments.evaluation, "--evaluation")
        )
        if evaluation.get("fingerprint") != run.fingerprint:
            raise ValueError(f"{arguments.evaluation} is about another model than {run.path}")
    name = storage.absolute(arguments.out).name
    card = model_card.write(run, arguments.format, name, evaluation)
    if arguments.format == "peft":
        _export_adapter(arguments, run, card)
    elif arguments.format == "gguf-adapter":
        _export_gguf_adapter(arguments, run, card)
    else:
        _export_whole(arguments, run, card)


def _export_adapter(arguments: argparse.Namespace, run, card: str) -> None:
    from research.interop.peft import exporting as peft

    if arguments.dry_run:
        tensors, content = peft.adapter_tensors(run)
        for name, tensor in tensors.items():
            show(f"  {name} {list(tensor.shape)}")
        show(f"note       {peft.serving_note(run, tensors, content)}")
        return
    base_name = str((run.origin or {}).get("source", "the base that it was tuned from"))
    export = peft.export_adapter(run, arguments.out, base_name, card)
    show(f"written to {arguments.out}: {peft.CONFIG}, {len(export.names)} tensors, README.md")
    for note in export.notes:
        show(f"note       {note}")


def _export_gguf_adapter(arguments: argparse.Namespace, run, card: str) -> None:
    from research.interop import exporting
    from research.interop.gguf import adapters
    from research.runtime import files
    from research.text import chat_template

    if arguments.dry_run:
        for name, tensor in adapters.plan(run)[2].items():
            show(f"  {name} {list(tensor.shape)}")
        return
    card_path = f"{arguments.out}.md"
    exporting.check_free(card_path, file=True)
    names = adapters.export_adapter(run, arguments.out)
    if template := exporting.own_chat_template(run):
        files.atomic_write(f"{arguments.out}.jinja", template)
        if tools := chat_template.find_tool_template(run.sidecar_files):
            files.atomic_write(f"{arguments.out}.tools.jinja", tools)
    files.atomic_write(card_path, card)
    show(f"written to {arguments.out}: {len(names)} tensors, and its card to {card_path}")


def _export_whole(arguments: argparse.Namespace, run, card: str) -> None:
    """A whole model, adapters merged: a folder of transformers or a file of llama.cpp."""
    from research.adapters import merging
    from research.interop import exporting, huggingface
    from research.interop.gguf import writer
    from research.runtime import files

    origin = run.origin or {}
    dtype = arguments.dtype or origin.get("dtype", "float32")
    if arguments.format == "gguf":
        name, sources = writer.plan(run)
    else:
        name, sources = exporting.plan_huggingface(run)
    show(f"{run.path}: method {run.method.kind} -> {name} in {dtype}")
    if run.model.storage:
        kinds = ", ".join(run.model.storage_kinds)
        show(f"the base is stored as {kinds}: what it reads as is written")
    if arguments.dry_run:
        _print_sources(sources)
        merging.Merged(run, without_head=arguments.format == "hf")
        return
    tensors = len({source.name for source in sources.values()})
    if arguments.format == "gguf":
        card_path = f"{arguments.out}.md"
        exporting.check_free(card_path, file=True)
        with _bar(tensors) as bar:
            writer.export_gguf(run, arguments.out, dtype, lambda name: bar.update())
        files.atomic_write(card_path, card)
        show(f"written to {arguments.out}, and its card to {card_path}")
        return
    with _bar(tensors) as bar:
        exporting.export_huggingface(
            run, arguments.out, arguments.dtype, card, lambda name: bar.update()
        )
    show(f"written to {arguments.out}: {tensors} tensors, tokenizer, {huggingface.CONFIG}, card")


def _resolve(path: str) -> str | Path:
    """A path, or that of the model that a package carries under this name."""
    from research.data.builders import assets

    asset = f"llm-{path}"
    return assets.unpack(asset) if asset in assets.ASSETS else path


def _describe(model, with_sources: bool) -> None:
    show(f"{model.path}: {model.family.architecture} in {model.dtype}\n{_shape(model.config)}")
    for note in model.notes:
        show(f"note       {note}")
    if with_sources:
        _print_sources(model.sources)


def _shape(config) -> str:
    import dataclasses

    from research.training import cost

    fields = dataclasses.fields(config)
    changes = {
        f.name: getattr(config, f.name) for f in fields if getattr(config, f.name) != f.default
    }
    shape = ", ".join(f"{name}={value}" for name, value in changes.items())
    return f"{cost.parameter_count(config):,} parameters: {shape}"


def _print_sources(sources) -> None:
    for name, source in sources.items():
        part = f" from output {source.first}" if source.first else ""
        note = " transposed" if source.transposed else ""
        show(f"  {name:44} {source.name} {list(source.shape)}{note}{part}")


def _bar(total: int):
    from tqdm import tqdm

    return tqdm(total=total, unit="tensor", disable=None)
