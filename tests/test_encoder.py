"""Networks that look at finished images: what Stable Diffusion's checker flags is recorded, and no image is changed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeManifest
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel

from synthvision.data.images import read_rgb
from synthvision.diffusion.encoder import check_safety, encoder

SIDE = 16
SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = CLIPVisionConfig(**SMALL, image_size=SIDE, patch_size=8, projection_dim=8)


def checker(folder: Path, strict: bool) -> str:
    """Write a checker that flags everything, or nothing."""
    torch.manual_seed(0)
    model = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=CLIPTextConfig(**SMALL), vision_config=VISION, projection_dim=8)
    )
    for weights in (model.concept_embeds_weights, model.special_care_embeds_weights):
        weights.data.fill_(-2.0 if strict else 2.0)  # cosines are compared with them
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("strict", "said"), [(True, "flagged"), (False, "passed")])
def test_a_flag_is_recorded_and_no_picture_becomes_black(
    strict: bool, said: str, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    """Trap 12: clinical anatomy is flagged often; the stock pipeline puts black pictures in its place."""
    candidates = make_manifest(("lesion",), 3, size=SIDE)
    before = [candidates.file(record).read_bytes() for record in candidates]
    checked = check_safety(candidates, checker(tmp_path / "checker", strict))
    assert checked.column("safety") == [said] * 3
    assert [candidates.file(record).read_bytes() for record in candidates] == before
    assert all(read_rgb(candidates.file(record)).any() for record in candidates)
    assert [record.sha256 for record in checked] == [record.sha256 for record in candidates]


def test_features_are_unit_vectors_that_tell_pictures_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    CLIPVisionModel(VISION).save_pretrained(tmp_path / "vision")
    images = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    features = encoder(str(tmp_path / "vision"))(images[[0, 1, 2, 0]])
    assert features.shape == (4, 8)
    assert np.linalg.norm(features, axis=1) == pytest.approx(1)
    assert features[3] == pytest.approx(features[0])
    assert abs(features[1] - features[0]).max() > 1e-3


def test_a_folder_without_a_model_is_an_error_that_names_the_key(make_manifest: MakeManifest, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"generate\.safety_checker: there is no model"):
        check_safety(make_manifest(), str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"memorisation\.encoder: there is no model"):
        encoder(str(tmp_path))
