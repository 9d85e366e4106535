"""The source `folder`: against Pillow's own reading; identity of records; what is refused, by name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.core.errors import ConfigError, DataError
from expunge.core.seeds import epoch_order
from expunge.core.split import Split
from expunge.data import (
    Batches,
    Records,
    find_cautions,
    forget_class,
    forget_column,
    forget_ids,
    load_records,
    source_fingerprint,
)
from expunge.data.images import index as index_module
from expunge.data.quality import check_items
from expunge.data.reading.index_cache import use_index_directory


def draw(path: Path, seed: int, size: tuple[int, int] = (10, 8), mode: str = "RGB", **options: object) -> None:
    """Write a random image; `size` is width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    if mode == "P":
        image = image.convert("RGB").quantize(16)
    elif mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    else:
        image = image.convert(mode)
    image.save(path, **options)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Nine images: three classes, three formats, of which one is nested deeper."""
    root = tmp_path / "pets"
    for number, (kind, extension) in enumerate((k, e) for k in ("cat", "dog", "eel") for e in ("png", "jpg", "webp")):
        inner = "a/" if extension == "webp" else ""
        draw(root / kind / f"{inner}{number}.{extension}", number)
    return root


def load(root: Path, **options: object) -> Records:
    return load_records("folder", path=str(root), **options)


def test_features_are_those_that_pillow_reads(pets: Path) -> None:
    records = load(pets)
    assert records.class_names == ("cat", "dog", "eel")
    assert records.input_shape == (3, 8, 10)
    assert len(records) == 9
    for row, name in enumerate(records.record_ids.tolist()):
        assert records.class_names[records.labels[row]] == name.split("/")[0]
        with Image.open(pets / name) as image:
            pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(records.read_features(row), pixels)
    rows = np.asarray([4, 0, 8])
    np.testing.assert_array_equal(records.read_batch(rows), np.stack([records.read_features(r) for r in rows]))


def test_the_transform_is_that_of_pillow(pets: Path) -> None:
    draw(pets / "cat" / "wide.png", 50, (40, 21), "L")
    draw(pets / "cat" / "tall.png", 51, (9, 40), "P")
    options = {"resize": 7, "crop": [5, 6], "channels": 3, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    records = load(pets, transform=options)
    assert records.input_shape == (3, 5, 6)
    for row, name in enumerate(records.record_ids.tolist()):
        with Image.open(pets / name) as image:
            width, height = image.size
            size = (7, int(7 * height / width)) if width <= height else (int(7 * width / height), 7)
            image = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
            left, top = round((size[0] - 6) / 2), round((size[1] - 5) / 2)
            pixels = torch.from_numpy(np.asarray(image.crop((left, top, left + 6, top + 5))).copy()).permute(2, 0, 1)
        mean, std = torch.tensor(options["mean"])[:, None, None], torch.tensor(options["std"])[:, None, None]
        assert torch.equal(torch.from_numpy(records.read_features(row)), pixels.float().div(255).sub(mean).div(std))
    grey = load(pets, transform={"resize": [4, 4], "channels": 1})
    assert grey.input_shape == (1, 4, 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_same_records_in_memory(pets: Path, workers: int) -> None:
    streamed = load(pets)
    everything = np.arange(len(streamed))
    memory = Records(
        "pets", streamed.record_ids, streamed.labels, streamed.class_names, streamed.read_batch(everything)
    )
    rows = np.asarray([8, 1, 2, 5, 0])
    here = Batches(memory, rows, batch_size=2, augment="crop-flip")
    there = Batches(streamed, rows, batch_size=2, augment="crop-flip", workers=workers)
    for (x, y), (u, v) in zip(here.epoch(3, 1), there.epoch(3, 1), strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def test_a_deleted_file_leaves_ids_and_order_of_the_others(pets: Path) -> None:
    before = load(pets)
    (pets / "dog" / "3.png").unlink()
    after = load(pets)
    assert set(before.record_ids) - set(after.record_ids) == {"dog/3.png"}
    order = before.record_ids[epoch_order(before.keys, 1, 0)].tolist()
    order.remove("dog/3.png")
    assert after.record_ids[epoch_order(after.keys, 1, 0)].tolist() == order


def test_order_does_not_depend_on_where_the_files_are(pets: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "pets"
    for path in sorted(pets.rglob("*.*"), reverse=True):  # written in another order, with other times
        (moved / path.relative_to(pets)).parent.mkdir(parents=True, exist_ok=True)
        (moved / path.relative_to(pets)).write_bytes(path.read_bytes())
    one, two = load(pets), load(moved)
    assert one.hash == two.hash
    assert source_fingerprint("folder", path=str(pets)) != source_fingerprint("folder", path=str(moved))


def test_a_changed_file_is_noticed(pets: Path) -> None:
    records = load(pets)
    fingerprint = source_fingerprint("folder", path=str(pets))
    draw(pets / "dog" / "3.png", 99)
    os.utime(pets / "dog" / "3.png", (1, 1))
    with pytest.raises(DataError, match=r"3\.png: has changed since it was indexed"):
        records.read_batch(records.rows(["dog/3.png"]))
    assert source_fingerprint("folder", path=str(pets)) != fingerprint
    assert load(pets).hash != records.hash
    assert load(pets, transform={"resize": [4, 4]}).hash != load(pets).hash


def test_only_changed_files_are_read_again(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = index_module._read_header

    def count(path: Path) -> object:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(index_module, "_read_header", count)
    with use_index_directory(tmp_path / "index"):
        first = load(pets)
        assert len(read) == 9
        read.clear()
        assert load(pets).hash == first.hash
        assert read == []
        draw(pets / "dog" / "3.png", 99)
        (pets / "cat" / "0.png").unlink()
        changed = load(pets)
        assert read == ["3.png"]
        (index,) = (tmp_path / "index").iterdir()
        index.write_bytes(b"damaged")
        assert load(pets).hash == changed.hash != first.hash
        assert len(read) == 1 + 8


def test_a_forget_set_is_chosen_by_id_class_folder_and_subject(pets: Path) -> None:
    records = load(pets, subject=r"/(?:a/)?(\d)\.")
    assert records.subject_ids is not None
    assert records.subject_ids.tolist() == ["0", "1", "2", "3", "4", "5", "6", "7", "8"]
    split = Split(retain=records.record_ids, forget=[], validation=[], test=[], non_members=[])
    assert forget_ids(records, split, ["dog/3.png"]).record_ids.tolist() == ["dog/3.png"]
    assert forget_class(records, split, "eel").record_ids.tolist() == ["eel/6.png", "eel/7.jpg", "eel/a/8.webp"]
    assert forget_column(records, split, "folder", value="eel/a").record_ids.tolist() == ["eel/a/8.webp"]


def test_official_parts(tmp_path: Path) -> None:
    for number, part in enumerate(("train", "val")):
        for kind in ("a", "b"):
            draw(tmp_path / part / kind / "1.png", number)
    records = load(tmp_path, partition={"train": "train", "test": "val"})
    assert records.class_names == ("a", "b")
    assert records.partition is not None
    assert dict(zip(records.record_ids.tolist(), records.partition.tolist(), strict=True))["val/b/1.png"] == "test"
    draw(tmp_path / "other" / "a" / "1.png", 3)
    more = load(tmp_path, partition={"train": "train", "test": "val"})
    assert more.hash == records.hash
    (caution,) = more.cautions
    assert caution.message.startswith("1 images of")


def test_hidden_files_are_not_read_and_others_are_named(pets: Path) -> None:
    before = load(pets)
    for name in ("cat/.hidden.png", "cat/._0.png", ".git/x/1.png", "__MACOSX/cat/0.png"):
        (pets / name).parent.mkdir(parents=True, exist_ok=True)
        (pets / name).write_bytes(b"no image")
    assert load(pets).hash == before.hash
    assert find_cautions(before) == ()
    (pets / "cat" / "notes.txt").write_text("x")
    draw(pets / "cat" / "old.bmp", 0)
    (caution,) = find_cautions(load(pets))
    assert "2 files" in caution.message
    assert "cat/notes.txt, cat/old.bmp" in caution.message


def break_png(root: Path) -> None:
    (root / "dog" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")


def link_out(root: Path) -> None:
    secret = root.parent / "secret.png"
    draw(secret, 0)
    (root / "dog" / "link.png").symlink_to(secret)


def link_folder_out(root: Path) -> None:
    (root.parent / "more").mkdir()
    (root / "more").symlink_to(root.parent / "more")


BAD = {
    "sizes": (lambda root: draw(root / "dog" / "big.png", 1, (11, 8)), "big.png: is 3 x 8 x 11 .*0.png is 3 x 8 x 10"),
    "modes": (lambda root: draw(root / "dog" / "g.png", 1, mode="L"), "g.png: is 1 x 8 x 10"),
    "alpha": (lambda root: draw(root / "dog" / "t.png", 1, mode="RGBA"), "t.png: the image has the mode 'RGBA'"),
    "palette": (lambda root: draw(root / "dog" / "p.png", 1, mode="P"), "p.png: the image has the mode 'P'"),
    "16 bits": (lambda root: draw(root / "dog" / "w.png", 1, mode="I;16"), "w.png: the image has the mode 'I"),
    "corrupt": (break_png, r"3\.png: is not a PNG, JPEG or WEBP image|3\.png: cannot be decoded"),
    "text": (lambda root: (root / "dog" / "t.jpg").write_text("hello"), r"t\.jpg: is not a PNG, JPEG or WEBP image"),
    "empty file": (lambda root: (root / "dog" / "e.png").write_bytes(b""), r"e\.png: is not a PNG"),
    "a GIF by another name": (lambda root: draw(root / "dog" / "x.png", 1, format="GIF"), r"x\.png: is not a PNG"),
    "empty class": (lambda root: (root / "fox").mkdir(), "fox: the class folder has no image"),
    "loose": (lambda root: draw(root / "loose.png", 1), "loose.png: is in no class folder"),
    "link": (link_out, "link.png: is a symbolic link out of the folder"),
    "link to a folder": (link_folder_out, "more: is a symbolic link out of the folder"),
    "circle": (lambda root: (root / "dog" / "self").symlink_to(root), "self: is a symbolic link to a folder"),
    "broken link": (lambda root: (root / "dog" / "b.png").symlink_to(root / "none"), "b.png: is a symbolic link"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_refused_by_name(pets: Path, case: str) -> None:
    damage, message = BAD[case]
    load(pets)
    damage(pets)
    with pytest.raises(DataError, match=f"(?s){message}"):
        load(pets)


@pytest.mark.parametrize("name", ["cat/1.jpg", "cat/0.png", "cat/a/2.webp"])
def test_a_truncated_image_is_named(pets: Path, name: str) -> None:
    draw(pets / name, 1, (90, 80))
    data = (pets / name).read_bytes()
    (pets / name).write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DataError, match=f"{Path(name).name}: cannot be decoded"):  # WebP: as soon as it is indexed
        check_items(load(pets, transform={"resize": [8, 10]}), np.arange(9))


def test_several_corrupt_files_are_all_named(pets: Path) -> None:
    for number in range(5):
        (pets / "dog" / f"bad{number}.png").write_text("x")
    with pytest.raises(DataError) as caught:
        load(pets)
    assert "bad0.png" in str(caught.value.where)
    assert "4 more files" in str(caught.value.hint)


def test_the_pixel_limit_of_pillow_is_kept(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 79)
    with pytest.raises(DataError, match="more pixels than Pillow reads"):
        load(pets)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)  # above twice the limit, Pillow raises an error of its own
    with pytest.raises(DataError, match="more pixels than Pillow reads"):
        load(pets)


def test_pictures_in_motion_are_refused(pets: Path) -> None:
    frames = [Image.new("RGB", (10, 8), color) for color in ("red", "blue")]
    frames[0].save(pets / "dog" / "m.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"m\.webp: has 2 pictures"):
        load(pets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": {"size": 3}}, "no transform 'size'"),
        ({"transform": {"resize": 0}}, "transform.resize"),
        ({"transform": {"channels": 2}}, "1 or 3 channels"),
        ({"transform": {"mean": [0.5]}}, "mean and std are given together"),
        ({"transform": {"interpolation": "cubic"}}, "unknown interpolation"),
        ({"classes": ["cat", "dog"]}, "differing: eel"),
        ({"partition": {"train": "cat"}}, "partition names a folder"),
        ({"subject": "("}, "not a regular expression"),
        ({"subject": "cat"}, "has 0 groups"),
    ],
)
def test_wrong_options_are_refused(pets: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(pets, **options)


def test_other_data_errors(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="before the crop"):
        load(pets, transform={"crop": 9})
    with pytest.raises(DataError, match=r"the pattern of the subject"):
        load(pets, subject="cat/(.)")
    with pytest.raises(DataError, match="no such folder"):
        load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no image"):
        load(tmp_path / "empty")
    assert load(pets, classes=["eel", "cat", "dog"]).class_names == ("eel", "cat", "dog")
