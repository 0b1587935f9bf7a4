"""The live view: who is let in, what is shown of a study and its items, and that it is live."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from helpers.live_server import run_server
from helpers.live_study import (
    ITEMS,
    Texts,
    final_result,
    final_trials,
    search_trials,
    write_study,
)
from helpers.untrusted import PAGES, SECRET_PARTS, SECRETS
from starlette.routing import Route

from bakeoff import api
from bakeoff.core.errors import EnvironmentProblem, UsageError
from bakeoff.report.live import access as guards
from bakeoff.report.live import queries, server
from bakeoff.report.live.access import HEADERS, Access, Guard, host_names
from bakeoff.report.live.app import make_app
from bakeoff.report.live.items import PAGE_SIZE, ItemFilter, ItemTable
from bakeoff.report.live.log_reader import LogReader
from bakeoff.report.live.studies import Studies, study_id
from bakeoff.report.live.study_feed import StudyFeed
from bakeoff.study.storage.database import Reader, Writer
from bakeoff.study.storage.lock import hold_lock

PORT = 8757
HOME = f"http://127.0.0.1:{PORT}"
TELLING = ("small", "somebody", "question", "LoRA", "pareto", "bakeoff.mount", "--ground")
"""What only somebody with the token may read."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view") / "runs"
    write_study(folder / "small")
    return folder


@pytest.fixture(scope="module")
def gate(runs: Path) -> Guard:
    stopped = threading.Event()
    stopped.set()  # streams end at once: what they send is tried on a real server
    return Guard(make_app(Studies([runs]), stopped), Access(PORT))


@pytest.fixture
def stranger(gate: Guard) -> TestClient:
    return TestClient(gate, HOME, follow_redirects=False)


@pytest.fixture
def friend(gate: Guard) -> TestClient:
    client = TestClient(gate, HOME, follow_redirects=False)
    assert client.get("/", params={"token": gate.access.token}).status_code == 303
    return client


def of(folder: Path) -> TestClient:
    """Return a client that is let in to the studies in a folder."""
    gate = Guard(make_app(Studies([folder])), Access(PORT))
    return TestClient(gate, HOME, headers={"authorization": f"Bearer {gate.access.token}"})


def paths(gate: Guard, study: Path) -> list[str]:
    """Return the address of every route there is."""
    name = study_id(study.resolve())
    routes = [r for r in gate.app.routes if isinstance(r, Route)]  # type: ignore[attr-defined]
    assert len(routes) == len(gate.app.routes)  # type: ignore[attr-defined]
    query = f"?first={name}&second={name}"
    return [r.path.format(name=name, file="view.css") + query for r in routes]


def test_routes_require_token(
    gate: Guard, stranger: TestClient, friend: TestClient, runs: Path
) -> None:
    """Every route is closed without the token."""
    known = paths(gate, runs / "small")
    assert len(known) >= 9
    for path in [*known, "/docs", "/openapi.json", "/redoc", "/nothing", "/static/../x"]:
        for headers in ({}, {"authorization": "Bearer x"}, {"cookie": f"{gate.access.cookie}=x"}):
            answer = stranger.get(path, headers=headers)
            assert answer.status_code == 401, path
            assert not [word for word in TELLING if word in answer.text], path
            assert "set-cookie" not in answer.headers
    for path in known:
        assert friend.get(path).status_code in (200, 409), path  # 409: a study beside itself


def test_token_becomes_cookie(gate: Guard, stranger: TestClient) -> None:
    """The token is exchanged for a cookie and removed from the address."""
    assert stranger.get("/?token=wrong").status_code == 401
    assert stranger.get("/?token=").status_code == 401
    answer = stranger.get("/", params={"token": gate.access.token})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert gate.access.token not in cookie
    assert stranger.get("/").status_code == 200
    assert gate.access.token not in stranger.get("/").text
    bearer = {"authorization": f"Bearer {gate.access.token}"}
    assert TestClient(gate, HOME).get("/api/studies", headers=bearer).status_code == 200


def test_token_redirects_stay_local(gate: Guard) -> None:
    """A token does not redirect to another site."""
    for path in ("//evil.example/", "/studies/x", "/\\evil.example", "//", ""):
        sent: list[Any] = []

        async def send(message: Any, kept: list[Any] = sent) -> None:
            kept.append(message)

        scope = {
            "type": "http", "method": "GET", "path": path,
            "query_string": f"token={gate.access.token}".encode(),
            "headers": [(b"host", f"127.0.0.1:{PORT}".encode())],
        }  # fmt: skip
        asyncio.run(gate(scope, None, send))  # type: ignore[arg-type]
        assert sent[0]["status"] == 401
        assert b"location" not in dict(sent[0]["headers"])


