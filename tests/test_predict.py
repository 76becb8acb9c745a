"""Using a finished classifier: on files of every kind, as evaluate saw them, as ONNX, and over HTTP."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, MakeManifest
from hydra import compose, initialize_config_dir
from PIL import Image

from synthvision.classification.apply import Application
from synthvision.classification.export import export_onnx
from synthvision.classification.model import ModelConfig, build
from synthvision.classification.predict import TrainedModel, save_classifier
from synthvision.classification.reference import fit_reference, quality, write_reference
from synthvision.cli import study_of
from synthvision.data.images import fit, load_batch, read_rgb, write_png
from synthvision.manifest import Manifest
from synthvision.stages.context import Context
from synthvision.stages.predict import images_of, run_predict
from synthvision.study import PredictConfig
from synthvision.tracking.config import RegistryConfig, TrackingConfig
from synthvision.tracking.registry import register
from synthvision.tracking.store import open_store

CONFIG = ModelConfig("vit_tiny_patch16_224", 16, patch_size=8, embed_dim=16, depth=1, heads=2)


@pytest.fixture
def known(make_manifest: MakeManifest) -> Manifest:
    return make_manifest(n=12, size=24)  # as large as the weights say that images were prepared


@pytest.fixture
def weights(known: Manifest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    rules = {"logistic": 0.5, "sensitivity": 0.0}
    model = TrainedModel(
        build(CONFIG, 2).eval(), CONFIG, ("lesion", "normal"), 0.5, 0, rules, prepared=24, temperature=2
    )
    save_classifier(model, {}, tmp_path / "weights")
    write_reference(fit_reference(model, load_batch(known, 16), load_batch(known, 16)), tmp_path / "weights")
    return tmp_path / "weights"


def predict(weights: Path, out: Path, **values: str) -> tuple[list[dict[str, str]], dict[str, float]]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        study = study_of(compose("config"))
    asked = replace(study, predict=PredictConfig(weights=str(weights), **values))
    result = run_predict(Context(asked, out, {}, None, ""))
    assert len(json.loads((out / "answers.json").read_text())) == result.metrics["images"]
    return list(csv.DictReader((out / "answers.csv").read_text().splitlines())), dict(result.metrics)


def test_an_image_a_folder_and_a_table_are_answered_and_bad_files_are_listed(
    weights: Path, known: Manifest, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    for record in known.records[:3]:
        write_png(folder / "deep" / f"{record.image_id}.png", read_rgb(known.file(record)))
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not an image")
    write_png(folder / "grey.png", np.full((40, 60, 3), 128, np.uint8))
    rows, metrics = predict(weights, tmp_path / "a", images=str(folder))
    assert [row["image"] for row in rows] == ["broken.jpg", *(f"deep/lesion-{n}.png" for n in range(3)), "grey.png"]
    assert [row["status"] for row in rows] == ["unusable", "ok", "ok", "ok", "unusable"]
    assert (metrics["images"], metrics["unusable"]) == (5, 2)
    assert "not an image" in rows[0]["reason"]
    assert "uniform" in rows[-1]["reason"]
    assert {row["decision"] for row in rows[1:4]} <= {"lesion", "normal"}
    one, _ = predict(weights, tmp_path / "b", images=str(folder / "deep/lesion-1.png"))
    assert one[0]["p_lesion"] == pytest.approx(rows[2]["p_lesion"]) or float(one[0]["p_lesion"]) == pytest.approx(
        float(rows[2]["p_lesion"]), abs=1e-6
    )
    (folder / "list.csv").write_text("id,file\n1, deep/lesion-1.png \n2,deep/none.png\n")
    listed, _ = predict(weights, tmp_path / "c", images=str(folder / "list.csv"))
    assert [row["status"] for row in listed] == ["ok", "unusable"]
    assert "cannot be read" in listed[1]["reason"]


def test_the_rule_moves_the_decision_and_nothing_else(weights: Path, known: Manifest, tmp_path: Path) -> None:
    image = str(known.file(known.records[0]))
    usual, _ = predict(weights, tmp_path / "a", images=image)
    keen, _ = predict(weights, tmp_path / "b", images=image, rule="sensitivity")
    assert (keen[0]["decision"], keen[0]["threshold"]) == ("lesion", "0.0")
    assert keen[0]["p_lesion"] == usual[0]["p_lesion"]
    with pytest.raises(ValueError, match=r"predict\.rule must be one of \['logistic', 'sensitivity'\] or null"):
        predict(weights, tmp_path / "c", images=image, rule="best")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({}, ValueError, r"predict\.images must name an image"),
        ({"images": "/nowhere/at/all"}, FileNotFoundError, r"predict\.images=/nowhere/at/all: there is no such"),
    ],
)
def test_what_is_not_there_is_named(values: dict[str, str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        images_of(PredictConfig(**values))


def test_an_empty_folder_and_a_table_without_the_column_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no image"):
        images_of(PredictConfig(images=str(tmp_path)))
    (tmp_path / "list.csv").write_text("path\na.png\n")
    with pytest.raises(ValueError, match=r"predict\.column='file'.*\['path'\]"):
        images_of(PredictConfig(images=str(tmp_path / "list.csv")))


def test_it_sees_what_evaluate_saw(weights: Path, known: Manifest, tmp_path: Path) -> None:
    """A user's file is cut and resized as `prepare` does it, then as the network's loader does it."""
    original = np.random.default_rng(0).integers(0, 256, (60, 40, 3)).astype(np.uint8)
    record = known.records[0]
    write_png(known.file(record), fit(original, 24))  # prepared
    application = Application.load(weights)
    evaluated = application.model.predict(Manifest((record,), known.root), 8)
    np.testing.assert_array_equal(application.answer([original]).probability, evaluated.probability)
    Image.fromarray(original).save(tmp_path / "user.png")
    rows, _ = predict(weights, tmp_path / "out", images=str(tmp_path / "user.png"))
    assert float(rows[0]["p_lesion"]) == evaluated.probability[0, 0]


def test_another_kind_of_image_is_flagged_and_the_known_are_not(weights: Path, known: Manifest) -> None:
    application = Application.load(weights)
    usual = application.answer([read_rgb(known.file(record)) for record in known])
    assert sum(usual.foreign) <= 1
    assert set(usual.faults) == {""}
    ramp = np.linspace(0, 40, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    other = application.answer([ramp])
    assert other.foreign == (True,)
    assert "too dark" in other.faults[0]
    assert "blurred" in other.faults[0]
    assert quality(np.stack([fit(ramp, 16)]))[0, 0] < 0.1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_onnx_file_answers_as_the_classifier(weights: Path, tmp_path: Path) -> None:
    assert export_onnx(Application.load(weights).model, tmp_path / "classifier.onnx") < 1e-5
    assert (tmp_path / "classifier.onnx").stat().st_size > 1000


def test_a_real_server_answers_an_image_over_http(weights: Path, known: Manifest, tracking_root: Path) -> None:
    config = TrackingConfig(str(tracking_root), system_metrics=False)
    images = np.stack([read_rgb(known.file(record)) for record in known.records[:2]])
    store = open_store(config, "phantom")
    with store.stage_run("classify", {}, "", {}) as run:
        run.log_classifier(weights, ("lesion", "normal"), images[:1])
        run.log_metrics({"best/val/loss": 0.5})
    registered = register(store, RegistryConfig("phantom", "ward"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", registered.uri, "--host", "127.0.0.1",
               "--port", str(port), "--env-manager", "local", "--workers", "1"]  # fmt: skip
    null = subprocess.DEVNULL
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    environment["MLFLOW_TRACKING_URI"] = config.uri  # as `stage=register` prints it
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # MLflow starts uvicorn by its name
    with subprocess.Popen(command, stdout=null, stderr=null, env=environment, start_new_session=True) as process:
        try:
            body = json.dumps({"inputs": images.tolist()}).encode()
            rows = ask(f"http://127.0.0.1:{port}/invocations", body, process)
        finally:
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(process.pid, signal.SIGTERM)  # its workers too
    answer = Application.load(weights).answer(list(images))
    np.testing.assert_allclose([row["lesion"] for row in rows], answer.probability[:, 0], atol=1e-6)
    assert [row["decision"] for row in rows] == list(answer.called)
    np.testing.assert_allclose([row["calibrated"] for row in rows], answer.calibrated[:, 0], atol=1e-6)
    assert [row["foreign"] for row in rows] == list(answer.foreign)


def ask(address: str, body: bytes, process: subprocess.Popen[bytes]) -> list[dict[str, object]]:
    while process.poll() is None:
        try:
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as response:
                return list(json.load(response)["predictions"])
        except OSError:
            time.sleep(0.3)
    raise AssertionError("the server ended")
