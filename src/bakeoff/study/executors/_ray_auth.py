"""Check that a Ray cluster requires authentication before joining it.

Ray runs any code that reaches it, so a cluster without a token is refused unless the user accepts
that. The check runs in a subprocess without the token; this process does not import ray.
"""

from __future__ import annotations

import os
import subprocess
import sys

from bakeoff.core.errors import EnvironmentProblem

_SECONDS = 30
_PROBE = """
import sys, ray
from ray._private import services
from ray.exceptions import AuthenticationError
try:
    address = services.canonicalize_bootstrap_address_or_die(sys.argv[1])
    ray._raylet.GcsClient(address=address).cluster_id
    print("open", address)
except AuthenticationError:
    print("closed", address)
"""
"""Connects to a cluster without a token, and prints whether it needed one."""


def require_authentication(address: str, consent: bool) -> None:
    """Connect without a token; refuse a cluster that accepts this, unless ``consent`` is given.

    Clusters on the loopback interface may do without authentication. Ray listens on all interfaces
    by default, so only an address that Ray itself resolves to loopback counts as such.

    Raises:
        EnvironmentProblem: ``ray-unreachable``, ``ray-unauthenticated``.
    """
    anonymous = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    anonymous["RAY_AUTH_MODE"] = "disabled"
    command = [sys.executable, "-c", _PROBE, address]
    try:
        probe = subprocess.run(
            command, env=anonymous, capture_output=True, text=True, timeout=_SECONDS
        )
        answer = probe.stdout.split()
    except subprocess.TimeoutExpired:
        answer = []
    if len(answer) != 2:
        raise EnvironmentProblem(
            "ray-unreachable",
            f"No Ray cluster responds at {address}.",
            "`ray status --address ADDRESS` on this machine, which must be a node of the cluster.",
        )
    if answer[0] == "closed":
        os.environ["RAY_AUTH_MODE"] = "token"
        return
    loopback = answer[1].rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]")
    if not loopback and not consent:
        raise EnvironmentProblem(
            "ray-unauthenticated",
            f"The Ray cluster at {answer[1]} does not require a token: anyone who can reach it can "
            "run code on it, read your data and change your results.",
            "start it with RAY_AUTH_MODE=token and one token on all nodes, or accept this with "
            "`ray_unauthenticated = true` under [engine].",
        )
