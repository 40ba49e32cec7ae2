"""The caller's side, with httpx: install by PUT, and requests that present the lease.

    fence = HttpFence(httpx.Client(base_url="https://shop"))
    with client.lock("orders") as lease:
        fence.install(lease)                                  # PUT /fences/orders
        calls = fence.calls(lease)
        calls.send("POST", "/orders", json={...})             # StaleToken if someone newer has come

A refusal that the service tells is raised as what it was there, and other replies are returned. A
request that got no reply is Unavailable if it was never sent, and else OutcomeUnknown: it may have
been applied. Other libraries present a lease with `fencing_header(lease)`.
"""

from collections.abc import Generator
from contextlib import suppress
from typing import Any, NoReturn
from urllib.parse import quote

try:
    import httpx
except ImportError as error:
    raise ImportError('lockd_storage.http.client needs httpx: pip install "lockd[http]"') from error

from lockd.errors import LockdError, OutcomeUnknown, StaleToken, Unavailable
from lockd.ids import Fence
from lockd_storage.fencing import (
    INSTALL_SECONDS,
    HeldLease,
    Mark,
    check_deadline,
    judge_write,
    presented_fence,
    resource_of,
)
from lockd_storage.http.header import fencing_header
from lockd_storage.http.problems import error_in
from lockd_storage.rejects import told

ADAPTER = "http"
REPLY_SECONDS = 5.0
"""How much later than its own time-out an install's reply may come."""
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
_GATEWAY_STATUSES = (502, 504)


class FencingAuth(httpx.Auth):
    """Adds the header to requests of httpx, sync or async: `httpx.post(url, auth=FencingAuth(lease))`.

    Raises LeaseLost, and sends nothing, once the lease may not be relied on. What replies mean is up to
    the caller: `raise_for_fence(response)`.
    """

    def __init__(self, lease: HeldLease, resource: str | None = None) -> None:
        self._lease = lease
        self._header = fencing_header(lease, resource=resource)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """See `httpx.Auth`."""
        check_deadline(self._lease)
        request.headers.update(self._header)
        yield request


def raise_for_fence(response: httpx.Response) -> httpx.Response:
    """Raise what the service refused, by its problem+json; return any other reply unchanged.

    The body must have been read. Raises StaleToken, NotInstalled, WrongCluster and the others of
    `lockd_storage.http.problems`; OutcomeUnknown also for a 502 or 504, where something in between
    gave up on the service.
    """
    if response.is_success:
        return response
    refusal = error_in(response.headers.get("content-type", ""), response.content)
    if refusal is not None:
        raise refusal
    if response.status_code in _GATEWAY_STATUSES:
        raise OutcomeUnknown(
            f"{response.request.method} {response.request.url}: {response.status_code} from something in"
            " between; the service may have applied it"
        )
    return response


class HttpFence:
    """The marks of a service that has `fence_routes`. Its `install` is that of a `FencePort`.

    `client` has the service's base_url and whatever authentication it wants; `prefix` is where the
    routes are. It is the caller's, and not closed here.
    """

    def __init__(self, client: httpx.Client, prefix: str = "/fences", *, cluster: str | None = None) -> None:
        self._client = client
        self._routes = _Routes(prefix, cluster)

    def install(
        self, lease: HeldLease, resource: str | None = None, *, timeout: float = INSTALL_SECONDS
    ) -> Mark:
        """See `FencePort.install`. OutcomeUnknown, when no reply came: install again."""
        name = resource_of(lease, resource)
        with told(ADAPTER, name):
            request = self._routes.install(self._client, lease, name, timeout)
            try:
                response = self._client.send(request)
            except httpx.TransportError as error:
                _raise_unreplied(request, error)
            return self._routes.mark(response)

    def mark(self, resource: str) -> Mark | None:
        """See `FencePort.mark`."""
        request = self._routes.look(self._client, resource)
        try:
            response = self._client.send(request)
        except httpx.TransportError as error:
            raise Unavailable(f"{request.url}: {error!r}") from error
        return self._routes.mark_or_none(response)

    def calls(self, lease: HeldLease, resource: str | None = None) -> "Calls":
        """Requests to the service that present the lease. Raises WrongMode for a semaphore's."""
        return Calls(self, self._client, lease, resource)


