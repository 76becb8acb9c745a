"""Sources list files with what is known of them, and say what is missing."""

from pathlib import Path

import pandas as pd
import pytest

from synthvision.data.columns import TELLABLE, told
from synthvision.data.intake import FolderSource, GuideSource, TableSource
from synthvision.manifest import COLUMNS

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
    assert {key: value for key, value in found[0].values.items() if value} == {"label": "lesion", "licence": "CC0"}
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
        ({"columns": {"origin": "where"}}, r"not: \['origin'\]"),
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


def test_masks_beside_images_are_masks_and_no_images(tmp_path: Path) -> None:
    for name in ("a.png", "a_mask.png", "b.jpg", "b.mask.png", "c.png", "mask.png"):
        (tmp_path / name).touch()
    found = FolderSource("lesion", str(tmp_path)).read()
    assert {each.file.name: each.mask.name if each.mask else None for each in found} == {
        "a.png": "a_mask.png", "b.jpg": "b.mask.png", "c.png": None, "mask.png": None,
    }  # fmt: skip


def test_masks_may_be_named_otherwise_and_lie_elsewhere(tmp_path: Path) -> None:
    for name in ("001.bmp", "001.png", "002.bmp"):
        (tmp_path / name).touch()
    found = FolderSource("cell", str(tmp_path), masks=["{stem}.png"]).read()
    assert [(each.file.name, each.mask and each.mask.name) for each in found] == [
        ("001.bmp", "001.png"), ("002.bmp", None),
    ]  # fmt: skip
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "002_lesion.png").touch()
    found = FolderSource("cell", str(tmp_path), "*.bmp", masks=["masks/{stem}_lesion.png"]).read()
    assert [each.mask for each in found] == [None, tmp_path / "masks" / "002_lesion.png"]
    with pytest.raises(ValueError, match=r"must hold \{stem\}"):
        FolderSource("cell", str(tmp_path), masks=["mask.png"])


def test_guides_may_have_masks(tmp_path: Path) -> None:
    for name in ("a.png", "a_mask.png"):
        (tmp_path / name).touch()
    (tmp_path / "a.txt").write_text("pustules")
    (found,) = guides(tmp_path).read()
    assert found.mask == tmp_path / "a_mask.png"


def test_a_table_may_name_masks_and_splits(tmp_path: Path) -> None:
    text = "file,label,m,part\na.png,x,masks/1.png,Testing\nb.png,x,,train\n"
    columns = {"mask": "m", "split": "part"}
    options = {"image_column": "file", "label_column": "label", "labels": {"x": "lesion"}}
    found = table(tmp_path, text, columns=columns, **options).read()
    assert [each.mask for each in found] == [tmp_path / "masks" / "1.png", None]
    assert [each.values["split"] for each in found] == ["test", "train"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"external": "lab 2"}, "external must be a name"),
        ({"external": "lab2", "split": "test"}, "remove split='test'"),
        ({"external": "lab2", "columns": {"split": "where"}}, "remove 'split' from columns"),
        ({"split": "external"}, "split must be one of"),
    ],
)
def test_an_external_test_set_has_a_name_and_no_other_split(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        table(tmp_path, **options)


def test_all_of_a_source_is_external(tmp_path: Path) -> None:
    found = table(tmp_path, external="lab2").read()
    assert {(each.values["split"], each.values["set"]) for each in found} == {("external", "lab2")}


def test_every_column_that_a_table_can_tell_arrives(tmp_path: Path) -> None:
    cells = {
        "patient": "p1", "lesion": "l1", "skin_tone": "FST II", "body_part": "arm", "age_band": "34", "sex": "F",
        "site": "St Mary", "device": "phone", "caption": "few warts", "licence": "CC-BY-4.0", "consent": "written",
        "reference_standard": "biopsy", "split": "validation",
    }  # fmt: skip
    assert set(cells) == set(TELLABLE)
    text = f"file,label,{','.join(cells)}\na.png,x,{','.join(cells.values())}\n"
    options = {"image_column": "file", "label_column": "label", "labels": {"x": "lesion"}}
    (found,) = table(tmp_path, text, columns={name: name for name in cells}, **options).read()
    known = {**cells, "skin_tone": "2", "age_band": "30-39", "sex": "female", "split": "val", "label": "lesion"}
    assert found.values == known
    assert set(known) <= set(COLUMNS)


def test_parquet_and_semicolons_tell_the_same(tmp_path: Path) -> None:
    rows = pd.DataFrame({"image ID": [1, 2], "class label": ["1", "2"], "age": [34, None]})
    rows.to_parquet(tmp_path / "table.dat")
    rows.to_csv(tmp_path / "table.csv", sep=";", index=False)
    read = [
        TableSource(str(tmp_path / name), "image ID", "class label", LABELS, columns={"age_band": "age"}).read()
        for name in ("table.dat", "table.csv")
    ]
    assert read[0] == read[1]
    assert [each.values.get("age_band") for each in read[0]] == ["30-39", None]


def test_a_table_that_is_not_utf8_says_so(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("file,label\n\xe4.png,x".encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels\.csv: the text must be UTF-8"):
        TableSource(str(tmp_path / "labels.csv"), "file", "label", {"x": "x"}).read()


def test_a_team_s_own_words_are_mapped(tmp_path: Path) -> None:
    columns, values = {"reference_standard": "where"}, {"reference_standard": {"arm": "biopsy", "leg": "expert"}}
    found = table(tmp_path, columns=columns, values=values, reference_standard="opinion").read()
    assert [each.values["reference_standard"] for each in found] == ["biopsy", "opinion", "expert"]
    with pytest.raises(ValueError, match=r"row 2: reference_standard must be one of .*'arm'. Map it with 'values'"):
        table(tmp_path, columns=columns).read()
    with pytest.raises(ValueError, match="reference_standard must be one of"):
        FolderSource("lesion", str(tmp_path), reference_standard="guess")


@pytest.mark.parametrize(
    ("column", "cell", "known"),
    [
        ("skin_tone", "FST III", "3"), ("skin_tone", "Fitzpatrick type 6", "6"), ("skin_tone", "4.0", "4"),
        ("skin_tone", "brown", "brown"), ("skin_tone", "unknown", ""), ("age_band", "34", "30-39"),
        ("age_band", "97", "90+"), ("age_band", "40 - 49", "40-49"), ("sex", "F", "female"),
        ("site", " St  Mary ", "St Mary"),
    ],
)  # fmt: skip
def test_cells_are_read_as_their_column_means_them(column: str, cell: str, known: str) -> None:
    assert told(column, cell) == known


@pytest.mark.parametrize(
    ("column", "cell"), [("skin_tone", "7"), ("age_band", "old"), ("age_band", "300"), ("sex", "x")]
)
def test_cells_that_mean_nothing_are_refused(column: str, cell: str) -> None:
    with pytest.raises(ValueError, match=f"{column} must be"):
        told(column, cell)


def test_odd_names_are_listed_and_loops_are_not_entered(tmp_path: Path) -> None:
    names = ["two\nlines.png", "\N{MICROSCOPE} cell.png", "x" * 196 + ".png", " leading.png"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    found = {each.file.name for each in FolderSource("lesion", str(tmp_path), "**/*").read()}
    assert found >= {*names, "self.png"}
    assert len(found) <= len(names) + 2
