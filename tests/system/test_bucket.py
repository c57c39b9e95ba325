"""A whole run in a bucket, against an emulator of Google Cloud Storage: data, checkpoints, kill,
resume, several processes, export, and what fails. Needs `tools/setup services`."""

import dataclasses
import json
import re
import shutil
import signal
import sys
import time

import pytest

from research.checkpoints import runs
from research.checkpoints.checkpointer import open_checkpoint
from research.commands import (
    adapters,
    bench,
    convert,
    evaluate,
    generate,
    inspect,
    preflight,
    train_tokenizer,
)
from research.config import schema
from research.experiment import CheckpointConfig
from research.interop import exporting, huggingface
from research.methods import LoRA
from research.runtime import locks, storage
from research.runtime.distributed import EXIT_RESTART
from research.runtime.storage import absolute
from research.text.tokenizer import load
from research.training import workdir
from research.training.loop import train
from research.training.metrics import read_metrics
from tests.helpers import rounding, tiny_run
from tests.helpers.faulty_storage import DENIED, Faults, serve
from tests.system.test_hosts import together

pytest.importorskip("gcp_storage_emulator", reason="tools/setup services")
pytestmark = pytest.mark.heavy
NO_LIMIT = 1_000_000


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    """The server, which this process and those that it starts take for Google's."""
    with serve(tmp_path_factory.mktemp("bucket") / "data") as server:
        yield server


@pytest.fixture(scope="module")
def remote(world, emulator):
    """The world's text and tokenizer in the bucket, and an experiment on them."""
    for name in ("prose-train.jsonl", "prose-heldout.jsonl", "tokenizer.json"):
        (absolute("gs://made/data") / name).write_bytes((world.folder / name).read_bytes())
    local = world.experiment(20)
    source = type(local.data.sources[0])("prose", "gs://made/data/prose-{split}.jsonl")
    settings = {
        "tokenizer": "gs://made/data/tokenizer.json",
        "data": world.data(sources=(source,)),
        "checkpoint": CheckpointConfig(every=5),
        "evaluate_split": "heldout",
    }
    return lambda steps, **changes: world.experiment(steps, **settings | changes)


def finish(process):
    output = process.communicate(timeout=200)[0]
    return process.returncode, output


@pytest.fixture(scope="module")
def disk(world, tmp_path_factory):
    """The run of 20 steps on a disk."""
    folder = tmp_path_factory.mktemp("disk") / "run"
    train(world.experiment(20, evaluate_split="heldout"), folder)
    return folder


@pytest.fixture(scope="module")
def base(remote):
    """A run of 2 steps in the bucket."""
    train(remote(2), "gs://made/base")
    return "gs://made/base"


@pytest.fixture
def faults(emulator):
    with Faults(emulator) as proxy:
        yield proxy


def is_saved(folder, step):
    time.sleep(0.2)  # the emulator answers one at a time
    return (folder / "checkpoints" / str(step) / "commit_success.txt").exists()


def test_a_run_in_a_bucket_is_the_run_on_a_disk_after_kills_inside_its_saves(
    remote, disk, faults, tmp_path
):
    where, folder, steps = "gs://made/run", absolute("gs://made/run"), 20
    # among the arrays of step 10, then when nothing but the marker is missing
    for name in (r"state/\S*manifest", "commit_success"):
        rule = faults.hold(f"POST .*run/checkpoints/10/{name}")
        process = tiny_run.start(remote(steps), tmp_path, where)
        tiny_run.wait_for(process, lambda rule=rule: rule.hits)
        process.kill()
        process.communicate()
        faults.clear()
        assert (folder / "checkpoints" / "10").exists() and open_checkpoint(where).step == 5
    code, output = finish(tiny_run.start(remote(steps), tmp_path, where))
    assert code == 0 and "start      step 5\n" in output, output
    assert tiny_run.content(where, steps) == tiny_run.content(disk, steps)
    ours, theirs = (read_metrics(place / "metrics.jsonl") for place in (folder, disk))
    assert ours == theirs
    assert json.loads((folder / "summary.json").read_text())["finished"]
    assert any((folder / "tensorboard").iterdir())


