"""Run payloads on a Ray cluster: ``workers`` slots, each a process with its share of a GPU.

Only Ray Core is used. The parent stays the database's only writer. A slot is an actor that takes
one payload after another; a payload is taken when a slot is ready. If a node is lost, its payloads
are rescheduled and resume from the checkpoints in the study folder. Nodes that cannot see the
folder or have other versions are avoided. Values cross as JSON text. Only this module imports ray.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from operator import length_hint
from pathlib import Path
from typing import Any

from bakeoff.core import worker_log
from bakeoff.core.errors import EnvironmentProblem, UsageError, describe_error, first_line
from bakeoff.core.jobs import find_segment, import_function
from bakeoff.core.names import sanitize_name
from bakeoff.core.results import Status
from bakeoff.core.versions import installed_versions
from bakeoff.study.executors import Options, Outcome, _ray_auth, _transfer

log = logging.getLogger(__name__)
HEALTHY = (Status.DONE, Status.STOPPED, Status.DIVERGED)
"""Statuses of trials after which their process may be reused."""
KILLED = "the worker died: it crashed, its node ran out of memory, or a user killed it"


@dataclass
class _Job:
    index: int
    payload: dict[str, Any]
    lost: int = 0


@dataclass
class _Slot:
    actor: Any
    node: str | None = None
    host: str = ""
    job: _Job | None = None
    dying: bool = False


class Ray:
    """Executor for several machines. On a stop request, running work is completed."""

    remote = True

    def __init__(self, workers: int = 1, options: Options = Options()) -> None:  # noqa: B008  # frozen
        self.workers = workers
        self._log_level = worker_log.configured_level()
        self._fresh_process, self._should_stop = options.fresh_process, options.should_stop
        engine = options.engine
        self._address: str | None = engine.get("ray_address")
        self._sends = engine.get("ray_files") == "sent"
        self._consent = bool(engine.get("ray_unauthenticated"))
        self._cpus: int = engine.get("threads") or 1
        self._gpus: float | None = 0 if engine.get("device") == "cpu" else engine.get(GPUS)
        self._retries: int = engine.get("segment_retries", 3)

    def map(self, function: str, payloads: Iterable[dict[str, Any]]) -> Iterator[Outcome]:
        """Yield outcomes as they arrive from the cluster.

        Raises:
            EnvironmentProblem: ``ray-missing``, ``ray-unreachable``, ``ray-unauthenticated``,
                ``ray-refused``, ``ray-no-room``, before any work.
            UsageError: ``ray-client-address``.
        """
        most = min(self.workers, length_hint(payloads, self.workers))
        if most == 0:
            return
        ray = _connect(self._address, self._consent, self._cpus * self.workers)
        gpus = float("GPU" in ray.cluster_resources()) if self._gpus is None else self._gpus
        needs = {"num_cpus": self._cpus, "num_gpus": gpus}
        _require_capacity(ray, needs)
        accepted = takewhile(lambda _: not self._should_stop(), payloads)
        source, count = enumerate(map(_with_absolute_folder, accepted)), length_hint(payloads, -1)
        run = _MapRun(ray, function, source, count, needs, self._sends, self._log_level)
        try:
            while run.start_slots(most):
                yield from run.wait_for_slot(self._retries, self._fresh_process)
        finally:
            for slot in run.slots.values():
                ray.kill(slot.actor)

    def close(self) -> None:
        """Do nothing: the connection stays open for the next study of this process."""


GPUS = "gpus_per_segment"
CAPACITY_WARNING_SECONDS = 60
_joined_cluster: list[Any] = []
"""Address and CPUs of the cluster that this process joined or started; empty before."""


@dataclass
class _MapRun:
    """State of one ``map`` call; slots are keyed by the object reference that they wait for."""

    ray: Any
    function: str
    source: Iterator[tuple[int, dict[str, Any]]]
    count: int
    """Number of payloads, negative if unknown."""
    needs: dict[str, float]
    sends: bool
    log_level: int
    slots: dict[Any, _Slot] = field(default_factory=dict)
    lost: deque[_Job] = field(default_factory=deque)
    avoided: set[str] = field(default_factory=set)
    exhausted: bool = False
    shared: Any = None
    failed_starts: int = 0

    def start_slots(self, most: int) -> bool:
        """Start slots for the remaining work; return whether any slot is active."""
        busy = sum(slot.job is not None for slot in self.slots.values())
        needed = min(most, busy + len(self.lost)) if self.exhausted else most
        while len(self.slots) < needed:
            options: dict[str, Any] = {**self.needs, "max_restarts": 0, "max_task_retries": 0}
            if bad := _alive_nodes(self.ray) & self.avoided:
                options["label_selector"] = {"ray.io/node-id": f"!in({','.join(bad)})"}
            actor = self.ray.remote(_NodeWorker).options(**options).remote(self.log_level)
            self.slots[actor.ready.remote(sys.path, installed_versions())] = _Slot(actor)
        return bool(self.slots)

    def wait_for_slot(self, retries: int, fresh: bool) -> Iterator[Outcome]:
        """Wait for one slot, handle its answer and yield the outcomes."""
        ended: list[Any] = []
        while not ended:
            ended, _ = self.ray.wait(list(self.slots), timeout=CAPACITY_WARNING_SECONDS)
            if not ended and not any(slot.node for slot in self.slots.values()):
                log.warning(
                    "no node of the Ray cluster has free capacity for a group of trials: waiting"
                )
        slot = self.slots.pop(ended[0])
        try:
            answer = self.ray.get(ended[0])
        except self.ray.exceptions.RayError as error:
            yield from self._handle_failure(slot, error, retries)
            return
        if slot.dying and slot.job is not None:  # it answered before the kill arrived
            yield from self._retry(slot.job, slot.host, retries)
            return
        if slot.job is None:
            slot.node, slot.host = answer["node"], answer["host"]
            self.failed_starts = 0
            if answer["differs"] is None:
                self._start_next(slot)
            else:
                yield from self._avoid_node(slot, answer["differs"])
            return
        job, slot.job = slot.job, None
        result = json.loads(answer[0])
        if result.get("cannot_run"):
            self.lost.appendleft(job)
            yield from self._avoid_node(slot, result["cannot_run"])
            return
        outcome = self._outcome(job, result, answer[1])
        if fresh or outcome.value is None or _has_failed_trial(outcome.value):
            self.ray.kill(slot.actor)
        else:
            self._start_next(slot)
        yield outcome

    def _start_next(self, slot: _Slot) -> None:
        """Give a ready slot its next payload; if there is none, end all idle slots."""
        slot.job = self._next_job()
        if slot.job is not None:
            text, checkpoints = json.dumps(slot.job.payload), None
            if self.sends:
                self.shared = self.shared or self.ray.put(
                    _transfer.pack_shared_files(slot.job.payload)
                )
                checkpoints = _transfer.pack_checkpoints(slot.job.payload)
            self.slots[slot.actor.work.remote(self.function, text, self.shared, checkpoints)] = slot
            return
        self.ray.kill(slot.actor)
        for ref in [r for r, other in self.slots.items() if other.job is None]:
            self.ray.kill(self.slots.pop(ref).actor)

    def _next_job(self) -> _Job | None:
        if self.lost:
            return self.lost.popleft()
        if not self.exhausted:
            for index, payload in self.source:
                self.exhausted = index + 1 == self.count
                return _Job(index, payload)
            self.exhausted = True
        return None

    def _outcome(self, job: _Job, result: dict[str, Any], outputs: bytes | None) -> Outcome:
        if outputs is not None and result["value"] is not None:
            try:
                _transfer.unpack_outputs(outputs, job.payload)
            except (OSError, ValueError) as error:
                why = f"the worker's outputs could not be written: {first_line(error)}"
                return Outcome(job.index, None, why)
        return Outcome(job.index, result["value"], result["error"])

    def _handle_failure(self, slot: _Slot, error: Exception, retries: int) -> Iterator[Outcome]:
        """Handle a slot without an answer: its node was lost, or its process died or ended."""
        if isinstance(error, self.ray.exceptions.ActorUnavailableError):
            # The actor may still be running. Kill it, and wait for its death before the payload
            # runs again: two workers must not write the same trial.
            self.ray.kill(slot.actor)
            slot.dying = True
            self.slots[slot.actor.ready.remote([], {})] = slot
            return
        node_lost = slot.dying or (
            slot.node is not None and slot.node not in _alive_nodes(self.ray)
        )
        job, slot.job = slot.job, None
        if job is None:
            self.failed_starts += 1
            if self.failed_starts > retries and (job := self._next_job()) is not None:
                yield Outcome(job.index, None, f"no worker could start: {_crash_reason(error)}")
        elif node_lost:
            yield from self._retry(job, slot.host, retries)
        else:
            self.ray.kill(slot.actor)
            yield Outcome(job.index, None, f"{_crash_reason(error)} (node {slot.host})")

    def _retry(self, job: _Job, host: str, retries: int) -> Iterator[Outcome]:
        job.lost += 1
        if job.lost > retries:
            times = f"{job.lost} times, the last one" if job.lost > 1 else "once:"
            yield Outcome(job.index, None, f"the node it ran on was lost {times} {host}")
        else:
            self.lost.append(job)

    def _avoid_node(self, slot: _Slot, why: str) -> Iterator[Outcome]:
        """Avoid an unsuitable node; if none is left, fail one payload with the reason."""
        assert slot.node is not None
        self.ray.kill(slot.actor)
        self.avoided.add(slot.node)
        if _nodes_with_capacity(self.ray, self.needs) <= self.avoided:
            self.avoided.clear()
            if (job := self._next_job()) is not None:
                yield Outcome(job.index, None, f"no node of the cluster can run it: {why}")


class _NodeWorker:
    """Actor on a node: one process that runs payloads."""

    def __init__(self, log_level: int) -> None:
        self._log_level = log_level

    def ready(self, path: list[str], versions: dict[str, str]) -> dict[str, Any]:
        """Return the node's id and host, and how its versions differ from the parent's."""
        import ray

        sys.path.extend(p for p in path if p not in sys.path and Path(p).is_dir())
        node = ray.get_runtime_context().get_node_id()
        return {
            "node": node,
            "host": socket.gethostname(),
            "differs": _transfer.version_mismatch(versions),
        }

    def work(
        self, function: str, text: str, shared: bytes | None, checkpoints: bytes | None
    ) -> tuple[str, bytes | None]:
        """Run one payload; return its result as JSON text, and its packed output files."""
        payload, outputs = json.loads(text), None
        reason = _transfer.cannot_run_reason(payload, sent=shared is not None)
        if reason is not None:
            return json.dumps({"cannot_run": reason}), None
        try:
            if shared is None or checkpoints is None:
                name = sanitize_name(f"{socket.gethostname()}-{os.getpid()}")
                with worker_log.log_to_study(payload, name, self._log_level):
                    value = import_function(function)(payload)
            else:
                # the study folder is not here: Ray keeps the worker's stderr in its own logs
                with (
                    tempfile.TemporaryDirectory() as name,
                    worker_log.log_to_stderr(self._log_level),
                ):
                    _transfer.unpack((shared, checkpoints), Path(name))
                    moved = _transfer.with_folder(payload, Path(name))
                    value = import_function(function)(moved)
                    outputs = _transfer.pack_outputs(moved, Path(name))
            return json.dumps({"value": value, "error": None}), outputs
        except BaseException as error:  # the contract: an outcome, never an exception
            message = describe_error(error)
            return json.dumps({"value": None, "error": message}), None


def _has_failed_trial(value: dict[str, Any]) -> bool:
    """Return whether a trial failed in a process, so that it should not be reused."""
    return any(result.get("status") not in HEALTHY for result in value.get("results", ()))


def _crash_reason(error: Exception) -> str:
    """Return why a worker gave no answer."""
    if type(error).__name__ == "OutOfMemoryError":
        return "the worker was killed by Ray: its node ran low on memory"
    if "worker process has died" in str(error):
        return KILLED
    return f"the worker ended without an answer: {_last_line(error)}"


def _last_line(error: Exception) -> str:
    """Return the last line of Ray's message, which has the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]


