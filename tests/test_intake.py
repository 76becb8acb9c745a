"""Sources list files with what is known of them, and say what is missing."""

from pathlib import Path

import pytest

from synthvision.data.intake import FolderSource, GuideSource, TableSource

TABLE = "image ID,class label,person,where\n1,2,p1,arm\n2, 1 ,p2,\n10,2,,leg\n11,5,p3,leg\n"
LABELS = {"1": "neutrophil", "2": "lymphocyte"}


def table(folder: Path, text: str = TABLE, **options: object) -> TableSource:
    (folder / "labels.csv").write_text(text, encoding="utf-8-sig")
    columns = {"image_column": "image ID", "label_column": "class label", "labels": LABELS}
    return TableSource(file=str(folder / "labels.csv"), **{**columns, **options})


def test_folder_lists_visible_files_in_order(tmp_path: Path) -> None:
    for name in ("b b.png", "a.bmp", ".hidden.png", "sub/c.png", ".trash/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    source = FolderSource("lesion", str(tmp_path), licence="CC0")
    found = source.read()
    assert [each.file.name for each in found] == ["a.bmp", "b b.png", "dangling.png"]
    assert found[0].values == {"label": "lesion", "licence": "CC0", "consent": "", "reference_standard": ""}
    assert len(FolderSource("lesion", str(tmp_path), "**/*.png").read()) == 3


def test_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        FolderSource("lesion", str(tmp_path / "nowhere")).read()
    with pytest.raises(FileNotFoundError, match=r"\*\.jpg"):
        FolderSource("lesion", str(tmp_path), "*.jpg").read()


def test_table_maps_rows_to_files_and_columns(tmp_path: Path) -> None:
    columns = {"patient": "person", "body_part": "where"}
    found = table(tmp_path, image_template="{:0>3}.bmp", columns=columns, reference_standard="opinion").read()
    assert [each.file for each in found] == [tmp_path / name for name in ("001.bmp", "002.bmp", "010.bmp")]
    assert [each.values["label"] for each in found] == ["lymphocyte", "neutrophil", "lymphocyte"]
    assert [each.values.get("patient") for each in found] == ["p1", "p2", None]
    assert [each.values.get("body_part") for each in found] == ["arm", None, "leg"]
    assert {each.values["reference_standard"] for each in found} == {"opinion"}


def test_a_cell_goes_before_the_source(tmp_path: Path) -> None:
    found = table(tmp_path, columns={"consent": "where"}, consent="written").read()
    assert [each.values["consent"] for each in found] == ["arm", "written", "leg"]


def test_labels_from_yaml_may_be_numbers(tmp_path: Path) -> None:
    assert len(table(tmp_path, labels={2: "lymphocyte"}).read()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "image"}, r"no column \['image'\]; its columns are \['image ID'"),
        ({"columns": {"patient": "name"}}, r"no column \['name'\]"),
        ({"columns": {"split": "where"}}, r"not: \['split'\]"),
        ({"labels": {}}, "labels: map at least one"),
        ({"labels": {"9": "none"}}, "is one of"),
    ],
)
def test_a_table_that_does_not_fit_says_so(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(tmp_path, **options).read()


def test_table_must_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"labels\.csv"):
        TableSource(str(tmp_path / "labels.csv"), "image", "label", LABELS).read()


def guides(folder: Path) -> GuideSource:
    return GuideSource(str(folder), "lesion", "face-dark", consent="written")


def test_guides_come_with_captions(tmp_path: Path) -> None:
    for stem in ("b", "a"):
        (tmp_path / f"{stem}.jpg").touch()
        (tmp_path / f"{stem}.txt").write_text(f" pustules on\n the {stem} \n")
    found = guides(tmp_path).read()
    assert [each.file.name for each in found] == ["a.jpg", "b.jpg"]
    assert found[0].values["caption"] == "pustules on the a"
    assert {(each.values["set"], each.values["consent"]) for each in found} == {("face-dark", "written")}


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, "no guide images"),
        ({"a.png": "", "b.png": "", "a.txt": "pustules"}, ValueError, r"b\.png needs a caption.*b\.txt"),
        ({"a.png": "", "a.txt": " \n"}, ValueError, r"a\.png needs a caption"),
        ({"a.png": "", "a.txt": "pustules", "b.txt": "more"}, ValueError, r"without an image.*\['b'\]"),
    ],
)
def test_guides_without_captions_are_refused(
    tmp_path: Path, files: dict[str, str], error: type[Exception], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        guides(tmp_path).read()