def test_a_run_of_two_processes_in_one_bucket_stops_at_one_step_and_goes_on(remote, disk, tmp_path):
    where, folder = "gs://made/pair", absolute("gs://made/pair")

    def start(steps):
        file = tiny_run.config_file(tmp_path, remote(steps))
        return together([tiny_run.command("train", "--config", file, "--workdir", where)] * 2)

    pair = start(NO_LIMIT)
    tiny_run.wait_for(pair[0], lambda: is_saved(folder, 5), 200)
    pair[1].send_signal(signal.SIGTERM)
    outputs = [finish(process) for process in pair]
    assert [code for code, _ in outputs] == [EXIT_RESTART] * 2, outputs
    (step,) = map(int, re.findall(r"stopped by a signal at step (\d+), saved", outputs[0][1]))
    assert open_checkpoint(where).step == step >= 5
    outputs = [finish(process) for process in start(step + 2)]
    assert [code for code, _ in outputs] == [0] * 2, outputs
    assert f"start      step {step}\n" in outputs[0][1]
    rows, alone = (read_metrics(place / "metrics.jsonl") for place in (folder, disk))
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert sorted(losses) == list(range(1, step + 3))
    expected = {row["step"]: row["loss"] for row in alone if "loss" in row}
    for step in losses.keys() & expected.keys():
        # each step's gradients are rounded otherwise, and Adam moves every weight by them
        count = step * rounding.gradient_roundings(tiny_run.MODEL, rows=8, length=32)
        rounding.assert_close(losses[step], expected[step], roundings=count)


def test_adapters_in_a_bucket_are_tuned_listed_added_merged_and_put_side_by_side(
    remote, base, tmp_path, capsys
):
    start = {"model": None, "tokenizer": None, "init_from": base}
    for seed, name in enumerate(("law", "style")):
        tuned = remote(2, **start, method=LoRA(rank=2), seed=seed)
        train(tuned, f"gs://made/tuned/{name}")
    capsys.readouterr()
    adapters.main(["list", "gs://made/tuned"])
    listing = capsys.readouterr().out
    assert "gs://made/tuned/law" in listing and "gs://made/tuned/style" in listing
    assert "gone" not in listing
    law, style = "gs://made/tuned/law", "gs://made/tuned/style"
    adapters.main(["merge", "--from", law, "--out", "gs://made/whole"])
    adapters.main(
        ["add", "--from", f"0.5={law}", "--from", f"0.5={style}", "--out", "gs://made/sum"]
    )
    adapters.main(
        ["unmerge", "--from", "gs://made/whole", "--adapter", law, "--out", "gs://made/apart"]
    )
    adapters.main(
        ["bank", "--from", f"law={law}", "--from", f"style={style}", "--out", "gs://made/bank"]
    )
    certificate = json.loads((absolute("gs://made/whole") / "certificate.json").read_text())
    limit = rounding.bound(tiny_run.ROUNDINGS, certificate["largest_output"])
    assert certificate["largest_difference"] <= limit
    for name in ("whole", "apart", "sum", "bank"):
        assert runs.open_run(f"gs://made/{name}").checksums()
    generate.main(["--run", "gs://made/bank", "--prompt", "red", "--tokens", "2"])
    assert "style" in capsys.readouterr().out


# work folder, folder of the data, which requests fail and how, and what is said
REFUSED = [
    ("gs://nowhere/run", "data", "", 0, "", "Is there a bucket gs://nowhere?"),
    ("gs://made/no1", "data", "POST .*no1/.writable", 403, "create", "write gs://made/no1/"),
    # were this one taken for a folder without checkpoints, the run would start afresh
    ("gs://made/list", "data", "GET .*list/checkpoints", 403, "list", "read gs://made/list/check"),
    ("gs://made/get", "data", "GET .*get/checkpoints/2/state", 403, "get", "gs://made/get/check"),
    ("gs://made/no2", "shut", "GET .*shut/prose", 403, "get", "read gs://made/shut/prose-train"),
    ("gs://made/no3", "away", "GET .*away/prose", 503, "", "gs://made does not answer"),
    (
        "gs://made/no4",
        "data",
        "POST .*no4/checkpoints/4/state",
        403,
        "create",
        "save step 4 in gs",
    ),
]


