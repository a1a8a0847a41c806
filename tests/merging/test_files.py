"""Checkpoints merged from files, against the same methods on whole trees."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from experiments import merge as command
from rml.errors import UserError
from rml.merging import files as merged_files
from rml.merging import merge, merge_files
from tests.disk import full_after

safetensors = pytest.importorskip("safetensors.numpy")
NAMES = ("first", "second", "third")


def checkpoint(rng, start=None, scale=0.05):
    """Two matrices, a vector of half precision, a number, nothing and a counter."""
    shapes = {"b.weight": (7, 5), "a.weight": (4, 3, 2), "a.bias": (6,), "scale": ()}
    own = {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}
    if start is not None:
        own = {
            name: np.asarray(start[name].astype(np.float32) + scale * x) for name, x in own.items()
        }
    own["a.bias"] = own["a.bias"].astype(ml_dtypes.bfloat16)
    return {**own, "count": np.array([3]), "none": np.zeros((0, 3), np.float32)}


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    base = checkpoint(rng)
    trees = {"base": base, **{name: checkpoint(rng, base) for name in NAMES}}
    for name, tree in trees.items():
        safetensors.save_file(tree, tmp_path / f"{name}.safetensors")
    return tmp_path, trees


def paths(folder, names=NAMES):
    return [folder / f"{name}.safetensors" for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("entries", [4, 16, 30, 1 << 20])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("average", {}),
        ("weighted_average", {"weights": jnp.array([0.2, 0.5, 0.9])}),
        ("task_arithmetic", {"scale": 0.7}),
        ("ties", {"keep": 0.3, "scale": 0.8}),
    ],
)
def test_files_become_what_trees_become(files, monkeypatch, method, options, entries):
    monkeypatch.setattr(merged_files, "ENTRIES", entries)  # parts of tensors, or several at a time
    folder, trees = files
    base = None if "average" in method else folder / "base.safetensors"
    merge_files(method, base, paths(folder), folder / "out.safetensors", **options)
    found = safetensors.load_file(folder / "out.safetensors")
    floats = {name: {k: v for k, v in tree.items() if k != "count"} for name, tree in trees.items()}
    expected = merge(method, floats["base"], [floats[name] for name in NAMES], **options)
    assert found["count"] == 3
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(
            found[name].astype(np.float32), np.asarray(value, np.float32), rtol=1e-6, err_msg=name
        )
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("entries", [4, 1 << 20])
def test_an_expert_may_be_stored_in_another_precision(files, monkeypatch, entries):
    monkeypatch.setattr(merged_files, "ENTRIES", entries)
    folder, trees = files
    halves = {
        name: value.astype(np.float16) if name.startswith(("a.", "b.")) else value
        for name, value in trees["first"].items()
    }
    safetensors.save_file(halves, folder / "half.safetensors")
    merge_files("average", None, paths(folder, ("second", "half")), folder / "out.safetensors")
    found = safetensors.load_file(folder / "out.safetensors")
    for name in ("a.weight", "b.weight"):
        expected = (trees["second"][name] + halves[name].astype(np.float32)) / 2
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, err_msg=name)


def without_counter(tree, dtype):
    return {name: value.astype(dtype) for name, value in tree.items() if name != "count"}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize(
    ("method", "options"),
    [("task_arithmetic", {"scale": 6.0}), ("ties", {"keep": 0.3, "scale": 6.0})],
)
def test_experts_are_not_rounded_to_a_narrower_base(files, monkeypatch, method, options, dtype):
    monkeypatch.setattr(merged_files, "ENTRIES", 16)
    folder, trees = files
    unit = float(ml_dtypes.finfo(dtype).eps)
    base, rng = without_counter(trees["base"], dtype), np.random.default_rng(2)
    drawn = [checkpoint(rng, base, scale=0.3 * unit) for _ in NAMES]  # most of it would be lost
    experts = [{name: tree[name] for name in base} for tree in drawn]
    for name, tree in zip(("base", *NAMES), (base, *experts), strict=True):
        safetensors.save_file(tree, folder / f"{name}.safetensors")
    merge_files(method, folder / "base.safetensors", paths(folder), folder / "out.safetensors",
                **options)  # fmt: skip
    found = safetensors.load_file(folder / "out.safetensors")
    for name, value in merge(method, base, experts, **options).items():
        assert found[name].dtype == dtype
        np.testing.assert_allclose(
            found[name].astype(np.float32), np.asarray(value, np.float32), rtol=unit, err_msg=name
        )


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("average", {}),
        ("weighted_average", {"weights": [0.2, 0.5, 0.9]}),
        ("task_arithmetic", {"scale": 0.7}),
        ("ties", {"keep": 0.3, "scale": 0.8}),
    ],
)
def test_tensors_of_float64_keep_their_digits(files, method, options):
    folder, trees = files
    base, rng = without_counter(trees["base"], np.float64), np.random.default_rng(3)
    experts = [
        {name: np.asarray(x + 1e-6 * rng.normal(size=x.shape)) for name, x in base.items()}
        for _ in NAMES
    ]
    for name, tree in zip(("base", *NAMES), (base, *experts), strict=True):
        safetensors.save_file(tree, folder / f"{name}.safetensors")
    own = None if "average" in method else folder / "base.safetensors"
    merge_files(method, own, paths(folder), folder / "out.safetensors", **options)
    found = safetensors.load_file(folder / "out.safetensors")
    with jax.enable_x64(True):
        expected = merge(method, base, experts, **options)
    for name, value in expected.items():
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], value, rtol=1e-15, atol=1e-15, err_msg=name)


def test_distances_of_float64_do_not_overflow(tmp_path):
    for name, value in (("base", 1e39), ("first", 5e39)):
        safetensors.save_file({"w": np.full((3, 2), value)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"first.safetensors lies 4.00 times the base's norm"):
        merge_files("task_arithmetic", tmp_path / "base.safetensors", paths(tmp_path, ["first"]),
                    tmp_path / "out.safetensors")  # fmt: skip


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
def test_values_beyond_half_precision_are_finite_in_a_wider_checkpoint(tmp_path, order):
    half = {"w": np.full((3, 2), 1.5, np.float16)}
    single = {"w": np.full((3, 2), 1e5, np.float32)}
    for name, tree in (("first", half), ("second", single)):
        safetensors.save_file(tree, tmp_path / f"{name}.safetensors")
    merge_files("average", None, paths(tmp_path, order), tmp_path / "out.safetensors")
    found = safetensors.load_file(tmp_path / "out.safetensors")["w"]
    dtype = np.float16 if order[0] == "first" else np.float32
    np.testing.assert_array_equal(found, np.full((3, 2), 50000.75, dtype), strict=True)


def test_a_merge_beyond_its_type_is_told_before_it_is_written(tmp_path):
    half = {"w": np.full((3, 2), 1.5, np.float16)}
    single = {"w": np.full((3, 2), 1e6, np.float32)}
    for name, tree in (("first", half), ("second", single)):
        safetensors.save_file(tree, tmp_path / f"{name}.safetensors")
    out = tmp_path / "out.safetensors"
    with pytest.raises(UserError, match=r"leaf 'w' of .*out.safetensors holds NaN or infinite"):
        merge_files("average", None, paths(tmp_path, ("first", "second")), out)
    assert not out.exists()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_running_variances_that_would_become_negative_are_told(tmp_path, dtype):
    name = "layer.bn.running_var"
    for file, value in (("base", 4), ("first", 2), ("second", 1.5)):
        tree = {"a": np.full(3, -9, dtype), name: np.full(3, value, dtype)}
        safetensors.save_file(tree, tmp_path / f"{file}.safetensors")
    given = tmp_path / "base.safetensors", paths(tmp_path, ("first", "second"))
    with pytest.raises(UserError, match=f"leaf '{name}' is a variance and as low as -0.5 once"):
        merge_files("task_arithmetic", *given, tmp_path / "out.safetensors", scale=1.0)
    assert not (tmp_path / "out.safetensors").exists()
    merge_files("average", *given, tmp_path / "out.safetensors")


def test_counters_are_written_by_rows_whatever_their_layout(tmp_path):
    counts, steps = np.arange(6, dtype=np.int32).reshape(2, 3), np.int64(7)
    for name in ("first", "second"):
        np.savez(tmp_path / f"{name}.npz", w=np.full(2, 1.5, np.float32), steps=steps,
                 counts=np.asfortranarray(counts))  # fmt: skip
    merge_files("average", None, [tmp_path / "first.npz", tmp_path / "second.npz"],
                tmp_path / "out.safetensors")  # fmt: skip
    found = safetensors.load_file(tmp_path / "out.safetensors")
    np.testing.assert_array_equal(found["counts"], counts)
    assert found["steps"].shape == ()
    assert found["steps"] == 7


def test_files_without_floating_tensors_are_the_base(tmp_path):
    for name in ("base", "first", "second"):
        np.savez(tmp_path / f"{name}.npz", counts=np.arange(6, dtype=np.int32))
    base, *experts = (tmp_path / f"{name}.npz" for name in ("base", "first", "second"))
    for method in ("ties", "task_arithmetic"):
        out = tmp_path / f"{method}.safetensors"
        merge_files(method, base, experts, out)
        np.testing.assert_array_equal(safetensors.load_file(out)["counts"], np.arange(6))


def test_a_file_that_is_cut_while_it_is_merged_is_told(files, monkeypatch):
    folder, _ = files
    opened = merged_files.open_checkpoint

    def cut(path):
        found = opened(path)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 40)
        return found

    monkeypatch.setattr(merged_files, "open_checkpoint", cut)
    with pytest.raises(UserError, match="ends within"):
        merge_files("average", None, paths(folder), folder / "out.safetensors")
    assert not (folder / "out.safetensors").exists()


@pytest.mark.parametrize("entries", [12, 1 << 20])
def test_dropped_entries_differ_between_tensors_and_follow_the_key(files, monkeypatch, entries):
    monkeypatch.setattr(merged_files, "ENTRIES", entries)
    folder, trees = files
    found = []
    for number, seed in enumerate((0, 0, 1)):
        out = folder / f"out{number}.safetensors"
        merge_files("dare", folder / "base.safetensors", paths(folder, NAMES[:1]), out,
                    key=jax.random.key(seed), rate=0.5, scale=1.0)  # fmt: skip
        tree = safetensors.load_file(out)
        moved = {name: tree[name] != trees["base"][name] for name in ("a.weight", "b.weight")}
        found.append(np.concatenate([own.ravel()[:24] for own in moved.values()]))
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()
    assert (found[0][:24] != found[0][24:]).any()
    assert (found[0][:12] != found[0][12:24]).any()
    assert 0 < found[0].mean() < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "fisher"}, "unknown method of files 'fisher'"),
        ({"base": None}, "task_arithmetic needs a base"),
        ({"experts": []}, "experts is empty"),
        ({"out": "first.safetensors"}, "exists or does not end in"),
        ({"out": "new.npz"}, "exists or does not end in"),
        ({"experts": ["absent"]}, "there is no file"),
        ({"experts": ["wide"]}, r"leaf 'b.weight' of .*wide.safetensors is \[7, 6\]"),
        (
            {"experts": ["whole"]},
            "leaf 'a.bias' of .*whole.safetensors is I64, expected one of: F64",
        ),
        ({"experts": ["eights"]}, "tensor 'a.bias' of .*eights.* has dtype F8_E4M3, expected one"),
        ({"experts": ["first", "far"]}, "far.safetensors lies .* was it fine-tuned from another"),
        ({"experts": ["broken"]}, "leaf 'a.weight' of .*broken.safetensors holds NaN"),
        ({"method": "ties", "keep": 0.0}, "keep is 0.0"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(files, change, message):
    folder, trees = files
    rng = np.random.default_rng(1)
    wide = trees["first"] | {"b.weight": np.zeros((7, 6), np.float32)}
    broken = trees["first"] | {"a.weight": np.full((4, 3, 2), np.nan, np.float32)}
    whole = trees["first"] | {"a.bias": np.zeros(6, np.int64)}
    others = {"wide": wide, "broken": broken, "whole": whole,
              "far": checkpoint(rng, trees["base"], 3.0)}  # fmt: skip
    for name, tree in others.items():
        safetensors.save_file(tree, folder / f"{name}.safetensors")
    eights = dict(trees["first"])
    eights["a.bias"] = eights["a.bias"].astype(jnp.float8_e4m3fn)
    safetensors.save_file(eights, folder / "eights.safetensors")
    given = {"method": "task_arithmetic", "base": folder / "base.safetensors",
             "experts": NAMES, "out": "new.safetensors"} | change  # fmt: skip
    given |= {"experts": paths(folder, given["experts"]), "out": folder / given["out"]}
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match=message):
        merge_files(given.pop("method"), given.pop("base"), given.pop("experts"), **given)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("dare", {"rate": 0.3}, "dare needs the option 'key'"),
        ("weighted_average", {}, "weighted_average needs the option 'weights'"),
        ("weighted_average", {"weights": None}, "weighted_average needs the option 'weights'"),
        ("task_arithmetic", {"keep": 0.3}, "has no option 'keep', expected one of: scale$"),
        ("average", {"scale": 0.3}, "average has no option 'scale', expected one of: none$"),
        ("ties", {"least": 0.3}, "has no option 'least', expected one of: keep, scale, disjoint$"),
        *(
            ("dare", {"key": jax.random.key(0), "rate": rate}, f"rate is {rate}, expected a number")
            for rate in (-1, 1, 1.5)
        ),
    ],
)
def test_options_are_checked_before_a_file_is_opened(
    monkeypatch, tmp_path, method, options, message
):
    monkeypatch.setattr(merged_files, "open_checkpoint", None)
    with pytest.raises(UserError, match=message):
        merge_files(method, tmp_path / "base", [tmp_path / "first"], tmp_path / "out.safetensors",
                    **options)  # fmt: skip


def test_scales_are_looked_at_before_a_file_is_opened(monkeypatch, tmp_path):
    monkeypatch.setattr(merged_files, "open_checkpoint", None)
    with pytest.raises(ValueError, match=r"^scale is inf, expected a finite number$"):
        merge_files("task_arithmetic", tmp_path / "base", [tmp_path / "first"],
                    tmp_path / "out.safetensors", scale=np.inf)  # fmt: skip


def test_weights_of_files_count_by_their_ratios_alone(files):
    folder, _ = files
    found = []
    for number, weights in enumerate(([1e-50, 3e-50, 0], [1, 3, 0])):
        out = folder / f"out{number}.safetensors"
        merge_files("weighted_average", None, paths(folder), out, weights=weights)
        found.append(safetensors.load_file(out)["b.weight"])
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_a_tensor_in_two_files_of_a_folder_is_told(files):
    folder, trees = files
    (folder / "shards").mkdir()
    for name, keys in (("one", ("a.weight", "b.weight")), ("two", ("a.bias", "b.weight"))):
        own = {key: trees["first"][key] for key in keys}
        safetensors.save_file(own, folder / "shards" / f"{name}.safetensors")
    told = "tensor 'b.weight' stands in .*one.safetensors and .*two.safetensors, expected in one"
    with pytest.raises(UserError, match=told):
        merge_files("average", None, [folder / "shards"], folder / "out.safetensors")


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(files):
    folder, _ = files
    merge_files("average", None, paths(folder), folder / "whole.safetensors")  # it is compiled
    before = sorted(folder.iterdir())
    for name, why in (("new", "File too large"), ("first.safetensors/new", "first.safetensors")):
        out = folder / f"{name}.safetensors"
        told = f"^{out} cannot be written: .*{why}[^\n]*$"
        with full_after(100), pytest.raises(UserError, match=told):
            merge_files("average", None, paths(folder), out)
    assert sorted(folder.iterdir()) == before


def test_the_command_merges_files_and_folders_as_they_are(files, capsys):
    folder, trees = files
    for name in NAMES[:2]:  # in shards, as large checkpoints are
        (folder / name).mkdir()
        for at, part in enumerate((["a.weight", "count"], ["b.weight", "a.bias", "scale", "none"])):
            own = {key: trees[name][key] for key in part}
            safetensors.save_file(own, folder / name / f"model-{at}.safetensors")
    out = folder / "out.safetensors"
    given = [str(folder / name) for name in NAMES[:2]] + [
        f"--base={folder / 'base.safetensors'}", "--method=ties", "--option", "keep=0.5",
        f"--out={out}",
    ]  # fmt: skip
    assert command.main(given) == 0
    assert "wrote" in capsys.readouterr().out
    merge_files("ties", folder / "base.safetensors", paths(folder, NAMES[:2]),
                folder / "same.safetensors", keep=0.5)  # fmt: skip
    found, same = (safetensors.load_file(path) for path in (out, folder / "same.safetensors"))
    assert all(np.array_equal(found[name], same[name]) for name in same)
    given[-1] = f"--out={folder / 'new.safetensors'}"
    assert command.main([*given, "--data=digits"]) == 1
    assert "their architecture is not known" in capsys.readouterr().err
    assert command.main([*given[:-2], "least=0.1", given[-1]]) == 1
    assert "has no option 'least'" in capsys.readouterr().err
