"""The page in a real browser: what it shows, its forms by keyboard, live parts, a phone's width."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from lockd_scheduler import Run
from lockd_scheduler.engines import open_engine
from lockd_scheduler.outputs import write_output
from lockd_storage.schema import upgrade
from tests.scheduler.browsers import MISSING, Browser, browsing, driver
from tests.scheduler.harness import NOON, World
from tests.scheduler.sites import Site, served

pytestmark = [pytest.mark.process, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

HOUR = timedelta(hours=1)
LONG = "invoices.close_and_send_reminders_to_everybody_who_has_not_paid_for_ninety_days"


@pytest.fixture(scope="module")
def chromedriver() -> Iterator[httpx.Client]:
    with driver() as http:
        yield http


@pytest.fixture
def browser(chromedriver: httpx.Client) -> Iterator[Browser]:
    with browsing(chromedriver, width=1280, height=900) as browser:
        yield browser


@pytest.fixture
def phone(chromedriver: httpx.Client) -> Iterator[Browser]:
    with browsing(chromedriver, width=360, height=740) as browser:
        yield browser


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Three hours of an hourly job that fails once, and one with a long name."""
    engine = open_engine(f"sqlite:///{tmp_path}/ledger.db")
    upgrade(engine, branch="scheduler")
    world = World(engine)
    # The page shows the last day by the database's clock, which is this machine's.
    with engine.connect():
        world.clock.set(world.ledger.read_time().replace(minute=0, second=0, microsecond=0) - 3 * HOUR)
    begin = world.clock.now()

    @world.cron.every("1h", name="tick", args={"region": "eu"})
    def tick(run: Run, *, region: str) -> None:
        if run.fire_at == begin + HOUR:
            raise RuntimeError(f"<b>no {region}</b>")

    @world.cron.job("0 2 * * *", tz="Europe/Berlin", name=LONG)
    def nightly() -> None: ...

    with served(world) as site:
        for _ in range(3):
            site.process.turn()
            site.process.run_all()
            world.clock.turn(HOUR)
        yield site
    engine.dispose()


def test_jobs_and_their_last_day_are_there_in_words_and_marks(site: Site, browser: Browser) -> None:
    browser.open(f"{site.url}/")
    text = browser.run("return document.body.innerText")
    assert "tick" in text
    assert "Europe/Berlin" in text
    assert "succeeded" in text
    label = browser.run("return [...document.querySelectorAll('svg')].at(-1).getAttribute('aria-label')")
    assert label == "The last 24 hours of tick: 1 failed, 2 succeeded"
    marks = browser.run("return [...document.querySelectorAll('rect')].map(one => one.getAttribute('class'))")
    assert sorted(marks) == ["m-failed", "m-succeeded", "m-succeeded"]
    browser.open(f"{site.url}/runs?state=failed")
    assert "RuntimeError: <b>no eu</b>" in browser.run("return document.body.innerText")
    assert browser.complaints() == []


def test_a_job_is_paused_and_resumed_by_keyboard_in_two_steps(site: Site, browser: Browser) -> None:
    browser.open(f"{site.url}/job?name=tick")
    assert not browser.run(
        "return document.querySelector('form[action=\"/pause\"] button').checkVisibility()"
    )
    browser.press_enter("details:has(form[action='/pause']) summary")
    browser.type("form[action='/pause'] input[name=note]", "disk <is> full")
    browser.press_enter("form[action='/pause'] button")
    browser.wait("return document.body.innerText.includes('The job is paused.')")
    assert "disk <is> full" in browser.run("return document.querySelector('#standing').innerText")
    browser.press_enter("details:has(form[action='/resume']) summary")
    browser.press_enter("form[action='/resume'] button")
    browser.wait("return document.body.innerText.includes('fires again')")
    assert [row.paused_at for row in site.world.schedules()] == [None, None]
    assert browser.complaints() == []


def test_a_run_is_asked_for_with_arguments_and_cancelled(site: Site, browser: Browser) -> None:
    browser.open(f"{site.url}/job?name=tick")
    browser.press_enter("details:has(form[action='/start']) summary")
    browser.type("form[action='/start'] textarea", '{"region": "us"}')
    browser.press_enter("form[action='/start'] button")
    browser.wait("return location.pathname.startsWith('/runs/')")
    assert '"region": "us"' in browser.run("return document.body.innerText")
    browser.press_enter("details:has(form[action='/cancel']) summary")
    browser.press_enter("form[action='/cancel'] button")
    browser.wait("return document.body.innerText.includes('asked to end')")
    site.process.turn()
    assert site.world.states()[-1] == "cancelled"
    browser.wait("return document.querySelector('#standing').innerText.includes('cancelled')")


def test_output_is_followed_as_text_and_states_change_without_reloading(site: Site, browser: Browser) -> None:
    made = site.http.post("/api/v1/jobs/tick/start", json={}).json()["run"]
    site.process.turn()
    claimed = next(one for one in site.process.runner.attempts if one.run_id == made)
    site.process.runner.attempts.remove(claimed)
    [started] = site.process.worker.start([claimed])
    browser.open(f"{site.url}/runs/{made}")
    browser.run("window.sameDocument = true")
    said = {"attempt_id": claimed.attempt_id, "stream": "stdout", "written_at": NOON}
    write_output(site.world.engine, [{**said, "number": 1, "text": "<img src=x> one\n"}], {})
    browser.wait("return document.querySelector('.output').textContent.includes('<img src=x> one')")
    write_output(site.world.engine, [{**said, "number": 2, "text": "two\n"}], {})
    browser.wait("return document.querySelector('.output').textContent.endsWith('one\\ntwo\\n')")
    site.process.worker.finish([site.process.worker.carry(started)])
    browser.wait("return document.querySelector('#standing').innerText.includes('succeeded')")
    assert browser.run("return window.sameDocument && document.querySelectorAll('.output img').length === 0")
    assert browser.complaints() == []


def test_on_a_phone_nothing_is_wider_than_the_screen(site: Site, phone: Browser) -> None:
    for path in ("/", "/job?name=tick", f"/job?name={LONG}", "/runs", "/runs/1", "/nothing"):
        phone.open(f"{site.url}{path}")
        phone.run("for (const one of document.querySelectorAll('details')) one.open = true")
        assert phone.run("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360], path


def test_every_field_has_a_name_and_every_table_its_heads(site: Site, browser: Browser) -> None:
    for path in ("/", "/job?name=tick", "/runs", "/runs/1"):
        browser.open(f"{site.url}{path}")
        unnamed = browser.run(
            "return [...document.querySelectorAll('input:not([type=hidden]), select, textarea')]"
            ".filter(one => !one.labels.length).map(one => one.outerHTML)"
        )
        assert unnamed == [], path
        assert browser.run("return document.documentElement.lang") == "en"
        assert browser.run("return document.querySelectorAll('h1').length") == 1
        from_elsewhere = browser.run(
            "return performance.getEntriesByType('resource').map(one => one.name)"
            ".filter(one => !one.startsWith(location.origin))"
        )
        assert from_elsewhere == [], path
