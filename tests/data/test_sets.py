"""Data sets of fetched archives: prepared from a part of each, and the readers of their formats."""

import base64
import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageColor

from rml import assets, data
from rml.data import builders, load, packaged, vector
from rml.data.sets import SETS, clipart, debian, iconify, manuals, tasks, units, wordnet
from rml.data.sets.wiki_vital import mentions
from rml.errors import UserError

PART = 150  # examples
PARTS = {"flights": 18_000}  # whose splits are by day
PREPARED = "test_a_part_of_it_is_prepared"
CHEAP = ("icons", "questions", "wiki_vital_es")


@pytest.fixture(scope="session")
def archives(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All archives, fetched once for all workers.

    Those that the chosen tests want of Debian come together: each call reads its lists anew.
    """
    root = tmp_path_factory.getbasetemp().parent / "archives"
    chosen = {
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == PREPARED
    }
    wanted = [asset for name in sorted(chosen) for asset in SETS[name].ASSETS]
    debian = [asset for asset in wanted if assets.listed()[asset].kind in ("debian", "lists")]
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(UserError):
        patch.setenv("RML_ASSETS", str(root))
        if debian:
            assets.fetch(debian)  # what fails here fails again in the test that wants it
    return root


@pytest.fixture
def part(archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives are taken from there, and of each data set a part is made."""
    monkeypatch.setenv("RML_ASSETS", str(archives))
    monkeypatch.setattr(packaged, "MOST", PART)


def digest(directory: Path) -> str:
    files = sorted(path for path in directory.iterdir() if "array_record" in path.name)
    assert files
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SETS))
@pytest.mark.usefixtures("part", "unchecked")
def test_a_part_of_it_is_prepared(name, tmp_path, monkeypatch):
    monkeypatch.setattr(packaged, "MOST", part := PARTS.get(name, PART))
    assets.fetch(SETS[name].ASSETS)
    opened: list[Path] = []
    read = assets._files
    monkeypatch.setattr(assets, "_files", lambda path: opened.append(path) or read(path))
    builder = tfds.builder_from_directory(builders.prepare(name, tmp_path))
    assert name not in ("clipart", "units") or len(opened) == 1  # art is decompressed once
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    assert 0.7 * part <= sum(sizes.values()) <= part * (2 if name == "fashion_mnist" else 1)
    assert sizes["train"] >= max(sizes.values())
    assert builder.info.redistribution_info.license
    example = builder.as_data_source("train")[0]
    assert set(example) == set(builder.info.features)
    if "image" in example:
        image = example["image"]
        assert image.dtype == np.uint8
        assert image.min() < image.max()
    else:
        texts = [value for value in example.values() if isinstance(value, bytes)]
        assert any(text.decode() for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.usefixtures("part", "unchecked")
def test_prepared_bytes_are_the_same_again(name, tmp_path):
    assets.fetch(SETS[name].ASSETS)
    first, second = (digest(builders.prepare(name, tmp_path / part)) for part in "ab")
    assert first == second


def test_without_its_archives_the_error_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("RML_ASSETS", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"missing: run `python -m rml\.assets wordnet`"):
        builders.prepare("wordnet", tmp_path)
    assert not (tmp_path / "wordnet" / "1.0.0").exists()


@pytest.mark.parametrize("kind", ["pairs", "clips", "interactions", "boxes", "texts"])
def test_other_kinds_are_opened_by_their_own_loaders(kind):
    with pytest.raises(UserError, match=r"opened by rml\.data\.load_") as raised:
        load(f"{kind}:somewhere", "train")
    assert hasattr(data, str(raised.value).rpartition(".")[2])


def test_groups_stay_together_and_every_slice_is_a_sample():
    examples = [(f"group {i // 7}", {"number": i}) for i in range(2100)]
    splits = packaged.by_split(examples)
    groups = {split: {example["number"] // 7 for example in part} for split, part in splits.items()}
    assert sum(map(len, groups.values())) == 300
    assert [len(groups[split]) for split in ("train", "validation", "test")] == [
        sum(packaged.split_of(f"group {i}") == split for i in range(300))
        for split in ("train", "validation", "test")
    ]
    assert 0.72 < len(groups["train"]) / 300 < 0.88
    assert all(0.05 < len(groups[split]) / 300 < 0.15 for split in ("validation", "test"))
    first = [example["number"] for example in splits["train"][:200]]
    assert abs(np.mean(first) - 1050) < 150


def test_near_copies_are_found_and_others_are_not():
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    smooth = [
        np.asarray(Image.fromarray(image).resize((8, 8)).resize((64, 64), Image.BICUBIC))
        for image in originals
    ]
    lighter = [np.minimum(image.astype(int) + 9, 255).astype(np.uint8) for image in smooth[:5]]
    assert vector.near_copies(lighter, smooth).all()
    mirrored = [image[:, ::-1] for image in smooth]
    assert not vector.near_copies(mirrored, smooth).any()
    assert not vector.near_copies([], smooth).any()
    kept = packaged.without_near_copies(
        {
            "train": [{"image": image} for image in smooth],
            "validation": [{"image": image} for image in lighter],
            "test": [{"image": image} for image in mirrored],
        }
    )
    assert [len(kept[split]) for split in kept] == [20, 0, 20]


def test_drawings_are_rendered_on_white_paper():
    circle = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10">'
        '<circle cx="2" cy="5" r="2"/></svg>'
    )
    pixels = vector.render(circle, 20)
    assert pixels.shape == (20, 20, 3)
    assert pixels[10, 4].tolist() == [0, 0, 0]
    assert pixels[10, 16].tolist() == [255, 255, 255]
    assert vector.render(circle.replace('r="2"', 'r="0"'), 20) is None
    assert vector.render("no drawing", 20) is None


@pytest.mark.parametrize("quote", "\"'")
@pytest.mark.parametrize("name", ["href", "xlink:href", "x:href "])
def test_drawings_read_no_file_of_this_machine(tmp_path, monkeypatch, name, quote):
    file = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(file)
    data = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    monkeypatch.chdir(tmp_path)
    for reference, color in (
        (str(file), "white"), (file.as_uri(), "white"), ("red.png", "white"), (data, "red"),
    ):  # fmt: skip
        drawing = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            'xmlns:x="http://www.w3.org/1999/xlink" width="8" height="8"><rect width="1" '
            f'height="1"/><image {name}={quote}{reference}{quote} width="8" height="8"/></svg>'
        )
        found = tuple(vector.render(drawing, 8)[5, 5].tolist())
        assert found == ImageColor.getrgb(color)


def test_drawings_follow_references_within_them():
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><defs><rect id="a" '
        'width="9" height="9"/></defs><use href="#a"/></svg>'
    )
    assert (vector.render(drawing, 64) == 0).all(axis=2).sum() == 81


