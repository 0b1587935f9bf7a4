"""Compare a resumed study with an uninterrupted one."""

from __future__ import annotations

import copy
from typing import Any


def comparable(report: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is a measured time or says where and how it was run."""
    kept = copy.deepcopy({k: v for k, v in report.items() if k not in ("timing", "provenance")})
    for method in kept["methods"]:
        method["cost"] = {
            k: v for k, v in method["cost"].items()
            if k in ("trainable_parameters", "adapter_bytes")
        }  # fmt: skip
        del method["front_probability"]
    # fronts and the sentence about cheaper methods rest on measured costs
    del kept["pareto"], kept["front"], kept["recommendation"]
    return kept
