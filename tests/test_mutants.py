"""The list of mutants follows the code: every line is there once, every change is Python."""

import ast
import re

import pytest

from tests.mutate import ROOT, load


@pytest.mark.slow
def test_every_mutant_has_its_line_and_its_tests():
    mutants, lost = load(), []
    for mutant in mutants:
        try:
            mutant.place()
        except ValueError as error:
            lost.append(str(error))
            continue
        changed = (ROOT / mutant.file).read_text().replace(mutant.line, mutant.change)
        ast.parse(changed, mutant.file)
        assert mutant.line != mutant.change
        assert mutant.why
        for test in mutant.tests:
            file, *names = test.partition("[")[0].split("::")
            text = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
            if not text or not all(re.search(rf"(def|class) {name}\b", text) for name in names):
                lost.append(f"there is no test {test}")
    assert not lost, "\n".join(lost)
    changes = [(mutant.file, mutant.line, mutant.change) for mutant in mutants]
    assert len(set(changes)) == len(changes)
