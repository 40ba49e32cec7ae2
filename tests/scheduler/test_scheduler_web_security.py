"""Who gets in over HTTP, as what, from where; and that nothing a job is called or says becomes HTML."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lockd_scheduler import BadSchedule
from lockd_scheduler.engines import open_engine
from lockd_scheduler.outputs import write_output
from lockd_scheduler.outside import Outside, OutsideSettings
from lockd_scheduler.runs import State
from lockd_scheduler.web import Users
from lockd_scheduler.web.job_rows import needs_admin
from lockd_storage.schema import upgrade
from tests.scheduler.harness import NOON, World
from tests.scheduler.sites import PASSWORDS, Site, auth_file, served

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """On SQLite alone: none of this depends on the database."""
    engine = open_engine(f"sqlite:///{tmp_path}/ledger.db")
    upgrade(engine, branch="scheduler")
    world = World(engine)

    @world.cron.every("1h", name="tick")
    def tick() -> None: ...

    @world.cron.every("1h", name=f"evil {EVIL}", args={"x": EVIL})
    def evil(*, x: str) -> None:
        raise RuntimeError(x)

    world.cron.shell("@every 1d", "true", name="backup", env={"PGPASSWORD": "hunter2"})
    yield world
    engine.dispose()


@pytest.fixture
def open_site(world: World) -> Iterator[Site]:
    """Without users: everyone on this machine may do everything."""
    with served(world) as site:
        site.process.turn()
        while site.process.runner.attempts:
            claimed = site.process.pop()
            if claimed.job != "backup":
                site.process.worker.execute(claimed)
        yield site


@pytest.fixture
def site(world: World, tmp_path: Path) -> Iterator[Site]:
    """With vera, otto and anna."""
    with served(world, users=Users.load(auth_file(tmp_path))) as site:
        yield site


def token_of(page: httpx.Response) -> str:
    found = re.search(r'name="token" value="([0-9a-f]{64})"', page.text)
    assert found is not None, page.text
    return found[1]


# From where.


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7423", "127.0.0.1.evil.example", "", "[bad"])
def test_without_users_only_this_machines_names_are_answered_to(open_site: Site, host: str) -> None:
    """A name that its owner points at 127.0.0.1 makes his pages ours (DNS rebinding)."""
    for path in ("/", "/api/v1/jobs", "/metrics", "/healthz"):
        assert open_site.http.get(path, headers={"Host": host}).status_code in (400, 403), path


@pytest.mark.parametrize("host", ["localhost:{}", "127.0.0.1:{}", "[::1]:{}"])
def test_this_machines_names_are_answered_to(open_site: Site, host: str) -> None:
    assert open_site.http.get("/", headers={"Host": host.format(open_site.port)}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_site_changes_nothing_and_reads_no_json(
    open_site: Site, headers: dict[str, str]
) -> None:
    token = token_of(open_site.http.get("/job", params={"name": "tick"}))
    posted = open_site.http.post("/pause", data={"job": "tick", "token": token}, headers=headers)
    assert posted.status_code == 403
    assert open_site.http.post("/api/v1/jobs/tick/pause", json={}, headers=headers).status_code == 403
    assert open_site.http.get("/api/v1/jobs", headers=headers).status_code == 403
    assert open_site.http.get("/api/v1/jobs/tick").json()["state"] == "active"


def test_a_link_from_elsewhere_may_lead_to_a_page(open_site: Site) -> None:
    assert open_site.http.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_a_form_needs_its_token(open_site: Site) -> None:
    for token in ("", "0" * 64, "ä"):
        answer = open_site.http.post("/pause", data={"job": "tick", "token": token})
        assert answer.status_code == 403
    assert open_site.http.get("/api/v1/jobs/tick").json()["state"] == "active"
    token = token_of(open_site.http.get("/job", params={"name": "tick"}))
    assert open_site.http.post("/pause", data={"job": "tick", "token": token}).status_code == 303
    assert open_site.http.get("/api/v1/jobs/tick").json()["state"] == "paused"


def test_nothing_is_shared_with_other_origins_and_every_answer_says_so(open_site: Site) -> None:
    for path in ("/", "/api/v1/jobs", "/page.js", "/nothing", "/api/v1/nothing", "/metrics"):
        headers = open_site.http.get(path, headers={"Origin": open_site.url}).headers
        assert not [name for name in headers if name.startswith("access-control-")], path
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


# Nothing of theirs is ours.


def test_what_jobs_are_called_and_say_is_text(open_site: Site, world: World) -> None:
    """Names, arguments, errors and output; the policy forbids inline script besides."""
    [run] = open_site.http.get("/api/v1/runs", params={"state": State.FAILED.value}).json()["runs"]
    attempt = open_site.http.get(f"/api/v1/runs/{run['id']}").json()["tries"][0]["id"]
    said = {"attempt_id": attempt, "number": 1, "stream": "stdout", "written_at": NOON, "text": EVIL}
    write_output(world.engine, [said], {})
    for path in ("/", f"/job?name=evil {EVIL}", "/runs", f"/runs/{run['id']}", f"/job?name={EVIL}"):
        page = open_site.http.get(path).text
        assert "alert(1)" in page, path
        assert EVIL not in page, path
        assert not re.search(r"<[^>]+ (style|on\w+)=", page), path


def test_what_may_be_a_secret_of_a_runner_is_starred(open_site: Site) -> None:
    for path in ("/api/v1/jobs/backup", "/api/v1/revisions?job=backup", "/job?name=backup"):
        text = open_site.http.get(path).text
        assert "PGPASSWORD" in text
        assert "hunter2" not in text


# As what.


def test_without_a_login_there_is_only_health(site: Site) -> None:
    assert site.http.get("/healthz").status_code == 200
    assert site.http.get("/readyz").status_code == 200
    for path in ("/api/v1/jobs", "/metrics"):
        answer = site.http.get(path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic")
    for path in ("/", "/runs", "/job?name=tick"):
        answer = site.http.get(path)
        assert (answer.status_code, answer.headers["location"][:7]) == (303, "/login?")
    assert site.http.post("/api/v1/jobs/tick/start", json={}).status_code == 401
    assert site.http.post("/pause", data={"job": "tick"}).status_code == 401


def test_a_viewer_looks_an_operator_changes_and_an_admin_runs_shell_jobs(site: Site) -> None:
    may = {
        "vera": {"read": 200, "start": 403, "shell": 403, "backfill": 403},
        "otto": {"read": 200, "start": 200, "shell": 403, "backfill": 403},
        "anna": {"read": 200, "start": 200, "shell": 200, "backfill": 200},
    }
    day = {"start": "2020-05-01T00:00Z", "end": "2020-05-03T00:00Z"}
    for name, expected in may.items():
        with site.as_user(name) as http:
            found = {
                "read": http.get("/api/v1/runs").status_code,
                "start": http.post("/api/v1/jobs/tick/start", json={}).status_code,
                "shell": http.post("/api/v1/jobs/backup/start", json={}).status_code,
                "backfill": http.post("/api/v1/jobs/backup/backfill", json=day).status_code,
            }
            assert found == expected, name
            assert http.post("/api/v1/jobs/tick/pause", json={}).status_code == expected["start"]
            assert http.post("/api/v1/runs/1/cancel", json={}).status_code == expected["start"]
    with site.as_user("vera") as http:
        runs = http.get("/api/v1/runs", params={"job": "backup"}).json()["runs"]
        assert [run["asked_by"] for run in runs] == ["anna"]


def test_whatever_the_ledger_names_to_be_run_needs_an_admin() -> None:
    """A process job of a file may name any function, os.system too: it is as good as a shell line."""
    assert needs_admin({"runner": {"kind": "shell", "command": "true"}})
    assert needs_admin({"runner": {"kind": "process", "function": "os:system"}})
    assert not needs_admin({"runner": {"kind": "process"}})
    assert not needs_admin({})


def test_the_page_offers_what_the_role_allows_and_its_forms_check_again(site: Site) -> None:
    with site.as_user("vera") as http:
        page = http.get("/job", params={"name": "tick"})
        assert "Run now" not in page.text
    with site.as_user("otto") as http:
        page = http.get("/job", params={"name": "backup"})
        assert "Run now" not in page.text
        forced = http.post("/start", data={"job": "backup", "token": token_of(page)})
        assert forced.status_code == 403
        other = token_of(page)
    with site.as_user("anna") as http:
        assert http.post("/start", data={"job": "backup", "token": other}).status_code == 403, (
            "another's token"
        )
        token = token_of(http.get("/job", params={"name": "backup"}))
        assert http.post("/start", data={"job": "backup", "token": token}).status_code == 303


def test_a_viewers_own_token_lets_no_form_of_theirs_change_anything(site: Site) -> None:
    site.http.post("/login", data={"user": "vera", "password": PASSWORDS["vera"]})
    token = token_of(site.http.get("/"))
    for path in ("/pause", "/resume", "/start", "/backfill"):
        assert site.http.post(path, data={"job": "tick", "token": token}).status_code == 403, path
    assert site.http.get("/api/v1/jobs/tick").json()["state"] == "active"


def test_a_wrong_name_or_password_is_told_apart_by_nothing(site: Site) -> None:
    answers = [
        site.http.get("/api/v1/jobs", auth=auth).json()
        for auth in (("vera", "wrong"), ("nobody", "wrong"), ("", ""))
    ]
    assert answers[0] == answers[1] == answers[2]
    for header in ("Basic", "Basic !!!", "Bearer abc", "Basic dmVyYQ=="):
        assert site.http.get("/api/v1/jobs", headers={"Authorization": header}).status_code == 401
    form = site.http.post("/login", data={"user": "vera", "password": "wrong"})
    assert (form.status_code, "set-cookie" in form.headers) == (403, False)


def test_a_login_by_form_ends_with_the_logout_also_for_a_copy_of_its_cookie(site: Site) -> None:
    form = {"user": "otto", "password": PASSWORDS["otto"], "next": "/runs?state=failed"}
    answer = site.http.post("/login", data=form)
    assert answer.headers["location"] == "/runs?state=failed"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    page = site.http.get("/job", params={"name": "tick"})
    assert "otto (operator)" in page.text
    assert site.http.post("/pause", data={"job": "tick", "token": token_of(page)}).status_code == 303
    copied = dict(site.http.cookies)
    assert site.http.post("/logout", data={"token": "0" * 64}).status_code == 403
    assert site.http.post("/logout", data={"token": token_of(page)}).status_code == 303
    with httpx.Client(base_url=site.url, cookies=copied) as http:
        assert http.get("/api/v1/jobs").status_code == 401


@pytest.mark.parametrize(
    "place", ["//evil.example", "/\\evil.example", "http://evil.example", "", "/\r\nX: y"]
)
def test_a_login_leads_nowhere_else(site: Site, place: str) -> None:
    form = {"user": "vera", "password": PASSWORDS["vera"], "next": place}
    assert site.http.post("/login", data=form).headers["location"] == "/"


# Where it listens.


def test_beyond_this_machine_it_needs_users_or_somebody_who_insists(tmp_path: Path) -> None:
    for listen in ("0.0.0.0:0", "[::]:0", "192.0.2.1:7423", "example.org:80"):
        with pytest.raises(BadSchedule, match=r"needs --auth-file FILE, or --insecure"):
            OutsideSettings.from_words(listen_http=listen)
    assert OutsideSettings.from_words(listen_http="0.0.0.0:0", insecure=True).listen is not None
    users = str(auth_file(tmp_path))
    assert OutsideSettings.from_words(listen_http="0.0.0.0:0", auth_file=users).users is not None
    for listen in ("127.0.0.1:0", "localhost:0", "[::1]:0"):
        assert OutsideSettings.from_words(listen_http=listen).listen is not None
    assert OutsideSettings.from_words(listen_http="off").listen is None


@pytest.mark.parametrize("listen", ["7423", "127.0.0.1", ":7423", "127.0.0.1:x", "127.0.0.1:70000", "h:x1"])
def test_an_address_that_is_none_is_refused(listen: str) -> None:
    with pytest.raises(BadSchedule, match="--listen-http"):
        OutsideSettings.from_words(listen_http=listen)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("users = 1", "users"),
        ("", "users: Field required"),
        ("[users]", "at least 1"),
        ("[users.a]\npassword_scrypt='x'\nroles=['viewer']", "expected scrypt"),
        ("[users.a]\npassword_scrypt='scrypt$15$8$1$00$00'\nroles=['viewer']", "not a power of two"),
        ("[users.a]\npassword_scrypt='scrypt$16384$8$1$00$00'\nroles=['viewer']", "too short"),
        (
            "[users.a]\npassword_scrypt='{}'\nroles=['root']",
            "unknown role 'root'; there are viewer, operator",
        ),
        ("[users.a]\npassword_scrypt='{}'\nroles=[]", "roles"),
        ("[users.a]\npassword_scrypt='{}'\nroles=['viewer']\ncolour='red'", "colour"),
        ("[users", "not valid TOML"),
        (None, "can't read"),
    ],
)
def test_an_auth_file_that_is_wrong_is_refused_in_a_line(tmp_path: Path, text: str | None, hint: str) -> None:
    path = tmp_path / "users.toml"
    if text is not None:
        path.write_text(text.format(f"scrypt$16384$8$1${'00' * 16}${'00' * 32}"))
    with pytest.raises(BadSchedule, match=re.escape(hint)) as refusal:
        Users.load(path)
    assert "\n" not in str(refusal.value)


def test_a_port_that_is_taken_is_refused_if_it_was_named_and_done_without_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(BadSchedule, match=f"can't listen on {address}: Address already in use"):
            Outside(OutsideSettings.from_words(listen_http=address))
        monkeypatch.setattr("lockd_scheduler.outside.DEFAULT_LISTEN", address)
        assert Outside(OutsideSettings.from_words()).port is None


@pytest.mark.process
def test_serve_refuses_to_listen_openly_with_one_line_and_exit_2(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.py"
    jobs.write_text("from lockd_scheduler import Cron\ncron = Cron()\n@cron.every('1h')\ndef job(): ...\n")
    for words, hint in (
        (["--listen-http", "0.0.0.0:0"], "--listen-http 0.0.0.0:0 can be reached from other machines"),
        (["--auth-file", "nothing.toml"], "can't read nothing.toml"),
        (["--webhook", "ftp://x"], "--webhook is not an http"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "lockd_scheduler.cli", "serve", str(jobs), *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert hint in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
