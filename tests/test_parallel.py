"""Two processes on one machine learn what one does from the same batch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from backbones import make
from safetensors.torch import load_file
from test_dreambooth import CONFIG, run

from synthvision.manifest import Manifest

OPTIONS = {"lesion_weight": 0.5, "min_snr_gamma": 5.0, "unet_steps": 4, "sample_every": 4, "offset_noise": 0.1}


def losses(file: Path) -> torch.Tensor:
    rows = [[float(value) for value in line.split(",")] for line in file.read_text().splitlines()[1:]]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "strategy", "options"),
    [
        ("tiny", "ddp", {"text_steps": 2, "export_every": 2}),
        ("sdxl", "ddp", {"text_steps": 4, "method": "lora", "lora_rank": 2, "ema_decay": 0.9}),
        ("tiny", "fsdp", {"text_steps": 2, "export_every": 2, "holdout": 1}),
    ],
)
def test_two_processes_lose_what_one_does(
    kind: str,
    strategy: str,
    options: dict[str, object],
    guides: Manifest,
    weights: Path,
    tmp_path: Path,
) -> None:
    config = replace(CONFIG, **{**OPTIONS, **options})  # type: ignore[arg-type]
    one = run(make(kind, weights / kind), guides, config, tmp_path / "one")
    two = run(make(kind, weights / kind), guides, replace(config, devices=2, strategy=strategy), tmp_path / "two")
    assert one.losses is not None
    assert two.losses is not None
    torch.testing.assert_close(losses(two.losses), losses(one.losses), rtol=1e-4, atol=1e-6)
    name = Path("unet") / "diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(two.weights / name), load_file(one.weights / name)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=2e-5)
    files = [
        sorted(p.relative_to(tmp_path / n).as_posix() for p in (tmp_path / n / "out").rglob("*"))
        for n in ("one", "two")
    ]
    assert files[0] == files[1]
    assert not torch.distributed.is_initialized()
