"""Probes of a study: those that its images are enough for, and what is written is what is read."""

from pathlib import Path

from conftest import MakeManifest

from synthvision.evaluation.shortcuts import probe_metrics, probe_study, read_probes, write_probes
from synthvision.manifest import Manifest, Record


def by_patient(images: Manifest) -> Manifest:
    return images.with_values(lambda record: {"patient": f"patient of {record.image_id}"})


def toned(images: Manifest) -> Manifest:
    """A data set in which all that are ill are fair."""

    def values(record: Record) -> dict[str, str]:
        return {"skin_tone": "fair" if record.label == "lesion" or record.image_id.endswith("0") else "dark"}

    return images.with_values(values)


def test_a_tone_that_gives_the_class_away_is_found(make_manifest: MakeManifest) -> None:
    known = toned(by_patient(make_manifest(n=12)))
    (found,) = probe_study(known, Manifest((), known.root), "lesion", 16)
    assert found.name == "metadata"
    assert found.question == "lesion from the other classes"
    assert max(estimate.value for estimate in found.models.values()) > 0.9


def test_synthetic_images_are_told_from_real_ones_of_the_disease(make_manifest: MakeManifest) -> None:
    known = by_patient(make_manifest(n=6))
    painted = make_manifest(("lesion",), n=6, origin="synthetic")
    synthetic = painted.with_values(lambda record: {"image_id": f"made-{record.image_id}", "painted_on": "normal-0"})
    assert [probe.name for probe in probe_study(known, synthetic, "lesion", 16)] == []  # one patient's skin
    spread = synthetic.with_values(lambda record: {"painted_on": f"normal-{record.image_id[-1]}"})
    assert [probe.name for probe in probe_study(known, spread, "lesion", 16)] == ["colour", "texture", "borders"]


def test_nothing_is_probed_without_columns_and_patients(make_manifest: MakeManifest) -> None:
    known = make_manifest(n=3)
    assert probe_study(known, Manifest((), known.root), "lesion", 16) == ()
    assert probe_study(toned(known), Manifest((), known.root), "lesion", 16) == ()  # three patients a class


def test_written_and_read_again(tmp_path: Path, make_manifest: MakeManifest) -> None:
    known = toned(by_patient(make_manifest(n=12)))
    probes = probe_study(known, Manifest((), known.root), "lesion", 16)
    write_probes(tmp_path / "probes.json", probes)
    assert tuple(read_probes(tmp_path / "probes.json")) == probes
    assert list(probe_metrics(probes)) == ["probe/metadata"]
