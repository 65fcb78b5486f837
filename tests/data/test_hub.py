"""Raw files from archives and from a hub: a server on this machine that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data.hub import locate
from data.preparation import DataError

COMMIT = "c" * 40
FILES = ("train.csv", "valid.csv", "test.csv")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The layout of such repositories: a zip of a folder of CSV files, and a README."""
    path = tmp_path / "repository" / "Toy_x1.zip"
    path.parent.mkdir()
    (path.parent / "README.md").write_text("about")
    with zipfile.ZipFile(path, "w") as file:
        for name in FILES:
            file.writestr(f"Toy_x1/{name}", f"a,b\n{name},1\n")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.EXTRACTED_DATASETS_PATH", str(tmp_path / "extracted"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(archive: Path) -> Iterator[str]:
    """Serves the repository ``owner/Toy_x1`` and knows no other."""
    files = {path.name: path.read_bytes() for path in archive.parent.iterdir()}

    class Hub(BaseHTTPRequestHandler):
        def reply(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer(self) -> None:
            path = self.path.split("?")[0]
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            if not path.removeprefix("/api").startswith("/datasets/owner/Toy_x1"):
                self.reply(b"{}", 404, X_Error_Code="RepoNotFound", X_Error_Message="Repository Not Found")
            elif path.startswith("/api/datasets/owner/Toy_x1/tree/"):
                self.reply(json.dumps(listed).encode())
            elif path.startswith("/api/datasets/owner/Toy_x1/paths-info/"):
                asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
                self.reply(json.dumps([entry for entry in listed if str(entry["path"]) in asked]).encode())
            elif path.startswith("/api/datasets/owner/Toy_x1"):
                siblings = [{"rfilename": name} for name in files]
                self.reply(json.dumps({"id": "owner/Toy_x1", "sha": COMMIT, "siblings": siblings}).encode())
            elif (name := path.split("/")[-1]) in files:
                etag = hashlib.sha1(files[name]).hexdigest()
                self.reply(files[name], ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
            else:
                self.reply(b"", 404, X_Error_Code="EntryNotFound")

        do_GET = do_HEAD = do_POST = answer

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(hub: str, tmp_path: Path, raw: str) -> str:
    """What ``locate`` gives in a process whose hub is the server; its error where it fails."""
    code = (
        "from data.hub import locate\nfrom data.preparation import DataError\n"
        f"try:\n    print(locate({raw!r}))\nexcept DataError as error:\n    print('error:', error)"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_DATASETS_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("name", ["owner/Toy_x1", "owner/Toy_x1@main", "owner/Toy_x1/Toy_x1.zip"])
def test_a_repository_is_fetched_and_unpacked(hub: str, tmp_path: Path, name: str) -> None:
    folder = Path(ask(hub, tmp_path, f"hf://datasets/{name}"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert (folder / "valid.csv").read_text() == "a,b\nvalid.csv,1\n"


@pytest.mark.parametrize("name", ["owner/Nothing", "owner/Toy_x1/other.zip", "alone"])
def test_what_cannot_be_fetched_is_named(hub: str, tmp_path: Path, name: str) -> None:
    answer = ask(hub, tmp_path, f"hf://datasets/{name}")
    assert answer.startswith(f"error: hf://datasets/{name} ")
    assert any(part in answer for part in ("could not be fetched", "is not of the form", "is not on the hub"))


def test_archives_and_clones_are_unpacked_and_folders_left_as_they_are(archive: Path) -> None:
    folder = locate(str(archive))
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert locate(str(archive.parent)) == folder
    assert locate(str(folder)) == folder
    assert locate(str(folder / "train.csv")) == folder / "train.csv"


def test_a_damaged_archive_and_a_choice_of_two(archive: Path) -> None:
    (archive.parent / "more.zip").write_bytes(archive.read_bytes())
    with pytest.raises(DataError, match=r"holds an archive beside other data files \(Toy_x1.zip, more.zip\)"):
        locate(str(archive.parent))
    archive.write_bytes(archive.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"Toy_x1.zip"):
        locate(str(archive))
