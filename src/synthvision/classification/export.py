"""The classifier as an ONNX file, for use without Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from synthvision.artifact import write_bytes
from synthvision.classification.model import as_input
from synthvision.classification.predict import TrainedModel

TOLERANCE = 1e-4  # of a probability: other kernels, other last bits
CHECKED = 4  # images of noise


class Deployed(nn.Module):
    """Float images (N, 3, S, S) in [0, 1] in, probabilities (N, C) out, as `TrainedModel.probabilities`."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.network = model.network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(as_input(images, self.network))
        return logits.softmax(1)


def export_onnx(model: TrainedModel, file: Path) -> float:
    """Write `file` and return the greatest difference of a probability between it and the classifier.

    Raises:
        ImportError: the packages of the extra "onnx" are not installed.
        RuntimeError: the file answers otherwise than the classifier.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise ImportError("stage=export needs the extra: pip install 'synthvision[onnx]'") from error
    side = model.config.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (CHECKED, side, side, 3)).astype(np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    program = torch.onnx.export(
        Deployed(model).eval(), (images,), input_names=["images"], output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("n", min=1)},), dynamo=True, verbose=False,
    )  # fmt: skip
    assert program is not None
    data = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    answers = [session.run(None, {"images": part.numpy()})[0] for part in (images, images[:1])]
    difference = float(np.abs(np.concatenate(answers) - model.probabilities(pixels)[[0, 1, 2, 3, 0]]).max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the ONNX file's probabilities differ by up to {difference}; {TOLERANCE} is allowed")
    write_bytes(file, data)
    return difference
