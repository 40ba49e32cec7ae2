"""A web service that refuses callers whose lock has passed on, and a caller of it.

pip install 'lockd[http,sqlalchemy]' fastapi
uvicorn fenced_service:app
python fenced_service.py http://127.0.0.1:8000
"""

import sys
from typing import Annotated

import httpx
from fastapi import FastAPI
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine
from sqlalchemy.orm import Session, sessionmaker

import lockd
from lockd_storage.http import FENCE_RESPONSES, FenceMiddleware, fence_routes
from lockd_storage.http.client import HttpFence
from lockd_storage.http.sessions import fenced_session
from lockd_storage.schema import upgrade
from lockd_storage.sqlalchemy import SqlFence

orders = Table("orders", MetaData(), Column("id", Integer, primary_key=True), Column("state", String(20)))
engine = create_engine("sqlite:///orders.db")
upgrade(engine)
orders.metadata.create_all(engine)
fence = SqlFence(engine)

app = FastAPI(responses=FENCE_RESPONSES)
app.add_middleware(FenceMiddleware, guarded=["/orders"])  # reads the header, answers refusals
app.mount("/fences", fence_routes(fence))  # where callers install; put your authentication in front
Orders = Annotated[Session, fenced_session("orders", fence, sessionmaker(engine))]


@app.put("/orders/{number}")
def close(number: int, session: Orders) -> dict[str, int]:
    """The reply is sent after the commit; a caller that was overtaken gets a 412 instead."""
    session.execute(orders.delete().where(orders.c.id == number))
    session.execute(orders.insert().values(id=number, state="closed"))
    return {"closed": number}


def main(url: str) -> None:
    """Close order 1 at the service, under the lock `orders`."""
    with (
        httpx.Client(base_url=url) as web,
        lockd.Client(ttl=10) as client,
        client.lock("orders", wait=5) as lease,
    ):
        shop = HttpFence(web)
        shop.install(lease)  # from here on, the service refuses older tokens
        reply = shop.calls(lease).send("PUT", "/orders/1")
        print(reply.json(), f"under token {lease.token}")


if __name__ == "__main__":
    main(sys.argv[1])
