"""The memorisation gate: is a candidate a guide again, flipped, turned, cropped, recoloured or compressed?

Every candidate is compared with every guide in four ways. Correlation and hash see the guide's views (8 turns times 19
crops), structural similarity the view of each guide that correlates best, features the 8 turns.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

from synthvision.artifact import write_text
from synthvision.data.features import structure
from synthvision.data.images import Pixels, fit, grey_thumbnails, hashes_of, load_batch
from synthvision.data.sheets import contact_sheet
from synthvision.data.similarity import TURNS, VIEWS, details, name_of, view_of, views_of
from synthvision.diffusion.encoder import Embed, encoder
from synthvision.manifest import Manifest, Record

REVIEWER = "memorisation gate"
SIDE = 64  # pixels at which pictures are compared
# The first three of the five scales of Wang et al. (2003), whose sum is 1 again: 64 pixels hold no more.
SCALES = (0.0711, 0.4530, 0.4759)
BLOCK = 64  # candidates compared at a time, which bounds memory
PAIRS = 16  # on the sheet
SHOWN = 128  # side of a picture on it, in pixels
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GateConfig:
    """From where on a candidate is a copy. One measure suffices.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    max_correlation: float  # of details with a view of a guide
    max_similarity: float  # multi-scale structural similarity
    min_hash_distance: int  # bits of 64 in which perceptual hashes differ
    min_feature_ratio: float  # distance of features, as a share of the distance between guides; 0: is not judged by
    encoder: str | None  # folder of a vision encoder (CLIP, DINOv2, ViT); null: our own features

    def __post_init__(self) -> None:
        for key, lowest, highest in (
            ("max_correlation", 0, 1),
            ("max_similarity", 0, 1),
            ("min_hash_distance", 0, 64),
            ("min_feature_ratio", 0, 1),
        ):
            value = getattr(self, key)
            if not lowest <= value <= highest:
                raise ValueError(f"memorisation.{key} must be from {lowest} to {highest}; it is {value!r}")


@dataclass(frozen=True)
class Finding:
    """How near a candidate comes to the guides, each measure at its worst over all of them."""

    image_id: str
    guide: str  # image_id of the guide that it is most like
    view: str  # of that guide
    correlation: float
    similarity: float
    hash_distance: int
    feature_ratio: float
    fault: str  # what makes it a copy; empty: it is none
    pair: tuple[int, int]  # rows of the guide, and of the view in VIEWS


def gate(candidates: Manifest, guides: Manifest, config: GateConfig, out: Path) -> Manifest:
    """Return the candidates, copies of guides rejected with the evidence; write what was found.

    Writes `out/memorisation.csv`, a line per candidate, and `out/nearest_pairs.png`: the candidates that come nearest
    to a guide, worst first, each beside the guide as it was turned and cropped to fit.

    Raises:
        ValueError: there is no guide to compare with, or `config.encoder` holds no encoder.
    """
    embed = encoder(config.encoder) if config.encoder else structure
    findings = judge(candidates, guides, config, embed)
    _table(findings, out / "memorisation.csv")
    _sheet(findings, candidates, guides, out / "nearest_pairs.png")
    copies = [each for each in findings if each.fault]
    faults = {each.image_id: f"copy of guide {each.guide} ({each.view}): {each.fault}" for each in copies}
    return candidates.with_values(
        lambda record: (
            {"decision": "reject", "reason": faults[record.image_id], "reviewer": REVIEWER}
            if record.image_id in faults
            else {}
        )
    )


def _table(findings: list[Finding], file: Path) -> None:
    text = io.StringIO()
    names = [each.name for each in fields(Finding) if each.name != "pair"]
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(asdict(each) for each in findings)
    write_text(file, text.getvalue())


def _sheet(findings: list[Finding], candidates: Manifest, guides: Manifest, file: Path) -> None:
    shown = sorted(findings, key=lambda each: (not each.fault, -each.correlation))[:PAIRS]
    records = {record.image_id: record for record in candidates}
    left = load_batch(Manifest(tuple(records[each.image_id] for each in shown), candidates.root), SHOWN)
    right = load_batch(guides, SHOWN)[[each.pair[0] for each in shown]]  # one guide may stand beside several
    tiles = [
        tile
        for image, guide, each in zip(left, right, shown, strict=True)
        for tile in (image, fit(view_of(guide, VIEWS[each.pair[1]]), SHOWN))
    ]
    contact_sheet(np.stack(tiles), 8, file)


def judge(candidates: Manifest, guides: Manifest, config: GateConfig, embed: Embed = structure) -> list[Finding]:
    """Compare every candidate with every guide.

    Args:
        candidates: in any order; findings are in the same.
        guides: of all sets.
        config: the thresholds.
        embed: gives features as unit vectors.

    Raises:
        ValueError: there is no guide to compare with.
    """
    if not len(guides):
        raise ValueError("the memorisation gate needs the guides to compare with; there is none")
    known = _Guides.of(load_batch(guides, SIDE), embed)
    findings: list[Finding] = []
    for start in range(0, len(candidates), BLOCK):
        block = Manifest(candidates.records[start : start + BLOCK], candidates.root)
        findings += _compare(block, guides, known, config, embed)
    return findings


