"""An HTTP call. Its answer decides; without one, after its request was under way, nothing is known."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

try:
    import httpx
except ModuleNotFoundError as error:
    raise ImportError('HTTP jobs need httpx: pip install "lockd[scheduler]"') from error

from lockd_scheduler.bounds import ENDS_AS, AbandonedError
from lockd_scheduler.capture import OURS, Output
from lockd_scheduler.runners import Outcome, Work
from lockd_scheduler.runs import State

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0
"""The longest that the other end may say nothing, for jobs without a `timeout`."""
RESPONSE_BYTES_MAX = 65_536
READ_BYTES = 16_384
LOOK_SECONDS = 0.5
GATEWAY_STATUSES = frozenset({502, 504})
"""A gateway says that it has no answer; what was behind it may have done the work."""


def execute(work: Work) -> Outcome:
    """Make the call, with `Idempotency-Key` and `Fencing-Token`; redirects are not followed."""
    return asyncio.run(_Call(work).make())


class _Call:
    """One request and what is known of it."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._runner = work.job.spec.runner
        self._is_sent = False
        """Some of the request may have left: from here on silence says nothing about its effect."""

    async def make(self) -> Outcome:
        loop = asyncio.get_running_loop()
        calling = asyncio.create_task(self._call())
        self._work.bounds.on_stop(lambda _: _cancel(loop, calling))
        while not calling.done():
            await asyncio.wait({calling}, timeout=LOOK_SECONDS)
            if self._work.abandoned.is_set():
                calling.cancel()
        try:
            return calling.result()
        except asyncio.CancelledError:
            return self._stopped()
        except httpx.HTTPError as error:
            return self._without_answer(f"{type(error).__name__}: {error}" if str(error) else repr(error))

    async def _call(self) -> Outcome:
        limited = self._work.job.spec.policy.timeout is not None
        silence = httpx.Timeout(None if limited else SILENCE_SECONDS, connect=CONNECT_SECONDS)
        headers = {**self._runner.get("headers", {})}
        content = _body(self._runner.get("body"), self._work.started.claimed.args, headers)
        # httpx takes the last of two that differ in case; ours count.
        ours = self._work.run.headers
        headers = {name: value for name, value in headers.items() if name.title() not in ours} | ours
        async with httpx.AsyncClient(timeout=silence, follow_redirects=False) as client:
            request = client.build_request(
                self._runner["method"],
                self._runner["url"],
                headers=headers,
                content=content,
                extensions={"trace": self._trace},
            )
            response = await client.send(request, stream=True)
            try:
                self._work.output.write("http", f"HTTP {response.status_code} {response.reason_phrase}\n")
                await _keep_body(response, self._work.output)
            finally:
                await response.aclose()
        return self._judge(response)

    async def _trace(self, event: str, _info: Mapping[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            self._is_sent = True

    def _judge(self, response: httpx.Response) -> Outcome:
        status = response.status_code
        if _is_expected(status, self._runner["expect"]):
            return Outcome(State.SUCCEEDED)
        text = f"HTTP {status} {response.reason_phrase}, expected {self._runner['expect']}"
        if status in GATEWAY_STATUSES:
            return Outcome(State.LOST, f"{text}: a gateway's word, what was behind it is not known")
        if response.has_redirect_location:
            target = urljoin(self._runner["url"], response.headers["Location"])
            there, here = urlsplit(target).hostname, urlsplit(self._runner["url"]).hostname
            text += f": redirected to {'another host' if there != here else 'here'}, {target[:200]}"
            text += "; redirects are not followed, name the last address"
        return Outcome(State.FAILED, text)

    def _stopped(self) -> Outcome:
        reason = self._work.bounds.reason
        if reason is None:
            raise AbandonedError(self._work.run.job)
        if self._is_sent:
            return self._without_answer(reason.value)
        return Outcome(ENDS_AS[reason], f"{reason.value}, before anything was sent")

    def _without_answer(self, text: str) -> Outcome:
        if not self._is_sent:
            return Outcome(State.FAILED, f"nothing was sent: {text}")
        return Outcome(State.LOST, f"{text}: the request was under way, its outcome is not known")


def _cancel(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[Outcome]") -> None:
    try:
        loop.call_soon_threadsafe(task.cancel)
    except RuntimeError:
        assert loop.is_closed(), "the call is over"


def _body(body: Any, args: Mapping[str, Any], headers: dict[str, str]) -> bytes | None:
    """The job's body; without one its arguments, as JSON."""
    if isinstance(body, str):
        return body.encode()
    if body is None and not args:
        return None
    if not any(name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = "application/json"
    return json.dumps(dict(args) if body is None else body).encode()


async def _keep_body(response: httpx.Response, output: Output) -> None:
    """Read the answer to its end, or as much as is kept of it."""
    room = RESPONSE_BYTES_MAX
    async for chunk in response.aiter_bytes(READ_BYTES):
        output.feed("http", chunk[:room])
        room -= len(chunk)
        if room < 0:
            output.write(OURS, f"\n[the answer is cut here, after {RESPONSE_BYTES_MAX} bytes]\n")
            return


def _is_expected(status: int, expect: str) -> bool:
    return any(
        status // 100 == int(word[0]) if word.endswith("xx") else status == int(word)
        for word in expect.split(",")
    )
