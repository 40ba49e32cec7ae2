"""The commands about the connection and the node: who you are, what this is, how it is.

They are what any Redis client sends before and between its own commands.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from lockd.locks.commands import Refused
from lockd.protocol import requests, resp, verbs
from lockd.protocol.resp import Reply
from lockd.server import describing, replies
from lockd.server.auth import TooManyLoginsError, Users
from lockd.server.port import Driver
from lockd.server.turns import Client, Turn


class Greeting:
    """Answers from nothing but this node's own facts and its auth file."""

    def __init__(
        self,
        driver: Driver,
        users: Users | None,
        *,
        count_clients: Callable[[], int],
        count_watches: Callable[[], int],
    ) -> None:
        self._driver = driver
        self._users = users
        self._count_clients = count_clients
        self._count_watches = count_watches
        self._logins: set[asyncio.Task[None]] = set()

    def hello(self, request: requests.Hello, client: Client, turn: Turn) -> None:
        if request.protocol == 2 and (client.waits or client.watches):
            turn.refuse(Refused("ERR", "RESP2 has no pushes: end the NOTIFY waits and watches first"))
        elif request.user:
            self._log_in(request.user, request.password, client, turn, partial(self._greet, request, client))
        elif client.user is None:
            turn.refuse(Refused("NOAUTH", "authentication required: HELLO 3 AUTH user password"))
        else:
            turn.answer(self._greet(request, client))

    def _greet(self, request: requests.Hello, client: Client) -> Reply:
        client.resp = request.protocol or client.resp
        if request.client_name is not None:
            client.name = request.client_name
        return describing.hello(self._driver.status(), client=client.number, resp=client.resp)

    def auth(self, request: requests.Auth, client: Client, turn: Turn) -> None:
        self._log_in(request.user, request.password, client, turn, lambda: resp.OK)

    def _log_in(
        self, name: str, password: bytes, client: Client, turn: Turn, let_in: Callable[[], Reply]
    ) -> None:
        if self._users is None:
            text = "AUTH without any password configured: this node has no auth file"
            turn.refuse(Refused("ERR", text))
            return

        async def log_in(users: Users) -> None:
            try:
                user = await users.authenticate(name, password)
            except TooManyLoginsError:
                turn.refuse(Refused("UNAVAILABLE", "too many logins at once; try again"))
                return
            if user is None:
                turn.refuse(Refused("NOAUTH", "wrong user name or password"))
                return
            client.user = user
            turn.answer(let_in())

        task = asyncio.get_running_loop().create_task(log_in(self._users))
        self._logins.add(task)
        task.add_done_callback(self._logins.discard)

    def ping(self, request: requests.Ping, _client: Client, turn: Turn) -> None:
        turn.answer(resp.PONG if request.message is None else request.message)

    def quit(self, _: requests.Quit, _client: Client, turn: Turn) -> None:
        turn.answer(resp.OK)

    def info(self, request: requests.Info, _client: Client, turn: Turn) -> None:
        text = describing.info(
            self._driver.status(),
            request.section,
            clients=self._count_clients(),
            watches=self._count_watches(),
        )
        turn.answer(text)

    def select(self, _: requests.Select, _client: Client, turn: Turn) -> None:
        turn.answer(resp.OK)

    def client_setname(self, request: requests.ClientSetName, client: Client, turn: Turn) -> None:
        client.name = request.name
        turn.answer(resp.OK)

    def client_getname(self, _: requests.ClientGetName, client: Client, turn: Turn) -> None:
        turn.answer(client.name or None)

    def client_id(self, _: requests.ClientId, client: Client, turn: Turn) -> None:
        turn.answer(client.number)

    def client_setinfo(self, request: requests.ClientSetInfo, client: Client, turn: Turn) -> None:
        client.library[request.attribute] = request.value
        turn.answer(resp.OK)

    def command_info(self, request: requests.CommandInfo, _client: Client, turn: Turn) -> None:
        turn.answer(describing.command_info(request.names))

    def command_count(self, _: requests.CommandCount, _client: Client, turn: Turn) -> None:
        turn.answer(len(verbs.VERBS))

    def command_docs(self, request: requests.CommandDocs, _client: Client, turn: Turn) -> None:
        turn.answer(describing.command_docs(request.names))

    def cluster_status(self, _: requests.ClusterStatusRequest, _client: Client, turn: Turn) -> None:
        turn.answer(replies.status(self._driver.status()))
