"""One preparation in a process of its own: `python -m benchmarks.prepare_once taobao RAW OUT '{"min_count": 10}'`.

The last line that it prints is JSON: seconds without imports, seconds of the imports, and the peak memory. What a
preparation imports on its way is imported first, so that the seconds are those of the work.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

from benchmarks.processes import peak_bytes


def main() -> None:
    name, raw, out, options = sys.argv[1:]
    started = time.perf_counter()
    from data.preparation import DATASETS

    for package in ("datasets", "ibis", "ibis.backends.duckdb", "data.engine", "data.prepared", "data.rejects"):
        importlib.import_module(package)
    module = importlib.import_module(DATASETS[name].module)
    imported = time.perf_counter()
    schema = module.prepare(Path(raw), Path(out), getattr(module, DATASETS[name].options)(**json.loads(options)))
    seconds = time.perf_counter() - imported
    answer = {"seconds": seconds, "import_seconds": imported - started, "peak_bytes": peak_bytes()}
    print(json.dumps(answer | {"rows": schema.rows, "counts": schema.provenance["counts"]}))


if __name__ == "__main__":
    main()
