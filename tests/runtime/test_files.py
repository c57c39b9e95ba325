"""Files and folders that appear whole or not at all."""

import json
import math
import threading

import pytest

from research.runtime import files


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "file.txt"
    files.atomic_write(path, "first")
    files.atomic_write(path, b"second")
    assert path.read_text() == "second" and list(path.parent.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file.txt"
    files.atomic_write(path, "whole")
    with pytest.raises(ZeroDivisionError), files.atomic_path(path) as partial:
        partial.write_text("torn")
        raise ZeroDivisionError
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_it_is_whole(tmp_path):
    folder = tmp_path / "folder"
    with pytest.raises(ZeroDivisionError), files.atomic_folder(folder) as partial:
        (partial / "file").touch()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    folder.mkdir()  # an empty one is in nobody's way
    with files.atomic_folder(folder) as partial:
        (partial / "file").touch()
        assert not list(folder.iterdir())
    assert list(tmp_path.rglob("*")) == [folder, folder / "file"]
    with pytest.raises(OSError), files.atomic_folder(folder) as partial:
        (partial / "other").touch()
    assert list(tmp_path.rglob("*")) == [folder, folder / "file"]


def test_a_copy_is_the_file(tmp_path):
    (tmp_path / "file").write_bytes(b"\0\1")
    files.atomic_copy(tmp_path / "file", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == b"\0\1"


def test_numbers_that_json_lacks_are_null(tmp_path):
    content = {"loss": math.nan, "rates": [math.inf, 1.5], "steps": (1, 2), "name": None}
    files.write_json(tmp_path / "a.json", content)
    expected = {"loss": None, "rates": [None, 1.5], "steps": [1, 2], "name": None}
    assert json.loads((tmp_path / "a.json").read_text()) == expected


def test_of_many_writers_one_wins(tmp_path):
    path = tmp_path / "file"

    def write(number):
        for _ in range(20):
            files.atomic_write(path, str(number) * 10_000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = path.read_text()
    assert text == text[0] * 10_000 and list(tmp_path.iterdir()) == [path]
