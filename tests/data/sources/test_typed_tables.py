"""The sources `parquet` and `hf-dataset`: against pyarrow's own reading and the source `table`; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from expunge.core.errors import ConfigError, DataError  # noqa: E402
from expunge.core.split import Split  # noqa: E402
from expunge.data import Batches, Records, forget_column, forget_subjects, load_records, source_fingerprint  # noqa: E402
from expunge.data.reading.index_cache import use_index_directory  # noqa: E402

ROLES: dict[str, Any] = {
    "label": "kind", "id": "who", "subject": "person", "partition": "part", "numeric": ["age", "dose"],
    "categorical": ["ward", "floor"], "boolean": ["withdrawn"], "select": ["site"], "ignore": ["remark"],
}  # fmt: skip


def make_table(count: int = 50, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "who": [f"p{i:04d}" for i in range(count)],
            "kind": rng.choice(["ill", "well", "unknown"], count).tolist(),
            "age": rng.integers(0, 100, count),
            "dose": rng.standard_normal(count),
            "ward": rng.choice(["A", "B", "C"], count).tolist(),
            "floor": rng.integers(0, 12, count),
            "withdrawn": rng.integers(0, 2, count).astype(bool),
            "site": rng.choice(["north", "south"], count).tolist(),
            "person": [f"s{i % 9}" for i in range(count)],
            "part": ["train" if i % 4 else "test" for i in range(count)],
            "remark": ["x"] * count,
        }
    )


def write_csv(table: Any, path: Path) -> None:
    lines = [",".join(table.column_names)]
    lines += [",".join(str(value) for value in row.values()) for row in table.to_pylist()]
    path.write_text("\n".join(lines) + "\n")


def load(path: Path, source: str = "parquet", **changes: Any) -> Records:
    return load_records(source, path=str(path), **{**ROLES, **changes})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "visits.parquet"
    pq.write_table(make_table(), path, row_group_size=7)
    return path


def test_features_are_those_that_pyarrow_reads(file: Path) -> None:
    records, table = load(file), pq.read_table(file)
    assert records.record_ids.tolist() == table["who"].to_pylist()
    assert [records.class_names[i] for i in records.labels] == table["kind"].to_pylist()
    assert records.features is not None
    for position, name in enumerate(("age", "dose")):
        np.testing.assert_array_equal(records.features[:, position], table[name].to_numpy().astype(np.float32))
    wards = np.asarray(table["ward"].to_pylist())
    np.testing.assert_array_equal(records.features[:, 2:5], wards[:, None] == np.asarray(["A", "B", "C"]))
    floors = sorted(set(table["floor"].to_pylist()))
    np.testing.assert_array_equal(records.features[:, 5:], table["floor"].to_numpy()[:, None] == np.asarray(floors))
    assert records.columns["withdrawn"].tolist() == table["withdrawn"].to_pylist()
    assert records.columns["site"].tolist() == table["site"].to_pylist()
    assert records.feature_columns["ward"] == range(2, 5)


def test_the_storage_does_not_matter(file: Path, tmp_path: Path) -> None:
    """CSV, Parquet, Parquet in parts, Arrow, Feather, a dictionary column, a saved dataset, a stream: one hash."""
    table = make_table()
    write_csv(table, tmp_path / "visits.csv")
    expected = load(tmp_path / "visits.csv", "table")
    (tmp_path / "parts").mkdir()
    pq.write_table(table.slice(0, 20), tmp_path / "parts" / "0.parquet")
    pq.write_table(table.slice(20), tmp_path / "parts" / "1.parquet")
    with pa.OSFile(str(tmp_path / "visits.arrow"), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    with pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    coded = table.set_column(4, "ward", table["ward"].dictionary_encode()).set_column(
        1, "kind", table["kind"].dictionary_encode()
    )
    pq.write_table(coded, tmp_path / "coded.parquet")
    for path in (
        file,
        tmp_path / "parts",
        tmp_path / "visits.arrow",
        tmp_path / "stream.arrow",
        tmp_path / "coded.parquet",
    ):
        found = load(path)
        assert found.hash == expected.hash, path
        assert {n: c.tolist() for n, c in found.columns.items()} == {n: c.tolist() for n, c in expected.columns.items()}
    streamed = load(file, stream=True)
    assert streamed.features is None
    assert streamed.hash == expected.hash


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_the_batches_of_memory(file: Path, workers: int) -> None:
    memory, streamed = load(file), load(file, stream=True)
    rows = np.arange(3, 50)
    here, there = Batches(memory, rows, batch_size=8), Batches(streamed, rows, batch_size=8, workers=workers)
    for (x, y), (u, v) in zip(here.epoch(0, 1), there.epoch(0, 1), strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def test_packed_features_are_kept_until_the_file_changes(file: Path, tmp_path: Path) -> None:
    with use_index_directory(tmp_path / "index"):
        first = load(file, stream=True)
        (packed,) = (tmp_path / "index").glob("*.npy")
        written = packed.stat().st_ino
        assert load(file, stream=True).hash == first.hash
        assert packed.stat().st_ino == written
        assert load(file, stream=True, numeric=["dose", "age"]).hash == load(file, numeric=["dose", "age"]).hash
        before = source_fingerprint("parquet", path=str(file), **ROLES)
        pq.write_table(make_table(seed=1), file)
        assert source_fingerprint("parquet", path=str(file), **ROLES) != before
        assert load(file, stream=True).hash == load(file).hash != first.hash


def test_forget_sets_by_column_and_subject(file: Path) -> None:
    records = load(file)
    split = Split(retain=records.record_ids, forget=[], validation=[], test=[], non_members=[])
    table = pq.read_table(file).to_pylist()
    expected = [row["who"] for row in table if row["site"] == "north"]
    assert forget_column(records, split, "site", value="north").record_ids.tolist() == expected
    expected = [row["who"] for row in table if row["withdrawn"]]
    assert forget_column(records, split, "withdrawn").record_ids.tolist() == expected
    expected = [row["who"] for row in table if row["person"] == "s3"]
    assert forget_subjects(records, split, ["s3"]).record_ids.tolist() == expected


def change(name: str, values: Any) -> Any:
    table = make_table()
    return table.set_column(table.column_names.index(name), name, values)


LISTS = pa.array([[1, 2]] * 50)
BAD = {
    "null label": (change("kind", pa.array([None] + ["ill"] * 49)), "the label 'kind' is blank in row 0"),
    "blank label": (change("kind", pa.array(["ill"] * 49 + [" "])), "the label 'kind' is blank in row 49"),
    "float label": (change("kind", pa.array([1.0] * 50)), "'kind' is double, not strings or integers"),
    "null id": (change("who", pa.array([None, *map(str, range(49))])), "the record id 'who' is blank in row 0"),
    "duplicate id": (change("who", pa.array(["a"] * 50)), "the record id is a duplicate"),
    "null number": (change("age", pa.array([1] * 30 + [None] * 20)), "'age' is missing in row 30 .and in 19 more"),
    "NaN": (change("dose", pa.array([0.0] * 9 + [np.nan] * 41)), "'dose' is nan in row 9"),
    "infinity": (change("dose", pa.array([0.0] * 9 + [1e39] * 41)), r"'dose' is 1e\+39 in row 9"),
    "nested": (change("dose", LISTS), "'dose' is list<.*nested columns have no role"),
    "struct": (change("ward", pa.array([{"a": 1}] * 50)), "'ward' is struct<.*nested columns have no role"),
    "nested label": (change("kind", LISTS), "'kind' is list<.*nested columns have no role"),
    "string number": (change("age", pa.array(["3"] * 50)), "'age' is string, not numbers"),
    "null truth": (change("withdrawn", pa.array([None] + [True] * 49)), "'withdrawn' is missing in row 0"),
    "no truth": (change("withdrawn", pa.array([2] * 50)), "'withdrawn' is 2 in row 0"),
    "float category": (change("floor", pa.array([0.5] * 50)), "'floor' is double"),
    "no rows": (make_table().slice(0, 0), "has no rows"),
    "date": (change("age", pa.array([0] * 50, pa.date32())), "'age' is date32"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_values_are_refused_by_column_and_row(tmp_path: Path, case: str, stream: bool) -> None:
    table, message = BAD[case]
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=f"(?s){message}"):
        load(tmp_path / "bad.parquet", stream=stream)


def test_a_missing_category_is_one_of_its_own(tmp_path: Path) -> None:
    table = change("ward", pa.array([None, ""] + ["A"] * 48))
    pq.write_table(table, tmp_path / "a.parquet")
    records = load(tmp_path / "a.parquet")
    assert records.columns["ward"].tolist() == ["", "", *["A"] * 48]
    write_csv(change("ward", pa.array(["", ""] + ["A"] * 48)), tmp_path / "a.csv")
    assert load(tmp_path / "a.csv", "table").hash == records.hash


def test_bad_files_are_named(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    for name, body in (("cut", data[: len(data) // 2]), ("text", b"hello"), ("empty", b""), ("csv", b"a,b\n1,2\n")):
        (tmp_path / f"{name}.parquet").write_bytes(body)
        with pytest.raises(DataError, match=rf"{name}\.parquet: cannot be read"):
            load(tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.arrow").write_bytes(body)
        with pytest.raises(DataError, match=rf"{name}\.arrow: (cannot be read|has no rows)"):
            load(tmp_path / f"{name}.arrow")
    broken = bytearray(data)
    broken[40:400] = bytes(360)
    (tmp_path / "broken.parquet").write_bytes(broken)
    with pytest.raises(DataError, match=r"broken\.parquet"):
        load(tmp_path / "broken.parquet")


def test_parts_with_unequal_columns_are_refused(tmp_path: Path) -> None:
    pq.write_table(make_table(), tmp_path / "0.parquet")
    pq.write_table(change("age", pa.array([1.5] * 50)), tmp_path / "1.parquet")
    with pytest.raises(
        DataError, match=r"1\.parquet: has other columns than 0\.parquet: it has age \(double\) and it lacks age \("
    ):
        load(tmp_path)
    pq.write_table(make_table().drop_columns(["remark"]), tmp_path / "1.parquet")
    with pytest.raises(DataError, match=r"other columns than 0\.parquet: it lacks remark \("):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ignore": []}, "no role is declared for 'remark'"),
        ({"numeric": ["age", "does"]}, "no column 'does'"),
        ({"boolean": ["withdrawn", "age"]}, "'age' is both numeric and boolean"),
        ({"categories": {"age": [1]}}, "'age' is not a categorical column"),
        ({"text": ["remark"], "ignore": []}, "text and other features"),
        ({"tokenizer": "."}, "a tokenizer needs a column of text"),
        ({"classes": ["ill", "ill"]}, "'ill' is a duplicate"),
    ],
)
def test_wrong_roles_are_refused(file: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(file, **changes)


def test_declared_values_are_kept(file: Path) -> None:
    records = load(file, classes=["well", "ill", "unknown"], categories={"ward": ["C", "B", "A", "D"]})
    assert records.class_names == ("well", "ill", "unknown")
    assert len(records.feature_columns["ward"]) == 4
    with pytest.raises(DataError, match="ward is 'C' in row"):
        load(file, categories={"ward": ["A", "B"]})
    with pytest.raises(DataError, match="kind is 'unknown' in row"):
        load(file, classes=["well", "ill"])


def test_wrong_labels_of_named_classes_have_a_hint(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(y=datasets.ClassLabel(names=["no", "yes"]), x=datasets.Value("int64"))
    for labels, wrong, hint in (([1, 2, 1], 2, "labels start at 0: subtract 1"), ([0, 1, -1], -1, "from 0 to 1")):
        folder = tmp_path / str(wrong)
        datasets.Dataset(pa.table({"y": labels, "x": [1, 2, 3]}, schema=features.arrow_schema)).save_to_disk(folder)
        with pytest.raises(DataError, match=f"the label {wrong} of row . is not one of the 2 classes") as caught:
            load_records("hf-dataset", path=str(folder), label="y", numeric=["x"])
        assert hint in str(caught.value)
    pq.write_table(pa.table({"y": [1, 2, 1], "x": [1, 2, 3]}), tmp_path / "plain.parquet")
    with pytest.raises(DataError, match="y is '1' in row 0") as caught:
        load_records("parquet", path=str(tmp_path / "plain.parquet"), label="y", numeric=["x"], classes=["no", "yes"])
    assert "list the values of the column themselves: 1, 2" in str(caught.value)


def test_saved_datasets(file: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    expected = load(file)
    data = datasets.Dataset(make_table())
    data.save_to_disk(tmp_path / "one")
    assert load(tmp_path / "one", "hf-dataset").hash == expected.hash
    data.select(range(49, -1, -1)).save_to_disk(tmp_path / "turned")
    turned = load(tmp_path / "turned", "hf-dataset")
    assert turned.record_ids.tolist() == expected.record_ids.tolist()[::-1]
    labelled = data.remove_columns(["kind", "part"]).add_column("y", [i % 2 for i in range(50)])
    labelled = labelled.cast_column("y", datasets.ClassLabel(names=["no", "yes", "never"]))
    parts = datasets.DatasetDict({"train": labelled.select(range(30)), "val": labelled.select(range(30, 50))})
    parts.save_to_disk(tmp_path / "parts")
    roles = {
        **ROLES,
        "label": "y",
        "partition": {"train": "train", "test": "val"},
        "id": None,
        "ignore": ["remark", "who"],
    }
    records = load(tmp_path / "parts", "hf-dataset", **roles)
    assert records.class_names == ("no", "yes", "never")
    assert records.labels.tolist() == [i % 2 for i in range(50)]
    assert records.record_ids[[0, 30]].tolist() == ["train-000000", "val-000000"]
    assert records.partition is not None
    assert records.partition.tolist() == ["train"] * 30 + ["test"] * 20
    one = load(tmp_path / "parts", "hf-dataset", **{**roles, "partition": None, "part": "val"})
    assert len(one) == 20
    with pytest.raises(ConfigError, match="several datasets"):
        load(tmp_path / "parts", "hf-dataset", **{**roles, "partition": None})
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="is not a saved dataset"):
        load(tmp_path / "none", "hf-dataset")
