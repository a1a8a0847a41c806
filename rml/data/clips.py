"""Videos as folders of frames, with classes and events where there are any: `clips:PATH`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rml.data import own
from rml.data.errors import DataError
from rml.data.folder import SUFFIXES
from rml.data.images import decode, resize_and_center_crop
from rml.data.source import MEMORY_BOUND, NO_LABEL, Example

EVENTS = "events.json"


class Event(NamedTuple):
    """What happens in frames `start` to `end` of a clip.

    Attributes:
      start: First frame, counted from 0.
      end: Frame after the last.
      text: Description; empty where there is none.
      label: Position in `Clips.event_names`, or `NO_LABEL`.
    """

    start: int
    end: int
    text: str
    label: int


class Clips(own.FileSource):
    """Clips of one split, read by position.

    `clips[i]` is `{"video": uint8 [t, h, w, 3], "frame": int32 [t], "label": int}`, where `frame`
    numbers the frames that were read, as events do.

    Attributes:
      clips: Folder of each clip, relative to the path: `CLIP` or `CLASS/CLIP`.
      lengths: int32 `[n]`, number of frames in each folder.
      labels: int32 `[n]`.
      events: Events of each clip, in the order of their frames.
      event_names: Names of the events' labels, of all splits.
    """

    labels: np.ndarray

    def __init__(
        self,
        frames: Sequence[Sequence[Path]],
        *,
        clips: Sequence[str],
        labels: np.ndarray,
        events: Sequence[tuple[Event, ...]],
        event_names: Sequence[str],
        class_names: Sequence[str],
        num_frames: int | None,
        image_size: int | Sequence[int] | None,
        name: str,
        split: str,
    ) -> None:
        super().__init__(
            size=len(frames), image_size=image_size, name=name, split=split, class_names=class_names
        )
        self.clips = tuple(clips)
        self.labels = labels
        self.lengths = np.array([len(files) for files in frames], np.int32)
        self.events = tuple(events)
        self.event_names = tuple(event_names)
        self._frames = frames
        self._num_frames = num_frames

    @property
    def nbytes(self) -> int | None:
        """Bytes of all clips decoded, or `None` where their lengths or sizes vary."""
        one_image = super().nbytes
        lengths = set(self.lengths.tolist()) if self._num_frames is None else {self._num_frames}
        return None if one_image is None or len(lengths) > 1 else one_image * lengths.pop()

    def arrays(self, *, max_bytes: int = MEMORY_BOUND) -> dict[str, np.ndarray]:
        """Loads every clip, as `Source.arrays` does; `num_frames` makes their lengths equal."""
        if self._num_frames is None and len(set(self.lengths.tolist())) > 1:
            raise DataError(
                f"{self.name!r} has clips of {self.lengths.min()} to {self.lengths.max()} frames, "
                "which do not stack into one array: load it with num_frames=..."
            )
        return super().arrays(max_bytes=max_bytes)

    def _read(self, index: int) -> Example:
        files = self._frames[index]
        count = self._num_frames or len(files)
        frame = np.linspace(0, len(files) - 1, count).round().astype(np.int32)
        images: list[np.ndarray] = []
        for at in frame:
            image = decode(files[at], channels=3)
            if self._image_size is not None:
                image = resize_and_center_crop(image, self._image_size)
            elif images and image.shape != images[0].shape:
                raise DataError(
                    f"image file {files[at]} has shape {image.shape}, the first frame of its clip "
                    f"{images[0].shape}: expected one shape, or load it with image_size=..."
                )
            images.append(image)
        return {"video": np.stack(images), "frame": frame, "label": int(self.labels[index])}


def load_clips(
    name: str,
    split: str,
    *,
    image_size: int | Sequence[int] | None = None,
    num_frames: int | None = None,
) -> Clips:
    """Opens clips; their frames are read when they are asked for.

    Args:
      name: `clips:PATH`. The folder holds one folder of frames a clip, or a folder a class with
        these in it. Frames are ordered by name, numbers in it by value: `2.png` comes before
        `10.png`. `PATH/events.json`, if it exists, is a list of objects with `clip` (`CLIP` or
        `CLASS/CLIP`), `start` and `end` (numbers of frames from 0, `end` is the one after
        the last), and `text`, `label` or both, which are strings.
      split: Split in TFDS's syntax. "train" and "test" are 80% and 20% of each class, fixed by a
        seed; "all" is every clip in the order of names.
      image_size: Brings every frame to this height and width: shorter side resized, centre kept.
      num_frames: Number of frames that are read of each clip, at even distances from its first
        to its last one; all if not given.

    Returns:
      The clips of the split.

    Raises:
      DataError: If there is no such folder, a clip is empty, clips and classes are mixed, an
        event is wrong, or the split does not exist.
    """
    path = own.path_of(name, "clips")
    if num_frames is not None and num_frames < 1:
        raise DataError(f"num_frames must be positive, got {num_frames}")
    found = _find(path)
    clips = list(found)
    classes = [clip.rpartition("/")[0] for clip in clips]
    class_names = sorted(set(classes) - {""})
    labels = np.array([class_names.index(one) if one else NO_LABEL for one in classes], np.int32)
    events, event_names = _read_events(path / EVENTS, found)
    rows = own.chosen(split, labels, name=name)
    return Clips(
        [found[clips[row]] for row in rows],
        clips=[clips[row] for row in rows],
        labels=labels[rows],
        events=[tuple(sorted(events.get(clips[row], ()))) for row in rows],
        event_names=event_names,
        class_names=class_names,
        num_frames=num_frames,
        image_size=image_size,
        name=name,
        split=split,
    )


def _find(path: Path) -> dict[str, list[Path]]:
    """Frames by clip."""
    if not path.is_dir():
        raise DataError(f"there is no folder {path}")
    tops, loose = _inside(path)
    if loose or not tops:
        holds = f"the image {loose[0].name}" if loose else "no folders"
        raise DataError(f"{path} holds {holds}, expected CLIP/FRAME.png or CLASS/CLIP/FRAME.png")
    frames: dict[str, list[Path]] = {}
    for top in tops:
        below, images = _inside(top)
        if below and images:
            raise DataError(
                f"{top} holds the image {images[0].name} beside the folder {below[0].name}: "
                "expected frames of a clip, or clips of a class"
            )
        for clip in below or [top]:
            found = images or _inside(clip)[1]
            if not found:
                raise DataError(
                    f"the clip {clip} is empty, expected frames in it (of {', '.join(SUFFIXES)})"
                )
            frames[clip.relative_to(path).as_posix()] = found
    bare, full = ([clip for clip in frames if ("/" in clip) is nested] for nested in (False, True))
    if bare and full:
        raise DataError(
            f"{path} holds the clip {bare[0]} beside the clip {full[0]} of a class: expected a "
            "class for all of them, or for none"
        )
    return frames


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """Subfolders and images of a folder, those that are not hidden, numbers in order of value."""
    found = [child for child in folder.iterdir() if not child.name.startswith(".")]
    found.sort(key=lambda child: (_natural(child.name), child.name))
    return (
        [child for child in found if child.is_dir()],
        [child for child in found if child.suffix.lower() in SUFFIXES and child.is_file()],
    )


def _natural(name: str) -> list[Any]:
    parts: list[Any] = re.split(r"(\d+)", name)
    parts[1::2] = map(int, parts[1::2])
    return parts


def _read_events(
    file: Path, frames: dict[str, list[Path]]
) -> tuple[dict[str, list[Event]], list[str]]:
    """Events by clip, and names of their labels."""
    if not file.exists():
        return {}, []
    content = own.read_json(file)
    if not isinstance(content, list):
        raise DataError(f"{file} holds {type(content).__name__}, expected a list of events")
    for number, entry in enumerate(content, start=1):
        _check_event(f"{file}, event {number}", entry, frames)
    names = sorted({entry["label"] for entry in content if "label" in entry})
    events: dict[str, list[Event]] = {}
    for entry in content:
        label = names.index(entry["label"]) if "label" in entry else NO_LABEL
        event = Event(entry["start"], entry["end"], entry.get("text", ""), label)
        events.setdefault(entry["clip"], []).append(event)
    return events, names


def _check_event(where: str, entry: Any, frames: dict[str, list[Path]]) -> None:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {entry!r:.80}, expected an object with 'clip' and others")
    clip = own.field(where, entry, "clip", str, "the name of a clip's folder")
    if clip not in frames:
        raise DataError(
            f"{where}: there is no clip {clip!r}; a name is such as {next(iter(frames))!r}"
        )
    start, end = (
        own.field(where, entry, key, int, "the number of a frame") for key in ("start", "end")
    )
    if not 0 <= start < end <= len(frames[clip]):
        raise DataError(
            f"{where} is of the frames {start} to {end}, expected 0 <= start < end <= "
            f"{len(frames[clip])}, the number of frames of {clip!r}"
        )
    given = [key for key in ("text", "label") if key in entry]
    if not given:
        raise DataError(f"{where} has neither 'text' nor 'label', expected one of them or both")
    for key in given:
        own.field(where, entry, key, str, "a string")