def test_browser_code_works_once() -> None:
    """The code for the browser works once."""
    access = Access(PORT)
    assert access.single_use_code is not None
    code = access.single_use_code
    assert access.accepts_token(code)
    assert not access.accepts_token(code)
    assert access.accepts_token(access.token)


def test_secrets_are_compared_in_constant_time(
    stranger: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    compare = secrets.compare_digest

    def spy(one: bytes, two: bytes) -> bool:
        asked.append(one)
        return compare(one, two)

    monkeypatch.setattr(guards.secrets, "compare_digest", spy)
    stranger.get("/?token=guess")
    stranger.get("/", headers={"authorization": "Bearer other"})
    stranger.get("/", headers={"authorization": "Bearer naïve".encode()})
    assert {b"guess", b"other"} <= set(asked)


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example",
     f"127.0.0.1:{PORT}@evil.example", f"0.0.0.0:{PORT}", f"localhost.:{PORT}", ""],
)  # fmt: skip
def test_another_name_is_refused(friend: TestClient, host: str) -> None:
    answer = friend.get("/api/studies", headers={"host": host})
    assert answer.status_code == 421
    assert "small" not in answer.text


@pytest.mark.parametrize("host", [f"127.0.0.1:{PORT}", f"localhost:{PORT}", f"[::1]:{PORT}"])
def test_own_host_names_accepted(gate: Guard, host: str) -> None:
    """Requests for the machine's own names are accepted."""
    bearer = {"authorization": f"Bearer {gate.access.token}", "host": host}
    assert TestClient(gate, HOME).get("/api/studies", headers=bearer).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:1"},
        {"origin": f"https://127.0.0.1:{PORT}"}, {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)  # fmt: skip
