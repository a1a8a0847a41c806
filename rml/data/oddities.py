"""What is odd in the two sources of an experiment, though both can be read."""

import numpy as np

from rml.data.errors import DataError
from rml.data.source import IN_MEMORY_BYTES, NO_LABEL, Source

NOTABLE = 0.01
"""Share of the test images above which something odd about them is worth a word."""


def require_labels(source: Source, user: str) -> Source:
    """Returns the source, whose examples have a class.

    Args:
      source: Source that is read.
      user: Name of what needs the labels, for the message.

    Raises:
      DataError: If the source has no labels.
    """
    if source.labelled:
        return source
    raise DataError(
        f"{user} needs labels, of which {source.name} has none: expected one folder a class, an "
        "array 'label' in an npz, or an experiment without them, such as contrastive.simclr"
    )


def oddities(train: Source, test: Source) -> list[str]:
    """Lists what makes accuracies of a training and a test source say little.

    An image is shared if it is equal to the bit and, where both have labels, of the same class.
    Sources that are larger than `IN_MEMORY_BYTES` are judged by their names and labels alone.

    Args:
      train: Training source.
      test: Test source.

    Returns:
      One line a finding; none where all is well.
    """
    small = all(
        source.nbytes is not None and source.nbytes <= IN_MEMORY_BYTES for source in (train, test)
    )
    arrays = [source.arrays() if small else {} for source in (train, test)]
    given, asked = (
        own.get("label", source.labels) for own, source in zip(arrays, (train, test), strict=True)
    )
    found, tested = [], f"of the {len(test)} test images of {test.name}"
    if (train.name, train.split) == (test.name, test.split):
        found.append(f"train and test are both {train.split!r} of {train.name}")
    elif small:
        # Equal images of two classes are no leak: an "l" of one font is the "I" of another.
        both = train.labelled and test.labelled
        seen = set(_fingerprints(arrays[0], labels=both))
        count = sum(one in seen for one in _fingerprints(arrays[1], labels=both))
        if count > NOTABLE * len(test):
            found.append(f"{count} {tested} are training images too")
    if train.labelled and test.labelled and given is not None and asked is not None:
        classes = np.unique(given)
        if len(classes) == 1:
            only = train.class_names[int(classes[0])]
            found.append(f"all training images of {train.name} are of one class, {only!r}")
        strange = int((~np.isin(asked, classes)).sum())
        if strange > NOTABLE * len(test):
            found.append(f"{strange} {tested} are of classes without training images")
    if small and train.feature_shape is None and arrays[0]["image"].dtype != np.uint8:
        low, high = float(arrays[0]["image"].min()), float(arrays[0]["image"].max())
        if low < 0 or high > 1:
            found.append(
                f"images of {train.name} are floats from {low:.4g} to {high:.4g}, augmentations "
                "expect 0 to 1: save them as uint8, or scale them"
            )
    return found


def _fingerprints(arrays: dict[str, np.ndarray], *, labels: bool) -> list[int]:
    """A number for each image, with its label on demand, equal for equal ones."""
    pairs = zip(arrays["image"], arrays["label"], strict=True)
    return [hash((image.tobytes(), int(label) if labels else NO_LABEL)) for image, label in pairs]