def test_what_a_bucket_refuses_is_said_in_one_line_with_the_bucket_and_what_is_missing(
    remote, faults, tmp_path
):
    for name in ("list", "get"):
        train(remote(2), f"gs://made/{name}")
    processes = []
    for number, (where, folder, pattern, status, missing, _) in enumerate(REFUSED):
        for split in ("train", "heldout"):
            content = (absolute("gs://made/data") / f"prose-{split}.jsonl").read_bytes()
            (absolute("gs://made") / folder / f"prose-{split}.jsonl").write_bytes(content)
        if pattern:
            message = DENIED.format(f"storage.objects.{missing}") if missing else "busy"
            faults.answer(pattern, status, message=message)
        data = remote(4).data
        source = dataclasses.replace(
            data.sources[0], path=f"gs://made/{folder}/prose-{{split}}.jsonl"
        )
        experiment = remote(4, data=dataclasses.replace(data, sources=(source,)))
        (tmp_path / str(number)).mkdir()
        processes.append(tiny_run.start(experiment, tmp_path / str(number), where))
    for process, (_, _, _, status, missing, expected) in zip(processes, REFUSED, strict=True):
        code, output = finish(process)
        (line,) = [line for line in output.splitlines() if line.startswith("error: ")] or [output]
        assert code == 1 and output.strip().endswith(line.strip()), output
        # TensorStore prints some of its own after a save that Orbax gave up
        assert "Traceback" not in output or "save" in expected, output
        assert expected in line, line
        assert not missing or f"storage.objects.{missing} access" in line, line
        assert "roles/storage.objectUser" in line or status != 403, line
        assert "step 1/" not in output or "save" in expected, output
        assert "missing, cut short" not in line and "disk space" not in line, line


def test_a_bucket_that_may_no_longer_be_written_ends_the_run_at_its_next_save(
    remote, faults, tmp_path
):
    where, folder = "gs://made/denied", absolute("gs://made/denied")
    process = tiny_run.start(remote(NO_LIMIT), tmp_path, where)
    tiny_run.wait_for(process, lambda: is_saved(folder, 5), 200)
    message = DENIED.format("storage.objects.create")
    faults.answer("^(POST|PUT|PATCH|DELETE) ", 403, message=message)
    code, output = finish(process)
    line = output.strip().splitlines()[-1]
    assert code == 1 and "Traceback" not in output, output
    assert line.startswith("error: could not save step ") and "in gs://made/denied/" in line
    assert "roles/storage.objectUser" in line and line.endswith("the steps before are as they were")
    assert output.count("metrics were not copied to") == 1  # once, and not at each save
    faults.clear()
    assert open_checkpoint(where).step >= 5 and tiny_run.content(where)


def test_the_newest_start_has_a_buckets_folder(remote):
    folder = absolute("gs://made/claims/run")

    def start_another(step, *_):
        if step == 6:
            while not is_saved(folder, 5):  # in the background
                pass
            (folder / workdir.LOCK).write_text("another 7 id\n")

    with pytest.raises(locks.LockLostError, match="another 7 id: another run was started in gs://"):
        train(remote(12), "gs://made/claims/run", on_step=start_another)
    assert is_saved(folder, 5) and not is_saved(folder, 10)
    workdir.claim_workdir(folder)
    workdir.check_claim(folder)
    (folder / workdir.LOCK).unlink()
    with pytest.raises(locks.LockLostError, match=".lock was removed, or its folder or bucket"):
        workdir.check_claim(folder)


def test_storage_that_is_busy_for_a_moment_is_waited_for(remote, faults, tmp_path):
    busy = [
        faults.answer("GET .*prose-train", 503, times=2),
        faults.answer("POST .*busy/.writable", 429, times=1),
        faults.answer("POST .*busy/checkpoints/2/state", 503, times=3),
        faults.answer("POST .*busy/checkpoints/2/commit_success", 429, times=1),
    ]
    code, output = finish(tiny_run.start(remote(2), tmp_path, "gs://made/busy"))
    assert code == 0 and [rule.hits for rule in busy] == [2, 1, 3, 1], output
    assert open_checkpoint("gs://made/busy").step == 2


def test_exports_in_a_bucket_are_those_on_a_disk_and_whole_or_nothing(
    remote, base, tmp_path, monkeypatch
):
    from safetensors.numpy import load as tensors

    tuned = "gs://made/exports/tuned"
    start = {"model": None, "tokenizer": None, "init_from": base}
    train(remote(2, **start, method=LoRA(rank=2)), tuned)
    for kind, name in (("hf", "model"), ("peft", "adapter_model"), ("gguf", None)):
        there, here = f"gs://made/exports/{kind}", tmp_path / kind
        for out in (there, str(here)):
            convert.main(["export", "--from", tuned, "--format", kind, "--out", out])
        for file in here.iterdir() if name else (here, here.with_name("gguf.md")):
            copy = absolute(there if not name else f"{there}/{file.name}").with_name(file.name)
            assert copy.read_bytes() == file.read_bytes(), file
    assert tensors(absolute("gs://made/exports/hf/model.safetensors").read_bytes())
    with pytest.raises(SystemExit, match="is not empty; choose another folder"):
        convert.main(["export", "--from", tuned, "--out", "gs://made/exports/hf"])

    # the file without which nothing opens the rest comes last, and nothing stays without it
    order, upload_file = [], storage.upload_file

    def upload(file, path):
        order.append(path.name)
        if path.name == huggingface.CONFIG:
            raise OSError("made")
        upload_file(file, path)

    monkeypatch.setattr(storage, "upload_file", upload)
    with pytest.raises(OSError, match="made"):
        exporting.export_huggingface(runs.open_run(tuned), "gs://made/exports/torn")
    assert order[-1] == huggingface.CONFIG and "model.safetensors" in order
    assert not absolute("gs://made/exports/torn").exists()


