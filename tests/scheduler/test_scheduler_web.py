"""The JSON API over a real uvicorn, on SQLite and PostgreSQL; its OpenAPI document says what it does."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from lockd_scheduler import Run
from lockd_scheduler.cron import Cron
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.mandates import Mandate
from lockd_scheduler.outputs import write_output
from lockd_scheduler.runs import State
from lockd_scheduler.tables import attempt, schedule
from lockd_scheduler.tables import run as run_table
from lockd_scheduler.web.endpoints import ENDPOINTS
from lockd_scheduler.web.models import Judge, ListRuns
from lockd_scheduler.web.problems import ProblemError
from lockd_scheduler.web.queries import Queries
from lockd_scheduler.web.timeline import drawn
from lockd_scheduler.web.wording import breakable, due
from tests.scheduler.harness import MINUTE, NOON, World
from tests.scheduler.sites import Site, served

HOUR = timedelta(hours=1)


@pytest.fixture
def site(world: World) -> Iterator[Site]:
    """An hourly job that fails at the second hour, one in Berlin, one whose name is awkward."""

    @world.cron.every("1h", name="tick", overlap="allow", catch_up="all", args={"region": "eu"})
    def tick(run: Run, *, region: str) -> None:
        if run.fire_at == NOON + HOUR:
            raise RuntimeError(f"no {region}")

    @world.cron.job("0 2 * * *", tz="Europe/Berlin", name="nightly")
    def nightly() -> None: ...

    @world.cron.every("1d", name="a/b c/start?x=%2F")
    def awkward() -> None: ...

    with served(world) as site:
        for _ in range(3):
            site.process.turn()
            site.process.run_all()
            world.clock.turn(HOUR)
        yield site


def told(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    kind = "application/json" if status == 200 else "application/problem+json"
    assert answer.headers["content-type"] == kind
    return answer.json()


def ask(site: Site, path: str, **body: Any) -> Any:
    return told(site.http.post(f"/api/v1/{path}", json=body))


def test_jobs_have_their_next_fires_in_order_and_come_in_pages(site: Site) -> None:
    jobs = told(site.http.get("/api/v1/jobs", params={"fires": 2}))["jobs"]
    assert [job["name"] for job in jobs] == ["a/b c/start?x=%2F", "nightly", "tick"]
    assert jobs[1]["next_fires"] == ["2026-06-02T00:00:00Z", "2026-06-03T00:00:00Z"]
    assert (jobs[1]["zone"], jobs[1]["schedule"]) == ("Europe/Berlin", "0 2 * * *")
    assert jobs[2]["last_run"]["state"] == "succeeded"
    first = told(site.http.get("/api/v1/jobs", params={"limit": 1}))
    second = told(site.http.get("/api/v1/jobs", params={"limit": 2, "after": first["next"]}))
    assert [job["name"] for job in second["jobs"]] == ["nightly", "tick"]
    assert second["next"] is None
    found = told(site.http.get("/api/v1/jobs", params={"match": "ick"}))["jobs"]
    assert [job["name"] for job in found] == ["tick"]
    assert told(site.http.get("/api/v1/jobs", params={"match": "%"}))["jobs"][0]["name"].startswith("a/b")


def test_a_job_of_any_name_is_found_and_asked_for(site: Site) -> None:
    path = "jobs/a%2Fb%20c%2Fstart%3Fx=%252F"
    assert told(site.http.get(f"/api/v1/{path}"))["definition"]["trigger"]["type"] == "every"
    assert ask(site, f"{path}/pause", note="hm") == {"changed": True}


def test_runs_come_newest_first_in_pages_by_id(site: Site) -> None:
    first = told(site.http.get("/api/v1/runs", params={"job": "tick", "limit": 2}))
    second = told(site.http.get("/api/v1/runs", params={"job": "tick", "before": first["next"]}))
    runs = [*first["runs"], *second["runs"]]
    assert [run["fire_time"] for run in runs] == [f"2026-06-01T{hour}:00:00Z" for hour in (14, 13, 12)]
    [failed] = told(site.http.get("/api/v1/runs", params={"state": "failed"}))["runs"]
    assert failed["error"].strip().endswith("RuntimeError: no eu")


def test_runs_of_a_job_or_a_state_come_in_the_same_order(site: Site) -> None:
    made = ask(site, "jobs/nightly/start")["run"]
    site.process.turn()
    site.process.run_all()
    everything = told(site.http.get("/api/v1/runs"))["runs"]
    of_tick = [one["id"] for one in everything if one["job"] == "tick"]
    pages: list[int] = []
    query: dict[str, Any] = {"job": "tick", "limit": 2}
    while query.get("before", 1) is not None:
        page = told(site.http.get("/api/v1/runs", params=query))
        pages += [one["id"] for one in page["runs"]]
        query["before"] = page["next"]
    assert pages == of_tick
    failed = told(site.http.get("/api/v1/runs", params={"state": "failed"}))["runs"]
    assert failed == [one for one in everything if one["state"] == "failed"] != []
    one = told(site.http.get("/api/v1/runs", params={"job": "nightly", "state": "succeeded", "limit": 1}))
    assert [run["id"] for run in one["runs"]] == [made]


@pytest.mark.parametrize("db_url", ["sqlite"], indirect=True)
def test_the_newest_runs_are_read_in_their_order_and_not_sorted_out_of_all(site: Site) -> None:
    read = Queries(site.world.engine, "ops", version="")
    [tick] = [row.id for row in site.world.schedules() if row.name == "tick"]

    def plan(of: int | None) -> list[str]:
        query = read._newest_runs(ListRuns(), of).compile(
            site.world.engine, compile_kwargs={"literal_binds": True}
        )
        with site.world.engine.connect() as connection:
            return [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}")]

    assert not [step for step in plan(None) if "TEMP B-TREE" in step]
    of_tick = [step for step in plan(tick) if "lockd_run" in step]
    assert len(of_tick) == len(State)
    assert {step.partition("(")[2] for step in of_tick} == {"state=? AND schedule_id=?)"}


def test_a_line_of_too_many_runs_is_drawn_from_the_newest(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Queries(site.world.engine, "ops", version="")
    ids = {row.name: row.id for row in site.world.schedules()}
    end = site.world.clock.now()

    def totals() -> dict[str, int]:
        line = read.timeline(list(ids.values()), start=end - 6 * HOUR, end=end, slices=12)
        return {
            name: sum(sum(cell.states.values()) for cell in line.cells.get(number, ()))
            for name, number in ids.items()
        }

    before = totals()
    assert before["tick"] == 3
    monkeypatch.setattr("lockd_scheduler.web.queries.RUNS_DRAWN_MAX", 2)
    assert totals() == {**before, "tick": 2}
    line = read.timeline([ids["tick"]], start=end - 6 * HOUR, end=end, slices=12)
    assert line.cut == {ids["tick"]: end - 3 * HOUR}
    drawing = drawn(line, ids["tick"])
    assert drawing.blank == 6
    assert "since" in drawing.summary
    assert {mark.x for mark in drawing.marks} == {8, 10}


def test_a_next_fire_that_nobody_has_claimed_is_due() -> None:
    now = datetime.now(UTC)
    assert due(now + timedelta(minutes=5), now) == "in 5min"
    assert due(now - timedelta(minutes=5), now) == "due for 5min"


def test_a_names_line_is_broken_between_its_words_and_it_stays_text() -> None:
    assert breakable("invoices.send_all:<b>") == "invoices.<wbr>send_<wbr>all:<wbr>&lt;b&gt;"
    for name in ("a/b c/start?x=%2F", "::a--", "one\ntwo", ""):
        assert breakable(name).striptags().replace(" ", "") == " ".join(name.split()).replace(" ", "")


def test_one_audit_at_a_time(site: Site) -> None:
    read = Queries(site.world.engine, "ops", version="")
    assert read._one_audit.acquire(blocking=False)  # as an audit that is under way has
    with pytest.raises(ProblemError, match="another audit"):
        read.audit(Judge(since="1d"))
    read._one_audit.release()
    assert read.audit(Judge(since="1d")).jobs
    assert read.audit(Judge(since="1d")).jobs, "the one before has let go"


def test_a_run_tells_its_attempts_and_their_output_piece_by_piece(site: Site) -> None:
    [failed] = told(site.http.get("/api/v1/runs", params={"state": "failed"}))["runs"]
    [attempt] = told(site.http.get(f"/api/v1/runs/{failed['id']}"))["tries"]
    assert (attempt["state"], attempt["number"], attempt["office_token"]) == ("failed", 1, 1)
    rows = [
        {"attempt_id": attempt["id"], "number": n, "stream": "stdout", "written_at": NOON, "text": f"<{n}>\n"}
        for n in (1, 2, 3)
    ]
    write_output(site.world.engine, rows, {})
    path = f"/api/v1/attempts/{attempt['id']}/output"
    first = told(site.http.get(path, params={"limit": 2}))
    assert ([piece["text"] for piece in first["pieces"]], first["ended"]) == (["<1>\n", "<2>\n"], False)
    rest = told(site.http.get(path, params={"after": 2}))
    assert ([piece["text"] for piece in rest["pieces"]], rest["ended"]) == (["<3>\n"], True)


def test_a_start_with_the_same_key_is_one_run_with_its_arguments(site: Site) -> None:
    made = ask(site, "jobs/tick/start", args={"region": "us"}, key="ticket-42")
    assert ask(site, "jobs/tick/start", args={"region": "us"}, key="ticket-42") == made
    assert ask(site, "jobs/tick/start") != made
    run = told(site.http.get(f"/api/v1/runs/{made['run']}"))
    assert (run["args"], run["kind"], run["key"], run["asked_by"]) == (
        {"region": "us"},
        "manual",
        "ticket-42",
        "anyone",
    )


def test_a_run_can_be_cancelled_and_one_that_has_ended_stays(site: Site) -> None:
    made = ask(site, "jobs/nightly/start")["run"]
    assert ask(site, f"runs/{made}/cancel", reason="wrong day") == {"state": "claimed"}
    site.process.turn()
    run = told(site.http.get(f"/api/v1/runs/{made}"))
    assert (run["state"], run["cancel_reason"]) == ("cancelled", "wrong day")
    assert ask(site, f"runs/{made}/cancel") == {"state": "cancelled"}


def test_a_pause_and_its_end_are_revisions_with_a_name_and_a_note(site: Site) -> None:
    until = datetime.now(NOON.tzinfo) + HOUR  # the API asks the database's clock, not the test's
    assert ask(site, "jobs/tick/pause", note="disk", until=until.isoformat()) == {"changed": True}
    job = told(site.http.get("/api/v1/jobs/tick"))
    assert (job["state"], job["pause_note"]) == ("paused", "disk")
    assert ask(site, "jobs/tick/resume") == {"changed": True}
    assert ask(site, "jobs/tick/resume") == {"changed": False}
    changes = told(site.http.get("/api/v1/revisions", params={"job": "tick"}))["revisions"]
    assert {(one["change"], one["changed_by"], one["note"]) for one in changes} == {
        ("created", None, None),
        ("paused", "anyone", "disk"),
        ("unpaused", "anyone", None),
    }


def test_a_backfill_is_asked_for_watched_and_cancelled(site: Site) -> None:
    asked = {"start": "2026-05-31T00:00:00Z", "end": "2026-05-31T06:00:00+00:00", "parallel": 2}
    made = ask(site, "jobs/tick/backfill", **asked)["backfill"]
    site.process.turn()
    [one] = told(site.http.get("/api/v1/backfills", params={"job": "tick"}))["backfills"]
    assert (one["id"], one["runs"], one["live"], one["next_fire_at"]) == (made, 2, 2, "2026-05-31T02:00:00Z")
    assert ask(site, f"backfills/{made}/cancel") == {"changed": True}
    [one] = told(site.http.get("/api/v1/backfills"))["backfills"]
    assert one["cancelled_at"] is not None


def test_p5_the_audit_finds_a_row_that_was_deleted(site: Site, world: World) -> None:
    days = (datetime.now(NOON.tzinfo) - NOON).days + 2  # the database's clock is not the test's
    asked = {"job": "tick", "since": f"{max(days, 2)}d"}
    before = told(site.http.get("/api/v1/audit", params=asked))
    [run] = [
        run
        for run in told(site.http.get("/api/v1/runs"))["runs"]
        if run["fire_time"] == "2026-06-01T13:00:00Z"
    ]
    with world.engine.begin() as connection:
        connection.execute(attempt.delete().where(attempt.c.run_id == run["id"]))
        connection.execute(run_table.delete().where(run_table.c.id == run["id"]))
    after = told(site.http.get("/api/v1/audit", params=asked))
    assert after["real_misses"] == before["real_misses"] + 1
    told(site.http.get("/api/v1/audit", params={"since": "soon"}), 400)


def test_the_status_tells_who_is_in_office(site: Site) -> None:
    status = told(site.http.get("/api/v1/status"))
    assert (status["scheduler"], status["active"], status["office_token"]) == ("ops", "process-1", 1)
    assert (status["jobs"], status["live_runs"], status["here"]) == (3, 0, None)


def test_another_scheduler_in_the_same_database_is_not_seen_or_touched(site: Site, world: World) -> None:
    other = Cron("others")

    @other.every("1h", name="theirs")
    def theirs() -> None: ...

    ledger = Ledger(world.engine, "others")
    mandate = Mandate("others", "local", 1, "them")
    ledger.take_office(mandate, now=NOON)
    ledger.keep_schedules(mandate, {"theirs": theirs.spec}, now=NOON)
    ledger.claim_due(mandate, now=NOON)
    with world.engine.connect() as connection:
        row = connection.execute(
            select(run_table.c.id, attempt.c.id.label("attempt"))
            .join(attempt, attempt.c.run_id == run_table.c.id)
            .join(schedule, schedule.c.id == run_table.c.schedule_id)
            .where(schedule.c.scope == "others")
        ).one()
    told(site.http.get("/api/v1/jobs/theirs"), 404)
    told(site.http.get(f"/api/v1/runs/{row.id}"), 404)
    told(site.http.get(f"/api/v1/attempts/{row.attempt}/output"), 404)
    told(site.http.post(f"/api/v1/runs/{row.id}/cancel", json={}), 404)
    told(site.http.post("/api/v1/jobs/theirs/start", json={}), 404)
    assert "theirs" not in site.http.get("/api/v1/runs").text


WRONG: list[tuple[str, str, Any, int, str]] = [
    ("GET", "jobs/nobody", None, 404, "no job 'nobody'"),
    ("GET", "runs/4711", None, 404, "no run 4711"),
    ("GET", "runs/99999999999999999999999", None, 404, "so large"),
    ("GET", "nothing", None, 404, "Not Found"),
    ("GET", "jobs?limit=0", None, 400, "limit: Input should be greater"),
    ("GET", "jobs?colour=red", None, 400, "colour: Extra inputs"),
    ("GET", "runs?before=99999999999999999999999", None, 400, "before"),
    ("GET", "runs?state=fail", None, 400, "state: Input should be 'claimed'"),
    ("GET", "runs?job=nobody", None, 404, "no job 'nobody'"),
    ("GET", "backfills?job=nobody", None, 404, "no job 'nobody'"),
    ("GET", "revisions?job=nobody", None, 404, "no job 'nobody'"),
    ("GET", "audit?job=nobody", None, 404, "no job 'nobody'"),
    ("POST", "jobs/nobody/start", {}, 404, "no job 'nobody'"),
    ("POST", "jobs/nobody/pause", {}, 404, "no job 'nobody'"),
    ("POST", "jobs/tick/start", {"args": [1]}, 400, "args: Input should be"),
    ("POST", "jobs/tick/start", {"key": ""}, 400, "1 to 200 printable"),
    ("POST", "jobs/tick/start", {"key": "a\0b"}, 400, "key"),
    ("POST", "jobs/tick/start", {"at": "2026-06-01T12:00"}, 400, "at: Input should have timezone"),
    ("POST", "jobs/tick/pause", {"note": "a\0b"}, 400, "NUL"),
    ("POST", "jobs/tick/pause", {"until": "2020-01-01T00:00Z"}, 400, "has passed"),
    ("POST", "jobs/tick/start", {"at": "0001-01-01T00:00+14:00"}, 400, "at: Value error, a moment"),
    ("POST", "jobs/tick/backfill", {}, 400, "start: Field required"),
    (
        "POST",
        "jobs/tick/backfill",
        {"start": "2026-05-02T00:00Z", "end": "2026-05-01T00:00Z"},
        400,
        "start before its end",
    ),
    ("POST", "runs/4711/cancel", {}, 404, "no run 4711"),
    ("POST", "backfills/4711/cancel", {}, 404, "no backfill 4711"),
    ("DELETE", "jobs/tick", None, 405, "Method Not Allowed"),
]


def test_p6_a_wrong_request_is_told_what_is_wrong(site: Site) -> None:
    for method, path, body, status, hint in WRONG:
        problem = told(site.http.request(method, f"/api/v1/{path}", json=body), status)
        assert hint in problem["detail"], (method, path)
        assert problem["status"] == status


def test_p6_a_form_that_is_wrong_is_told_so_on_a_page(site: Site) -> None:
    page = site.http.get("/job", params={"name": "tick"}).text
    token = page.partition('name="token" value="')[2].partition('"')[0]
    forms: list[tuple[str, dict[str, str], str]] = [
        ("/start", {"job": "nobody"}, "no job"),
        ("/start", {"job": "tick", "args": "{"}, "not JSON"),
        ("/start", {"job": "tick", "args": "[1]"}, "are an object"),
        ("/pause", {"job": "tick", "until": "soon"}, "is not a time like"),
        ("/pause", {"job": "tick", "until": "0001-01-01T00:00", "zone": "Asia/Tokyo"}, "is not a time like"),
        ("/pause", {"job": "tick", "until": "2027-01-01T00:00", "zone": "Mars/Base"}, "unknown time zone"),
        ("/backfill", {"job": "tick", "start": "2026-05-01", "end": "2026-04-01"}, "start before its end"),
        (
            "/backfill",
            {"job": "tick", "start": "2026-05-01", "end": "2026-05-02", "parallel": "x"},
            "parallel",
        ),
        ("/cancel", {"run": "x"}, "is not a number"),
        ("/cancel", {"run": "4711"}, "no run 4711"),
        ("/backfill/cancel", {"backfill": "4711"}, "no backfill 4711"),
    ]
    for path, form, hint in forms:
        answer = site.http.post(path, data={**form, "token": token})
        assert answer.status_code in (400, 404), (path, form, answer.text)
        assert hint in answer.text, (path, form)
        assert answer.headers["content-type"].startswith("text/html")
    assert site.http.get("/runs?state=nonsense&before=x").status_code == 400


def test_p6_a_body_that_is_too_large_or_not_json_is_refused(site: Site) -> None:
    path = "/api/v1/jobs/tick/start"
    told(site.http.post(path, content=b"x" * 70_000, headers={"Content-Type": "application/json"}), 413)
    told(site.http.post(path, content=b"{", headers={"Content-Type": "application/json"}), 400)
    told(site.http.post(path, content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    assert told(site.http.post(path))["run"] > 0, "an empty body asks for nothing special"


def test_the_openapi_document_describes_every_endpoint_and_its_references_resolve(site: Site) -> None:
    document = told(site.http.get("/api/v1/openapi.json"))
    assert document["openapi"] == "3.1.0"
    assert {(method.upper(), path) for path, row in document["paths"].items() for method in row} == {
        (row.method, row.template) for row in ENDPOINTS
    }
    operations = [one for row in document["paths"].values() for one in row.values()]
    names = [one["operationId"] for one in operations]
    assert len(set(names)) == len(names)
    for path, row in document["paths"].items():
        for one in row.values():
            given = {part["name"] for part in one["parameters"] if part["in"] == "path"}
            assert {part.strip("{}") for part in path.split("/") if part.startswith("{")} == given
    schemas = document["components"]["schemas"]
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert references <= schemas.keys()
    # What comes back has exactly the fields that are described.
    described = schemas["RunPage"]["properties"].keys()
    assert told(site.http.get("/api/v1/runs")).keys() == described
    run = told(site.http.get("/api/v1/runs"))["runs"][0]
    assert run.keys() == schemas["Run"]["properties"].keys()


def test_a_timeline_and_lists_stand_a_job_with_many_runs(site: Site) -> None:
    """Nine hundred runs are one drawing of at most 96 marks."""
    for _ in range(5):
        site.world.clock.turn(MINUTE)
        site.process.turn()
    assert site.http.get("/").status_code == 200
    page = site.http.get("/job", params={"name": "tick"})
    assert page.status_code == 200
    assert page.text.count("<rect") <= 96
