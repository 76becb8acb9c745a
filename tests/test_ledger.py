"""The ledger: one free opening, a reason for each more, and no line changed unnoticed."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from synthvision.evaluation.ledger import Ledger, LedgerError

TEST_SET = "ab" * 32


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


def test_the_first_opening_is_free_and_the_second_needs_a_reason(ledger):
    first = ledger.open(TEST_SET, "e1", "run-1", who="ada")
    assert (first.number, first.who, first.run, first.reason) == (1, "ada", "run-1", "")
    for reason in (None, "", "  "):
        with pytest.raises(LedgerError, match=r"opened once.*by ada.*run-1.*evaluate\.reopen"):
            ledger.open(TEST_SET, "e2", "run-2", reason)
    second = ledger.open(TEST_SET, "e2", "run-2", "control arm", who="ada")
    assert (second.number, second.reason, second.previous) == (2, "control arm", first.hash)
    assert ledger.openings(TEST_SET) == (first, second)
    with pytest.raises(LedgerError, match="opened 2 times"):
        ledger.open(TEST_SET, "e3", "run-3")


def test_an_interrupted_evaluation_that_runs_again_is_the_same_opening(ledger):
    first = ledger.open(TEST_SET, "e1", "run-1")
    assert ledger.open(TEST_SET, "e1", "run-1-again") == first
    assert len(ledger.openings(TEST_SET)) == 1


def test_each_test_set_has_a_ledger_of_its_own(ledger):
    ledger.open(TEST_SET, "e1", "run-1")
    assert ledger.open("cd" * 32, "e1", "run-1").number == 1


def test_opening_adds_a_line_and_leaves_the_others_as_they_are(ledger):
    ledger.open(TEST_SET, "e1", "run-1")
    before = ledger.file(TEST_SET).read_text()
    ledger.open(TEST_SET, "e2", "run-2", "second reader: Zoë")
    after = ledger.file(TEST_SET).read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 2


def tampered(lines):
    changed = json.loads(lines[1])
    changed["reason"] = "harmless"
    yield [lines[0], json.dumps(changed), lines[2]], "line 2"
    yield [lines[0], lines[2]], "line 2"
    yield lines[1:], "line 1"
    yield [lines[0], lines[2], lines[1]], "line 2"
    yield [lines[0][:50], *lines[1:]], "line 1"


@pytest.mark.parametrize("case", range(5))
def test_a_changed_removed_or_reordered_line_is_found(ledger, case):
    for number in range(3):
        ledger.open(TEST_SET, f"e{number}", "run", "why" if number else None)
    file = ledger.file(TEST_SET)
    lines, where = list(tampered(file.read_text().splitlines()))[case]
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(LedgerError, match=where):
        ledger.openings(TEST_SET)
    with pytest.raises(LedgerError, match=where):
        ledger.open(TEST_SET, "e9", "run", "why")


def test_openings_at_the_same_time_are_all_recorded(ledger):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ledger.open(TEST_SET, f"e{n}", "run", "sweep"), range(16)))
    assert [opening.number for opening in ledger.openings(TEST_SET)] == list(range(1, 17))


def test_a_plan_from_before_the_first_opening_is_a_reason_once_for_each_of_its_runs(ledger):
    ledger.register(["a", "b"], who="ada")
    ledger.register(["b", "a"])  # the same plan
    (plan,) = ledger.plans()
    assert (plan.number, plan.runs, plan.who) == (1, ("a", "b"), "ada")
    reasons = [ledger.open(TEST_SET, f"e{arm}", "run", planned=arm).reason for arm in "ab"]
    assert reasons == [f"planned: {arm} (plan 1, {plan.hash[:12]})" for arm in "ab"]
    assert ledger.open(TEST_SET, "ea", "again", planned="a").number == 1  # the same evaluation
    for other, run in (("other weights", "a"), ("no plan has it", "c"), ("unnamed", "")):
        with pytest.raises(LedgerError, match=r"opened 2 times.*evaluate\.reopen"):
            ledger.open(TEST_SET, other, "run", planned=run)


def test_a_plan_from_after_the_first_opening_is_no_reason(ledger):
    ledger.open(TEST_SET, "e1", "run")
    ledger.register(["a"])  # within the same second
    with pytest.raises(LedgerError, match="opened once"):
        ledger.open(TEST_SET, "e2", "run", planned="a")
    assert ledger.open("cd" * 32, "e2", "run", planned="a").reason.startswith("planned: a (")


def test_a_run_with_a_reason_of_its_own_uses_its_plan_up(ledger):
    ledger.register(["a"])
    (plan,) = ledger.plans()
    opening = ledger.open(TEST_SET, "e1", "run", "labels were corrected", planned="a")
    assert opening.reason == f"planned: a (plan 1, {plan.hash[:12]}); labels were corrected"
    with pytest.raises(LedgerError, match="opened once"):
        ledger.open(TEST_SET, "e2", "run", planned="a")


def test_what_would_be_refused_is_refused_before_the_work(ledger):
    ledger.check(TEST_SET, None, "anything")  # nothing was opened yet
    ledger.register(["a"])
    ledger.open(TEST_SET, "ea", "run", planned="a")
    ledger.check(TEST_SET, None, "a")  # perhaps the same evaluation again
    ledger.check(TEST_SET, "a reason", "b")
    with pytest.raises(LedgerError, match=r"opened once.*evaluate\.reopen"):
        ledger.check(TEST_SET, None, "b")
    assert len(ledger.openings(TEST_SET)) == 1


def test_a_changed_plan_is_found(ledger):
    ledger.register(["a"])
    ledger.register(["a", "b"])
    (file,) = ledger.folder.glob("plans/*.jsonl")
    file.write_text(file.read_text().replace('"b"', '"c"'))
    with pytest.raises(LedgerError, match="line 2: the chain of hashes breaks"):
        ledger.open(TEST_SET, "e1", "run", planned="c")


def test_a_test_set_is_named_by_a_digest(ledger):
    with pytest.raises(ValueError, match="test_set must be a digest"):
        ledger.open("../elsewhere", "e1", "run")
