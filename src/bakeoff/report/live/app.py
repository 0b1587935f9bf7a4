"""The routes: pages, their static files and their data. All are GET; none takes a file path.

A study is addressed by its opaque id. Routes are plain functions, which run in threads, so that
computing one study does not delay requests for others.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from bakeoff.core.errors import BakeoffError, UsageError
from bakeoff.report.live import pages, queries
from bakeoff.report.live.items import ItemFilter, ItemOutcome
from bakeoff.report.live.queries import StudyProblem
from bakeoff.report.live.studies import Studies
from bakeoff.report.live.study_feed import FeedState, StudyFeed

POLL_SECONDS = 1.0
"""Seconds between two polls of a study."""
KEEP_ALIVE = ": keep-alive\n\n"
KEEP_ALIVE_SECONDS = 15.0
"""Seconds without events after which a stream sends a keep-alive comment."""
NOT_FOUND_CODES = ("no-study", "no-answers", "unknown-contender")

Search = Annotated[str, Query(max_length=500)]
Number = Annotated[int, Query(ge=1, le=10**9)]


def make_app(studies: Studies, stopping: threading.Event | None = None) -> FastAPI:
    """Return the application for some studies; setting ``stopping`` ends its streams."""
    app = FastAPI(title="bakeoff view", docs_url=None, redoc_url=None, openapi_url=None)
    stop = stopping or threading.Event()
    app.add_exception_handler(BakeoffError, _error_response)
    _add_pages(app, studies)
    _add_data(app, studies)

    @app.get("/api/studies/{name}/events")
    def events(name: str) -> Response:
        feed = studies.get(name)
        return StreamingResponse(_study_events(feed, stop), media_type="text/event-stream")

    @app.get("/api/events")
    def changes() -> Response:
        return StreamingResponse(_list_events(studies, stop), media_type="text/event-stream")

    return app


def _add_pages(app: FastAPI, studies: Studies) -> None:
    @app.get("/")
    def start() -> HTMLResponse:
        return HTMLResponse(pages.page("list.html", title="Studies"))

    @app.get("/studies/{name}")
    def study(name: str) -> HTMLResponse:
        feed = studies.get(name)
        return HTMLResponse(pages.page("study.html", title=feed.status()["name"], study=feed.id))

    @app.get("/compare")
    def comparison(first: str, second: str) -> HTMLResponse:
        feeds = {"first": studies.get(first), "second": studies.get(second)}
        ids = {side: feed.id for side, feed in feeds.items()}
        titles = " and ".join(feed.status()["name"] for feed in feeds.values())
        return HTMLResponse(pages.page("compare.html", title=titles, **ids))

    @app.get("/static/{file}")
    def static(file: str) -> Response:
        kind, text = pages.static(file)
        return Response(text, media_type=kind)


def _add_data(app: FastAPI, studies: Studies) -> None:
    @app.get("/api/studies")
    def list_studies() -> JSONResponse:
        return JSONResponse({"studies": [feed.row() for feed in studies.all()]})

    @app.get("/api/studies/{name}")
    def study(name: str) -> JSONResponse:
        feed = studies.get(name)
        feed.wait_for_snapshot()
        feed.status(fresh=True)
        return JSONResponse(feed.row())

    @app.get("/api/studies/{name}/items")
    def items(
        name: str,
        contender: Annotated[str, Query(max_length=200)] = "",
        outcome: ItemOutcome | None = None,
        q: Search = "",
        page: Number = 1,
    ) -> JSONResponse:
        feed = studies.get(name)
        snapshot = feed.wait_for_snapshot()
        if isinstance(snapshot, StudyProblem):
            raise BakeoffError(*snapshot)
        query = snapshot.item_query
        contenders = query.scored_contenders()
        chosen = contender or next(iter(contenders), "")
        shown = feed.table(chosen).page(ItemFilter(outcome, q.strip(), page))
        choices = [{"method": m, "title": query.titles[m]} for m in contenders]
        return JSONResponse({**shown, "chosen": chosen, "contenders": choices})

    @app.get("/api/compare")
    def compare(first: str, second: str) -> JSONResponse:
        one, two = studies.get(first), studies.get(second)
        result = queries.catch_problems(lambda: queries.compare(one.folder, two.folder), one.folder)
        if isinstance(result, StudyProblem):
            raise BakeoffError(*result)
        return JSONResponse(result)


def _error_response(request: Request, error: Exception) -> Response:
    """Return the response for an error: its code, its cause and a hint."""
    assert isinstance(error, BakeoffError)
    trouble = StudyProblem(error.code, error.cause, error.try_).to_json()
    status = 404 if isinstance(error, UsageError) or error.code in NOT_FOUND_CODES else 409
    if request.url.path.startswith("/api/"):
        return JSONResponse({"trouble": trouble}, status)
    code, cause, try_ = trouble.values()
    text = pages.page("error.html", title="Not found", code=code, cause=cause, try_=try_)
    return HTMLResponse(text, status)


async def _list_events(studies: Studies, stop: threading.Event) -> AsyncIterator[str]:
    """Yield the rows of studies that changed since the list was requested."""
    known: dict[str, Any] | None = None
    quiet = 0.0
    while not stop.is_set():
        rows = await run_in_threadpool(lambda: {f.id: f.row() for f in studies.all()})
        changed = [r for name, r in rows.items() if known is not None and known.get(name) != r]
        known = rows
        quiet = 0.0 if changed or quiet >= KEEP_ALIVE_SECONDS else quiet + POLL_SECONDS
        for row in changed:
            yield _event("study", row)
        if quiet >= KEEP_ALIVE_SECONDS:
            yield KEEP_ALIVE
        await _wait_for_poll(stop)


async def _wait_for_poll(stop: threading.Event) -> None:
    until = time.monotonic() + POLL_SECONDS
    while time.monotonic() < until and not stop.is_set():
        await asyncio.sleep(0.1)


def _event(name: str, value: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(value, allow_nan=False)}\n\n"


async def _study_events(feed: StudyFeed, stop: threading.Event) -> AsyncIterator[str]:
    """Yield a study's state as server-sent events: everything first, then only changes."""
    sent: dict[str, Any] = {}
    quiet = 0.0
    sent["status"] = await run_in_threadpool(
        feed.status
    )  # sent at once, because the first update takes seconds
    yield _event("status", sent["status"])
    while not stop.is_set():
        state = await run_in_threadpool(feed.update)
        changed = list(_changes(state, sent))
        quiet = 0.0 if changed or quiet >= KEEP_ALIVE_SECONDS else quiet + POLL_SECONDS
        for name, value in changed:
            yield _event(name, value)
        if quiet >= KEEP_ALIVE_SECONDS:
            yield KEEP_ALIVE
        await _wait_for_poll(stop)


def _changes(state: FeedState, sent: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the events that a page does not have yet, and record them in ``sent``."""
    if sent.get("status") != state.status:
        sent["status"] = state.status
        yield "status", state.status
    if state.snapshot is None:
        return
    if isinstance(state.snapshot, StudyProblem):
        trouble = state.snapshot.to_json()
        if sent.get("trouble") != trouble:
            sent["trouble"], sent["revision"] = trouble, None
            yield "trouble", trouble
        return
    if sent.get("revision") == state.revision:
        return
    sent["revision"], sent["trouble"] = state.revision, None
    known = sent.setdefault("digests", {})
    order = [s["key"] for s in state.snapshot.sections]
    changed = [s for s in state.snapshot.sections if known.get(s["key"]) != s["digest"]]
    sent["digests"] = {s["key"]: s["digest"] for s in state.snapshot.sections}
    has_items = bool(state.snapshot.item_query.scored_contenders())
    yield "sections", {"order": order, "changed": changed, "items": has_items}
