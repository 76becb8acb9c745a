"""What a sweep says of itself while it runs."""

from pathlib import Path

import pytest

from synthvision.sweep.book import DONE, FAILED, PRUNED, WAITING, Book, Job, Outcome
from synthvision.sweep.progress import Goal, Progress

JOBS = {name: Job(name, f"lr={name}", [], {}) for name in "abcdef"}
LOSS = Goal("best/val/loss", greatest=False)


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path)


def end(book: Book, name: str, state: str, **metrics: float) -> None:
    book.end(name, Outcome(state, 1.0, metrics={f"best/val/{key}": value for key, value in metrics.items()}))


def test_it_counts_names_the_best_and_estimates(book: Book, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(book, JOBS, len(JOBS), LOSS, live=False)
    assert progress.line() == "sweep: 0 of 6 done"
    end(book, "a", DONE, loss=0.3, auroc=0.9)
    end(book, "b", DONE, loss=0.2, auroc=0.8)
    end(book, "c", FAILED, loss=0.1)  # what a failed job reached is no result
    end(book, "d", PRUNED)
    end(book, "e", WAITING)
    book.begin("f")
    counted = "sweep: 2 of 6 done, 1 running, 1 pruned, 1 failed, 1 waiting, "
    assert progress.line() == counted + "best/val/loss 0.2 (lr=b)"
    greatest = Progress(book, JOBS, len(JOBS), Goal("best/val/auroc", greatest=True), live=False)
    assert greatest.line() == counted + "best/val/auroc 0.9 (lr=a)"
    progress.update()
    progress.update()  # nothing changed: nothing is said
    assert capsys.readouterr().err.count("sweep:") == 1


def test_jobs_of_an_earlier_start_tell_nothing_of_the_time_left(book: Book, capsys: pytest.CaptureFixture[str]) -> None:
    end(book, "a", DONE)
    progress = Progress(book, JOBS, len(JOBS), LOSS, live=False)
    progress.earlier = 1
    progress.update()
    assert "left" not in capsys.readouterr().err
    end(book, "b", DONE)
    progress.update()
    assert "about 0 s left" in capsys.readouterr().err


@pytest.mark.parametrize("metric", ["test/auc", "best/test/loss", "val/loss"])
def test_nothing_is_chosen_by_the_test_set(metric: str) -> None:
    with pytest.raises(ValueError, match="must be one of validation"):
        Goal(metric, greatest=True)
