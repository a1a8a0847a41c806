"""Progress without a terminal: few plain lines."""

import re

from rml.training import Progress


def test_plain_lines_name_the_unit_the_rate_and_the_key_metric(capsys):
    progress = Progress(unit="combination")
    progress.start(0, 6)
    progress.show({"validation accuracy": 0.5})
    progress.advance(3)  # nothing is printed within the first ten seconds
    progress.advance(6)
    progress.stop()
    (line,) = capsys.readouterr().out.splitlines()
    form = r"combination 6/6 [\d.e+]+ combinations/s 0:00 left validation accuracy 0\.5"
    assert re.fullmatch(form, line), line