# programs, their words, and the option that they refuse; None: it works
PATH_OPTIONS = [
    (convert, "inspect {base}", None),
    (convert, "export --from {base} --out {local}/hf", None),
    (convert, "import --from {local}/hf --out {there}/imported", None),
    (convert, "inspect {there}/imported", None),
    (convert, "import --from {there}/hf --out {local}/imported", "--from {there}/hf"),
    (convert, "import --from {there}/peft --base {base} --out {local}/a", "--from {there}/peft"),
    (convert, "inspect {there}/hf", "no checkpoint|the model {there}/hf"),
    (convert, "quantize --from {base} --to int8 --out {there}/small", None),
    (evaluate, "--config {text} --run {there}/small --out {there}/bits.json", None),
    (
        convert,
        "export --from {base} --out {local}/b --evaluation {there}/b.json",
        "--evaluation",
    ),
    (evaluate, "--config {text} --run {base} --out gs://nowhere/a.json", "gs://nowhere/"),
    (generate, "--run {there}/small --prompt red --tokens 1", None),
    (train_tokenizer, "--config {config} --vocabulary 280 --out {there}/words.json", None),
    (inspect, "--run {base} --rows 1", None),
    (inspect, "--run {base} --json {there}/rows.json", "--json: {there}/rows.json"),
    (inspect, "--run {base} --html {there}/rows.html", "--html: {there}/rows.html"),
    (preflight, "--config {config} --topology v5e:2x2 --json {there}/f.json", "--json: {there}/f"),
    (bench, "overhead --json {there}/bench.json", "--json: {there}/bench.json"),
]


def test_a_path_that_a_program_takes_may_be_in_a_bucket_or_is_refused_by_its_option(
    remote, base, tmp_path, capsys, monkeypatch
):
    text = {**schema.to_dict(remote(2).data), "batch_size": 8}
    text = {name: text[name] for name in ("sources", "sequence_length", "batch_size")}
    (tmp_path / "text.py").write_text(f"def get_config():\n    return {{'text': {text!r}}}\n")
    names = {
        "base": base,
        "there": "gs://made/taken",
        "local": tmp_path,
        "text": tmp_path / "text.py",
        "config": tiny_run.config_file(tmp_path, remote(2)),
    }
    for program, arguments, refusal in PATH_OPTIONS:
        arguments = arguments.format(**names).split()
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        try:
            program.main()
            code = None
        except SystemExit as end:
            code = end.code
        output = f"{code}\n{capsys.readouterr().err}"
        if refusal is None:
            assert code in (None, 0), (arguments, output)
        else:
            assert code not in (None, 0) and re.search(refusal.format(**names), output), (
                arguments,
                output,
            )
    there = absolute(names["there"])
    assert runs.open_run(there / "imported").fingerprint == runs.open_run(base).fingerprint
    assert json.loads((there / "bits.json").read_text())["tasks"]["bits_per_byte"]
    assert load(there / "words.json").vocabulary_size == 280
    assert not list(tiny_run.ROOT.glob("gs:*"))


def test_a_run_outlasts_storage_that_is_away_and_says_when_it_is_gone(emulator, remote, tmp_path):
    where, folder = "gs://made/lost", absolute("gs://made/lost")

    def newest():
        return max((int(p.parent.name) for p in folder.glob("checkpoints/*/commit*")), default=0)

    process = tiny_run.start(remote(NO_LIMIT), tmp_path, where)
    tiny_run.wait_for(process, newest)
    emulator.process.kill()
    time.sleep(3)
    emulator.start()
    before = newest()
    tiny_run.wait_for(process, lambda: newest() > before)
    emulator.process.kill()
    shutil.rmtree(emulator.folder)
    emulator.start(bucket="")
    code, output = finish(process)
    # whichever comes first: the next save, or the look at the lock before it
    errors = ("could not save step", f"{where}/.lock was removed, or its folder or bucket")
    assert code == 1 and any(f"error: {error}" in output for error in errors), output
