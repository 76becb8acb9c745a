"""A study of two sets through the real command: a fine-tune and candidates each, one Manifest, even acceptance."""

import json
import shutil
from collections import Counter
from pathlib import Path

from test_pipeline import finished, folder_of, run, runs_of

from synthvision.data.images import read_rgb
from synthvision.manifest import Manifest

SET = "synthvision.data.guide_sets.GuideSet"


def two_sets(folder: Path) -> tuple[str, ...]:
    """Divide the phantoms' guides, and return what makes a study of the parts."""
    guides = folder / "data" / "guides"
    captions = sorted((folder / "studies" / "phantom" / "phantom" / "0" / "guides").glob("*.txt"))
    for number, caption in enumerate(captions):
        part = guides / ("one", "two")[number % 2]
        part.mkdir(parents=True, exist_ok=True)
        for file in caption.parent.glob(f"{caption.stem}.*"):
            shutil.copy(file, part)
    tones = {"one": "fair", "two": "dark"}
    sets = ",".join(
        f"{{_target_: {SET}, name: {name}, folder: '{guides / name}', attributes: {{skin_tone: {tone}}}}}"
        for name, tone in tones.items()
    )
    return (
        "disease.guides._target_=synthvision.data.guide_sets.GuideSets",
        "~disease.guides.folder",
        f"+disease.guides.sets=[{sets}]",
        "generate=noise",
        "generate.candidates=13",
        "review.accept=6",
        "review.per_set=[2,4]",
        "stage=classify",
    )


def test_two_sets_make_one_study(tmp_path: Path) -> None:
    run(tmp_path, "stage=prepare")
    study = two_sets(tmp_path)
    run(tmp_path, *study)
    root = tmp_path / "studies" / "phantom"
    trained, made = folder_of(tmp_path, "dreambooth"), folder_of(tmp_path, "generate")
    known = {name: json.loads((trained / name / "set.json").read_text())["weights"] for name in ("one", "two")}
    assert known["one"] != known["two"]
    assert len(list((root / "class_images").glob("*/manifest.csv"))) == 1  # shared

    candidates = Manifest.read(made / "manifest.csv", root)
    assert Counter(candidates.column("set")) == {"one": 7, "two": 6}
    assert all(record.parent_run == known[record.set] for record in candidates)
    assert {(record.set, record.skin_tone) for record in candidates} == {("one", "fair"), ("two", "dark")}
    assert all(record.skin_tone in record.prompt for record in candidates)
    assert all(read_rgb(root / record.path).shape == (64, 64, 3) for record in candidates)
    decided = Manifest.read(folder_of(tmp_path, "review") / "manifest.csv", root).where(decision="accept")
    assert Counter(decided.column("set")) == {"one": 3, "two": 3}
    training = Manifest.read(folder_of(tmp_path, "classify") / "training.csv", root).where(origin="synthetic")
    assert set(training.column("image_id")) == set(decided.column("image_id"))
    metrics = next(each for each in runs_of(tmp_path)[::-1] if each.data.tags["stage"] == "dreambooth").data.metrics
    assert {"final/one/total_loss", "final/two/total_loss"} <= set(metrics)

    # A stage that was killed after its first set: the second is made anew, with the same result; the first stays.
    digest = finished(tmp_path)["generate"].output
    stamp = (trained / "one" / "set.json").stat().st_mtime_ns
    for file in (trained / "stage.json", made / "stage.json", trained / "two" / "set.json"):
        file.unlink()
    shutil.rmtree(trained / "two" / "weights")
    run(tmp_path, *study)
    assert (trained / "one" / "set.json").stat().st_mtime_ns == stamp
    assert json.loads((trained / "two" / "set.json").read_text())["weights"] == known["two"]
    assert finished(tmp_path)["generate"].output == digest
