"""The notebook runs from top to bottom, on small data and few steps."""

import importlib
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from experiments.common.images import open_images

NOTEBOOK = Path(__file__).parents[2] / "tpu" / "colab.ipynb"


def test_notebook_holds_no_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert [c for c in cells if c.get("outputs") or c.get("execution_count")] == []
    assert "Your data here" in "".join(cells[-2]["source"])


def install(monkeypatch, there, code=0, at=NOTEBOOK.parent, names=None):
    """Runs the cell that installs, with these packages there; returns the commands it ran."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    (source,) = (s for c in cells if "pip" in (s := "".join(c["source"])) and "code" in c.values())
    ran = []
    found = [SimpleNamespace(name=name, version=version) for name, version in there.items()]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: found)
    monkeypatch.setattr(
        "subprocess.run", lambda words, **_: ran.append(words) or SimpleNamespace(returncode=code)
    )
    monkeypatch.chdir(at)
    monkeypatch.syspath_prepend(str(NOTEBOOK.parent))  # what the cell adds goes with it
    exec(source, {} if names is None else names)
    return ran


def test_what_is_missing_is_installed_and_jax_is_not_replaced(monkeypatch):
    jax = {"jax": "0.8.1", "jaxlib": "0.8.2"}
    whole = dict.fromkeys(("rml", "grain", "mlxtend"), "1") | jax
    assert install(monkeypatch, whole) == []
    for lacking in ("rml", "grain", "mlxtend"):
        (words,) = install(monkeypatch, {k: v for k, v in whole.items() if k != lacking})
        assert words[-4:] == ["-e", ".[demo]", "jax==0.8.1", "jaxlib==0.8.2"]
    with pytest.raises(SystemExit, match=r"could not install rml beside jax==0\.8\.1 and jaxlib"):
        install(monkeypatch, jax, code=1)
    assert install(monkeypatch, {})[0][-2:] == ["-e", ".[demo]"]


def test_after_a_restart_of_the_kernel_what_was_cloned_is_used(monkeypatch, tmp_path):
    (tmp_path / "rml" / "configs").mkdir(parents=True)
    monkeypatch.setenv("RML_SOURCE", "https://somewhere/rml")
    whole = dict.fromkeys(("rml", "grain", "mlxtend"), "1")
    assert install(monkeypatch, whole, at=tmp_path) == []
    assert Path.cwd() == tmp_path / "rml"


def write_images(folder, shape, count=100):
    """Colour or grey images as files."""
    folder.mkdir(parents=True)
    for i, image in enumerate(np.random.default_rng(0).integers(0, 255, (count, *shape), np.uint8)):
        Image.fromarray(image).save(folder / f"{i}.png")


def launched(monkeypatch, given, start=NOTEBOOK.parent):
    """The config and the run directory that the cell for one's own data launches."""
    monkeypatch.setenv("RML_MINE", given)
    found = []

    def launch(config, *args):
        found.append((config, args[0]))
        raise InterruptedError

    names = {
        "os": os, "Path": Path, "importlib": importlib, "jax": importlib.import_module("jax"),
        "open_images": open_images, "launch": launch, "DEMO": "simclr_mnist5k", "STEPS": 0,
        "START": start,
    }  # fmt: skip
    with pytest.raises(InterruptedError):
        exec("".join(json.loads(NOTEBOOK.read_text())["cells"][-1]["source"]), names)
    return found[0]


def test_ones_own_data_lie_where_the_notebook_started_and_each_has_a_run(tmp_path, monkeypatch):
    names = {}
    for place in "ab":
        write_images(tmp_path / place / "images" / "x", (8, 8), count=20)
        write_images(tmp_path / f"{place}_up" / "train" / "x", (8, 8), count=20)
        shutil.make_archive(str(tmp_path / f"{place}2"), "zip", tmp_path / f"{place}_up")
        names[f"folder:{place}/images"] = f"folder:{tmp_path}/{place}/images"
        names[f"{place}2.zip"] = f"folder:{tmp_path}/{place}2/train"
    runs = set()
    for given, opened in names.items():
        config, run = launched(monkeypatch, given, tmp_path)
        assert config.data.name == opened
        runs.add(run)
    assert len(runs) == 4
    assert launched(monkeypatch, f"folder:{tmp_path}/a/images")[1] in runs  # it continues
    for given, path in {"new.zip": "new.zip", "npz:a/new.npz": "a/new.npz"}.items():
        said = f"MINE is {given!r}, but there is no {tmp_path / path}; upload it there"
        with pytest.raises(SystemExit, match=f"^{re.escape(said)}$"):
            launched(monkeypatch, given, tmp_path)


def test_the_notebook_remembers_where_it_started_when_it_is_run_again(monkeypatch, tmp_path):
    (tmp_path / "rml" / "configs").mkdir(parents=True)
    whole, names = dict.fromkeys(("rml", "grain", "mlxtend"), "1"), {}
    for at in (tmp_path, tmp_path / "rml"):  # the first time it has gone to the second
        install(monkeypatch, whole, at=at, names=names)
        assert names["START"] == tmp_path


@pytest.mark.parametrize(
    ("kind", "shape", "found"),
    [
        ("npz", (9, 9, 1), (9, 9, 1)), ("folder", (40, 30), (32, 32, 1)),
        ("folder", (40, 30, 3), (32, 32, 3)), ("zip", (40, 30, 3), (32, 32, 3)),
    ],
)  # fmt: skip
def test_ones_own_images_set_their_shape_and_batch(tmp_path, monkeypatch, kind, shape, found):
    if kind == "npz":
        given = f"npz:{tmp_path / 'mine.npz'}"
        np.savez(tmp_path / "mine.npz", image=np.zeros((100, *shape), np.uint8))
    else:
        write_images(tmp_path / "mine" / "a", shape)
        given = f"folder:{tmp_path / 'mine'}"
    if kind == "zip":  # as macOS makes it
        write_images(tmp_path / "mine" / "__MACOSX", (2, 2))
        given = shutil.make_archive(str(tmp_path / "up"), "zip", tmp_path / "mine")
    for _ in range(2):  # the second time it is unpacked already
        config, _ = launched(monkeypatch, given)
        assert config.data.image_shape == found
        assert config.train.batch_size == 80  # of 100, the rest is tested on
        assert open_images(config, "train")[0]["image"].shape == found


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel")
    import nbformat

    (tmp_path / "mine").mkdir()
    for i, image in enumerate((16 * load_digits().images[:20]).clip(0, 255).astype(np.uint8)):
        Image.fromarray(image).convert("RGB").save(tmp_path / "mine" / f"{i}.png")
    # No labels, no judging: half the time.
    archive = shutil.make_archive(str(tmp_path / "mine"), "zip", tmp_path / "mine")
    for name, value in {
        "RML_DEMO": "simclr_digits", "RML_STEPS": "50", "RML_RUNS": str(tmp_path),
        "RML_MINE": archive, "JAX_PLATFORMS": "cpu",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=400, kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    ).execute()  # fmt: skip

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 5  # four of the run, the bars
    found = re.findall(r"(simple_shot|laplacian_shot) +([\d.]+)%", text)
    assert [name for name, _ in found] == ["simple_shot", "laplacian_shot"] * 2
    # One shot of five classes is 20% by chance.
    assert all(float(accuracy) > 40 for _, accuracy in found), found
    assert "128 features of 4 images" in text
    assert (tmp_path / "colab_simclr_digits" / "summary.json").is_file()
    (own,) = tmp_path.glob("colab_mine_*")
    assert (own / "summary.json").is_file()
