"""The door of a Ray cluster: is it open to anybody?

Asked by the executor ``ray`` before it joins a cluster. Ray runs whatever code reaches it, so one
that asks for no token is refused unless the user accepts that. The question is put by a process of
its own, which knows no token; this one imports no ray.
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
"""Asks a cluster without a token: it answers, or it wants one."""


def require_authentication(address: str, consent: bool) -> None:
    """Ask a cluster, as a stranger, whether it lets anybody in; refuse to join one that does.

    Ray listens on all interfaces of a host unless told otherwise, so only an address that Ray
    itself resolves to loopback counts as one.

    Raises:
        EnvironmentProblem: ``ray-unreachable``, ``ray-unauthenticated``.
    """
    stranger = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    stranger["RAY_AUTH_MODE"] = "disabled"
    command = [sys.executable, "-c", _PROBE, address]
    try:
        asked = subprocess.run(
            command, env=stranger, capture_output=True, text=True, timeout=_SECONDS
        )
        door = asked.stdout.split()
    except subprocess.TimeoutExpired:
        door = []
    if len(door) != 2:
        raise EnvironmentProblem(
            "ray-unreachable",
            f"No Ray cluster answers at {address}.",
            "`ray status --address ADDRESS` on this machine, which must be a node of the cluster.",
        )
    if door[0] == "closed":
        os.environ["RAY_AUTH_MODE"] = "token"
        return
    loopback = door[1].rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]")
    if not loopback and not consent:
        raise EnvironmentProblem(
            "ray-unauthenticated",
            f"The Ray cluster at {door[1]} asks for no token: whoever reaches it can run code on "
            "it, read your data and change your results.",
            "start it with RAY_AUTH_MODE=token and one token on all nodes, or accept that with "
            "`ray_unauthenticated = true` under [engine].",
        )
