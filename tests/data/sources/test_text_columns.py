"""Text columns: tokens equal those of the tokenizer itself; what is refused. The tokenizer is made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.core.errors import ConfigError, DataError, TrustError
from expunge.data import Batches, Records, load_records, source_fingerprint

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TEXTS = ["win a prize now", "see you at six", "", "call now", "a prize for you and you and you", "six"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for text in TEXTS for word in text.split()})]


def make_tokenizer(folder: Path, **special: Any) -> Path:
    """Save a word-level tokenizer of the form of BERT's."""
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    built.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", **special}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=built, **{k: v for k, v in names.items() if v is not None}
    )
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = [f'{"spam" if i in (0, 3) else "ham"},"{text}",{i % 2}' for i, text in enumerate(TEXTS)]
    (tmp_path / "sms.csv").write_text("kind,message,line\n" + "\n".join(lines) + "\n")
    return tmp_path / "sms.csv"


def write_parquet(path: Path, **columns: Any) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    kinds = ["spam" if i in (0, 3) else "ham" for i in range(len(TEXTS))]
    table = {"kind": kinds, "message": TEXTS, "line": [str(i % 2) for i in range(len(TEXTS))], **columns}
    pq.write_table(pa.table(table), path)
    return path


def load(path: Path, tokenizer: Path, source: str = "table", **changes: Any) -> Records:
    options = {"label": "kind", "text": ["message"], "select": ["line"], "tokenizer": str(tokenizer), **changes}
    return load_records(source, path=str(path), **options)


def check(records: Records, expected: Any) -> None:
    """Every record, packed, is what the tokenizer makes of all texts at once."""
    assert records.fields is not None
    assert records.features is not None
    assert records.features.dtype == np.int64
    assert set(records.fields.names) == set(expected)
    for name, x in records.fields.unpack(torch.from_numpy(records.features), trim=False).items():
        assert torch.equal(x, torch.as_tensor(expected[name])), name


def test_tokens_are_those_of_the_tokenizer(file: Path, folder: Path) -> None:
    records = load(file, folder)
    own = transformers.AutoTokenizer.from_pretrained(folder)
    check(records, own(TEXTS, padding="longest", return_tensors="pt"))
    assert records.columns["line"].tolist() == ["0", "1"] * 3
    assert records.fields is not None
    assert records.fields.padding == "attention_mask"
    cut = load(file, folder, max_length=5)
    check(cut, own(TEXTS, padding="longest", truncation=True, max_length=5, return_tensors="pt"))
    (caution,) = cut.cautions
    assert caution.message.startswith("3 of 6 texts are longer than 5 tokens")
    assert records.cautions == ()


def test_pairs_of_texts_and_padding_on_the_left(tmp_path: Path) -> None:
    left = make_tokenizer(tmp_path / "left", padding_side="left")
    path = write_parquet(tmp_path / "a.parquet", line=[f"{text} now" for text in reversed(TEXTS)])
    records = load(path, left, "parquet", text=["message", "line"], select=[])
    own = transformers.AutoTokenizer.from_pretrained(left)
    expected = own(TEXTS, [f"{text} now" for text in reversed(TEXTS)], padding="longest", return_tensors="pt")
    check(records, expected)
    assert int(expected["attention_mask"][2, 0]) == 0  # the shortest is padded on the left


def test_csv_parquet_and_stream_have_one_hash(file: Path, folder: Path, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "sms.parquet")
    expected = load(file, folder)
    assert load(path, folder, "parquet").hash == expected.hash
    streamed = load(path, folder, "parquet", stream=True)
    assert streamed.features is None
    assert streamed.hash == expected.hash
    for (x, _), (u, _) in zip(
        Batches(expected, range(6), batch_size=4).epoch(0, 0),
        Batches(streamed, range(6), batch_size=4, workers=1).epoch(0, 0),
        strict=True,
    ):
        assert x.dtype == torch.int64
        assert torch.equal(x, u)


