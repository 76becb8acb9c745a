"""External test sets: named, opened once each, in a ledger of their own, and shown beside the study's own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, MakeManifest
from hydra import compose, initialize_config_dir

from synthvision.classification.model import ModelConfig, build
from synthvision.classification.predict import TrainedModel, save_classifier
from synthvision.cli import study_of
from synthvision.evaluation.ledger import Ledger, LedgerError
from synthvision.manifest import EXTERNAL, Manifest
from synthvision.predictions import Predictions
from synthvision.stages.context import Context
from synthvision.stages.evaluate import identity_of, planned_as
from synthvision.stages.external import check_may_open_external, external_sets, read_external, run_external

CONFIG = ModelConfig("vit_tiny_patch16_224", 16, patch_size=8, embed_dim=16, depth=1, heads=2)
CLASSES = ("lesion", "normal")


@pytest.fixture
def given(tmp_path: Path, make_manifest: MakeManifest) -> Context:
    """Folders of `prepare`, with test images, two external sets and one that lacks a class, and of `classify`."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        study = study_of(compose("config", [f"root={tmp_path}", "study=.", "evaluate.external=[ward_b]"]))
    sides = [("test", ""), ("test", ""), (EXTERNAL, "ward_b"), (EXTERNAL, "ward_b"), (EXTERNAL, "ward_c")]
    images = make_manifest(n=20)
    rows = [
        replace(record, split=sides[number % 5][0], set=sides[number % 5][1], patient=f"p{number % 20 // 5}")
        for number, record in enumerate(images)
    ]
    poor = [replace(r, image_id=f"{r.image_id}-d", set="ward_d") for r in rows if r.set and r.label == "normal"]
    Manifest((*rows, *poor), study.folder).write(tmp_path / "prepare/manifest.csv")
    torch.manual_seed(0)
    thresholds = {"logistic": 0.5}
    model = TrainedModel(build(CONFIG, 2).eval(), CONFIG, CLASSES, 0.5, 0, thresholds)
    save_classifier(model, {}, tmp_path / "classify" / "a" / "weights")
    before = {"prepare": tmp_path / "prepare", "classify": tmp_path / "classify" / "a"}
    return Context(study, tmp_path / "external", before, None, "run-1")


def naming(given: Context, *names: str, **more: object) -> Context:
    evaluate = replace(given.study.evaluate, external=names, **more)
    return replace(given, study=replace(given.study, evaluate=evaluate), out=given.out.with_name(f"of {names}"))


def openings(given: Context, name: str) -> list[str]:
    test = given.manifest("prepare").where(split=EXTERNAL, set=name)
    return [opening.reason for opening in Ledger(given.study.folder / "ledger").openings(identity_of(test))]


def test_a_named_set_is_predicted_on_and_no_other_is_opened(given: Context) -> None:
    result = run_external(given)
    test = given.manifest("prepare").where(split=EXTERNAL, set="ward_b")
    predictions = Predictions.read(given.out / "ward_b/predictions.csv")
    assert predictions.image_id == tuple(test.column("image_id"))
    right = (np.array(predictions.label) == "lesion") == (predictions.of("lesion") >= 0.5)
    low, value, high = (result.metrics[f"external/ward_b/accuracy{end}"] for end in ("_low", "", "_high"))
    assert low < value == right.mean() < high
    assert json.loads((given.out / "ward_b/evaluation.json").read_text())["images"] == len(test)
    assert (openings(given, "ward_b"), openings(given, "ward_c")) == ([""], [])
    own = given.manifest("prepare").where(split="test")
    assert Ledger(given.study.folder / "ledger").openings(identity_of(own)) == ()
    (read,) = read_external(given, given.out)
    assert (read.name, read.evaluation.estimates["accuracy"].value, len(read.openings)) == ("ward_b", right.mean(), 1)


def test_a_second_set_is_no_new_opening_of_the_first_and_another_classifier_is(given: Context) -> None:
    run_external(given)
    run_external(naming(given, "ward_b", "ward_c"))
    assert (openings(given, "ward_b"), openings(given, "ward_c")) == ([""], [""])
    folder = given.before["classify"]
    other = replace(given, before={**given.before, "classify": folder.rename(folder.with_name("b"))})
    with pytest.raises(LedgerError, match=r"opened once.*evaluate\.reopen"):
        run_external(other)
    run_external(naming(other, "ward_b", reopen="a second arm"))
    assert openings(given, "ward_b") == ["", "a second arm"]


def test_a_plan_lets_its_runs_in_and_another_is_refused_before_it_trains(given: Context) -> None:
    planned = planned_as(given.study)
    Ledger(given.study.folder / "ledger").register([planned])
    run_external(given)
    assert openings(given, "ward_b")[0].startswith(f"planned: {planned} (")
    check_may_open_external(given.study, given.before["prepare"])  # the same again
    with pytest.raises(LedgerError, match="opened once"):
        check_may_open_external(replace(given.study, seed=given.study.seed + 1), given.before["prepare"])


def test_what_cannot_be_opened_is_named_and_nothing_is_opened(given: Context) -> None:
    for names, message in (
        ((), r"evaluate\.external must name one or more external test sets of \['ward_b', 'ward_c', 'ward_d'\]"),
        (("ward_b", "ward_x"), r"evaluate\.external may name .*'ward_d'\]; it names 'ward_x'"),
        (("ward_b", "ward_d"), r"external test set 'ward_d': each class needs an image; there is none of \['lesion'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            run_external(naming(given, *names))
    assert openings(given, "ward_b") == []
    assert set(external_sets(given.study, given.before["prepare"])) == {"ward_b"}
    with pytest.raises(ValueError, match=r"evaluate\.external must name each set once"):
        naming(given, "ward_b", "ward_b")
