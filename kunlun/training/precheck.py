"""The checks that need no Lightning, whose import takes longer than they do: most mistakes are refused before it."""

from __future__ import annotations

from kunlun.command_line import Request
from kunlun.config_check import ConfigChecker
from kunlun.training.runs import RunOptions


def precheck(request: Request) -> ConfigChecker:
    """Check the seed, ``run`` and ``model``; ConfigError if they are wrong. The rest is for KunlunCLI to check."""
    checker, values = ConfigChecker(request.tree), request.tree.values
    if not request.asks_help:
        checker.value("seed_everything", values.get("seed_everything", 0), bool | int)
        checker.arguments("run", values.get("run", {}), RunOptions)

        from torch import nn

        checker.component("model", values.get("model"), (nn.Module,), linked={"schema"})
    return checker
