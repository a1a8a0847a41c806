"""What takes the place of a file or a directory does so whole, or not at all."""

import pytest

from rml.training.durable import replacing


def test_what_is_written_anew_takes_the_place_of_a_file(tmp_path):
    file = tmp_path / "a.bin"
    for text in ("first", "second"):
        (tmp_path / "a.bin.partial").write_text("of a write that was stopped")
        with replacing(file) as place:
            assert not place.exists()
            place.write_text(text)
        assert file.read_text() == text
        assert list(tmp_path.iterdir()) == [file]


def test_what_is_written_anew_takes_the_place_of_a_directory(tmp_path):
    for name in ("first", "second"):
        (tmp_path / "a.partial" / "of a write that was stopped").mkdir(parents=True)
        with replacing(tmp_path / "a") as place:
            place.mkdir()
            (place / name).write_text(name)
        assert [path.name for path in (tmp_path / "a").iterdir()] == [name]
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_write_that_fails_changes_nothing(tmp_path, folder):
    kept = tmp_path / "a" / "b" if folder else tmp_path / "a"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("first")
    with pytest.raises(OSError, match="full"), replacing(tmp_path / "a"):
        raise OSError("the disk is full")
    assert kept.read_text() == "first"
