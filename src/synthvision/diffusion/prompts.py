"""What is asked for: prompts from templates, balanced over attributes, or as a user wrote them."""

from __future__ import annotations

import hashlib
import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from synthvision.manifest import Manifest

FROM_BACKGROUND = ("skin_tone", "body_part")  # what a painted image inherits from the picture below it
PROMPT = 2  # draw key: which value of an attribute comes when
BACKGROUND = 3  # draw key: which picture is painted into when


@dataclass(frozen=True)
class Prompt:
    """What is asked for. `attributes` holds those that the text mentions; `background` is the image painted into."""

    text: str
    negative: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    background: str = ""  # image_id; empty: from noise


@dataclass(frozen=True)
class Row:
    """One line of a file of prompts."""

    prompt: str
    negative: str
    variants: int
    attributes: Mapping[str, str] = field(default_factory=dict)


def expand(
    templates: Sequence[str], attributes: Mapping[str, Sequence[str]], n: int, seed: int, negative: str = ""
) -> list[Prompt]:
    """Return n prompts in which templates and values of each attribute are equally frequent, to within one.

    Every combination comes once before one comes twice, and any first part of the list is balanced as well.

    Raises:
        ValueError: a template names an attribute that has no values.
    """
    return [_prompt(row.pop(""), row, negative, "") for row in _combinations(templates, attributes, n, seed)]


def expand_over(
    templates: Sequence[str],
    attributes: Mapping[str, Sequence[str]],
    backgrounds: Manifest,
    n: int,
    seed: int,
    negative: str = "",
) -> list[Prompt]:
    """Return n prompts to paint into backgrounds, each background once before one comes twice.

    Skin tone and body part are the background's own, where known; other attributes are balanced as in `expand`.

    Raises:
        ValueError: there is no background, or a template names an attribute that has no value.
    """
    if not len(backgrounds):
        raise ValueError("generate.mode=paint needs real images to paint into, of another class, in the training split")
    rounds = (np.random.default_rng([seed, BACKGROUND, k]).permutation(len(backgrounds)) for k in range(n))
    records = (backgrounds.records[index] for order in rounds for index in order)
    prompts = []
    for row, record in zip(_combinations(templates, attributes, n, seed), records, strict=False):
        own = {key: getattr(record, key) for key in FROM_BACKGROUND if getattr(record, key)}
        prompts.append(_prompt(row.pop(""), row | own, negative, record.image_id))
    return prompts


def _combinations(
    templates: Sequence[str], attributes: Mapping[str, Sequence[str]], n: int, seed: int
) -> Iterator[dict[str, str]]:
    """Yield n rows of attribute values; the template is the attribute without a name."""
    columns = []
    for index, (name, values) in enumerate([("", templates), *sorted(attributes.items())]):
        if not values:
            raise ValueError(f"disease.attributes.{name} must list at least one value; it is empty")
        order = np.random.default_rng([seed, PROMPT, index]).permutation(len(values))
        columns.append((name, [values[k] for k in order]))
    for k in range(n):
        row, combinations = {}, 1
        for name, values in columns:
            # All columns step at once, so each alone is balanced. Where the columns so far come round together with
            # this one, it steps once more, so that the next lap brings other combinations, until all have been.
            lap = math.lcm(combinations, len(values))
            combinations *= len(values)
            place = k % combinations
            row[name] = values[(place + place // lap) % len(values)]
        yield row


def _prompt(template: str, values: Mapping[str, str], negative: str, background: str) -> Prompt:
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    missing = [name for name in fields if name not in values]
    if missing:
        where = f" for background {background}" if background else ""
        raise ValueError(
            f"disease.templates: {template!r} needs {missing}{where}; give its values in disease.attributes, which "
            f"has {sorted(values)}"
        )
    return Prompt(template.format(**values), negative, {name: values[name] for name in fields}, background)


def written(rows: Sequence[Row], backgrounds: Manifest | None, seed: int) -> list[Prompt]:
    """Return the prompts of a file, each as often as it has variants.

    With backgrounds, a prompt that names a skin tone or body part starts from pictures with them only; each fitting
    picture is used once before one is used twice.

    Raises:
        ValueError: no background fits a prompt.
    """
    prompts = []
    for row in rows:
        if backgrounds is None:
            prompts += [Prompt(row.prompt, row.negative, row.attributes)] * row.variants
            continue
        names = _fitting(row, backgrounds).column("image_id")
        # By the prompt and not by its place in the file: another file with it in makes the same images of it.
        key = int(hashlib.sha256(f"{row.prompt}\n{row.negative}".encode()).hexdigest()[:12], 16)
        for variant in range(row.variants):
            lap, place = divmod(variant, len(names))
            order = np.random.default_rng([seed, BACKGROUND, key, lap]).permutation(len(names))
            prompts.append(Prompt(row.prompt, row.negative, row.attributes, names[order[place]]))
    return prompts


def _fitting(row: Row, backgrounds: Manifest) -> Manifest:
    wanted = {key: row.attributes[key] for key in FROM_BACKGROUND if key in row.attributes}
    fitting = backgrounds.where(None, **wanted)
    if not len(fitting):
        raise ValueError(
            f"generate.prompts: no real training image of another class has {wanted or 'a place for it'}, which "
            f"{row.prompt!r} is to start from; give some their skin tone and body part, or use generate=noise"
        )
    return fitting
