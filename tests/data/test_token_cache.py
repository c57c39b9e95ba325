"""The cache of tokens: what has changed in it is never trained on, and several users share it."""

import dataclasses
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from research.data import token_cache
from research.data.sources import JsonlConfig
from research.data.token_cache import tokenize
from research.runtime import checksums
from research.text import tokenizer as tokenizers

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"some words {number}" for number in range(40)]


@dataclasses.dataclass
class Texts:
    """A source of texts, with a fingerprint of its own."""

    name, format, acceptance = "texts", "text", {}
    fingerprint: str = "1"

    def __len__(self):
        return len(TEXTS)

    def __getitem__(self, index):
        return {"text": TEXTS[index]}


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(TEXTS, 300)


@pytest.fixture
def entry(tmp_path, tokenizer):
    """The folder of a source that was tokenized, in a cache of its own."""
    tokenize(Texts(), tokenizer, {"text": True}, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    return folder


def read(entry, tokenizer):
    return tokenize(Texts(), tokenizer, {"text": True}, entry.parent)["text"].values


@pytest.mark.parametrize("name", ["text.tokens.npy", "text.offsets.npy", "text.bytes.npy"])
@pytest.mark.parametrize("damage", ["changed", "cut", "lost"])
def test_what_has_changed_is_named_with_what_to_do(entry, tokenizer, name, damage):
    content = (entry / name).read_bytes()
    if damage == "changed":  # one bit of the last number
        (entry / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        (entry / name).write_bytes(content[:-8])
    else:
        (entry / name).unlink()
    message = rf"cache of texts is damaged \({name} is not what was written\).*{entry}"
    with pytest.raises(ValueError, match=message):
        read(entry, tokenizer)
    shutil.rmtree(entry)  # as it says
    assert len(read(entry, tokenizer)) > len(TEXTS)


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_file_that_changes_while_it_is_read_leaves_nothing_behind(tmp_path, tokenizer, is_whole):
    """Lines are found before the content is hashed: of a download that goes on between the two,
    every later run would see the first lines alone."""
    path, cache = tmp_path / "a.jsonl", tmp_path / "cache"
    path.write_text('{"text": "first"}\n')
    source = JsonlConfig("a", str(path)).open("train")
    assert len(source) == 1
    if is_whole:  # another file, of the same size
        (tmp_path / "new").write_text('{"text": "other"}\n')
        (tmp_path / "new").replace(path)
    else:
        path.write_text('{"text": "first"}\n{"text": "second"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl was changed or replaced while it was read"):
        tokenize(source, tokenizer, {"text": True}, cache)
    assert not list(cache.iterdir())
    source = JsonlConfig("a", str(path)).open("train")
    assert len(tokenize(source, tokenizer, {"text": True}, cache)) == len(source)


def test_a_folder_of_other_content_is_none_though_its_checksums_are_right(entry, tokenizer):
    other = Texts()
    other.fingerprint = "another source"
    tokenize(other, tokenizer, {"text": True}, entry.parent)
    (theirs,) = set(entry.parent.iterdir()) - {entry}
    shutil.rmtree(entry)
    theirs.rename(entry)
    message = rf"texts is damaged \(it is the folder of another source: about\.json\).*{entry}"
    with pytest.raises(ValueError, match=message):
        read(entry, tokenizer)


@pytest.mark.parametrize("content", [None, "", "[1]", '{"checksums": 3}'])
def test_a_damaged_record_of_checksums_is_named(entry, tokenizer, content):
    (entry / "about.json").unlink()
    if content is not None:
        (entry / "about.json").write_text(content)
    with pytest.raises(ValueError, match=r"damaged \(about\.json: .*remove the folder"):
        read(entry, tokenizer)


def test_a_cache_from_before_there_were_checksums_is_given_them_and_it_is_said(
    entry, tokenizer, caplog
):
    before = read(entry, tokenizer)
    about = json.loads((entry / "about.json").read_text())
    expected = about.pop("checksums")
    (entry / "about.json").write_text(json.dumps(about))
    assert np.array_equal(read(entry, tokenizer), before)
    assert "from before they had checksums" in caplog.text
    assert json.loads((entry / "about.json").read_text()) == {**about, "checksums": expected}
    caplog.clear()
    read(entry, tokenizer)
    assert not caplog.text


def test_a_file_is_read_once_in_a_process_while_it_stays_as_it_is(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12")
    first, hits = checksums.crc32(path), checksums._crc32.cache_info().hits
    assert checksums.crc32(path) == first and checksums._crc32.cache_info().hits == hits + 1
    path.write_bytes(b"13")
    assert checksums.crc32(path) != first


def test_a_full_disk_names_the_folder_and_the_setting(tmp_path, tokenizer, monkeypatch):
    def write(folder, *_):
        (folder / "text.tokens.npy").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(token_cache, "_write", write)
    cache = tmp_path / "cache"
    message = rf"the cache {cache}: No space left.*free disk space, or set GRAFT_CACHE to"
    with pytest.raises(OSError, match=message):
        tokenize(Texts(), tokenizer, {"text": True}, cache)
    assert not list(cache.iterdir())


# tokenizes as another user, in a process without the threads of JAX, and prints the error
AS_USER = """if True:
    import os, sys, tempfile
    from research.data.token_cache import tokenize
    from research.text import tokenizer
    from tests.data.test_token_cache import Texts
    user, umask, fingerprint, file, cache = sys.argv[1:]
    backend = tokenizer.load(file)
    with tempfile.TemporaryDirectory() as folder:  # what is imported late, while it may be read
        tokenize(Texts(), backend, {"text": True}, folder)
    os.setgroups([]); os.setgid(int(user)); os.setuid(int(user)); os.umask(int(umask))
    try:
        tokenize(Texts(fingerprint), backend, {"text": True}, cache)
    except OSError as error:
        print(error)
"""


@pytest.fixture
def shared(tokenizer):
    """A folder that all users may write in, and a function that tokenizes there as one of them."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        root = Path(name)
        root.chmod(0o755)
        tokenizer.save(root / "tokenizer.json")
        (root / "cache").mkdir()
        (root / "cache").chmod(0o1777)
        tokens = root / "cache" / "tokens"

        def run(user, fingerprint, umask=0o022):
            arguments = [user, umask, fingerprint, root / "tokenizer.json", tokens]
            line = [sys.executable, "-B", "-c", AS_USER, *map(str, arguments)]
            ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
            assert ended.returncode == 0, ended.stderr
            return ended.stdout.strip()

        yield tokens, run


@pytest.mark.heavy
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become several users")
def test_several_users_share_a_cache_and_what_each_puts_there_stays_theirs(shared):
    tokens, run = shared
    assert run(20001, "1") == ""
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o1777 and tokens.stat().st_uid == 20001
    (first,) = tokens.iterdir()
    assert stat.S_IMODE(first.stat().st_mode) == 0o755
    assert run(20002, "1") == ""  # what is there is read
    assert run(20002, "2") == ""  # what is not is made beside it
    assert {path.stat().st_uid for path in tokens.iterdir()} == {20001, 20002}
    assert all(file.stat().st_uid == 20001 for file in first.iterdir())
    # a private umask keeps nothing from those who share the folder
    before = set(tokens.iterdir())
    assert run(20002, "3", umask=0o077) == "" and run(20001, "3") == ""
    # what a user makes private is said, with what to do
    (third,) = set(tokens.iterdir()) - before
    third.chmod(0o700)
    message = run(20001, "3")
    assert f"the cache {tokens}: Permission denied" in message
    assert "set GRAFT_CACHE to a folder of your own" in message
    tokens.chmod(0o755)
    assert f"the cache {tokens}: Permission denied" in run(20002, "4")
