"""The commands about the connection and the node: who you are, what this is, how it is.

They are what any Redis client sends before and between its own commands.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from lockd.protocol import requests, resp, verbs
from lockd.protocol.resp import encode, encode_error
from lockd.server import replies
from lockd.server.auth import TooManyLoginsError, Users
from lockd.server.port import Driver
from lockd.server.turns import Client, Turn


class Greeting:
    """Answers from nothing but this node's own facts and its auth file."""

    def __init__(self, driver: Driver, users: Users | None, *, count_clients: Callable[[], int]) -> None:
        self._driver = driver
        self._users = users
        self._count_clients = count_clients
        self._logins: set[asyncio.Task[None]] = set()

    def hello(self, request: requests.Hello, client: Client, turn: Turn) -> None:
        if request.user:
            self._log_in(request.user, request.password, client, turn, partial(self._greet, request, client))
        elif client.user is None:
            turn.answer(encode_error("NOAUTH", "authentication required: HELLO 3 AUTH user password"))
        else:
            turn.answer(self._greet(request, client))

    def _greet(self, request: requests.Hello, client: Client) -> bytes:
        client.resp = request.protocol or client.resp
        if request.client_name is not None:
            client.name = request.client_name
        greeting = replies.hello(self._driver.status(), client=client.number, resp=client.resp)
        return encode(greeting, client.resp)

    def auth(self, request: requests.Auth, client: Client, turn: Turn) -> None:
        self._log_in(request.user, request.password, client, turn, lambda: resp.OK)

    def _log_in(
        self, name: str, password: bytes, client: Client, turn: Turn, let_in: Callable[[], bytes]
    ) -> None:
        if self._users is None:
            turn.answer(
                encode_error("ERR", "AUTH without any password configured: this node has no auth file")
            )
            return

        async def log_in(users: Users) -> None:
            try:
                user = await users.authenticate(name, password)
            except TooManyLoginsError:
                turn.answer(encode_error("UNAVAILABLE", "too many logins at once; try again"))
                return
            if user is None:
                turn.answer(encode_error("NOAUTH", "wrong user name or password"))
                return
            client.user = user
            turn.answer(let_in())

        task = asyncio.get_running_loop().create_task(log_in(self._users))
        self._logins.add(task)
        task.add_done_callback(self._logins.discard)

    def ping(self, request: requests.Ping, client: Client, turn: Turn) -> None:
        turn.answer(resp.PONG if request.message is None else encode(request.message, client.resp))

    def quit(self, _: requests.Quit, client: Client, turn: Turn) -> None:  # noqa: ARG002 - one signature for all
        turn.answer(resp.OK)

    def info(self, request: requests.Info, client: Client, turn: Turn) -> None:
        text = replies.info(self._driver.status(), request.section, clients=self._count_clients())
        turn.answer(encode(text, client.resp))

    def select(self, _: requests.Select, client: Client, turn: Turn) -> None:  # noqa: ARG002 - one signature for all
        turn.answer(resp.OK)

    def client_setname(self, request: requests.ClientSetName, client: Client, turn: Turn) -> None:
        client.name = request.name
        turn.answer(resp.OK)

    def client_getname(self, _: requests.ClientGetName, client: Client, turn: Turn) -> None:
        turn.answer(encode(client.name or None, client.resp))

    def client_id(self, _: requests.ClientId, client: Client, turn: Turn) -> None:
        turn.answer(encode(client.number, client.resp))

    def client_setinfo(self, request: requests.ClientSetInfo, client: Client, turn: Turn) -> None:
        client.library[request.attribute] = request.value
        turn.answer(resp.OK)

    def command_info(self, request: requests.CommandInfo, client: Client, turn: Turn) -> None:
        turn.answer(encode(replies.command_info(request.names), client.resp))

    def command_count(self, _: requests.CommandCount, client: Client, turn: Turn) -> None:
        turn.answer(encode(len(verbs.VERBS), client.resp))

    def command_docs(self, request: requests.CommandDocs, client: Client, turn: Turn) -> None:
        turn.answer(encode(replies.command_docs(request.names), client.resp))

    def cluster_status(self, _: requests.ClusterStatusRequest, client: Client, turn: Turn) -> None:
        turn.answer(encode(replies.status(self._driver.status()), client.resp))
