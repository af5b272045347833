"""Runs in optimum's environment: make one architecture's checkpoint there and export it as ``optimum-cli`` does.

    PEER/bin/python benchmarks/coverage_optimum_export.py NAME FOLDER

The checkpoint is saved by that environment's own transformers, so that nothing fails for having been written by a newer
one. Prints one line of JSON: ``step`` (save or export) and ``why`` where it failed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    """Save and export; whatever is raised is the answer."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    step = "save"
    try:
        from benchmarks.coverage_models import save
        from benchmarks.coverage_more import EVERY

        save(EVERY[name], folder)
        step = "export"
        from optimum.exporters.onnx import main_export

        main_export(str(folder), output=folder / "onnx", task="feature-extraction")
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        print(json.dumps({"step": step, "error": type(error).__name__, "why": lines[0][:300]}))
    else:
        print("{}")


if __name__ == "__main__":
    main()
