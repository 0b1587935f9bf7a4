"""Ray carries segments: nodes are lost, unfit or closed, and the numbers stay those of one process.

Clusters are small and of this machine; where ray is not installed, all of this is skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.resume import comparable

from bakeoff import api
from bakeoff.study.config import parse_spec
from bakeoff.study.executors import Options
from bakeoff.study.executors import ray as executor
from bakeoff.study.executors.ray import Ray

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")

TESTS = Path(__file__).parent
TOKEN = "f" * 64


def node_of(value: dict[str, Any]) -> dict[str, Any]:
    import ray

    time.sleep(value.get("seconds", 0))
    return {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()}


def hold_once(value: dict[str, Any]) -> dict[str, Any]:
    """Say where this is; never come back from the first try."""
    where, marker = node_of({}), Path(value["folder"]) / f"{value['n']}.node"
    if value["n"] == 0 and not marker.exists():
        marker.write_text(where["node"])
        time.sleep(600)
    return where


def make(workers: int, fresh: bool = False, **engine: Any) -> Ray:
    return Ray(workers, Options(fresh_process=fresh, engine=engine))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of two nodes with one CPU each, beside a head that only rules."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def lose(cluster: Any, node_id: str) -> None:
    """Kill all processes of a node."""
    (node,) = [n for n in cluster.worker_nodes if n.node_id == node_id]
    cluster.remove_node(node, allow_graceful=False)


def lose_when(cluster: Any, file: Path) -> threading.Thread:
    """Kill the node whose id a file will hold."""

    def watch() -> None:
        while not file.exists() or not file.read_text():
            time.sleep(0.05)
        lose(cluster, file.read_text())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("retries", [3, 0])
def test_lost_node_work_rescheduled(cluster: Any, tmp_path: Path, retries: int) -> None:
    """The work of a lost node is rescheduled."""
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    watching = lose_when(cluster, tmp_path / "0.node")
    payloads = [{"n": n, "folder": str(tmp_path)} for n in range(3)]
    through = make(2, ray_address=cluster.address, segment_retries=retries)
    outcomes = {o.index: o for o in through.map(f"{__name__}:hold_once", payloads)}
    watching.join()
    lost = (tmp_path / "0.node").read_text()
    if retries == 0:
        assert outcomes[0].value is None
        assert "node it ran on was lost once" in (outcomes[0].error or "")
    else:
        assert outcomes[0].error is None
    found = [o.value["node"] for o in outcomes.values() if o.value is not None]
    assert len(found) == (3 if retries else 2)
    assert found[-1] != lost


def test_mismatched_node_avoided(cluster: Any, tmp_path: Path) -> None:
    """A node with other versions is avoided."""
    other = tmp_path / "other"
    (other / "peft-0.0.1.dist-info").mkdir(parents=True)
    (other / "peft-0.0.1.dist-info" / "METADATA").write_text("Name: peft\nVersion: 0.0.1\n")
    path = os.pathsep.join([str(other), *filter(None, sys.path)])
    bad = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": path})
    payloads = [{"seconds": 0.2} for _ in range(4)]
    alone = list(make(1, ray_address=cluster.address).map(f"{__name__}:node_of", payloads[:1]))
    assert alone[0].value is None
    assert "peft 0.0.1 (parent: " in (alone[0].error or "")
    good = cluster.add_node(num_cpus=1)
    outcomes = list(make(2, ray_address=cluster.address).map(f"{__name__}:node_of", payloads))
    assert [o.error for o in outcomes] == [None] * 4
    assert {o.value["node"] for o in outcomes if o.value} == {good.node_id} != {bad.node_id}


def test_unreachable_paths_reported(cluster: Any, tmp_path: Path) -> None:
    """A folder that a node cannot see is reported."""
    cluster.add_node(num_cpus=1)
    through = make(1, ray_address=cluster.address)
    payloads = [{"folder": str(tmp_path / "gone")}, {"folder": str(tmp_path)}]
    gone, there = through.map(f"{__name__}:node_of", payloads)
    assert "does not see the folder" in (gone.error or "")
    assert there.error is None
    base = {"base_path": str(tmp_path / "base"), "folder": str(tmp_path)}
    (missing,) = through.map(f"{__name__}:node_of", [{"segment": base}])
    assert "does not see the base's folder" in (missing.error or "")


def test_slots_reused_and_probes_isolated(cluster: Any) -> None:
    """A slot is reused, and a probe has a process of its own."""
    cluster.add_node(num_cpus=1)
    payloads: list[dict[str, Any]] = [{} for _ in range(3)]
    for fresh, processes in ((False, 1), (True, 3)):
        through = make(1, fresh=fresh, ray_address=cluster.address)
        found = list(through.map(f"{__name__}:node_of", payloads))
        assert len({o.value["pid"] for o in found if o.value}) == processes


def test_cluster_without_capacity_refused(cluster: Any) -> None:
    """A cluster without capacity is refused."""
    from bakeoff.core.errors import EnvironmentProblem

    cluster.add_node(num_cpus=1)
    through = make(1, ray_address=cluster.address, gpus_per_segment=0.5)
    with pytest.raises(EnvironmentProblem) as error:
        list(through.map(f"{__name__}:node_of", [{}]))
    assert error.value.code == "ray-no-room"


def test_node_loss_keeps_numbers(
    cluster: Any,
    study_values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A study that loses a node gives the same numbers."""
    study_values["budget"] |= {"steps": 20, "race": "on", "extend": 0, "seeds": 1}
    whole = api.run(parse_spec(study_values), tmp_path, tmp_path / "whole")
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    lost: list[str] = []
    begin, again = executor._MapRun._start_next, executor._MapRun._retry

    def begin_and_lose(self: Any, slot: Any) -> None:
        begin(self, slot)
        if not lost and slot.job is not None and slot.job.payload.get("start", 0) > 0:
            time.sleep(0.2)  # the segment is under way
            lose(cluster, slot.node)
            lost.append("killed")

    def noted(self: Any, *arguments: Any) -> Any:
        lost.append("again")
        return again(self, *arguments)

    monkeypatch.setattr(executor._MapRun, "_start_next", begin_and_lose)
    monkeypatch.setattr(executor._MapRun, "_retry", noted)
    study_values["engine"] |= {"executor": "ray", "workers": 2, "ray_address": cluster.address}
    out = tmp_path / "carried"
    report = api.run(parse_spec(study_values), tmp_path, out)
    assert lost == ["killed", "again"]
    assert comparable(report) == comparable(whole)