@dataclass(frozen=True)
class _Guides:
    """What candidates are compared with."""

    images: Pixels  # (G, SIDE, SIDE, 3)
    details: Floats  # (G, views, F)
    hashes: NDArray[np.uint64]  # (G, views)
    features: Floats  # (G, turns, F)
    apart: float  # the median distance of a guide's features to the nearest other guide's; 0 where there is one only

    @classmethod
    def of(cls, images: Pixels, embed: Embed) -> _Guides:
        views = [views_of(image) for image in images]
        thumbnails = np.stack([grey_thumbnails(np.stack([fit(view, SIDE) for view in each])) for each in views])
        features = np.stack([embed(np.stack(each[: len(TURNS)])) for each in views])  # the turns come first
        return cls(
            images,
            np.stack([details(each) for each in views]),
            np.stack([hashes_of(each) for each in thumbnails]),
            features,
            _apart(features),
        )


def _apart(features: Floats) -> float:
    count = len(features)
    if count < 2:
        return 0.0
    distances = _distances(features[:, 0], features)  # (G, G)
    distances[np.arange(count), np.arange(count)] = np.inf
    return float(np.median(distances.min(axis=1)))


def _distances(features: Floats, guides: Floats) -> Floats:
    """Return the Euclidean distance to each guide's nearest turn: unit vectors (N, F), (G, turns, F) -> (N, G)."""
    cosine = np.einsum("nf,gtf->ngt", features, guides).max(axis=2)
    distances: Floats = np.sqrt(np.maximum(0, 2 - 2 * cosine))
    return distances


def _compare(
    candidates: Manifest, guides: Manifest, known: _Guides, config: GateConfig, embed: Embed
) -> Iterator[Finding]:
    images = load_batch(candidates, SIDE)
    correlation = np.einsum("nf,gvf->ngv", details(list(images)), known.details)  # (N, G, views)
    hashes = hashes_of(grey_thumbnails(images))
    bits = np.bitwise_count(hashes[:, None, None] ^ known.hashes[None]).min(axis=2)  # (N, G)
    ratios = _distances(embed(images), known.features) / known.apart if known.apart else np.ones(bits.shape)
    views = correlation.argmax(axis=2)  # (N, G)
    for row, record in enumerate(candidates):
        alike = _structural(images[row], [view_of(g, VIEWS[v]) for g, v in zip(known.images, views[row], strict=True)])
        best = correlation[row].max(axis=1)  # (G,)
        yield _finding(record, guides, config, views[row], best, alike, bits[row], ratios[row])


def _structural(image: Pixels, views: list[Pixels]) -> Floats:
    """Return the multi-scale structural similarity of luminance with each view, brought to its mean and contrast."""
    one = _luminance([image])
    others = _luminance([fit(view, SIDE) for view in views])  # (G, 1, SIDE, SIDE)
    mean, spread = one.mean(), one.std()
    others = (others - others.mean((1, 2, 3), True)) / others.std((1, 2, 3), keepdim=True).clamp(min=1) * spread + mean
    same = one.expand_as(others)
    values = ms_ssim(others, same, reduction="none", data_range=255.0, betas=SCALES, normalize="relu")
    return np.atleast_1d(values.double().numpy())


def _luminance(images: list[Pixels]) -> torch.Tensor:
    grey = [np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L")) for image in images]
    return torch.from_numpy(np.stack(grey)).float()[:, None]


def _finding(
    record: Record,
    guides: Manifest,
    config: GateConfig,
    views: NDArray[np.intp],
    correlation: Floats,
    similarity: Floats,
    bits: NDArray[np.uint8],
    ratios: Floats,
) -> Finding:
    faults = []
    suspects: list[int] = []
    for name, values, copies, limit in (
        ("correlation", correlation, correlation > config.max_correlation, f"at most {config.max_correlation:g}"),
        ("structural similarity", similarity, similarity > config.max_similarity, f"at most {config.max_similarity:g}"),
        ("hash distance", -bits.astype(float), bits < config.min_hash_distance, f"at least {config.min_hash_distance}"),
        ("feature distance", -ratios, ratios < config.min_feature_ratio, f"at least {config.min_feature_ratio:g}"),
    ):
        if copies.any():
            worst = int(values.argmax())
            suspects.append(worst)
            faults.append(f"{name} {abs(values[worst]):.3g} to {guides.records[worst].image_id}, {limit} allowed")
    guide = suspects[0] if suspects else int(correlation.argmax())
    view = int(views[guide])
    return Finding(
        record.image_id,
        guides.records[guide].image_id,
        name_of(VIEWS[view]),
        round(float(correlation.max()), 4),
        round(float(similarity.max()), 4),
        int(bits.min()),
        round(float(ratios.min()), 4),
        "; ".join(faults),
        (guide, view),
    )
