"""Words out and replies in, as values."""

import json

import pytest

from lockd.client import queries
from lockd.client.queries import WaitEnd, error_of
from lockd.errors import LockdError, LockTimeout, OutcomeUnknown, Rejected, SessionExpired, Unavailable


@pytest.mark.parametrize("code", sorted(queries.ERRORS))
def test_every_error_word_says_what_may_be_concluded(code: str) -> None:
    error = error_of(f"{code} what happened")
    assert type(error) is queries.ERRORS[code]
    assert str(error) == "what happened" or type(error) is Rejected


def test_the_error_words_of_the_protocol_are_all_known() -> None:
    protocol = (
        "ERR BUSY TIMEOUT NOTHELD NOSESSION DEADLOCK LIMIT MISMATCH GONE UNAVAILABLE UNKNOWN NOAUTH NOPERM"
    )
    assert sorted(queries.ERRORS) == sorted(protocol.split())
    retryable = {code for code, kind in queries.ERRORS.items() if not issubclass(kind, Rejected)}
    assert retryable == {"UNAVAILABLE", "UNKNOWN"}


def test_a_word_from_a_later_version_is_a_refusal() -> None:
    assert type(error_of("NEWWORD of a later version")) is Rejected


def test_how_a_verb_is_written_is_not_told_to_who_has_not_written_it() -> None:
    assert str(error_of("ERR TTL: 0 is not between 1 and 9; usage: LOCK.ACQUIRE name ...")) == (
        "TTL: 0 is not between 1 and 9"
    )


def test_busy_names_the_holder() -> None:
    text = 'BUSY "k" has been held by session 3 "billing" owner "task-1" for 12 ms (0 waiting)'
    error = error_of(text, lock="k")
    assert isinstance(error, LockTimeout)
    assert (error.lock, error.holder) == ("k", 'session 3 "billing" owner "task-1"')


FACTS = {"lock": "k", "holder": "b", "owner": "o", "held_ms": 5, "queue_length": 2}
TAILS = {
    "nothing odd": {**FACTS, "meta": {"job": 1}},
    "a bar and a brace in the metadata": {**FACTS, "meta": {"a": ' | {"b": 1}', "c": [" | {", " | {}"]}},
    "a bar and a brace in every name": {
        **FACTS,
        "lock": " | {",
        "holder": " | {}",
        "owner": ' | {"x":',
        "meta": " | {",
    },
    "no metadata": {**FACTS, "meta": None},
    "more than is known here": {**FACTS, "meta": 7, "later": [1]},
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
@pytest.mark.parametrize(
    "text", ['"k" has been held', '"x | {" has been held', '"x | {"lock":"y"}" has been held']
)
def test_what_a_refusal_tells_is_read_whatever_the_names_are(text: str, tail: dict[str, object]) -> None:
    error = error_of(f"BUSY {text} | {json.dumps(tail)}")
    assert isinstance(error, LockTimeout)
    found = {name: getattr(error, name) for name in (*FACTS, "meta")}
    assert found == {name: tail[name] for name in found}
    assert str(error) == text


@pytest.mark.parametrize(
    "tail",
    ["", " | ", " | {", " | {}x", ' | {"held_ms": "long"}', " | {" + '"meta":' + "[" * 50_000, " | [1]"],
    ids=lambda tail: tail[:20],
)
def test_a_refusal_without_facts_is_its_text(tail: str) -> None:
    text = f'"k" has been held by session 3 for 12 ms{tail}'
    error = error_of(f"TIMEOUT {text}", lock="k")
    assert isinstance(error, LockTimeout)
    assert (str(error), error.lock, error.holder) == (text, "k", "session 3")
    assert (error.owner, error.meta, error.held_ms, error.queue_length) == ("", None, 0, 0)


def test_a_push_tells_the_same_as_fields() -> None:
    end = WaitEnd(code="TIMEOUT", text="too late", meta='{"job":1}', **FACTS)  # type: ignore[arg-type]
    error = end.error()
    assert isinstance(error, LockTimeout)
    assert (error.meta, error.held_ms, error.queue_length) == ({"job": 1}, 5, 2)
    told = WaitEnd(code="TIMEOUT", text="x", meta="no JSON", holder="b").error()
    assert isinstance(told, LockTimeout)
    assert told.meta is None
    assert isinstance(WaitEnd(code="NOSESSION", text="x").error(), SessionExpired)


@pytest.mark.parametrize("ttl_ms", [0, -1, 2**62, "10", 1.5])
def test_what_is_no_ttl_renews_nothing(ttl_ms: object) -> None:
    with pytest.raises(OutcomeUnknown):
        queries.keepalive("s").read({"ttl_ms": ttl_ms, "ended": []})
    with pytest.raises(OutcomeUnknown):
        queries.open_session(ttl_ms=1, name="").read({"session": "s", "ttl_ms": ttl_ms})


def test_no_other_answer_passes_for_a_renewal() -> None:
    with pytest.raises(OutcomeUnknown):
        queries.keepalive("s").read({"ttl_ms": 10_000, "status": "granted"})
    renewed = queries.keepalive("s").read({"ttl_ms": 10_000, "ended": [[1, "k", 7, "max_hold", "later"]]})
    assert renewed.ended[0].token == 7
    assert queries.keepalive("s", acknowledge=3).words == ("SESSION.KEEPALIVE", "s", "ACK", 3)


def test_an_answer_that_cannot_be_read_says_nothing_of_the_outcome() -> None:
    for reply in (None, "OK", {"ttl_ms": "soon"}, [1]):
        with pytest.raises(OutcomeUnknown, match="can't be read"):
            queries.keepalive("s").read(reply)


def test_metadata_is_json() -> None:
    assert queries.meta_text({"job": "ä"}) == '{"job":"ä"}'
    assert queries.meta_text(None) == ""
    with pytest.raises(TypeError):
        queries.meta_text({"job": object()})


def test_errors_are_one_tree() -> None:
    assert all(issubclass(kind, LockdError) for kind in queries.ERRORS.values())
    assert not issubclass(Unavailable, Rejected)