DRIVER = """
import sys
from bakeoff.study.executors import Options
from bakeoff.study.executors.ray import Ray
from bakeoff.core.errors import BakeoffError
if __name__ == "__main__":
    address, consent = sys.argv[1], sys.argv[2] == "consent"
    try:
        engine = {"ray_address": address, "ray_unauthenticated": consent}
        through = Ray(1, Options(engine=engine))
        seconds = 20 if sys.argv[2] == "slow" else 0
        (found,) = through.map("test_ray:node_of", [{"seconds": seconds}])
        print("ran" if found.value else found.error)
    except BakeoffError as error:
        print(error.code, error.exit_code)
"""
HEAD = """
import ray, sys
made = ray.init(
    address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
)
print(made.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


def environment(**own: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    return {**kept, "PYTHONPATH": path, "HOME": own.pop("home"), **own}


def drive(address: str, how: str, **own: str) -> str:
    command = [sys.executable, "-c", DRIVER, address, how]
    done = subprocess.run(command, env=environment(**own), capture_output=True, text=True)
    return done.stdout.strip() or done.stderr


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start a cluster in a process of its own; return its address."""
    started = []

    def start(**own: str) -> str:
        process = subprocess.Popen(
            [sys.executable, "-c", HEAD], env=environment(home=str(tmp_path), **own),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        return process.stdout.readline().strip()

    yield start
    for process in started:
        process.communicate()


def test_unauthenticated_cluster_needs_consent(head: Callable[..., str], tmp_path: Path) -> None:
    """An unauthenticated cluster is refused without consent."""
    address = head(RAY_AUTH_MODE="disabled")
    if address.startswith("127."):
        pytest.skip("this host has no address but loopback")
    assert drive(address, "no", home=str(tmp_path)) == "ray-unauthenticated 6"
    assert drive(address, "consent", home=str(tmp_path)) == "ran"


def test_closed_cluster_requires_token(head: Callable[..., str], tmp_path: Path) -> None:
    """A cluster with authentication requires its token."""
    address = head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    assert drive(address, "no", home=str(tmp_path)) == "ray-refused 6"
    assert drive(address, "no", home=str(tmp_path), RAY_AUTH_TOKEN="e" * 64) == "ray-refused 6"
    assert drive(address, "no", home=str(tmp_path), RAY_AUTH_TOKEN=TOKEN) == "ran"


def test_addresses_that_cannot_be_joined(tmp_path: Path) -> None:
    assert drive("ray://127.0.0.1:10001", "no", home=str(tmp_path)) == "ray-client-address 2"
    assert drive("auto", "no", home=str(tmp_path), RAY_TMPDIR=str(tmp_path)).startswith("ray-un")


def test_out_of_memory_is_an_outcome(tmp_path: Path) -> None:
    """Any memory in use is too much for this cluster's nodes."""
    low = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "200"}
    assert "its node ran low on memory" in drive("local", "slow", home=str(tmp_path), **low)


LOCAL = """
import os, signal, subprocess, sys
from bakeoff.study.executors import _ray_auth
from bakeoff.study.executors.ray import Ray

def ours(*_):
    sys.exit(143)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, ours)
    first, second = Ray(1).map("test_executors:misbehave", [{"do": "die"}, {"do": "nothing"}])
    assert first.value is None and second.value == {"fine": True}
    assert signal.getsignal(signal.SIGTERM) is ours
    import ray
    address = ray.get_runtime_context().gcs_address
    assert address.startswith("127.0.0.1:"), address
    os.environ.pop("RAY_AUTH_MODE")
    _ray_auth.require_authentication(address, False)
    assert os.environ.get("RAY_AUTH_MODE") == "token", "authentication is off"
    print("done", flush=True)
    list(Ray(1).map("test_executors:sleep", [{"pid_file": sys.argv[1]}]))
"""


def test_local_cluster_private_and_closed(tmp_path: Path) -> None:
    """A cluster started by bakeoff is private, quiet and ends with the study."""
    pid_file = tmp_path / "pid"
    process = subprocess.Popen(
        [sys.executable, "-c", LOCAL, str(pid_file)], env=environment(home=str(tmp_path)),
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n", "something else stood on stdout"
    deadline = time.monotonic() + 60
    while not pid_file.exists() or not pid_file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = psutil.Process(int(pid_file.read_text()))
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs([worker], timeout=60)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE], "it outlived its parent"
    assert not (tmp_path / ".ray" / "auth_token").exists(), "the token is for this run alone"
