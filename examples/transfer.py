"""Money from one account to another: both locks at once or none, so nobody can deadlock."""

from concurrent.futures import ThreadPoolExecutor

import lockd

client = lockd.Client()
balance = {"anna": 100, "bert": 100, "carl": 100}


def transfer(source: str, target: str, amount: int) -> int:
    """One request, one token for both; the order of the names does not matter."""
    with client.lock_all([f"account:{source}", f"account:{target}"], wait=30) as lease:
        before = balance[source], balance[target]
        balance[source], balance[target] = before[0] - amount, before[1] + amount
        return lease.token


if __name__ == "__main__":
    with client, ThreadPoolExecutor(6) as workers:
        circle = [("anna", "bert"), ("bert", "carl"), ("carl", "anna"), ("bert", "anna")]
        moves = [workers.submit(transfer, *pair, 10) for pair in circle * 5]
        tokens = {move.result() for move in moves}
    print(f"{len(tokens)} transfers; there are still {sum(balance.values())}: {balance}")
