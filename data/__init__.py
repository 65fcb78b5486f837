"""Data sets: preparation, the prepared format, its reader, the synthetic world, and the modules that serve them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.module import PreparedData, SyntheticData

__all__ = ["PreparedData", "SyntheticData"]


def __getattr__(name: str) -> Any:
    # Lazily: preparation and `--help` import this package, and need no torch.
    if name in __all__:
        from data import module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
