"""Mutations in short: `make soak` has thousands."""

from __future__ import annotations

import dataclasses

import pytest

from deflow_vision.types import UserError
from tests.faults import fuzz as fuzzing
from tests.faults.fuzz import LIMIT, fuzz
from tests.faults.subjects import SUBJECTS, Subject

FEW = 24


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_nothing_damaged_is_accepted_where_a_digest_guards_or_ends_in_a_traceback(
    subject, tmp_path
):
    outcome = fuzz(subject, tmp_path, range(FEW))
    assert outcome.faults == []
    assert sum(outcome.counts.values()) == FEW
    assert outcome.counts["refused"] > FEW // 4


def raising(error):
    def read(folder):
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "guarded", "kind"),
    [
        (lambda folder: 1, True, "the same values"),
        (lambda folder: 2, True, "silently other values where a digest guards"),
        (lambda folder: 2, False, "other values, which are valid"),
        (raising(UserError("a.json is damaged")), True, "refused"),
        (raising(UserError("something is wrong")), True, "message without a name"),
        (raising(KeyError("x")), True, "bare traceback"),
        (raising(MemoryError()), True, "memory without bound"),
        (raising(OSError(21, "Is a directory", "a.json")), True, "refused"),
    ],
)
def test_what_comes_of_a_mutation_is_told_apart(read, guarded, kind, tmp_path):
    subject = Subject("x", lambda folder: None, read, lambda name: guarded)
    assert fuzzing._open(subject, tmp_path, "a.json", 1)[0] == kind


def test_a_mutation_depends_on_its_number_alone(tmp_path):
    subject = next(subject for subject in SUBJECTS if subject.name == "online buffer")
    together = fuzz(subject, tmp_path / "a", range(8)).counts
    apart = [fuzz(subject, tmp_path / str(n), range(n, n + 1)).counts for n in (0, 7)]
    assert sum(together.values()) == 8
    assert all(set(one) <= set(together) for one in apart)


def test_outcomes_keep_the_numbers_of_faults(tmp_path, monkeypatch):
    assert LIMIT > fuzzing.GROWTH
    outcome = fuzzing.Outcome()
    assert dataclasses.asdict(outcome) == {"counts": {}, "faults": []}
