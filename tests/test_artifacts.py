"""Same content, same bytes; damage and strangers are refused; pandas and xarray open the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st

from stages import artifacts
from stages.artifacts import BIAS, CLASS_TEXT, GLOBAL_CLIP, INITIAL_LABELS
from stages.runtime.errors import UserError
from stages.storage import tables
from stages.storage.arrays import Rows, read_store, write_store
from stages.storage.tables import class_table, read_parts, read_table, write_table
from tests.conftest import MINI_CLASSES, Project


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_labels(under: Path = Path()) -> Path:
    ids = pd.DataFrame({"image_id": ["a", "b <i>"]})
    table = class_table(ids, np.array([[0.1, 0.2], [0.3, 0.4]]), ["dog", "<b>"])
    write_table(INITIAL_LABELS, table, {"index": "x", "zebra": 1, "ant": 2}, under)
    return under / INITIAL_LABELS.path


def write_embeddings(rows: int = 5, under: Path = Path()) -> Path:
    values = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    values[0] = np.nan
    names = {"image": [f"é{i}" for i in range(rows)]}
    write_store(GLOBAL_CLIP, {"embedding": values}, {"index": "x"}, under, labels=names)
    return under / GLOBAL_CLIP.path


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in files}


def test_the_same_content_gives_the_same_bytes(here):
    for write in (write_labels, lambda under: write_embeddings(5, under)):
        assert content(write(here / "one")) == content(write(here / "two"))


def test_what_is_written_is_read_back():
    write_labels()
    table, note = read_table(INITIAL_LABELS, "x")
    assert table.to_dict("list") == {
        "image_id": ["a", "b <i>"],
        "dog": pytest.approx([0.1, 0.3]),
        "<b>": pytest.approx([0.2, 0.4]),
    }
    assert note["classes"] == ["dog", "<b>"]
    write_embeddings()
    arrays, _ = read_store(GLOBAL_CLIP, "x")
    assert np.isnan(arrays["embedding"][0]).all()
    assert arrays["embedding"][4].tolist() == [12, 13, 14]


@given(st.sampled_from([0, 1, 1023, 1024, 1025]))
def test_a_store_of_any_length_is_read_back(rows):
    write_embeddings(max(rows, 1)) if rows else write_store(
        GLOBAL_CLIP, {"embedding": np.zeros((0, 3), np.float32)}, {"index": "x"}, Path()
    )
    assert read_store(GLOBAL_CLIP, "x")[0]["embedding"].shape[0] == rows


def test_an_artifact_of_another_index_is_refused():
    write_labels()
    write_embeddings()
    for read, what in ((read_table, INITIAL_LABELS), (read_store, GLOBAL_CLIP)):
        with pytest.raises(UserError, match="made from another index"):
            read(what, "y")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_value_that_is_not_finite_is_written(value):
    ids = pd.DataFrame({"image_id": ["a"]})
    with pytest.raises(UserError, match="x of a would be"):
        write_table(INITIAL_LABELS, class_table(ids, np.float32([[value]]), ["x"]), {}, Path())
    with pytest.raises(UserError, match="not finite"):
        write_store(CLASS_TEXT, {"embedding": np.float32([[value]])}, {}, Path())


def test_an_absent_artifact_says_how_to_make_it():
    with pytest.raises(UserError, match="data/bias.parquet is not there: run `dvc repro` first"):
        read_table(BIAS)
    with pytest.raises(UserError, match=r"clip.zarr is not there: run `dvc repro` first"):
        read_store(GLOBAL_CLIP)


def test_another_schema_is_refused(here):
    write_labels().rename(here / "data/bias.parquet")
    with pytest.raises(UserError, match=r"is of schema ccd.labels/1, not ccd.bias/2"):
        read_table(BIAS)


def test_a_foreign_parquet_is_refused(here):
    path = here / INITIAL_LABELS.path
    path.parent.mkdir()
    pd.DataFrame({"image_id": ["a"]}).to_parquet(path)
    with pytest.raises(UserError, match="is of schema None"):
        read_table(INITIAL_LABELS)


@pytest.mark.parametrize("rest", [0, -9])
def test_a_truncated_table_is_noticed(rest):
    path = write_labels()
    path.write_bytes(path.read_bytes()[:rest])
    with pytest.raises(UserError, match="is damaged"):
        read_table(INITIAL_LABELS)


def test_no_flipped_bit_changes_a_label_unnoticed():
    path = write_labels()
    data, (table, _) = path.read_bytes(), read_table(INITIAL_LABELS)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            assert read_table(INITIAL_LABELS)[0].equals(table), position
        except UserError:
            continue


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "metadata"])
def test_damage_to_a_store_is_noticed(damage):
    path = write_embeddings()
    shard = next(
        f for f in (path / "embedding").rglob("*") if f.is_file() and f.name != "zarr.json"
    )
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[10] ^= 0xFF
        shard.write_bytes(data)
    elif damage == "truncate":
        shard.write_bytes(data[:-5])
    elif damage == "delete":
        shard.unlink()
    else:
        (path / "zarr.json").write_text("{}")
    with pytest.raises(
        UserError, match="is of schema None" if damage == "metadata" else "is damaged"
    ):
        read_store(GLOBAL_CLIP)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_rows_in_parts_are_the_same_rows(sizes: list[int]):
    """A store and a table are the same byte for byte, however the rows came."""
    rows = sum(sizes)
    values = np.random.default_rng(0).random((rows, 3), np.float32)
    ids = pd.DataFrame({"image_id": [f"{n}" for n in range(rows)]}, dtype=str)
    frame = class_table(ids, values, "abc")
    ends = np.cumsum(sizes)
    cuts = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    whole, parted = Path("whole"), Path("parted")
    write_store(GLOBAL_CLIP, {"embedding": values}, {}, whole)
    in_parts = Rows(rows, (values[cut] for cut in cuts))
    write_store(GLOBAL_CLIP, {"embedding": in_parts}, {}, parted)
    assert content(whole / GLOBAL_CLIP.path) == content(parted / GLOBAL_CLIP.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "ROWS", 4)
        write_table(INITIAL_LABELS, frame, {}, whole)
        write_table(INITIAL_LABELS, (frame[cut] for cut in cuts), {}, Path())
    assert INITIAL_LABELS.path.read_bytes() == (whole / INITIAL_LABELS.path).read_bytes()
    parts = list(read_parts(INITIAL_LABELS))
    assert [len(part) for part in parts][:-1] == [4] * (len(parts) - 1)
    read, _ = read_table(INITIAL_LABELS)
    assert read.equals(pd.concat(parts, ignore_index=True))
    assert read["b"].tolist() == values[:, 1].tolist()
    some, _ = read_table(INITIAL_LABELS, columns=["image_id"])
    assert list(some) == ["image_id"]


def test_a_first_part_without_rows_does_not_change_the_chunks():
    values = np.arange(3 << 18, dtype=np.float32).reshape(3, -1)
    write_store(GLOBAL_CLIP, {"embedding": values}, {}, Path("whole"))
    parts = Rows(3, [values[:0], values])
    write_store(GLOBAL_CLIP, {"embedding": parts}, {}, Path("parted"))
    whole, parted = (content(Path(of) / GLOBAL_CLIP.path) for of in ("whole", "parted"))
    assert whole == parted


def test_fewer_rows_than_promised_are_no_store():
    with pytest.raises(ValueError, match="2 rows of embedding, not 3"):
        write_store(GLOBAL_CLIP, {"embedding": Rows(3, [np.zeros((2, 2))])}, {}, Path())


def test_damage_shows_before_the_last_part_is_used_up():
    path = write_labels()
    exact = path.read_bytes()
    noticed = 0
    for position in range(4, len(exact) - 8, 7):
        damaged = bytearray(exact)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            parts = pd.concat(read_parts(INITIAL_LABELS))
        except UserError:
            noticed += 1
            continue
        assert parts["dog"].tolist() == pytest.approx([0.1, 0.3])
    assert noticed > 10


def test_unusable_images_are_rows_of_nan_wherever_they_stand():
    from stages.storage.arrays import with_gaps

    rng = np.random.default_rng(0)
    for there in ([0, 0, 1, 1, 0, 1, 0], [1, 1, 1], [0, 1], [1, 0, 0]):
        mask = np.array(there, bool)
        values = rng.random((mask.sum(), 2), np.float32)
        for size in (1, 2, 5):
            parts = [values[start : start + size] for start in range(0, len(values), size)]
            found = np.concatenate(list(with_gaps(parts, mask)))
            assert np.array_equal(found[mask], values)
            assert np.isnan(found[~mask]).all()
            assert len(found) == len(mask)


def test_an_unknown_column_is_not_written():
    with pytest.raises(ValueError, match="no columns"):
        write_table(BIAS, pd.DataFrame({"colour": ["red"]}), {}, Path())


def test_local_views_of_other_boxes_are_refused(project: Project):
    project.stage("cam_boxes")
    project.set(cam_boxes__mean_views=1.0)
    project.stage("cam_boxes")
    done = project.stage("fuse_labels", check=False)
    assert done.returncode == 1
    assert "data/local_clip.zarr was made from other boxes" in done.stderr


def test_a_student_of_another_index_is_refused(project: Project):
    (project / "photos/train/00000.jpg").unlink()
    project.stage("index")
    done = project.stage("cam_boxes", check=False)
    assert done.returncode == 1
    assert "data/warmup/student.safetensors was made from another index" in done.stderr


def test_every_table_opens_in_pandas_with_its_columns(finished: Project):
    tables = [a for a in vars(artifacts).values() if isinstance(a, artifacts.Table)]
    assert len(tables) == 12
    for table in tables:
        frame = pd.read_parquet(finished / str(table.path))
        classes = MINI_CLASSES if table.per_class else ()
        assert list(frame.columns) == [*table.columns, *classes]
        assert len(frame) or table is artifacts.ANSWERS  # nobody was asked
        assert (frame[list(classes)].dtypes == "float32").all()


def test_every_store_opens_in_xarray_with_its_dimensions(finished: Project):
    stores = [a for a in vars(artifacts).values() if isinstance(a, artifacts.Store)]
    assert len(stores) == 5
    for store in stores:
        data = xarray.open_zarr(finished / str(store.path), consolidated=False)
        for name, dimensions in store.arrays.items():
            assert data[name].dims == dimensions
            assert np.isfinite(data[name].to_numpy()).all()
        assert data.attrs["schema"] == store.schema
    index = pd.read_parquet(finished / "data/index.parquet")
    data = xarray.open_zarr(finished / "data/global_clip.zarr", consolidated=False)
    assert data["image"].to_numpy().tolist() == index["image_id"].tolist()
    row = data["embedding"].sel(image=index["image_id"][3]).to_numpy()
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)


def test_no_artifact_says_when_or_where_it_was_made(finished: Project):
    for name, data in finished.digests("data/**/*", "results/*").items():
        if not name.startswith(("data/none", "data/report")):
            assert str(finished.root).encode() not in data, name


def test_no_output_is_more_than_a_few_files(finished: Project):
    for store in (a for a in vars(artifacts).values() if isinstance(a, artifacts.Store)):
        assert len(finished.digests(f"{store.path}/**/*")) < 20
