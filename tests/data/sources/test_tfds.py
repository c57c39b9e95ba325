"""A dataset that TFDS prepared is read by its name, without its builder's code."""

import shutil
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.proto import tf_example_pb2

from research.data.sources import TfdsConfig, open_source

TALK = [{"role": "user", "content": "Hi ü"}, {"role": "assistant", "content": "Yes?"}]


class Talks(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = "prepared_elsewhere"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        features = {
            "messages": tfds.features.Sequence({"role": text, "content": text}),
            "sentence": text,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(5):
            yield number, {"messages": TALK, "sentence": f"words {number}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    tfds.disable_progress_bar()
    Talks(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


def test_a_prepared_dataset_is_read_with_a_map_of_its_fields(folder):
    config = TfdsConfig(
        "prepared_elsewhere", path=folder, fields={"text": "sentence"}, format="text"
    )
    source = open_source(config)
    assert sorted(source[i]["text"] for i in range(5)) == [f"words {i}" for i in range(5)]
    talks = open_source(TfdsConfig("prepared_elsewhere", path=folder, unused_fields=("sentence",)))
    assert talks.format == "messages" and all(talks[i]["messages"] == TALK for i in range(5))
    assert open_source(config).fingerprint == source.fingerprint


@pytest.mark.parametrize("backwards", [False, True])
def test_content_is_known_whatever_the_order_of_fields_in_the_files(
    folder, tmp_path, monkeypatch, backwards
):
    """TFDS prepares the same records as other bytes each time."""

    def serialize(self, example):
        fields = self.get_tf_example(example).features.feature
        parts = [
            tf_example_pb2.Example(features={"feature": {name: fields[name]}})
            for name in sorted(fields, reverse=backwards)
        ]
        return b"".join(part.SerializeToString() for part in parts)  # messages merge

    monkeypatch.setattr(example_serializer.ExampleSerializer, "serialize_example", serialize)
    Talks(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    first, second = (
        open_source(TfdsConfig("prepared_elsewhere", path=path, unused_fields=("sentence",)))
        for path in (folder, str(tmp_path))
    )
    assert [first[i] for i in range(5)] == [second[i] for i in range(5)]
    assert first.fingerprint == second.fingerprint


def test_an_unknown_dataset_or_split_is_named(folder):
    with pytest.raises(ValueError, match="no split 'test', only train"):
        open_source(TfdsConfig("prepared_elsewhere", path=folder), "test")
    with pytest.raises(ValueError, match="no dataset 'graft_book'.*did you mean graft_books"):
        open_source(TfdsConfig("graft_book", path=folder))


def test_a_dataset_without_random_access_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (file,) = Path(tmp_path / "copy").rglob("dataset_info.json")
    file.write_text(file.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="no random access: prepare it again"):
        open_source(TfdsConfig("prepared_elsewhere", path=str(tmp_path / "copy")))
