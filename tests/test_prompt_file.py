"""Prompts that a user wrote down: read, checked, and given the pictures that fit them."""

from pathlib import Path

import pytest
from conftest import MakeManifest

from synthvision.diffusion.prompt_file import read_prompts
from synthvision.diffusion.prompts import Row, written

ATTRIBUTES = {"skin_tone": ["fair", "dark"], "count": ["few", "many"]}
YAML = """
- prompt: sks spots, many
  negative: drawing
  variants: 3
  count: many
- prompt: sks spots on the {body}
  body_part: arm
"""
CSV = 'prompt,negative,variants,count,body_part\n"sks spots, many",drawing,3,many,\nsks spots on the {body},,,,arm\n'


@pytest.mark.parametrize(("name", "text"), [("a.yaml", YAML), ("a.csv", CSV)])
def test_yaml_and_csv_tell_the_same(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_prompts(str(tmp_path / name), ATTRIBUTES, "text") == [
        Row("sks spots, many", "drawing", 3, {"count": "many"}),
        Row("sks spots on the {body}", "text", 1, {"body_part": "arm"}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts"),
        ("prompt: a", "must be a list"),
        ("- [", "is no YAML"),
        ("- prompt: ''", r"prompt 1: 'prompt' must say"),
        ("- prompt: a\n- prompt: b\n  variants: -2", r"prompt 2: 'variants' must be .* at least 1; it is '-2'"),
        ("- {prompt: a, variants: 0}", "'variants' must be"),
        ("- {prompt: a, tone: fair}", r"unknown attribute 'tone'.*\['body_part', 'count', 'skin_tone'\]"),
        ("- {prompt: a, skin_tone: blue}", r"'skin_tone' must be one of .*\['fair', 'dark'\]; it is 'blue'"),
        ("- prompt: a\n- prompt: a", "prompt 2: 'a' is prompt 1 again; raise its variants"),
    ],
)
def test_a_bad_file_says_where_and_what(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(str(tmp_path / "a.yaml"), ATTRIBUTES)


def test_a_missing_file_and_a_torn_line_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_prompts(str(tmp_path / "no.yaml"), ATTRIBUTES)
    (tmp_path / "a.csv").write_text("prompt,negative\nsks spots, many, large\n")
    with pytest.raises(ValueError, match="more cells than the header"):
        read_prompts(str(tmp_path / "a.csv"), ATTRIBUTES)


def test_variants_start_from_pictures_that_fit_whatever_else_is_in_the_file(make_manifest: MakeManifest) -> None:
    normals = make_manifest(("normal",), 6)
    normals = normals.with_values(lambda record: {"skin_tone": "fair" if record.image_id < "normal-3" else "dark"})
    rows = [Row("a", "", 2), Row("b", "", 5, {"skin_tone": "dark"})]
    prompts = written(rows, normals, 1)
    assert [prompt.text for prompt in prompts] == ["a"] * 2 + ["b"] * 5
    dark = {"normal-3", "normal-4", "normal-5"}
    assert {prompt.background for prompt in prompts[2:]} == dark
    assert {prompt.background for prompt in prompts[2:5]} == dark
    assert written(rows[1:], normals, 1) == prompts[2:]
    assert [prompt.background for prompt in written(rows, None, 1)] == [""] * 7
    with pytest.raises(ValueError, match=r"no real training image .*'skin_tone': 'brown'"):
        written([Row("a", "", 1, {"skin_tone": "brown"})], normals, 1)
