"""The notebook runs from top to bottom, on small data and few steps."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

NOTEBOOK = Path(__file__).parents[2] / "tpu" / "colab.ipynb"


def test_notebook_holds_no_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert [c for c in cells if c.get("outputs") or c.get("execution_count")] == []
    assert "Your data here" in "".join(cells[-2]["source"])


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
