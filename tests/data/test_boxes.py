import copy
import json

import numpy as np
import pytest
from PIL import Image

from rml.data import NO_LABEL, DataError, batches, load_boxes

SIZES = [(20, 30), (30, 20), (10, 10), (16, 12), (12, 16)]  # height, width
COCO = {
    "info": {},
    "images": [
        {"id": 10 + at, "file_name": f"images/{at}.png", "height": height, "width": width}
        for at, (height, width) in enumerate(SIZES)
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 7, "bbox": [2, 3, 4, 5], "iscrowd": 0},
        {"id": 2, "image_id": 11, "category_id": 3, "bbox": [0, 0, 20, 30]},
        {"id": 3, "image_id": 10, "category_id": 3, "bbox": [10.5, 0, 19.75, 20]},
        {"id": 4, "image_id": 12, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"id": 5, "image_id": 13, "category_id": 7, "bbox": [1, 2, 3, 4]},
    ],
}


@pytest.fixture
def save(tmp_path):
    def save(content=COCO):
        (tmp_path / "images").mkdir(exist_ok=True)
        for at, (height, width) in enumerate(SIZES):
            Image.new("RGB", (width, height), (255, at, 0)).save(tmp_path / "images" / f"{at}.png")
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "coco.json").write_text(text)
        return f"boxes:{tmp_path / 'coco.json'}"

    return save


def test_boxes_are_corners_and_crowds_are_left_out(save):
    boxes = load_boxes(save(), "all")
    assert boxes.class_names == ("cat", "dog")
    first = boxes[0]
    assert first["image"].shape == (20, 30, 3)
    # The second box passes the border by a quarter of a pixel and is cut there.
    assert first["boxes"].tolist() == [[2, 3, 6, 8], [10.5, 0, 30, 20]]
    assert first["box_labels"].tolist() == [1, 0]
    assert (first["boxes"].dtype, first["box_labels"].dtype) == (np.float32, np.int32)
    assert boxes.box_labels.tolist() == [[1, 0], [0, -1], [-1, -1], [1, -1], [-1, -1]]
    assert boxes.boxes[2].tolist() == [[0] * 4] * 2
    assert boxes[4]["image"][0, 0].tolist() == [255, 4, 0]


def test_resized_images_are_whole_and_boxes_go_with_them(save):
    boxes = load_boxes(save(), "all", image_size=(10, 12))
    arrays = boxes.arrays()
    assert arrays["image"].shape == (5, 10, 12, 3)
    # 20x30 is scaled by 0.4 to 8x12, which leaves two rows black.
    assert (arrays["image"][0, :8, :, 0] == 255).all()
    assert not arrays["image"][0, 8:].any()
    np.testing.assert_allclose(arrays["boxes"][0, 0], [0.8, 1.2, 2.4, 3.2], rtol=1e-6)
    # 30x20 is scaled to 10x7: to whole pixels, which its box fills.
    assert (arrays["image"][1, :, :7, 0] == 255).all()
    assert not arrays["image"][1, :, 7:].any()
    np.testing.assert_allclose(arrays["boxes"][1, 0], [0, 0, 7, 10], rtol=1e-6)
    for batch in batches(boxes, batch_size=5, seed=0, repeat=False):
        assert sorted((batch["box_labels"] != NO_LABEL).sum(axis=1)) == [0, 0, 1, 1, 2]


def test_splits_keep_images_without_boxes(save):
    name = save()
    train, test = load_boxes(name, "train"), load_boxes(name, "test")
    assert (len(train), len(test)) == (4, 1)
    assert sorted(train.files + test.files) == [f"images/{at}.png" for at in range(5)]
    whole = load_boxes(name, "all")
    for part in (train, test):
        rows = [whole.files.index(file) for file in part.files]
        assert np.array_equal(part.boxes, whole.boxes[rows])
        assert np.array_equal(part.box_labels, whole.box_labels[rows])
    assert len(load_boxes(name, "train[:50%]+test")) == 3


def test_a_file_without_annotations_has_no_boxes(save):
    boxes = load_boxes(save(COCO | {"annotations": []}), "all")
    assert boxes[0]["boxes"].shape == (0, 4)


def changed(key, entry, **values):
    content = copy.deepcopy(COCO)
    content[key][entry].update(values)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', r"coco\.json is not JSON: .*line 1"),
        ([], "not in COCO's format: expected an object with lists"),
        ({"images": []}, "not in COCO's format"),
        (COCO | {"images": [], "annotations": []}, "holds no images"),
        (COCO | {"annotations": [3]}, "annotations, entry 1 is 3, expected an object"),
        (changed("images", 1, id=10), "images, entry 2: the id 10 is there already"),
        (changed("images", 1, id="a"), "images, entry 2: 'id' is 'a', expected an integer"),
        (changed("images", 0, width=None), "images, entry 1: 'width' is None, expected a number"),
        (changed("images", 0, file_name="a.png"), r"entry 1: there is no image file .*a\.png"),
        (changed("images", 1, file_name="images/0.png"), r"file 'images/0\.png' is there already"),
        (changed("images", 1, file_name="./images//0.png"), r"'images/0\.png' is there already"),
        (changed("categories", 1, id=7), "categories, entry 2: the id 7 is there already"),
        (changed("categories", 1, name="dog"), "entry 2: the category 'dog' is there already"),
        (changed("annotations", 4, id=1), "annotations, entry 5: the id 1 is there already"),
        (changed("annotations", 1, image_id=9), "entry 2: there is no image with the id 9"),
        (
            changed("annotations", 1, category_id=4),
            r"annotations, entry 2: unknown category 4, expected one of \[3, 7\]",
        ),
        (changed("annotations", 0, bbox=[1, 2, 3]), r"entry 1: 'bbox' is \[1, 2, 3\], expected"),
        (changed("annotations", 0, bbox=None), "entry 1: 'bbox' is None, expected"),
        (changed("annotations", 0, bbox=[1, 2, 0, 4]), r"the box \[1, 2, 0, 4\] has no area"),
        (changed("annotations", 0, bbox=[1, 2, 3, -4]), r"the box \[1, 2, 3, -4\] has no area"),
        (changed("annotations", 0, bbox=[1, 2, 3, float("nan")]), "has no area"),
        (
            changed("annotations", 0, bbox=[25, 3, 7, 5]),
            r"entry 1: the box \[25, 3, 7, 5\] is outside its image 'images/0.png' of 30x20 pixels",
        ),
        (changed("annotations", 0, bbox=[-2, 3, 7, 5]), "is outside its image"),
        (changed("annotations", 0, bbox=[30.5, 3, 0.4, 5]), "is outside its image"),
        (changed("annotations", 0, bbox=[float("nan"), 3, 4, 5]), "is outside its image"),
    ],
)
def test_a_wrong_entry_is_named(save, content, message):
    with pytest.raises(DataError, match=message) as caught:
        load_boxes(save(content), "all")
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_and_images_of_another_size(save, tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*none\.json"):
        load_boxes(f"boxes:{tmp_path}/none.json", "all")
    boxes = load_boxes(save(changed("images", 0, width=31)), "all")
    with pytest.raises(DataError, match=r"0\.png has 30x20 pixels, its annotation says 31x20"):
        boxes[0]
    assert boxes[1]["image"].shape == (30, 20, 3)
