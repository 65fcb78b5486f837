"""From an inspection to what the user sees: the text, and the page where one is wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from data.preparation import DataError

Found = TypeVar("Found")


def show(
    html: str | None, inspect: Callable[[], Found], text: Callable[[Found], str], page: Callable[[Found], str]
) -> None:
    """Print what ``inspect`` finds, and write it to the file ``html``. DataError: that cannot be written."""
    path = Path(html).expanduser() if html else None
    if path:  # told before a long scan, not after it
        _check_path(path)
    found = inspect()
    print(text(found), end="")
    if path:
        try:
            path.write_text(page(found), encoding="utf-8")
        except OSError as error:
            raise DataError(f"--html {path} cannot be written: {error.strerror}") from error
        print(f"wrote {path}")


def _check_path(path: Path) -> None:
    """DataError unless ``path`` can be a file."""
    if path.is_dir():
        raise DataError(f"--html {path} is a directory; give the name of a file")
    if not path.parent.is_dir():
        raise DataError(f"--html {path}: no such directory: {path.parent}")
