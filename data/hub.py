"""Where ``--raw`` leads: a file or folder here, a zip archive, or a data-set repository on the Hugging Face hub.

``hf://datasets/OWNER/NAME`` (or ``…/NAME@REVISION``, ``…/NAME/FILE``) is fetched by Hugging Face ``datasets`` into its
cache, once, and archives are unpacked there. A local clone of such a repository is treated the same.
"""

from __future__ import annotations

import os
from pathlib import Path

from data.preparation import DataError

HUB = "hf://"
DATA_ENDINGS = (".csv", ".tsv", ".txt", ".parquet", ".gz", ".zst", ".zip")


def locate(raw: str) -> Path:
    """The local file or folder to read. DataError: nothing is there, or it cannot be fetched or unpacked."""
    if raw.startswith(HUB):
        return _inside(_fetch(raw), raw)
    path = Path(raw).expanduser()
    if path.is_file() and path.suffix == ".zip":
        return _inside([path], raw)
    if path.is_dir():
        files = [f for f in sorted(path.iterdir()) if f.is_file() and f.name.endswith(DATA_ENDINGS)]
        if files and all(f.suffix == ".zip" for f in files):
            return _inside(files, raw)
    return path


def _fetch(url: str) -> list[Path]:
    from datasets import DownloadManager
    from datasets.data_files import DataFilesList

    name = url.removeprefix(f"{HUB}datasets/")
    if name == url or name.count("/") < 1:
        raise DataError(f"{url} is not of the form {HUB}datasets/OWNER/NAME")
    inside = "/".join(name.split("/")[2:])
    base = url.removesuffix(f"/{inside}") if inside else url
    try:
        found = [str(file) for file in DataFilesList.from_patterns([inside or "**"], base_path=base)]
        found = [file for file in found if file.endswith(DATA_ENDINGS)]
        paths = DownloadManager().download(found)
    except Exception as error:  # the hub's client has a dozen kinds, and the network its own
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{url} could not be fetched: {first}; check the name and the network (a gated data set needs "
            "`hf auth login`), or download it and give --raw its folder"
        ) from error
    if not found:
        raise DataError(f"{url} is not on the hub, or holds no data file ({', '.join(DATA_ENDINGS)})")
    return [Path(path) for path in paths]


def _inside(files: list[Path], raw: str) -> Path:
    """The folder (or only file) that the files are in, unpacked."""
    archives = [f for f in files if f.suffix == ".zip"]
    if len(archives) > 1 or (archives and len(files) > 1):
        names = ", ".join(f.name for f in files)
        raise DataError(f"{raw} holds an archive beside other data files ({names}); give --raw one of them")
    if not archives:
        return files[0] if len(files) == 1 else Path(os.path.commonpath(files))
    from datasets import DownloadManager

    try:
        folder = Path(DownloadManager().extract(str(archives[0])))
    except Exception as error:  # zipfile's and the operating system's
        raise DataError(f"{archives[0]} could not be unpacked ({error}); fetch it again") from error
    while folder.is_dir() and len(entries := [f for f in folder.iterdir() if not f.name.startswith((".", "__"))]) == 1:
        folder = entries[0]
    return folder