class AsyncHttpFence:
    """As HttpFence, with an httpx.AsyncClient; its verbs are awaited."""

    def __init__(
        self, client: httpx.AsyncClient, prefix: str = "/fences", *, cluster: str | None = None
    ) -> None:
        self._client = client
        self._routes = _Routes(prefix, cluster)

    async def install(
        self,
        lease: HeldLease,
        resource: str | None = None,
        *,
        timeout: float = INSTALL_SECONDS,  # noqa: ASYNC109  the port's name; the service keeps to it
    ) -> Mark:
        """See `HttpFence.install`."""
        name = resource_of(lease, resource)
        with told(ADAPTER, name):
            request = self._routes.install(self._client, lease, name, timeout)
            try:
                response = await self._client.send(request)
            except httpx.TransportError as error:
                _raise_unreplied(request, error)
            return self._routes.mark(response)

    async def mark(self, resource: str) -> Mark | None:
        """See `FencePort.mark`."""
        request = self._routes.look(self._client, resource)
        try:
            response = await self._client.send(request)
        except httpx.TransportError as error:
            raise Unavailable(f"{request.url}: {error!r}") from error
        return self._routes.mark_or_none(response)

    def calls(self, lease: HeldLease, resource: str | None = None) -> "AsyncCalls":
        """See `HttpFence.calls`."""
        return AsyncCalls(self, self._client, lease, resource)


class _Tries:
    """What is known of the requests that were sent under one lease, sync or async.

    A refusal of a repeat says nothing of the try before it (research: pitfall 23): while a request's
    outcome is unknown, a StaleToken for the same request is OutcomeUnknown.
    """

    def __init__(self, lease: HeldLease, resource: str | None) -> None:
        self.resource = resource_of(lease, resource)
        self._lease = lease
        self._unknown: set[tuple[str, str]] = set()
        with told(ADAPTER, self.resource):
            self._fence = presented_fence(lease, resource=self.resource, cluster=None)
        self.auth = FencingAuth(lease, self.resource)

    def is_late(self) -> bool:
        """Whether the lease may not be relied on any more."""
        return self._lease.remaining() <= 0

    def late(self, mark: Mark | None) -> NoReturn:
        """Raise what a late holder must know: who is newer, or that its time is over."""
        judge_write(mark, resource=self.resource, fence=self._fence)
        check_deadline(self._lease)
        raise AssertionError("a lease that has ended doesn't begin again")

    def unreplied(self, request: httpx.Request, error: httpx.TransportError) -> NoReturn:
        """Raise what a request without a reply means."""
        if not isinstance(error, _NEVER_SENT):
            self._unknown.add(_name(request))
        _raise_unreplied(request, error)

    def replied(self, response: httpx.Response) -> httpx.Response:
        """The reply, if it is no refusal."""
        name = _name(response.request)
        try:
            raise_for_fence(response)
        except OutcomeUnknown:
            self._unknown.add(name)
            raise
        except StaleToken as refusal:
            if name not in self._unknown:
                raise
            raise OutcomeUnknown(
                f"{' '.join(name)}: an earlier try got no reply and may have been applied; this one was"
                f" refused: {refusal}"
            ) from refusal
        if response.is_success:
            self._unknown.discard(name)
        return response