def _with_absolute_folder(payload: dict[str, Any]) -> dict[str, Any]:
    inner = find_segment(payload)
    return (
        payload
        if inner is None
        else _transfer.with_folder(payload, Path(inner["folder"]).resolve())
    )


def _alive_nodes(ray: Any) -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _nodes_with_capacity(ray: Any, needs: dict[str, float]) -> set[str]:
    """Return the ids of live nodes with enough CPUs and GPUs for a slot."""
    return {
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"]
        and node["Resources"].get("CPU", 0) >= needs["num_cpus"]
        and node["Resources"].get("GPU", 0) >= needs["num_gpus"]
    }


def _require_capacity(ray: Any, needs: dict[str, float]) -> None:
    if _nodes_with_capacity(ray, needs):
        return
    raise EnvironmentProblem(
        "ray-no-room",
        f"No node of the Ray cluster has {needs['num_cpus']:g} CPUs and {needs['num_gpus']:g} GPUs "
        "for a group of trials.",
        f"change `{GPUS}` or `threads` under [engine], or start the nodes first (`ray status`).",
    )


def _connect(requested: str | None, consent: bool, cpus: int) -> Any:
    """Return the module ray, connected to the requested cluster or to a local one.

    A local cluster ends with this process. A connection that the caller made is used as it is.
    """
    address = requested or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise UsageError(
            "ray-client-address",
            f"{address} is the address of Ray's client server, which bakeoff does not use.",
            'run bakeoff on a node of the cluster, with `ray_address = "auto"`.',
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        os.environ["RAY_AUTH_MODE"] = "token"
        if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # with this switch, meant for hosts whose firewall prompts, Ray listens on 127.0.0.1 only
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray = _import_ray()
    if (
        ray.is_initialized()
        and _joined_cluster
        and (_joined_cluster[0] != address or _joined_cluster[1] < cpus)
    ):
        ray.shutdown()  # an earlier study used another cluster or a smaller one
    if not ray.is_initialized():
        if address != "local":
            _ray_auth.require_authentication(address, consent)
        _init_ray(ray, address, cpus)
        _joined_cluster[:] = address, cpus if address == "local" else math.inf
    return ray


def _import_ray() -> Any:
    try:
        import ray
        import ray._private.worker
    except ImportError as error:
        raise EnvironmentProblem(
            "ray-missing",
            'executor = "ray" needs the package ray, which is not installed.',
            "`pip install 'bakeoff[ray]'`, on every node; or executor = \"process\".",
        ) from error
    return ray


def _init_ray(ray: Any, address: str, cpus: int) -> None:
    # Ray prints to stdout, where bakeoff prints results; errors are in the outcomes anyway
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    ray._raylet.Config.initialize("")  # drop what this process has cached of the environment
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    local_options: dict[str, Any] = {}
    if address == "local":
        local_options = {"num_cpus": max(cpus, os.cpu_count() or 1), "include_dashboard": False}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local_options)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, OSError) as error:
        raise EnvironmentProblem(
            "ray-refused",
            f"The Ray cluster at {address} cannot be joined: {first_line(error)}",
            "put the cluster's token into RAY_AUTH_TOKEN or ~/.ray/auth_token, use the versions of "
            "ray and Python that its nodes have, and run on one of them.",
        ) from error
    finally:
        if main:
            signal.signal(
                signal.SIGTERM, handler
            )  # Ray installs its own, which would change our exit codes


EXECUTOR = Ray
