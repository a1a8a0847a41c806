import json
import shutil

import numpy as np
import pytest
from PIL import Image

from rml.data import NO_LABEL, DataError, Event, batches, load_clips

LENGTHS = {"run/a": 3, "run/b": 12, "run/c": 5, "walk/d": 4, "walk/e": 4}


def write(folder, frames, size=(6, 8)):
    """Writes frames whose pixels are their numbers."""
    folder.mkdir(parents=True)
    for number in range(frames):
        Image.new("RGB", size[::-1], (number, 0, 0)).save(folder / f"frame{number}.png")


@pytest.fixture
def folder(tmp_path):
    for clip, frames in LENGTHS.items():
        write(tmp_path / clip, frames)
    return tmp_path


def save_events(folder, events):
    content = events if isinstance(events, str) else json.dumps(events)
    (folder / "events.json").write_text(content)


def test_clips_of_classes(folder):
    (folder / "run" / ".hidden").mkdir()
    (folder / "run" / "a" / "notes.txt").touch()
    clips = load_clips(f"clips:{folder}", "all")
    assert clips.clips == tuple(LENGTHS)
    assert clips.lengths.tolist() == list(LENGTHS.values())
    assert clips.class_names == ("run", "walk")
    assert clips.labels.tolist() == [0, 0, 0, 1, 1]
    example = clips[1]
    assert (example["video"].shape, example["video"].dtype) == ((12, 6, 8, 3), np.uint8)
    assert example["video"][:, 0, 0, 0].tolist() == list(range(12))  # 2 before 10
    assert (example["frame"].tolist(), example["label"]) == (list(range(12)), 0)
    assert clips.events == ((),) * 5


def test_clips_without_classes(tmp_path):
    for clip in ("10", "9"):
        write(tmp_path / clip, 2)
    clips = load_clips(f"clips:{tmp_path}", "all")
    assert clips.clips == ("9", "10")
    assert not clips.labelled
    assert clips[0]["label"] == NO_LABEL


def test_a_number_of_frames_at_even_distances(folder):
    clips = load_clips(f"clips:{folder}", "all", num_frames=4, image_size=4)
    assert clips[1]["frame"].tolist() == [0, 4, 7, 11]
    assert clips[1]["video"][:, 0, 0, 0].tolist() == [0, 4, 7, 11]
    assert clips[0]["frame"].tolist() == [0, 1, 1, 2]
    arrays = clips.arrays()
    assert arrays["video"].shape == (5, 4, 4, 4, 3)
    assert clips.nbytes == arrays["video"].nbytes
    for how in ({}, {"transform": lambda example, rng: example}):
        batch = next(iter(batches(clips, batch_size=5, seed=0, **how)))
        assert sorted(batch["label"].tolist()) == [0, 0, 0, 1, 1]
        assert batch["label"].dtype == np.int32


def test_what_does_not_stack_says_what_would(folder):
    name = f"clips:{folder}"
    with pytest.raises(DataError, match=r"clips of 3 to 12 frames, .* load it with num_frames="):
        load_clips(name, "all", image_size=4).arrays()
    with pytest.raises(DataError, match="load it with image_size="):
        load_clips(name, "all", num_frames=2).arrays()
    Image.new("RGB", (5, 5)).save(folder / "run" / "a" / "frame2.png")
    with pytest.raises(DataError, match=r"frame2\.png has shape \(5, 5, 3\), the first frame"):
        load_clips(name, "all")[0]
    with pytest.raises(DataError, match="num_frames must be positive, got 0"):
        load_clips(name, "all", num_frames=0)


def test_splits_hold_the_classes_in_proportion(tmp_path):
    for number in range(15):
        write(tmp_path / ("a" if number < 10 else "b") / f"{number}", 1)
    name = f"clips:{tmp_path}"
    train, test = load_clips(name, "train"), load_clips(name, "test")
    assert np.bincount(train.labels).tolist() == [8, 4]
    assert np.bincount(test.labels).tolist() == [2, 1]
    assert len({*train.clips, *test.clips}) == 15
    assert np.bincount(load_clips(name, "train[:50%]").labels).tolist() == [4, 2]


def test_events_are_of_frames(folder):
    events = [
        {"clip": "run/b", "start": 6, "end": 12, "label": "stop", "text": "she stops"},
        {"clip": "run/b", "start": 0, "end": 6, "label": "go"},
        {"clip": "walk/e", "start": 1, "end": 2, "text": "a step"},
    ]
    save_events(folder, events)
    clips = load_clips(f"clips:{folder}", "all")
    assert clips.event_names == ("go", "stop")
    assert clips.events[1] == (Event(0, 6, "", 0), Event(6, 12, "she stops", 1))
    assert clips.events[4] == (Event(1, 2, "a step", NO_LABEL),)
    for split in ("train", "test"):
        part = load_clips(f"clips:{folder}", split)
        assert part.event_names == ("go", "stop")
        whole = dict(zip(clips.clips, clips.events, strict=True))
        assert part.events == tuple(whole[clip] for clip in part.clips)


EVENT = {"clip": "run/a", "start": 0, "end": 3, "text": "t"}


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ("[{", r"events\.json is not JSON: .*line 1"),
        ({}, r"events\.json holds dict, expected a list of events"),
        ([EVENT, 3], "event 2 is 3, expected an object"),
        ([EVENT | {"clip": "a"}], "event 1: there is no clip 'a'; a name is such as 'run/a'"),
        ([EVENT | {"start": "0"}], "event 1: 'start' is '0', expected the number of a frame"),
        ([EVENT | {"end": 1.5}], r"event 1: 'end' is 1\.5, expected the number of a frame"),
        ([EVENT | {"end": 4}], "event 1 is of the frames 0 to 4, expected 0 <= start < end <= 3"),
        ([EVENT | {"end": 0}], "event 1 is of the frames 0 to 0"),
        ([EVENT | {"start": -1}], "event 1 is of the frames -1 to 3"),
        ([EVENT, EVENT | {"label": 3}], "event 2: 'label' is 3, expected a string"),
        ([{k: EVENT[k] for k in ("clip", "start", "end")}], "has neither 'text' nor 'label'"),
    ],
)
def test_a_wrong_event_is_named(folder, events, message):
    save_events(folder, events)
    with pytest.raises(DataError, match=message) as caught:
        load_clips(f"clips:{folder}", "all")
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_clips(folder):
    name = f"clips:{folder}"
    (folder / "walk" / "empty").mkdir()
    with pytest.raises(DataError, match=r"the clip .*walk/empty is empty, expected frames"):
        load_clips(name, "all")
    (folder / "walk" / "empty").rmdir()
    write(folder / "alone", 2)
    with pytest.raises(DataError, match="holds the clip alone beside the clip run/a of a class"):
        load_clips(name, "all")
    shutil.rmtree(folder / "alone")
    shutil.copy(folder / "run" / "a" / "frame0.png", folder / "run")
    with pytest.raises(DataError, match=r"run holds the image frame0\.png beside the folder a"):
        load_clips(name, "all")
    with pytest.raises(DataError, match="there is no folder"):
        load_clips(f"{name}/none", "all")
    with pytest.raises(DataError, match=r"a holds the image frame0\.png, expected CLIP/FRAME"):
        load_clips(f"{name}/run/a", "all")
    (folder / "bare").mkdir()
    with pytest.raises(DataError, match="bare holds no folders, expected CLIP/FRAME"):
        load_clips(f"{name}/bare", "all")
