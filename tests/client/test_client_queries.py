"""Words out and replies in, as values."""

import pytest

from lockd.client import queries
from lockd.client.queries import error_of
from lockd.errors import LockdError, LockTimeout, OutcomeUnknown, Rejected, Unavailable


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


def test_busy_names_the_holder() -> None:
    text = 'BUSY "k" has been held by session 3 "billing" owner "task-1" for 12 ms (0 waiting)'
    error = error_of(text, lock="k")
    assert isinstance(error, LockTimeout)
    assert (error.lock, error.holder) == ("k", 'session 3 "billing" owner "task-1"')


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