def test_another_page_is_refused(friend: TestClient, headers: dict[str, str]) -> None:
    answer = friend.get("/api/studies", headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    own = {"origin": HOME, "sec-fetch-site": "same-origin"}
    assert friend.get("/api/studies", headers=own).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_only_get_requests_answered(friend: TestClient, method: str) -> None:
    """Only GET requests are answered."""
    answer = friend.request(method, "/api/studies")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


def test_every_answer_has_the_headers(
    gate: Guard, stranger: TestClient, friend: TestClient, runs: Path
) -> None:
    answers = [friend.get(p) for p in (*paths(gate, runs / "small"), "/nothing", "/static/x")]
    answers += [stranger.get("/"), friend.get("/", headers={"host": "x"}), friend.post("/")]
    for answer in answers:
        found = {name: answer.headers.get(name) for name in HEADERS}
        assert found == HEADERS, answer.url
    policy = HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    for needed in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"):
        assert needed in policy
    assert HEADERS["cache-control"] == "no-store"


def test_pages_have_no_inline_script(friend: TestClient, runs: Path) -> None:
    """Pages hold no inline script."""
    name = study_id((runs / "small").resolve())
    for path in ("/", f"/studies/{name}"):
        text = friend.get(path).text
        assert "<style" not in text
        assert " style=" not in text
        assert text.count("<script") == text.count("<script src=") + text.count(
            '<script type="module" src='
        ) + text.count('<script type="application/json"')


@pytest.mark.parametrize(
    "path",
    ["/static/..%2Fapp.py", "/static/%2Fetc%2Fpasswd", "/studies/..%2F..", "/studies/small",
     "/api/studies/%2Ftmp", "/api/studies/..%2Fsmall/items"],
)  # fmt: skip
def test_path_traversal_refused(friend: TestClient, path: str) -> None:
    """No file is reached by a path in the address."""
    answer = friend.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text


def test_list_shows_each_study(friend: TestClient, runs: Path) -> None:
    """The list shows each study."""
    name = study_id((runs / "small").resolve())
    whole = friend.get(f"/api/studies/{name}").json()
    (row,) = friend.get("/api/studies").json()["studies"]
    assert row == whole
    assert (row["name"], row["base"], row["task"]) == ("small", "somebody/tiny", "sft")
    assert (row["control"], row["contenders"]) == ("LoRA", ["OFT", "IA3"])
    assert (row["done"], row["planned"], row["state"], row["best"]) == (15, 15, "done", "OFT")
    assert row["verdict"].startswith("Use OFT: +25.0 points against LoRA")
    assert row["trouble"] is None
    assert not [value for value in row.values() if isinstance(value, str) and "/" + "tmp" in value]


def items(client: TestClient, study: Path, **wish: Any) -> dict[str, Any]:
    answer = client.get(f"/api/studies/{study_id(study.resolve())}/items", params=wish)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_items_paged_by_difference(friend: TestClient, runs: Path) -> None:
    """Items come in pages, the largest difference first."""
    study = runs / "small"
    whole = [items(friend, study, contender="oft", page=n) for n in (1, 2, 3)]
    assert [len(p["rows"]) for p in whole] == [PAGE_SIZE, PAGE_SIZE, ITEMS - 2 * PAGE_SIZE]
    assert {(p["total"], p["pages"]) for p in whole} == {(ITEMS, 3)}
    rows = [row for p in whole for row in p["rows"]]
    assert sorted(r["item"] for r in rows) == list(range(1, ITEMS + 1))
    order = [(-abs(r["gain"]), r["item"]) for r in rows]
    assert order == sorted(order)
    assert items(friend, study, contender="oft", page=99)["page"] == 3
    first = rows[0]
    assert (first["prompt"], first["reference"]) == ("question 73", "answer 73")
    assert [a["seed"] for a in first["control"]["answers"]] == [1, 2, 3]
    assert first["control"]["answers"][0]["answer"] == "lora guess 73, seed 1"
    assert (first["control"]["mean"], first["contender"]["mean"], first["gain"]) == (0, 1, 1)


def test_outcomes_part_the_items(friend: TestClient, runs: Path) -> None:
    study = runs / "small"
    found = {
        name: items(friend, study, contender="ia3", outcome=name)
        for name in ("wins", "losses", "both_right", "both_wrong")
    }
    assert {name: page["total"] for name, page in found.items()} == {
        "wins": 0, "losses": 17, "both_right": 56, "both_wrong": 47,
    }  # fmt: skip
    for name, page in found.items():
        assert page["counts"][name] == page["total"]
        assert all(row["outcome"] == name for row in page["rows"])
    assert all(row["gain"] < 0 for row in found["losses"]["rows"])


def test_search_covers_questions_and_answers(friend: TestClient, runs: Path) -> None:
    """The search covers questions and answers."""
    study = runs / "small"
    assert [r["item"] for r in items(friend, study, q="QUESTION 119")["rows"]] == [120]
    assert items(friend, study, q="lora guess", contender="oft")["total"] == ITEMS - 71
    assert items(friend, study, q="nobody wrote this")["rows"] == []
    both = items(friend, study, q="seed 3", outcome="both_wrong", contender="oft")
    assert 0 < both["total"] < ITEMS


def test_invalid_query_refused(friend: TestClient, runs: Path) -> None:
    """An invalid query is refused."""
    name = study_id((runs / "small").resolve())
    answer = friend.get(f"/api/studies/{name}/items", params={"contender": "oftt"})
    assert answer.status_code == 404
    assert answer.json()["trouble"]["code"] == "unknown-contender"
    assert "did you mean 'oft'" in answer.json()["trouble"]["try"]
    for wish in ({"page": 0}, {"page": "x"}, {"outcome": "x"}, {"q": "x" * 501}):
        assert friend.get(f"/api/studies/{name}/items", params=wish).status_code == 422


def test_wins_match_report(tmp_path: Path) -> None:
    """Wins and losses equal those of the report.

    Also where a seed of one method is missing: equal seeds are paired.
    """
    study = write_study(tmp_path / "small", finals=False)
    with Writer(study / "study.db") as store:
        kept = [t for t in final_trials() if (t.method.name, t.seed) != ("ia3", 3)]
        store.save_group([final_result(t, Texts()) for t in kept])
    report = api.report(study)
    table = ItemTable.read(study, queries.snapshot(study).item_query, "ia3")
    counts = table.page(ItemFilter())["counts"]
    (own,) = (m for m in report["items"]["methods"] if m["method"] == "ia3")
    assert own["n_seeds"] == 2
    assert (counts["wins"], counts["losses"]) == (own["better"], own["worse"])
    assert sum(counts.values()) == ITEMS


def test_unscored_row_texts_hidden(tmp_path: Path) -> None:
    """Texts of rows that were not scored are not shown."""
    study = write_study(tmp_path / "small")
    rows = study / "data" / "test.jsonl"
    assert ItemTable.read(study, queries.snapshot(study).item_query, "oft").texts
    rows.write_text(rows.read_text().replace("question 1", "question x"))
    assert ItemTable.read(study, queries.snapshot(study).item_query, "oft").texts == ()


def test_items_without_data_and_links(tmp_path: Path) -> None:
    """Items work without frozen data and contain no outgoing links."""
    study = write_study(tmp_path / "runs" / "small")
    data = study / "data" / "test.jsonl"
    elsewhere = tmp_path / "elsewhere.jsonl"
    shutil.move(data, elsewhere)
    assert items(of(tmp_path / "runs"), study)["rows"][0]["prompt"] is None
    data.symlink_to(elsewhere)
    assert items(of(tmp_path / "runs"), study)["rows"][0]["prompt"] is None


def test_study_without_scores(tmp_path: Path) -> None:
    """A study without scores is shown as such."""
    study = write_study(tmp_path / "runs" / "young", "young", finals=False)
    client = of(tmp_path / "runs")
    answer = client.get(f"/api/studies/{study_id(study.resolve())}/items")
    assert answer.json()["trouble"]["code"] == "no-answers"
    row = client.get(f"/api/studies/{study_id(study.resolve())}").json()
    assert (row["done"], row["planned"], row["state"]) == (6, 15, "stopped")


def test_hostile_text_inert_secrets_hidden(tmp_path: Path) -> None:
    """Hostile text stays text and secrets stay hidden."""
    hostile = (*PAGES, *SECRETS.values(), "half \ud83d", "\x1b[31mred\x00")
    study = write_study(tmp_path / "runs" / "hostile", "hostile", hostile[:-2])
    client = of(tmp_path / "runs")
    name = study_id(study.resolve())
    pages = [client.get(f"/api/studies/{name}/items", params={"page": n}) for n in (1, 2, 3)]
    answers = [*pages, client.get(f"/api/studies/{name}"), client.get(f"/studies/{name}")]
    for answer in answers:
        assert answer.status_code == 200
        kind = answer.headers["content-type"]
        assert kind.startswith("application/json") or "<script>window" not in answer.text
        assert not [p for p in SECRET_PARTS.values() if p in answer.text]
    assert any("<img src=x" in answer.text for answer in pages)


def damaged(study: Path) -> None:
    raw = bytearray((study / "study.db").read_bytes())
    raw[2 * 4096 : 5 * 4096] = b"x" * (3 * 4096)
    (study / "study.db").write_bytes(bytes(raw))


def newer(study: Path) -> None:
    with closing(sqlite3.connect(study / "study.db")) as raw, raw:
        raw.execute("UPDATE study SET value = '99' WHERE key = 'schema_version'")


def foreign(study: Path) -> None:
    (study / "study.db").unlink()
    with closing(sqlite3.connect(study / "study.db")) as raw, raw:
        raw.execute("CREATE TABLE other (x)")


def odd(study: Path) -> None:
    with closing(sqlite3.connect(study / "study.db")) as raw, raw:
        raw.execute("UPDATE study SET value = '{\"methods\": 1}' WHERE key = 'about'")


@pytest.mark.parametrize(
    ("harm", "code"),
    [(damaged, "database-damaged"), (newer, "database-version"), (foreign, "database-foreign"),
     (odd, "study-unreadable")],
)  # fmt: skip
def test_broken_study_listed_with_others(tmp_path: Path, harm: Any, code: str) -> None:
    """A broken study is listed with its error beside the others."""
    for name in ("good", "bad"):
        write_study(tmp_path / "runs" / name, name)
    harm(tmp_path / "runs" / "bad")
    client = of(tmp_path / "runs")
    bad = study_id((tmp_path / "runs" / "bad").resolve())
    client.get(f"/api/studies/{bad}")
    rows = {row["folder"]: row for row in client.get("/api/studies").json()["studies"]}
    assert rows["bad"]["trouble"]["code"] == code
    assert rows["bad"]["trouble"]["try"]
    assert rows["bad"]["state"] == "error"
    assert rows["good"]["trouble"] is None
    answer = client.get(f"/api/studies/{bad}/items")
    assert (answer.status_code, answer.json()["trouble"]["code"]) == (409, code)
    assert client.get(f"/studies/{bad}").status_code == 200
    good = study_id((tmp_path / "runs" / "good").resolve())
    answer = client.get("/api/compare", params={"first": good, "second": bad})
    assert answer.json()["trouble"]["code"] == code


def test_two_studies_side_by_side(tmp_path: Path) -> None:
    names = ("one", "two")
    first, second = (write_study(tmp_path / "runs" / name, name) for name in names)
    ids = {"first": study_id(first.resolve()), "second": study_id(second.resolve())}
    client = of(tmp_path / "runs")
    found = client.get("/api/compare", params=ids).json()
    assert [s["name"] for s in found["studies"]] == ["one", "two"]
    assert {m["method"]: m["agreement"] for m in found["methods"]} == {
        "lora": "control", "oft": "agree", "ia3": "agree",
    }  # fmt: skip
    assert str(tmp_path) not in json.dumps(found)
    assert client.get("/compare", params=ids).status_code == 200


def test_studies_found_missing_folders_named(tmp_path: Path) -> None:
    """Studies are found and missing folders are named."""
    runs = tmp_path / "runs"
    one, two = write_study(runs / "one"), write_study(runs / "group" / "two")
    found = [feed.folder for feed in Studies([runs, one]).all()]
    assert found == [two.resolve(), one.resolve()]
    (tmp_path / "empty").mkdir()
    assert Studies([tmp_path / "empty"]).all() == []
    with pytest.raises(UsageError, match="no-study"):
        Studies([tmp_path / "gone"])


def test_running_study_marked(tmp_path: Path) -> None:
    """A running study is marked."""
    feed = StudyFeed(write_study(tmp_path / "small"), "x")
    assert not (tmp_path / "small" / ".lock").exists()  # looking makes no file
    feed.update()
    assert feed.status(fresh=True)["state"] == "done"
    with hold_lock(tmp_path / "small"):
        status = feed.status(fresh=True)
        assert (status["state"], status["phase"], status["phase_total"]) == ("running", "Final", 9)
    assert not (tmp_path / "small" / ".lock.json").exists()


def test_pages_share_one_computation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = StudyFeed(write_study(tmp_path / "small"), "x")
    computed = []
    compute = queries.snapshot

    def counted(folder: Path) -> queries.Snapshot:
        computed.append(folder)
        return compute(folder)

    monkeypatch.setattr(queries, "snapshot", counted)
    pages = [threading.Thread(target=feed.update) for _ in range(8)]
    for page in pages:
        page.start()
    for page in pages:
        page.join()
    assert isinstance(feed.wait_for_snapshot(), queries.Snapshot)
    assert len(computed) == 1
    assert feed.update().snapshot is feed.wait_for_snapshot()


def test_log_adds_up_progress(tmp_path: Path) -> None:
    """The log of the page adds up the progress messages."""
    reader, log = LogReader(tmp_path), tmp_path / "log.jsonl"
    assert reader.update() == {"phase": None, "done": 0, "total": 0, "message": None}

    def line(second: int, **event: Any) -> str:
        return json.dumps({"time": f"2026-01-01T00:00:{second:02}+00:00", **event}) + "\n"

    log.write_text(line(0, event="phase", title="Search", total=6, done=2))
    with log.open("a") as file:
        file.write(line(10, event="advance", what="a"))
        file.write("no json\n[1]\n" + line(20, event="advance", what="b")[:30])
    assert reader.update()["done"] == 3
    with log.open("a") as file:
        file.write(line(20, event="advance", what="b")[30:])
        file.write(line(20, event="say", text="half \ud83d and \x1b[31m"))
    found = reader.update()
    assert (found["phase"], found["done"]) == ("Search", 4)
    assert "\x1b" not in found["message"]
    log.write_text("")
    assert reader.update()["done"] == 4


class Stream:
    """What a page hears of a study: its events, read one by one."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def event(self, name: str) -> Any:
        """Return the next event of a kind."""
        heard = ""
        for text in self._lines:
            if text.startswith("event: "):
                heard = text.removeprefix("event: ")
            elif text.startswith("data: ") and heard == name:
                return json.loads(text.removeprefix("data: "))
        raise AssertionError(f"the stream ended without {name}")


def test_page_receives_trial_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page receives trials as they are written."""
    monkeypatch.setattr("bakeoff.report.live.study_feed.MIN_INTERVAL", 0.2)
    monkeypatch.setattr("bakeoff.report.live.app.POLL_SECONDS", 0.2)
    study = write_study(tmp_path / "runs" / "small", finals=False)
    name = study_id(study.resolve())
    with run_server([tmp_path / "runs"]) as opened:
        bearer = {"authorization": f"Bearer {opened.guard.access.token}"}
        url = f"{opened.address}api/studies/{name}/events"
        with httpx.stream("GET", url, headers=bearer, timeout=30) as answer:
            stream = Stream(answer.iter_lines())
            assert stream.event("status")["done"] == 6
            first = stream.event("sections")
            assert first["order"] == [s["key"] for s in first["changed"]]
            assert first["items"] is False
            with Writer(study / "study.db") as store:
                trials = final_trials()
                store.save_group([final_result(t, Texts()) for t in trials[:6]])
                assert stream.event("status")["done"] == 12
                second = stream.event("sections")
                store.save_group([final_result(t, Texts()) for t in trials[6:]])
            assert second["items"] is True
            keys = [s["key"] for s in second["changed"]]
            assert "verdict" in keys
            assert "sensitivity" not in keys  # nothing new of the search
            assert stream.event("status")["done"] == 15
        began = time.monotonic()
        with httpx.stream("GET", url, headers=bearer, timeout=30) as answer:
            next(answer.iter_lines())
    assert time.monotonic() - began < 5  # open pages do not keep the server


def test_serve_command_runs_until_interrupt(tmp_path: Path) -> None:
    """The command serves until it is interrupted."""
    write_study(tmp_path / "runs" / "small")
    command = [sys.executable, "-m", "bakeoff", "view", "--no-browser", str(tmp_path / "runs")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with httpx.Client(follow_redirects=True) as client:
            assert "Studies" in client.get(url).text
            found = client.get(url.split("?")[0] + "api/studies").json()["studies"]
        assert [study["name"] for study in found] == ["small"]
        assert httpx.get(url.split("?")[0]).status_code == 401
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "")
    assert url.split("=")[1] not in err  # no request is logged


def test_binds_loopback_by_default(tmp_path: Path) -> None:
    """The server listens on the loopback address by default."""
    (tmp_path / "runs").mkdir()
    for host in ("0.0.0.0", "192.0.2.1", "example.org", "::"):
        with pytest.raises(UsageError, match="ssh -L 8757:127.0.0.1:8757") as refused:
            server.bind_server([tmp_path / "runs"], server.ServerOptions(host=host))
        assert refused.value.code == "view-remote"
    assert set(host_names("127.0.0.1")) == {"127.0.0.1", "localhost", "::1"}
    assert "box.example" in host_names("box.example")
    assert f"box.example:{PORT}" in Access(PORT, host_names("box.example")).hosts
    opened = server.bind_server(
        [tmp_path / "runs"], server.ServerOptions("0.0.0.0", 0, allow_remote=True)
    )
    assert opened.address.startswith("http://127.0.0.1:")
    opened.bound.close()


def test_used_port_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that is in use is refused."""
    (tmp_path / "runs").mkdir()
    first = server.bind_server([tmp_path / "runs"], server.ServerOptions(port=0))
    monkeypatch.setattr(server, "PORT", first.port)
    second = server.bind_server([tmp_path / "runs"], server.ServerOptions())
    assert second.port != first.port
    assert second.guard.access.token != first.guard.access.token
    with pytest.raises(EnvironmentProblem, match="port-taken"):
        server.bind_server([tmp_path / "runs"], server.ServerOptions(port=first.port))
    assert first.bound.getsockname()[0] == "127.0.0.1"
    first.bound.close()
    second.bound.close()


def test_single_study_is_start_page(tmp_path: Path) -> None:
    """With one study, the start page is that study."""
    study = write_study(tmp_path / "runs" / "small")
    opened = server.bind_server([study], server.ServerOptions(port=0))
    assert opened.guard.landing == f"/studies/{study_id(study.resolve())}"
    opened.bound.close()


def test_snapshot_counts_trials_and_answers(runs: Path) -> None:
    """A snapshot counts the trials and reads some answers."""
    with Reader(runs / "small" / "study.db") as reader:
        assert {m: (t.planned, t.ended) for m, t in reader.count_trials().items()} == dict.fromkeys(
            ("lora", "oft", "ia3"), (5, 5)
        )
        trial = final_trials()[0]
        found = reader.item_results([trial.id, search_trials()[0].id], "test")
        assert list(found) == [trial.id]
        assert (len(found[trial.id].scores), sum(found[trial.id].scores)) == (ITEMS, 71)
        assert set(reader.values("spec", "nothing")) == {"spec"}