def test_an_icon_set_gives_drawings_and_aliases():
    one = iconify.IconSet(
        icons={"a": {"body": "<path/>", "width": 8}}, aliases={"b": {"parent": "a"}},
        characters={}, width=24, height=16,
    )  # fmt: skip
    assert one.svg("a") == one.svg("b")
    assert 'viewBox="0 0 8 16"' in one.svg("a")


def test_a_synset_is_parsed():
    line = (
        "00001740 03 n 02 living_thing 0 be(p) 1 003 @ 00002137 n 0000 ~ 00007846 n 0000 "
        '@i 00001930 v 0000 | a thing that lives; "they grow"; "it lives"  '
    )
    assert wordnet.parse(line) == {
        "id": "n00001740",
        "gloss": "a thing that lives",
        "lemmas": ["living thing", "be"],
        "examples": ["they grow", "it lives"],
        "hypernyms": ["n00002137", "v00001930"],
        "label": 3,
    }


def test_titles_are_found_word_by_word():
    titles = ["Paul Klee", "Paris", "Rome", "paris green", "Bern"]
    texts = [
        "He was born in Paris, Paul Klee too.",
        "Near Rome; not paris green.",
        "",
        "",
        "Paris.",
    ]
    assert mentions(titles, texts) == [["Paris"], [], [], [], ["Paris"]]


def test_fields_of_packages_are_parsed():
    first, second = debian.stanzas("Package: a\nTag: x::{y,\n z}, w\n\nPackage: b\n")
    assert first == {"Package": "a", "Tag": "x::{y,\nz}, w"}
    assert second == {"Package": "b"}
    assert debian.tags(first["Tag"]) == ["x::y", "x::z", "w"]
    assert debian.names("libc6 (>= 2), mail-server | postfix:any, libc6") == [
        "libc6",
        "mail-server",
        "postfix",
    ]
    assert debian.described("Foo tool\n The foo\n .\n works.", "foo") == (
        "it tool",
        "The it works.",
    )
    assert debian.described("Atoms, or AT2 the\n Batch-at by at; éat seat.", "at") == (
        "Atoms, or it2 the",
        "Batch-it by it; éat seat.",
    )
    assert debian.described("Fooは道具\n のFooé.", "foo")[0] == "itは道具"


