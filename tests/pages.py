"""What the tests of pages share: the elements of one, and the browser that draws it."""

from __future__ import annotations

import os
import shutil
from html.parser import HTMLParser

import pytest

PHONE = 390
# What a browser does on its own at a start, none of which a page needs.
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Elements(HTMLParser):
    """Every element's name and attributes, all the text, and that of the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def chromium() -> str:
    """The browser's program; the test is skipped where there is none."""
    found = os.environ.get("KUNLUN_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("no chromium found; install it or set KUNLUN_CHROMIUM to the program")
    return found
