"""docs/own_data.md, run as it stands: its files are written and its commands executed in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data.table_faults import read_schema
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
FILES = {re.match(r"# (\S+)\n", text).group(1): text for language, text in BLOCKS if language in ("python", "yaml")}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    for name in ("make_tables.py", "shop.yaml"):
        (folder / name).write_text(FILES[name], encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    for language, text in BLOCKS:
        for line in text.splitlines() if language == "bash" else ():
            words = [str(ROOT / "cli.py") if word == "cli.py" else word for word in line.split()]
            assert words[0] == "python"
            command = [sys.executable, *words[1:]]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
    return folder


def test_the_folder_holds_what_the_page_says(workplace):
    (listing,) = [text for language, text in BLOCKS if language == "text"]
    said = {line.split()[0] for line in listing.splitlines()}
    there = {p.relative_to(workplace).as_posix() for p in (workplace / "prepared/shop").rglob("*") if p.is_file()}
    assert said == {name for name in there if name.endswith((".arrow", "schema.json"))}


def test_the_model_was_trained_on_it(workplace):
    (saved,) = workplace.glob("runs/table/*/config.yaml")
    assert yaml.safe_load(saved.read_text())["data"]["init_args"]["path"] == "prepared/shop"
    assert list(workplace.glob("runs/table/*/checkpoints/*.ckpt"))


def test_the_other_descriptions_are_good(tmp_path):
    shop = yaml.safe_load(FILES["shop.yaml"])
    splits = [yaml.safe_load(line) for line in FILES["splits.yaml"].splitlines()[1:]]
    late = {"events": {**shop["events"], **yaml.safe_load(FILES["late.yaml"])["events"]}}
    assert len(splits) == 6
    for change in (*splits, late, yaml.safe_load(FILES["ids.yaml"])):
        path = tmp_path / "changed.yaml"
        path.write_text(yaml.safe_dump({**shop, **change}))
        read_schema(path)
