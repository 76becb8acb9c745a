"""What is known of an image beside its label: the columns that a table may tell, and the words they are told in."""

from __future__ import annotations

import re
from collections.abc import Callable

TELLABLE = (  # columns of Record that a source can fill
    "patient", "lesion", "skin_tone", "body_part", "age_band", "sex", "site", "device", "caption", "licence", "consent",
    "reference_standard", "split",
)  # fmt: skip
STANDARDS = ("test", "biopsy", "expert", "opinion", "phantom")
SPLITS = ("train", "val", "test")
SPLIT_WORDS = {
    **{word: word for word in SPLITS},
    "training": "train",
    "valid": "val",
    "validation": "val",
    "testing": "test",
}
ROMAN = {"i": "1", "ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6"}
SEXES = {"f": "female", "female": "female", "m": "male", "male": "male", "o": "other", "other": "other"}
UNKNOWN = ("", "unknown", "n/a", "na", "nan", "none", "null", "?")
OLDEST = 90  # and above: older patients are few enough to be recognised


def told(column: str, cell: str) -> str:
    """Return a cell in this column's own words; "" where it says that nothing is known.

    skin_tone: Fitzpatrick types as "1" to "6" ("FST III" is "3"), other words (three groups) as they are.
    age_band: an age in years as its ten years, "34" is "30-39"; from 90 on "90+".

    Raises:
        ValueError: the column has a fixed set of words and the cell is none of them.
    """
    text = " ".join(cell.split())
    if text.lower() in UNKNOWN:
        return ""
    return WORDS[column](text) if column in WORDS else text


def _skin_tone(text: str) -> str:
    bare = re.sub(r"^(fitzpatrick|fst|type|skin)[\s:_-]*", "", text.lower())
    bare = re.sub(r"^type[\s:_-]*", "", bare)
    number = ROMAN.get(bare, bare.removesuffix(".0"))
    if number.isdigit() and number not in ROMAN.values():
        raise ValueError(f"skin_tone must be a Fitzpatrick type 1 to 6 or the name of a group; it is {text!r}")
    return number if number in ROMAN.values() else text


def _age_band(text: str) -> str:
    if re.fullmatch(r"\d+\s*-\s*\d+|\d+\+", text):
        return text.replace(" ", "")
    try:
        years = int(float(text))
    except ValueError as error:
        raise ValueError(f"age_band must be an age in years or a band like 30-39; it is {text!r}") from error
    if not 0 <= years <= 130:
        raise ValueError(f"age_band must be an age of 0 to 130 years; it is {text!r}")
    decade = years // 10 * 10
    return f"{OLDEST}+" if decade >= OLDEST else f"{decade}-{decade + 9}"


def _one_of(column: str, words: dict[str, str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(
                f"{column} must be one of {sorted(set(words.values()))} or empty; it is {text!r}. Map it with 'values'"
            )
        return words[text.lower()]

    return read


WORDS: dict[str, Callable[[str], str]] = {
    "skin_tone": _skin_tone,
    "age_band": _age_band,
    "sex": _one_of("sex", SEXES),
    "reference_standard": _one_of("reference_standard", {word: word for word in STANDARDS}),
    "split": _one_of("split", SPLIT_WORDS),
}
