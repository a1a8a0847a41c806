"""The notebook runs from top to bottom, on small data and few steps."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_digits

NOTEBOOK = Path(__file__).parents[2] / "tpu" / "colab.ipynb"


def test_notebook_holds_no_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert [c for c in cells if c.get("outputs") or c.get("execution_count")] == []
    assert "Your data here" in "".join(cells[-2]["source"])


def install(monkeypatch, there, code=0):
    """Runs the cell that installs, with these packages there; returns the commands it ran."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    (source,) = (s for c in cells if "pip" in (s := "".join(c["source"])) and "code" in c.values())
    ran = []
    found = [SimpleNamespace(name=name, version=version) for name, version in there.items()]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: found)
    monkeypatch.setattr(
        "subprocess.run", lambda words, **_: ran.append(words) or SimpleNamespace(returncode=code)
    )
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.syspath_prepend(str(NOTEBOOK.parent))  # what the cell adds goes with it
    exec(source, {})
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


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel")
    import nbformat

    images = (16 * load_digits().images).clip(0, 255).astype(np.uint8)[..., None]
    np.savez(tmp_path / "mine.npz", image=images[:400])  # no labels, no judging: half the time
    for name, value in {
        "RML_DEMO": "simclr_digits", "RML_STEPS": "50", "RML_RUNS": str(tmp_path),
        "RML_MINE": f"npz:{tmp_path / 'mine.npz'}", "JAX_PLATFORMS": "cpu",
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
    assert "128 features of 80 images" in text
    for name in ("colab_simclr_digits", "colab_mine"):
        assert (tmp_path / name / "summary.json").is_file()
