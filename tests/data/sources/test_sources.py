"""Each source on tiny files in its own format, and its damaged forms."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_breast_cancer, load_digits

from expunge.core.errors import ConfigError, DataError
from expunge.data import load_records
from expunge.data.sources import breast_cancer, digits

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_digits_and_breast_cancer_are_those_of_scikit_learn(elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, read from scikit-learn's files or, where it keeps them elsewhere, by its functions."""
    if elsewhere:
        for module in (digits, breast_cancer):
            monkeypatch.setattr(module, "read_scikit_learn_table", lambda *_, **__: None)
    ours, theirs = load_records("digits"), load_digits()
    assert ours.input_shape == (1, 8, 8)
    assert ours.features.dtype == np.float32
    np.testing.assert_array_equal(ours.features, (theirs.images[:, None] / 16).astype(np.float32))
    np.testing.assert_array_equal(ours.labels, theirs.target)
    table, source = load_records("breast-cancer"), load_breast_cancer()
    np.testing.assert_array_equal(table.features, source.data.astype(np.float32))
    np.testing.assert_array_equal(table.labels, source.target)
    assert table.class_names == tuple(source.target_names)
    assert (ours.labels.dtype, table.labels.dtype) == (np.int64, np.int64)


def test_scikit_learn_is_not_imported_for_its_data() -> None:
    code = (
        "import sys\nfrom expunge.data import load_records\n"
        "load_records('digits'), load_records('breast-cancer')\n"
        "print(sorted({'sklearn', 'scipy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# IDX


def write_idx(folder: Path, packed: bool = False, dot: str = "-") -> dict[str, np.ndarray]:
    arrays = {
        "train-images": RNG.integers(0, 256, (6, 4, 5), dtype=np.uint8),
        "train-labels": np.asarray([0, 1, 2, 0, 1, 2], dtype=np.uint8),
        "t10k-images": RNG.integers(0, 256, (3, 4, 5), dtype=np.uint8),
        "t10k-labels": np.asarray([2, 1, 0], dtype=np.uint8),
    }
    folder.mkdir(exist_ok=True)
    for stem, array in arrays.items():
        data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
        name = f"{stem}{dot}idx{array.ndim}-ubyte"
        (folder / (name + ".gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return arrays


@pytest.mark.parametrize(("packed", "dot"), [(False, "-"), (True, "-"), (False, ".")])
def test_idx(tmp_path: Path, packed: bool, dot: str) -> None:
    arrays = write_idx(tmp_path / "set", packed, dot)
    records = load_records("idx", data_dir=tmp_path, folder="set")
    np.testing.assert_array_equal(
        records.features[:, 0], np.concatenate([arrays["train-images"], arrays["t10k-images"]])
    )
    np.testing.assert_array_equal(records.labels, [0, 1, 2, 0, 1, 2, 2, 1, 0])
    assert records.record_ids[[0, 5, 6]].tolist() == ["train-00000", "train-00005", "test-00000"]
    assert records.partition.tolist() == ["train"] * 6 + ["test"] * 3
    assert records.class_names == ("0", "1", "2")
    known = load_records("idx", data_dir=tmp_path / "set", variant="fashion-mnist")
    assert known.class_names[9] == "Ankle boot"
    assert known.normalisation.mean == (0.2860,)


def test_bad_idx_sets(tmp_path: Path) -> None:
    write_idx(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'mnist'"):
        load_records("idx", data_dir=tmp_path, variant="mnits")
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte"):
        load_records("idx", data_dir=tmp_path)
    labels.write_bytes(struct.pack(">HBBI", 0, 8, 1, 2) + b"\0\1")
    with pytest.raises(DataError, match="3 images and 2 labels"):
        load_records("idx", data_dir=tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match="found none of t10k-labels"):
        load_records("idx", data_dir=tmp_path)


# CIFAR, official binary files


def write_cifar(base: Path, classes: int) -> tuple[Path, np.ndarray, np.ndarray]:
    if classes == 10:
        folder, names = base / "cifar-10-batches-bin", [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
        texts = {"batches.meta.txt": "".join(f"c{i}\n" for i in range(10)) + "\n"}
    else:
        folder, names = base / "cifar-100-binary", ["train.bin", "test.bin"]
        texts = {"fine_label_names.txt": "".join(f"f{i}\n" for i in range(100))}
        texts["coarse_label_names.txt"] = "".join(f"s{i}\n" for i in range(20))
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)
    pixels = RNG.integers(0, 256, (2 * len(names), 3, 32, 32), dtype=np.uint8)
    labels = RNG.integers(0, classes, 2 * len(names)).astype(np.uint8)
    for i, name in enumerate(names):
        data = b""
        for row in (2 * i, 2 * i + 1):
            head = [labels[row]] if classes == 10 else [labels[row] // 5, labels[row]]
            data += bytes(int(x) for x in head) + pixels[row].tobytes()
        (folder / name).write_bytes(data)
    return folder, pixels, labels


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_binary(tmp_path: Path, classes: int) -> None:
    folder, pixels, labels = write_cifar(tmp_path, classes)
    source = f"cifar{classes}-binary"
    for place in (tmp_path, folder):
        records = load_records(source, data_dir=place)
        np.testing.assert_array_equal(records.features, pixels)
        np.testing.assert_array_equal(records.labels, labels)
    assert records.partition.tolist()[-3:] == ["train", "test", "test"]
    assert records.classes == classes
    if classes == 100:
        assert records.columns["superclass"].tolist() == [f"s{label // 5}" for label in labels]
    last = folder / ("test_batch.bin" if classes == 10 else "test.bin")
    whole = last.read_bytes()
    last.write_bytes(whole[:-7])
    with pytest.raises(DataError, match=last.name):
        load_records(source, data_dir=tmp_path)
    last.write_bytes(b"\xff\xff" + whole[2:])
    with pytest.raises(DataError, match="label 255"):
        load_records(source, data_dir=tmp_path)
    last.unlink()
    with pytest.raises(DataError, match=last.name):
        load_records(source, data_dir=tmp_path)


# mosaics


def write_mosaics(base: Path) -> tuple[Path, np.ndarray]:
    folder = base / "mnist"
    folder.mkdir()
    images = RNG.integers(0, 256, (300, 28, 28), dtype=np.uint8)
    for part, (name) in enumerate(["train-0", "train-1", "test-0"]):
        sheet = np.concatenate(list(images[100 * part : 100 * part + 100]), axis=1)
        Image.fromarray(np.repeat(sheet[..., None], 3, axis=2)).save(folder / f"{name}.webp", lossless=True)
    labels = np.arange(300) % 10
    np.savez(
        folder / "labels.npz",
        train_labels=labels[:200].astype(np.uint8),
        test_labels=labels[200:].astype(np.uint8),
        class_names=np.asarray(list("0123456789")),
        train_exact=np.ones(200, dtype=bool),
        test_exact=np.zeros(100, dtype=bool),
    )
    return folder, images


def test_mosaic_sets(tmp_path: Path) -> None:
    folder, images = write_mosaics(tmp_path)
    records = load_records("mnist", data_dir=tmp_path)
    np.testing.assert_array_equal(records.features[:, 0], images)
    assert records.features.dtype == np.uint8
    assert records.record_ids[200] == "test-00000"
    assert records.columns["exact"].sum() == 200
    (folder / "train-0.webp").rename(folder / "train-2.webp")
    (folder / "train-1.webp").rename(folder / "train-0.webp")
    with pytest.raises(DataError, match=r"train-1\.webp.*no such file"):
        load_records("mnist", data_dir=tmp_path)
    (folder / "train-2.webp").unlink()
    with pytest.raises(DataError, match=r"200 images, but there are 200 \+ 100 labels"):
        load_records("mnist", data_dir=tmp_path)
    np.savez(folder / "labels.npz", train_labels=np.zeros(3))
    with pytest.raises(DataError, match="test_labels"):
        load_records("mnist", data_dir=tmp_path)


# HAR, Adult, Location-30


def test_har_windows_overlap_by_half(tmp_path: Path) -> None:
    halves = RNG.normal(size=(5, 576)).astype(np.float32)
    arrays = {
        "halves": halves,
        "train_idx": np.asarray([[0, 1], [1, 2], [3, 4]]),
        "test_idx": np.asarray([[2, 3]]),
        "train_labels": np.asarray([0, 1, 1]),
        "test_labels": np.asarray([0]),
        "train_subject": np.asarray([1, 1, 30]),
        "test_subject": np.asarray([2]),
        "class_names": np.asarray(["SIT", "WALK"]),
    }
    np.savez(tmp_path / "har.npz", **arrays)
    records = load_records("har", data_dir=tmp_path)
    assert records.features.shape == (4, 9, 128)
    assert records.subject_ids.tolist() == ["1", "1", "30", "2"]
    np.testing.assert_array_equal(records.features[0, :, 64:], records.features[1, :, :64])
    # step t, channel c of window 3 stands in the file at half t // 64, place (t % 64) * 9 + c
    for t, c in ((0, 0), (63, 8), (64, 0), (100, 4)):
        assert records.features[3, c, t] == halves[[2, 3]][t // 64, (t % 64) * 9 + c]
    np.savez(tmp_path / "har.npz", **{**arrays, "test_idx": np.asarray([[2, 5]])})
    with pytest.raises(DataError, match="pairs of half-windows"):
        load_records("har", data_dir=tmp_path)
    np.savez(tmp_path / "har.npz", **{**arrays, "train_labels": np.asarray([0])})
    with pytest.raises(DataError, match="different lengths"):
        load_records("har", data_dir=tmp_path)


def test_adult_learns_nothing_from_the_records(tmp_path: Path) -> None:
    arrays = {
        "num_columns": np.asarray(["age", "capital-gain"]),
        "cat_columns": np.asarray(["sex"]),
        "names_sex": np.asarray(["Female", "Male"]),
        "train_num": np.asarray([[39, 2174], [50, 0]], np.float32),
        "test_num": np.asarray([[25, 99999]], np.float32),
        "train_cat": np.asarray([[1], [0]], np.uint8),
        "test_cat": np.asarray([[1]], np.uint8),
        "train_labels": np.asarray([0, 1], np.uint8),
        "test_labels": np.asarray([0], np.uint8),
    }
    np.savez(tmp_path / "adult.npz", **arrays)
    records = load_records("adult", data_dir=tmp_path)
    wanted = [[0.39, np.log(2175) / 12, 0, 1], [0.5, 0, 1, 0], [0.25, np.log(100000) / 12, 0, 1]]
    np.testing.assert_allclose(records.features, wanted, rtol=1e-6)
    assert records.columns["sex"].tolist() == ["Male", "Female", "Male"]
    np.savez(tmp_path / "adult.npz", **{**arrays, "test_num": np.asarray([[90, 7]], np.float32)})
    other = load_records("adult", data_dir=tmp_path)
    np.testing.assert_array_equal(records.features[:2], other.features[:2])
    np.savez(tmp_path / "adult.npz", **{**arrays, "test_cat": np.asarray([[2]], np.uint8)})
    with pytest.raises(DataError, match="vocabulary of 'sex'"):
        load_records("adult", data_dir=tmp_path)
    np.savez(tmp_path / "adult.npz", **{k: v for k, v in arrays.items() if k != "test_cat"})
    with pytest.raises(DataError, match="test_cat"):
        load_records("adult", data_dir=tmp_path)


def test_location30(tmp_path: Path) -> None:
    x = RNG.integers(0, 2, (4, 446), dtype=np.uint8)
    np.savez(tmp_path / "location30.npz", x=x, labels=np.asarray([0, 29, 3, 3], np.uint8))
    records = load_records("location30", data_dir=tmp_path)
    assert records.features.dtype == np.float32, "bytes would be read as grey values and divided by 255"
    np.testing.assert_array_equal(records.features, x)
    np.savez(tmp_path / "location30.npz", x=x, labels=np.asarray([0, 30, 3, 3], np.uint8))
    with pytest.raises(DataError, match="label 30"):
        load_records("location30", data_dir=tmp_path)
