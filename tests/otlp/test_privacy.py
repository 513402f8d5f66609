"""What is taken out of each kind of record."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits
from support.memory import SCOPE
from support.records import group, pending, phase, segment, task

from dask_otel.identity import client_names
from dask_otel.otlp.spans import SpanFactory
from dask_otel.privacy import Capture, Redactor

NOTHING = Capture(**dict.fromkeys(Capture.__dataclass_fields__, False))
#: Everything in these records that a person wrote, or that is named after it.
THEIRS = (
    "Alice's",
    "data load",
    "inc",
    "load-123",
    "boom",
    "Traceback",
    "alice/work.py",
    "DataFrame",
    "Bob's",
    "float",
    "alice",
    "5dc9b908",
)
RECORDS = {
    "segment": segment(),
    "group": group(),
    "folded groups": group(name="other groups", group="", folded=3),
    "task": task(),
    "phase": phase(),
    "pending": pending(),
}


#: A scheduler's id is public; what it gives in another process must be another pseudonym.
IN_ANOTHER_PROCESS = """
from dask_otel.privacy import Capture, Redactor

print(*Redactor(Capture(tags=False), "one").tags(("Alice's",)))
"""


def shown(record, redactor):
    factory = SpanFactory(Resource({}), SCOPE, SpanLimits(), redactor)
    return factory.span(record).to_json(), factory.bare(record).to_json()


@pytest.mark.parametrize("kind", RECORDS)
def test_nothing_of_theirs_is_left(kind):
    record = RECORDS[kind]
    visible = [word for word in THEIRS if word in shown(record, Redactor(Capture()))[0]]
    assert visible
    for text in shown(record, Redactor(NOTHING)):
        text = text.replace("other groups", "").replace("truncated", "")
        assert [word for word in visible if word in text] == []


def test_a_pseudonym_is_the_same_within_a_scheduler_and_cannot_be_guessed():
    one, again, other = (Redactor(NOTHING, scheduler) for scheduler in ("one", "one", "other"))
    assert one.tags(("Alice's",)) == again.tags(("Alice's",)) != other.tags(("Alice's",))
    assert one.tags(("default",)) == ("default",)
    elsewhere = subprocess.run([sys.executable, "-c", IN_ANOTHER_PROCESS], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() not in one.tags(("Alice's",))


def test_clients_have_pseudonyms_in_the_form_of_their_ids():
    redactor = Redactor(Capture(clients=False), "one")
    first, other = ("5dc9b908-116b-49a5-b0d7-5a681f49a111", "6dc9b908-116b-49a5-b0d7-5a681f49a111")
    ids = (f"Client-alice-{first}", f"Client-alice-{other}", f"Client-{first}", "AliceClient-odd")
    pseudonyms = redactor.clients(ids)
    assert redactor.clients(ids) == pseudonyms
    assert len(set(pseudonyms)) == 4
    assert all(each.startswith("Client-") for each in pseudonyms)
    alice, odd = client_names(pseudonyms)  # both clients have one name, and the third has none
    assert client_names(pseudonyms[:2]) == [alice]
    assert client_names(pseudonyms[3:]) == [odd]
    assert not re.search("alice|odd|dc9b908|5a681f49a111", repr(pseudonyms), re.IGNORECASE)
    assert Redactor(Capture(), "one").clients(ids) == ids


def test_what_may_be_shown_is_the_same_record():
    assert Redactor(Capture())(RECORDS["segment"]) is RECORDS["segment"]