def test_a_unit_and_the_names_of_its_frames_are_parsed():
    config = (
        "#define PATH_TEMP\nunits/elves/#enddef\n[unit_type]\n id=Elf\n race=elf\n"
        ' image="{PATH_TEMP}archer.png~RC(x)"\n description= _ "Fast\nand green."\n'
        " [attack]\n id=bow\n[/attack]\n"
    )
    assert units.parse(config) == (
        "units/elves/archer",
        units.Unit("Elf", "elf", "Fast and green."),
    )
    assert units.parse("[race]\n id=elf\n") is None
    assert units.action_of("ne-bow-attack-3") == ("ranged", "ne")
    assert units.action_of("sword-2") == ("melee", "side")
    assert units.action_of("s-die-1") == ("die", "s")
    assert units.action_of("") == ("base", "side")
    assert units.action_of("bob") == ("other", "side")


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ('<svg width="2in" height="1in">', 'viewBox="0 0 180.0 90.0" width="180.0" height="90.0">'),
        (
            '<svg viewBox="0 0 30 40" width="100%">',
            'viewBox="0 0 30 40" width="30.0" height="40.0">',
        ),
        ("<svg>", 'viewBox="0 0 400.0 400.0" width="400.0" height="400.0">'),
        ('<svg width="5"/>', 'viewBox="0 0 400.0 400.0" width="400.0" height="400.0"/>'),
    ],
)
def test_drawings_get_a_size_in_pixels(tag, expected):
    assert clipart.with_plain_size(tag + "x").endswith(expected + "x")


def test_a_drawings_own_words_are_read():
    svg = (
        '<svg xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
        'xmlns:d="http://purl.org/dc/elements/1.1/" xmlns:c="http://web.resource.org/cc/"><r:RDF>'
        "<c:Work><d:title> Cat </d:title><d:subject><r:Bag><r:li>Pet</r:li><r:li>pet</r:li>"
        "<r:li/></r:Bag></d:subject><d:creator><c:Agent><d:title>Ann</d:title></c:Agent>"
        "</d:creator></c:Work></r:RDF></svg>"
    )
    assert clipart.describe(svg) == clipart.Description("Cat", "Ann", ["pet"])
    assert clipart.describe("<svg") == clipart.Description("", "", [])


def test_manual_pages_lose_their_markup_and_their_see_also():
    source = (
        '.TH A 1\n.\\" comment\n.SH NAME\nls \\- list\n.B \\fIfiles\\fP "now"\n'
        ".SH SEE ALSO\n.BR cat (1),\n.BR ls (1)\n.SH NOTES\nlost\n"
    )
    page = manuals.parse_man(source, "ls.1")
    assert page.see == ["cat.1"]
    assert page.text == "A 1 NAME ls - list files now"


def test_pages_named_together_are_counted_once_a_page():
    see = {"a": ["b", "c", "lost"], "b": ["c"], "c": ["a", "b"], "d": ["b", "c"]}
    assert manuals.co_cited(see) == {("b", "c"): 2, ("a", "b"): 1}


def test_rows_of_tasks():
    system = {"role": "system", "content": "Be short."}
    row = json.dumps(
        {"input": [system, {"role": "user", "content": "2+2"}], "ideal": ["4", "four"]}
    )
    assert tasks._row(row) == (system["content"], "2+2", "4")
    assert tasks._row('{"input": "2+2", "ideal": 4}') == ("", "2+2", "4")
    assert tasks._row('{"prompt": "x"}') is None
    assert tasks._row("{") is None


def test_prompts_of_the_same_words_of_a_task_have_one_key(monkeypatch):
    """Those without a word, of which some tasks have only such, have keys of their own."""
    prompts = ["Add two and three.", "add two, and three", "Add two and four.", "??", "!!"]
    rows = [("", prompt, str(len(prompt))) for prompt in prompts]
    monkeypatch.setattr(tasks, "read", lambda: {"sums": rows, "other": rows[:1]})
    keys = [key for key, _ in tasks._rows()]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 5
    assert str(tasks.Tasks.VERSION) in tasks.Tasks.RELEASE_NOTES