class Calls:
    """Requests that present one lease. `send` takes what `httpx.Client.request` takes, but for `auth`."""

    def __init__(
        self, fence: HttpFence, client: httpx.Client, lease: HeldLease, resource: str | None
    ) -> None:
        self._fence = fence
        self._client = client
        self._tries = _Tries(lease, resource)

    def send(self, method: str, url: str, **options: Any) -> httpx.Response:
        """The service's reply, when that is no refusal by the fence. A 404 or 422 is returned.

        Raises, beside what the service refused: LeaseLost, with nothing sent, when the lease's deadline has
        passed (StaleToken, if someone newer has come); Unavailable when the service wasn't reached;
        OutcomeUnknown when it was, and no reply came. After that, a repeat that is refused as stale is
        OutcomeUnknown as well: whether the first try was applied can only be seen from what the service
        has stored.
        """
        with told(ADAPTER, self._tries.resource):
            if self._tries.is_late():
                with suppress(Unavailable):
                    self._tries.late(self._fence.mark(self._tries.resource))
            request = self._client.build_request(method, url, **options)
            try:
                response = self._client.send(request, auth=self._tries.auth)
            except httpx.TransportError as error:
                self._tries.unreplied(request, error)
            return self._tries.replied(response)


class AsyncCalls:
    """As Calls, with an httpx.AsyncClient."""

    def __init__(
        self, fence: AsyncHttpFence, client: httpx.AsyncClient, lease: HeldLease, resource: str | None
    ) -> None:
        self._fence = fence
        self._client = client
        self._tries = _Tries(lease, resource)

    async def send(self, method: str, url: str, **options: Any) -> httpx.Response:
        """See `Calls.send`."""
        with told(ADAPTER, self._tries.resource):
            if self._tries.is_late():
                with suppress(Unavailable):
                    self._tries.late(await self._fence.mark(self._tries.resource))
            request = self._client.build_request(method, url, **options)
            try:
                response = await self._client.send(request, auth=self._tries.auth)
            except httpx.TransportError as error:
                self._tries.unreplied(request, error)
            return self._tries.replied(response)


class _Routes:
    """The two requests to `fence_routes`, and what their replies mean."""

    def __init__(self, prefix: str, cluster: str | None) -> None:
        self._prefix = prefix.rstrip("/")
        self._cluster = cluster

    def install(
        self, client: httpx.Client | httpx.AsyncClient, lease: HeldLease, resource: str, timeout: float
    ) -> httpx.Request:
        presented_fence(lease, resource=resource, cluster=self._cluster)
        check_deadline(lease)
        return client.build_request(
            "PUT",
            self._path(resource),
            params={"timeout": timeout},
            headers=fencing_header(lease, resource=resource),
            timeout=httpx.Timeout(REPLY_SECONDS, read=timeout + REPLY_SECONDS),
        )

    def look(self, client: httpx.Client | httpx.AsyncClient, resource: str) -> httpx.Request:
        return client.build_request("GET", self._path(resource))

    def mark(self, response: httpx.Response) -> Mark:
        mark = self.mark_or_none(response)
        if mark is None:
            raise Unavailable(f"{response.request.url}: {response.status_code}, and no mark")
        return mark

    def mark_or_none(self, response: httpx.Response) -> Mark | None:
        raise_for_fence(response)
        try:
            shown = response.json()
            if response.status_code == 404 and shown["fence"] is None:
                return None
            return Mark(shown["resource"], shown["lock"], Fence.parse(shown["fence"]))
        except (ValueError, KeyError, TypeError):
            raise Unavailable(
                f"{response.request.url} has no fence routes: {response.status_code} {response.reason_phrase}"
            ) from None

    def _path(self, resource: str) -> str:
        if "\n" in resource:  # Starlette's routes match a path to its first line break
            raise ValueError(f"a resource in a path has no line break, as {resource[:40]!r} has")
        # A resource named "." or ".." would be a step in the path for what stands in between.
        return f"{self._prefix}/{quote(resource, safe='').replace('.', '%2E')}"


def _name(request: httpx.Request) -> tuple[str, str]:
    return request.method, str(request.url)


def _raise_unreplied(request: httpx.Request, error: httpx.TransportError) -> NoReturn:
    what: type[LockdError] = Unavailable if isinstance(error, _NEVER_SENT) else OutcomeUnknown
    end = "was not sent" if what is Unavailable else "got no reply and may have been applied"
    raise what(f"{request.method} {request.url} {end}: {error!r}") from error
