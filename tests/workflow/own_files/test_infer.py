"""`init` writes a configuration that `check` accepts, from each kind of file; it replaces nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import expunge
from expunge.core.errors import ConfigError, DataError, ExpungeError, FileError
from expunge.evaluation.score import describe_shared_subjects
from expunge.experiments import load_config
from expunge.training import Runtime
from expunge.workflow import check_run, draft_configuration, forget, write_configuration
from expunge.workflow.infer.roles import infer_roles

ROWS = 120


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_table() -> dict[str, list[Any]]:
    rng = np.random.default_rng(0)
    return {
        "patient_id": [f"p{row // 2}" for row in range(ROWS)],
        "age": rng.integers(20, 80, ROWS).tolist(),
        "sex": rng.choice(["f", "m"], ROWS).tolist(),
        "note": [f"a sentence of many words, number {row}" for row in range(ROWS)],
        "label": [("ham", "spam")[row % 2] for row in range(ROWS)],
    }


def write_csv(path: Path, table: dict[str, list[Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))


def make_csv(place: Path) -> list[str]:
    write_csv(place / "people.csv", make_table())
    return ["people.csv"]


def make_parquet(place: Path) -> list[str]:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(make_table()), place / "people.parquet")
    (place / "subjects.csv").write_text("subject_id\np3\np4\n")
    return ["people.parquet", "subjects.csv"]


def make_saved_dataset(place: Path) -> list[str]:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict(make_table()).save_to_disk(place / "saved")
    return ["saved"]


def make_arrays(place: Path) -> list[str]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (ROWS, 8, 8), dtype=np.uint8)
    np.savez(place / "a.npz", x=images, y=np.arange(ROWS) % 3, ids=np.asarray([f"r{row}" for row in range(ROWS)]))
    (place / "ids.txt").write_text("".join(f"r{row}\n" for row in range(0, ROWS, 3)))
    return ["a.npz", "ids.txt"]


def make_images(place: Path) -> list[str]:
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 8)):
        for name in ("cat", "dog"):
            (place / "images" / part / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
                image.save(place / "images" / part / name / f"{number}.png")
    return ["images"]


def make_model(place: Path) -> list[str]:
    records = expunge.load_records("digits")
    split = expunge.make_split(records, limit=100)
    network = expunge.architecture("mlp", records, split, widths=(4,))
    recipe = expunge.get_recipe("one-cycle", epochs=1)
    trained = expunge.train(records, split, network, recipe=recipe, runtime=Runtime("cpu"))
    expunge.save_trained(trained, place / "model")
    np.savez(place / "digits.npz", x=records.features, y=records.labels, ids=records.record_ids)
    (place / "ids.csv").write_text("record_id,reason\n" + f"{split.retain[0]},erasure\n")
    return ["model", "digits.npz", "ids.csv"]


KINDS = (make_csv, make_parquet, make_saved_dataset, make_arrays, make_images, make_model)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_what_is_written_is_accepted(make: Any, place: Path) -> None:
    draft = write_configuration(make(place))
    assert yaml.safe_load((place / "run.yaml").read_text()) == dict(draft.values)
    checked = check_run(load_config(place / "run.yaml"))
    assert checked.usable, checked.text()
    assert json.loads(json.dumps(draft.to_json()))["path"] == "run.yaml"


def test_what_was_inferred(place: Path) -> None:
    values = draft_configuration(make_csv(place)).values
    assert values["data"] == {
        "source": "table",
        "options": {
            "path": "people.csv", "label": "label", "subject": "patient_id", "numeric": ["age"],
            "categorical": ["sex"], "ignore": ["note"],
        },
    }  # fmt: skip
    draft = draft_configuration(make_arrays(place))
    assert draft.values["data"]["options"]["layout"] == "nhw"
    assert draft.values["model"]["name"] == "small-cnn"
    assert draft.values["forget"] == {"by": "ids", "file": "ids.txt", "on_missing": "skip"}
    assert draft.is_complete
    images = draft_configuration(make_images(place)).values["data"]["options"]
    assert images["partition"] == {"train": "train", "test": "val"}


@pytest.mark.parametrize(
    ("mode", "shapes", "expected"),
    [
        ("L", None, 1),
        ("RGB", None, 3),
        ("L", {"stem.weight": (4, 3, 3, 3), "depthwise.weight": (4, 1, 3, 3)}, 3),
        ("RGB", {"stem.weight": (4, 1, 3, 3), "next.weight": (8, 4, 3, 3)}, 1),
    ],
)
def test_the_channels_are_those_of_the_weights_or_of_the_images(
    mode: str, shapes: dict[str, tuple[int, ...]] | None, expected: int, place: Path
) -> None:
    for name in ("cat", "dog"):
        (place / "photos" / name).mkdir(parents=True)
        for number in range(2):
            Image.new(mode, (8, 8)).save(place / "photos" / name / f"{number}.png")
    paths = ["photos", "w.safetensors"][: 1 if shapes is None else 2]
    if shapes is not None:
        save_file({name: torch.ones(shape) for name, shape in shapes.items()}, place / "w.safetensors")
    assert draft_configuration(paths).values["data"]["options"]["transform"]["channels"] == expected


def test_a_model_directory_brings_network_recipe_and_split(place: Path) -> None:
    values = draft_configuration(make_model(place)).values
    assert (values["model"]["name"], values["model"]["weights"]) == ("mlp", "model/model.safetensors")
    assert values["model"]["options"]["widths"] == [4]
    assert values["split"] == {"file": "model/split.json"}
    assert values["training"]["epochs"] == 1


def test_a_pretrained_folder_with_text(place: Path) -> None:
    write_csv(place / "people.csv", make_table())
    (place / "bert").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (place / "bert" / name).write_text("{}")
    (place / "bert" / "model.safetensors").write_bytes(b"")
    draft = draft_configuration(["bert", "people.csv"])
    assert draft.values["model"] == {"name": "hf:bert", "weights": "bert"}
    options = draft.values["data"]["options"]
    assert (options["text"], options["tokenizer"]) == (["note"], "bert")
    assert "numeric" not in options
    (place / "bert" / "training_args.json").write_text(json.dumps({"num_train_epochs": 2}))
    assert draft_configuration(["bert", "people.csv"]).values["training"] == {"from": "bert/training_args.json"}


def test_what_cannot_be_inferred_has_the_line_to_write(place: Path) -> None:
    make_csv(place)
    (place / "weights.safetensors").write_bytes(b"")
    draft = write_configuration(["people.csv", "weights.safetensors"])
    assert not draft.is_complete
    (question,) = (one for one in draft.questions if one.key == "model.name")
    assert "name: package.module:factory" in question.line
    assert f"#   {question.line}" in (place / "run.yaml").read_text()
    table = make_table()
    table["note"], table["label"] = table.pop("label"), table.pop("note")  # no column is a class
    rows = dict(zip(("a", "b"), ([1.5, 2.5] * 60, table["label"]), strict=True))
    write_csv(place / "odd.csv", rows)
    line = next(one.line for one in draft_configuration(["odd.csv"]).questions if one.key == "data.options.label")
    assert line.startswith("label: NAME")


def test_nothing_is_replaced(place: Path) -> None:
    make_csv(place)
    (place / "run.yaml").write_text("mine")
    with pytest.raises(FileError, match="exists already"):
        write_configuration(["people.csv"])
    (place / "link.yaml").symlink_to(place / "nowhere.yaml")
    with pytest.raises(FileError, match="exists already"):
        write_configuration(["people.csv"], "link.yaml")
    assert (place / "run.yaml").read_text() == "mine"
    assert not (place / "nowhere.yaml").exists()
    assert not list(place.glob(".init-*"))


BAD: list[tuple[dict[str, bytes], list[str], type[ExpungeError], str]] = [
    ({}, ["missing.csv"], FileError, "no such file"),
    ({"ids.txt": b"a\n"}, ["ids.txt"], ConfigError, "no data among the paths"),
    ({"model.pt": b"\x80\x02"}, ["model.pt"], ConfigError, "neither data, weights"),
    ({"a.npz": b"PK\x03\x04broken"}, ["a.npz"], DataError, "is not a complete npz file"),
    ({"a.csv": b"\xff\xfe,\x00\n"}, ["a.csv"], DataError, "cannot be read as CSV"),
    ({"a.csv": b"x,label\n"}, ["a.csv"], DataError, "has no table"),
    ({"a.csv": b"x,label\n1,a\n\n2,b,3\n"}, ["a.csv"], DataError, r"a\.csv:4: the row has 3 fields; the header has 2"),
    ({"a.csv": b"x;label\n" + b"1;a\n" * 5_000 + b"2\n"}, ["a.csv"], DataError, r"a\.csv:5002: the row has 1 field"),
    ({"a.csv": b"x,y,label\n1,2,a\n", "b.csv": b"x,y,label\n1,2,b\n"}, ["a.csv", "b.csv"], ConfigError, "second path"),
]


@pytest.mark.parametrize(("files", "paths", "error", "message"), BAD)
def test_bad_input(
    files: dict[str, bytes], paths: list[str], error: type[ExpungeError], message: str, place: Path
) -> None:
    for name, body in files.items():
        (place / name).write_bytes(body)
    with pytest.raises(error, match=message):
        write_configuration(paths)
    assert not (place / "run.yaml").exists()


def test_an_empty_folder_is_no_data(place: Path) -> None:
    (place / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(ConfigError, match="neither data, weights"):
        draft_configuration(["empty"])


@pytest.mark.parametrize("parts", [("",), ("train/", "test/")])
def test_a_class_folder_without_images_is_named(place: Path, parts: tuple[str, ...]) -> None:
    """As the source does on loading: at the level of the classes, hidden folders left out."""
    from PIL import Image

    for part in parts:
        for kind in ("cat", "dog"):
            (place / "pictures" / part / kind).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(place / "pictures" / part / kind / "a.png")
    draft_configuration(["pictures"])
    (place / "pictures" / ".cache").mkdir()
    draft_configuration(["pictures"])
    (place / "pictures" / parts[-1] / "eel").mkdir()
    with pytest.raises(DataError, match="the class folder has no image") as refused:
        write_configuration(["pictures"])
    assert str(refused.value.where).endswith(f"{parts[-1]}eel")
    assert not (place / "run.yaml").exists()


def test_repeated_ids_are_no_ids() -> None:
    roles = infer_roles({"id": ["a", "a", "b"], "x": [1, 2, 3], "label": ["n", "y", "n"]}, reads_text=False)
    assert "id" not in roles.options
    assert "repeats values" in roles.doubts[0]


def test_images_of_a_saved_dataset_are_refused_with_what_to_do(place: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("RGB", (4, 4), (row, 0, 0)) for row in range(4)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 0, 1]}, features).save_to_disk(place / "pictures")
    with pytest.raises(ConfigError, match=r"'image' has images(.|\n)*load_from_disk"):
        draft_configuration([place / "pictures"])


def test_nested_columns_are_no_categories() -> None:
    nested = {"a": [{"x": 1}, {"x": 1}], "b": [[1], [1]], "c": [b"1", b"1"], "d": ["u", "v"], "label": ["no", "yes"]}
    roles = infer_roles(nested, reads_text=False)
    assert roles.options == {"ignore": ["a", "b", "c"], "categorical": ["d"]}
    assert "nested" in roles.doubts[0]


def test_a_partition_has_train_and_test_alone() -> None:
    columns = {"x": [1, 2, 3], "label": ["n", "y", "n"]}
    found = infer_roles({**columns, "split": ["train", "test", "train"]}, reads_text=False)
    assert found.options["partition"] == "split"
    assert "partition" not in infer_roles({**columns, "split": ["train", "test", "val"]}, reads_text=False).options


def put_weights(place: Path) -> str:
    (place / "bert").mkdir()
    (place / "bert" / "config.json").write_text("{}")
    (place / "bert" / "model.safetensors").write_bytes(b"")
    return "bert"


def test_weights_without_a_split_leave_the_split_to_fill_in(place: Path) -> None:
    (people,) = make_csv(place)
    (place / "who.csv").write_text("subject_id\np3\n")
    draft = write_configuration([people, put_weights(place), "who.csv"])
    assert not draft.is_complete
    (question,) = (one for one in draft.questions if one.key == "split.file")
    assert question.line.startswith("file: split.json")
    assert draft.values["split"] == {"file": "split.json"}
    assert draft.values["forget"] == {"by": "subjects", "file": "who.csv"}  # what is not in training is an error
    text = (place / "run.yaml").read_text()
    assert "# fill in split.file: not known: which records" in text
    assert "  file: split.json  # fill in" in text
    checked = check_run(load_config("run.yaml"))
    assert not checked.usable
    assert any(found.subject == "split" and "split.json" in found.message for found in checked.findings)


def test_records_of_one_subject_stay_together(place: Path) -> None:
    assert draft_configuration(make_csv(place)).values["split"] == {"seed": 0, "group": "subject"}
    assert "split" not in draft_configuration(make_arrays(place)).values
    rows = {**make_table(), "partition": ["train", "test"] * (ROWS // 2)}  # each subject is in both
    write_csv(place / "divided.csv", rows)
    draft = write_configuration(["divided.csv"])
    assert "group" not in draft.values.get("split", {})
    assert any("group: subject" in question.text for question in draft.questions)
    assert check_run(load_config("run.yaml")).usable


LISTS = {
    "of subjects, as text": ("who.txt", "p3\np4\n", "subjects", ""),
    "of ids, as text": ("who.txt", "row-000003\nrow-000007\n", "ids", ""),
    "with the header person": ("who.csv", "person\np3\n", "subjects", ""),
    "with the header id, of subjects": ("who.csv", "id\np3\n", "subjects", ""),
    "without a header": ("who.csv", "p3\np4\n", "subjects", ""),
    "with a wrong name": (
        "who.txt",
        "p3\nq4\n",
        "subjects",
        "not among the subjects of the data, which is an error: q4",
    ),
    "of nothing in the data": ("who.txt", "x\ny\n", "ids", "record ids look like row-000000"),
}


@pytest.mark.parametrize(("name", "text", "by", "doubt"), LISTS.values(), ids=LISTS)
def test_a_list_is_of_what_the_data_have(name: str, text: str, by: str, doubt: str, place: Path) -> None:
    (people,) = make_csv(place)
    (place / name).write_text(text)
    draft = write_configuration([people, name])
    assert (draft.values["forget"]["by"], draft.values["forget"]["file"]) == (by, name)
    doubts = [question for question in draft.questions if question.key == "forget.by"]
    assert [doubt in question.text for question in doubts] == ([True] if doubt else [])
    assert draft.is_complete == (not doubt or "look like" not in doubt)
    errors = [found for found in check_run(load_config("run.yaml")).findings if found.level == "error"]
    assert bool(errors) == bool(doubt)


def test_text_without_a_tokenizer_has_the_line_to_write(place: Path) -> None:
    table = make_table()
    write_csv(place / "messages.csv", {"id": list(range(ROWS)), "text": table["note"], "label": table["label"]})
    draft = write_configuration(["messages.csv"])
    assert draft.values["data"]["options"]["text"] == ["text"]
    (question,) = (one for one in draft.questions if one.key == "data.options.tokenizer")
    assert question.line.startswith("tokenizer: FOLDER")
    (error,) = (found for found in check_run(load_config("run.yaml")).findings if found.subject == "data")
    assert "needs a tokenizer" in error.message
    write_csv(
        place / "empty.csv",
        {"id": list(range(ROWS)), "key": [f"k{n}" for n in range(ROWS)], "label": table["label"]},
    )
    assert not draft_configuration(["empty.csv"]).is_complete  # no column is a feature


def test_code_is_answered_with_the_key_that_names_it(place: Path) -> None:
    make_csv(place)
    (place / "mynet.py").write_text("def make(): ...\n")
    with pytest.raises(ConfigError, match=r"model\.name: mynet:make"):
        draft_configuration(["people.csv", "mynet.py"])


def test_a_value_that_stands_for_another_is_marked(place: Path) -> None:
    make_csv(place)
    (place / "weights.safetensors").write_bytes(b"")
    write_configuration(["people.csv", "weights.safetensors"])
    text = (place / "run.yaml").read_text()
    assert "  name: mlp  # fill in" in text
    assert "# fill in model.name:" in text


#: A split that divides the records of a subject, and a small run.
SMALL_RUN = ["split={seed: 0}", "model={name: mlp, options: {widths: [4]}}", "training={recipe: one-cycle, epochs: 1}"]
SMALL_RUN += ["method={name: GA}", "runtime.device=cpu"]


def test_records_of_a_subject_outside_training_are_counted_everywhere(place: Path) -> None:
    (people,) = make_csv(place)
    (place / "who.csv").write_text("subject_id\n" + "".join(f"p{n}\n" for n in range(10)))
    write_configuration([people, "who.csv"])
    config = load_config("run.yaml", SMALL_RUN)
    checked = check_run(config)
    (warning,) = (found for found in checked.findings if "outside the retain set" in found.message)
    result = forget(config, place / "out", store=place / "store")
    selection = result.outcome["request"]["selection"]
    rows = 2 * len(selection["subjects"])
    assert 0 < sum(selection["outside"].values()) == rows - result.outcome["request"]["records"]
    assert warning.message in result.text()
    assert "Not every record of the subjects was forgotten." in (place / "out" / "report.html").read_text()
    shared = result.scores["about"]["shared_subjects"]
    assert any(shared.values())
    page = (place / "out" / "report.html").read_text()
    assert f"The model was not trained on {describe_shared_subjects(shared)}" in page
