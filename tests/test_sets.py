"""Sets of guides: one after another, or side by side in processes of their own."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from synthvision.data.guide_sets import GuideSet, GuideSets, sets_of
from synthvision.data.images import write_png
from synthvision.data.intake import GuideSource
from synthvision.stages.sets import VISIBLE, each


def square(number: int) -> tuple[int, int, str]:
    return number * number, os.getpid(), os.environ.get(VISIBLE, "")


def fail(number: int) -> int:
    if number == 1:
        raise ValueError("set 1 has no guides")
    time.sleep(60)
    return number


def die(number: int) -> int:
    os._exit(7 if number else 0)


def test_two_devices_work_side_by_side_and_keep_the_order() -> None:
    done = each(square, [1, 2, 3], ["4", "6"])
    assert [value for value, _, _ in done] == [1, 4, 9]
    assert {device for _, _, device in done} == {"4", "6"}
    assert os.getpid() not in {process for _, process, _ in done}


@pytest.mark.parametrize("devices", [[], ["0"]])
def test_without_several_devices_all_run_here(devices: list[str]) -> None:
    assert {process for _, process, _ in each(square, [1, 2], devices)} == {os.getpid()}


def test_one_failure_ends_the_others_and_is_told() -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match="set 1 has no guides"):
        each(fail, [0, 1], ["0", "1"])
    assert time.monotonic() - start < 50
    with pytest.raises(ChildProcessError, match="run the same command to resume"):
        each(die, [1, 1], ["0", "1"])


def guides(folder: Path, *names: str) -> GuideSets:
    for name in names:
        write_png(folder / name / "a.png", np.zeros((16, 16, 3), np.uint8))
        (folder / name / "a.txt").write_text(f"sks on the {name}")
    return GuideSets(
        "mpox", [GuideSet(name, str(folder / name), {"body_part": name}) for name in names], consent="written"
    )


def test_guides_of_all_sets_know_their_set(tmp_path: Path) -> None:
    sets = guides(tmp_path, "face", "arm")
    found = sets.read()
    assert [guide.values["set"] for guide in found] == ["face", "arm"]
    assert [guide.values["body_part"] for guide in found] == ["face", "arm"]
    assert {guide.values["consent"] for guide in found} == {"written"}
    assert [one.name for one in sets_of(sets)] == ["face", "arm"]
    assert [one.name for one in sets_of(GuideSource("x", "mpox"))] == ["guides"]


def test_sets_check_themselves(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one set"):
        GuideSets("mpox", [])
    with pytest.raises(ValueError, match=r"a name of its own; given twice: \['a'\]"):
        GuideSets("mpox", [GuideSet("a", "x"), GuideSet("a", "y")])
    with pytest.raises(ValueError, match=r"a folder of its own; given twice: \['x'\]"):
        GuideSets("mpox", [GuideSet("a", "x"), GuideSet("b", "x")])
    for name in ("../a", "", "images", "a b"):
        with pytest.raises(ValueError, match=r"disease\.guides\.sets: a name may hold"):
            GuideSets("mpox", [GuideSet(name, str(tmp_path))])