def test_the_fingerprint_covers_the_tokenizer(file: Path, tmp_path: Path) -> None:
    other = make_tokenizer(tmp_path / "other")
    options = {"path": str(file), "label": "kind", "text": ["message"], "select": ["line"], "tokenizer": str(other)}
    before = source_fingerprint("table", **options)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
    assert source_fingerprint("table", **options) != before


def test_tokenizers_that_cannot_be_used(file: Path, tmp_path: Path) -> None:
    bare = make_tokenizer(tmp_path / "bare", pad_token=None)
    with pytest.raises(DataError, match="no padding token"):
        load(file, bare)
    coded = make_tokenizer(tmp_path / "coded")
    config = json.loads((coded / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["tokenizer.Mine", None]}
    (coded / "tokenizer_config.json").write_text(json.dumps(config))
    (coded / "tokenizer.py").write_text("raise SystemExit('ran')\nclass Mine: pass\n")
    with pytest.raises(TrustError, match="Python code of its own"):
        load(file, coded)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no tokenizer"):
        load(file, tmp_path / "empty")
    with pytest.raises(DataError, match="no such folder"):
        load(file, Path("bert-base-uncased"))  # a name of a hub is no folder: nothing is downloaded
    damaged = make_tokenizer(tmp_path / "damaged")
    (damaged / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        load(file, damaged)
    (damaged / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        load(file, damaged)


def test_texts_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", message=["a", None, *TEXTS[2:]])
    with pytest.raises(DataError, match="'message' is missing in row 1"):
        load(path, folder, "parquet")
    path = write_parquet(tmp_path / "b.parquet", message=list(range(6)))
    with pytest.raises(DataError, match="'message' is int64, not text"):
        load(path, folder, "parquet")
    path = write_parquet(tmp_path / "c.parquet", more=TEXTS)
    with pytest.raises(ConfigError, match="a tokenizer reads one, or a pair"):
        load(path, folder, "parquet", text=["message", "line", "more"], select=[])
    path = write_parquet(tmp_path / "d.parquet")
    with pytest.raises(ConfigError, match="max_length"):
        load(path, folder, "parquet", max_length=0)
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        load_records("parquet", path=str(path), label="kind", text=["message"], select=["line"])


def test_objects_with_text_and_tokens(folder: Path) -> None:
    """Text and ragged token lists, from data frames, saved datasets, items and columns, are padded once."""
    own = transformers.AutoTokenizer.from_pretrained(folder)
    expected = own(TEXTS, padding="longest", return_tensors="pt")
    ragged = own(TEXTS)
    labels = [1, 0, 0, 1, 0, 0]
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    frame = pandas.DataFrame({"text": TEXTS, "label": labels})
    check(Records.from_dataset(frame, tokenizer=own), expected)
    check(Records.from_dataset(frame, tokenizer=str(folder), features="text"), expected)
    with pytest.raises(DataError, match="no such folder"):
        Records.from_dataset(frame, tokenizer="bert-base-uncased")
    columns = {**ragged, "labels": labels}
    check(Records.from_dataset(columns), expected)
    items = [{name: torch.tensor(ids[i]) for name, ids in ragged.items()} | {"labels": labels[i]} for i in range(6)]
    check(Records.from_dataset(items, tokenizer=own), expected)
    check(Records.from_dataset([(dict(list(item.items())[:-1]), item["labels"]) for item in items]), expected)
    tokenized = datasets.Dataset.from_dict({**columns, "idx": list(range(6)), "text": TEXTS})
    records = Records.from_dataset(tokenized)
    check(records, expected)
    assert records.columns["idx"].tolist() == list("012345")
    check(Records.from_dataset(tokenized.with_format("torch")), expected)
    lazy = tokenized.with_transform(lambda rows: {**own(rows["text"]), "labels": rows["labels"]})
    check(Records.from_dataset(lazy), expected)
    assert Records.from_dataset(lazy).labels.tolist() == labels
    only = Records.from_dataset({"input_ids": ragged["input_ids"], "labels": labels})
    assert only.fields is not None
    assert only.fields.names == ("input_ids", "attention_mask")
    del columns["attention_mask"][2][0]
    with pytest.raises(DataError, match="unequal lengths in row 2"):
        Records.from_dataset(columns)
