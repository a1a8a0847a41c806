"""`python -m experiments.systems data`: what is prepared, and preparing it."""

import io
import sys

import pytest

from experiments.systems import main


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    """A TFDS data directory in which nothing is prepared."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


class Terminal(io.StringIO):
    """Text that a terminal was sent."""

    def isatty(self):
        """It is one."""
        return True


@pytest.mark.slow
def test_a_data_set_is_prepared_and_listed(data_dir, capsys):
    assert main(["data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("digits ")).endswith("first use")
    assert main(["data", "--prepare=digits"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split(maxsplit=1) == ["digits", "train 1,438, test 359"]
    assert (len(out.splitlines()), err) == (2, "")
    assert (data_dir / "digits" / "1.0.0").is_dir()
    assert main(["data"]) == 0
    assert out in capsys.readouterr().out


def test_a_terminal_is_shown_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert main(["data", "--prepare=digits"]) == 0
    assert "digits: 1,797 examples written in " in terminal.getvalue()
    assert capsys.readouterr().out.startswith("digits ")


def test_what_cannot_be_prepared_is_told_in_one_line(data_dir, monkeypatch, capsys):
    monkeypatch.setenv("RML_ASSETS", str(data_dir / "none"))
    assert main(["data", "--prepare=digts"]) == 1
    assert capsys.readouterr() == ("", "error: unknown data set 'digts'; did you mean 'digits'?\n")
    assert main(["data", "--prepare=wordnet"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "run `python -m rml.assets wordnet`" in err
