"""Titles of models and data sources in reports."""

from __future__ import annotations

import pytest

from expunge.core.registry import MODELS, SOURCES, find_title
from expunge.data import Records, register_source
from expunge.data.data_dir import DataDir

#: Sources that read files of the user: the file names the data.
OF_THE_USER = {"folder", "hf-dataset", "idx", "npz", "parquet", "python", "table"}


def test_every_built_in_model_and_data_set_has_a_title() -> None:
    for registry, without in ((MODELS, set()), (SOURCES, OF_THE_USER)):
        titles = {name: registry.read_definition(name).facts.get("title", "") for name in registry.names()}
        assert {name for name, title in titles.items() if not title} == without
        assert all(title == title.strip() for title in titles.values())


@pytest.mark.parametrize(
    ("name", "options", "title"),
    [
        ("Fashion-MNIST", {}, "Fashion-MNIST"),
        ("npz", {"path": "sub/Fashion_MNIST.npz"}, "Fashion-MNIST"),
        ("npz", {"path": "fashion_mnist_corrupted.npz"}, "fashion_mnist_corrupted.npz"),
        ("npz", {"path": "C:\\data\\visits.npz"}, "visits.npz"),
        ("idx", {"folder": "kmnist/"}, "kmnist"),
        ("idx", {"folder": "."}, "idx"),
        ("python", {"factory": "clinic:make_records"}, "make_records"),
        ("npz", {"path": "digits.npz"}, "digits.npz"),  # not the digits of scikit-learn, which are no file
        ("table", {"path": 3}, "table"),
        ("table", None, "table"),
        ("a source of the future", {}, "a source of the future"),
        ("A/B records", {}, "A/B records"),
        ("", {}, ""),
    ],
)
def test_a_source_has_a_title_or_a_sensible_name(name: str, options: dict[str, object] | None, title: str) -> None:
    assert find_title(SOURCES, name, options) == title


def test_a_model_outside_the_registry_is_called_by_its_factory() -> None:
    assert find_title(MODELS, "clinic.nets:TinyNet") == "TinyNet"
    assert find_title(MODELS, "small-cnn") == find_title(MODELS, "Small-CNN") == "Small CNN"


def test_a_source_registered_in_a_session_gives_its_title() -> None:
    with SOURCES.temporary():

        @register_source("two-visits", title="Two visits")
        def load_visits(directory: DataDir) -> Records:
            raise NotImplementedError

        assert find_title(SOURCES, "two-visits") == "Two visits"
