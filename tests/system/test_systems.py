"""The registry of systems: what it holds, its commands, and what its check finds."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import checks, registry, systems
from experiments.systems import AREAS, find_system, main, read_systems
from rml.errors import UserError

ROOT = Path(__file__).parents[2]
DIGITS = "configs/contrastive/simclr_digits.py"
TABLE = """
[systems.first]
title = "First"
authors = ["A. Author"]
year = 2024
arxiv = "2401.00001"
venue = ""
area = "metric"
section = "Metric learning"
claim = "beats the second"
"""

FIRST = '''"""First."""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(dict(experiment="contrastive.simclr", augment=dict(exchange=False)))
'''


def refused(capsys, *args):
    """The command ends with one line on standard error; that line."""
    assert main(args) == 1
    out, err = capsys.readouterr()
    assert not out
    assert re.fullmatch(r"error: .*\n", err), err
    return err


# What it holds.


def test_the_systems_are_those_of_the_list():
    listed = ROOT.parent / "shared" / "systems.md"
    if not listed.exists():
        pytest.skip("the list of systems is not beside the repository")
    rows, section = [], ""
    for line in listed.read_text().splitlines():
        section = line.removeprefix("## ") if line.startswith("## ") else section
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.match(r"\| (?!key)\w+ \|", line):
            rows.append((cells[0], cells[2], cells[4], section))
    ours = [s for s in read_systems().values() if not s.baseline]
    assert len(ours) == 93
    assert [(s.key, s.area, s.claim, s.section) for s in ours] == rows


def test_papers_are_identified():
    found = read_systems().values()
    numbers = [s.arxiv for s in found if s.arxiv]
    assert len(numbers) == len(set(numbers))
    assert len({s.title for s in found}) == len(found)
    for system in found:
        assert re.fullmatch(r"(\d{4}\.\d{5})?", system.arxiv)
        if system.arxiv:  # published at the earliest in the year of the preprint
            first = 2000 + int(system.arxiv[:2])
            assert first <= system.year <= first + 2, system.key
        assert all(" " in author and "et al" not in author for author in system.authors)


def test_areas_are_those_of_the_house():
    house = ROOT.parent / "shared" / "design.md"
    if not house.exists():
        pytest.skip("the design of the house is not beside the repository")
    named = re.search(r"<area>/ .*?systems.md names them\): ([\w\s]+?)\nexp", house.read_text())
    assert set(AREAS) == set(named[1].split())


def test_baselines_come_last():
    baseline = [s.baseline for s in read_systems().values()]
    assert baseline == sorted(baseline)
    assert [s.key for s in read_systems().values() if s.baseline] == [
        "simclr", "moco_v2", "moco_v3", "supcon", "barlow_twins", "vicreg", "simsiam", "byol",
        "nnclr", "swav", "dino", "dcl", "clip", "siglip", "task_arithmetic", "kd",
    ]  # fmt: skip


def test_built_is_derived():
    simclr = find_system("simclr")
    assert simclr.built
    change = lambda **fields: dataclasses.replace(simclr, **fields).built  # noqa: E731
    assert not change(functions=())
    assert not change(configs=())
    assert not change(functions=("rml.losses.nt_xent", "rml.losses.no_such_loss"))
    assert not change(functions=("rml.no_such_room.nt_xent",))
    assert not change(configs=(*simclr.configs, "configs/contrastive/absent.py"))
    assert change(functions=("rml.losses.ntxent.nt_xent",))


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('area = "metric"', 'area = "metrics"', ["systems.first", "'metrics'", "'metric'?"]),
        ("year = 2024", 'year = "2024"', ["systems.first.year", "'2024'", "expected int"]),
        ("year = 2024", "year = true", ["systems.first.year", "True"]),
        ("year = 2024", "yaer = 2024", ["systems.first", "field 'yaer'", "'year'?"]),
        ("year = 2024", "", ["systems.first", "no year"]),
        ('["A. Author"]', '"A. Author"', ["systems.first.authors", "list"]),
        ('["A. Author"]', '["A", "A"]', ["systems.first.authors", "different"]),
        ("year = 2024", 'year = 2024\nextras = ["a.py"]', ["systems.first.extras", "by config"]),
        (
            "year = 2024",
            'year = 2024\nextras = { "a.py" = "none of its configs" }',
            ["systems.first.extras", "by config of the system"],
        ),
        ('"2401.00001"', '""', ["systems.first", "arxiv", "venue"]),
        ("[systems.first]", "[system.first]", ["table 'system'", "'systems'?"]),
        ('"beats the second"', "beats", ["systems.toml", "line 10"]),
        ("[systems.first]", f"{TABLE}\n[systems.first]", ["systems.toml", "first"]),
        ("[systems.first]", f"{TABLE}\n[baselines.first]", ["systems.toml", "first", "both"]),
    ],
)
def test_wrong_registry(tmp_path, old, new, parts):
    path = tmp_path / "systems.toml"
    path.write_text(TABLE)
    assert list(read_systems(path)) == ["first"]
    assert old in TABLE
    path.write_text(TABLE.replace(old, new))
    with pytest.raises(UserError) as error:
        read_systems(path)
    for part in parts:
        assert part in str(error.value)


# Its commands.


def test_list_is_a_table_of_plain_lines(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = read_systems()
    assert [line.split()[0] for line in lines] == list(found)
    for line, system in zip(lines, found.values(), strict=True):
        assert line.endswith(f"  {system.title}")
        assert line.split()[1:4] == [
            system.area, "built" if system.built else "-", str(len(system.configs)),
        ]  # fmt: skip
    starts = [len(line) - len(s.title) for line, s in zip(lines, found.values(), strict=True)]
    assert len(set(starts)) == 1


def test_list_selects_and_cuts(capsys):
    assert main(["list", "--area=contrastive", "--built"]) == 0
    keys = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert keys == [s.key for s in read_systems().values() if s.area == "contrastive" and s.built]
    assert "simclr" in keys
    assert "m3i" not in keys
    lines = systems.list_systems(read_systems().values(), width=40).splitlines()
    assert max(map(len, lines)) == 40


def test_listing_does_not_import_jax():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "experiments.systems", "list", "--built"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert "simclr" in result.stdout
    imported = {line.split("|")[-1].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "ml_collections" in imported
    assert not imported & {"jax", "numpy", "flax", "matplotlib"}


def test_show_a_system(capsys):
    assert main(["show", "simclr"]) == 0
    text = capsys.readouterr().out
    assert "Ting Chen, Simon Kornblith, Mohammad Norouzi, Geoffrey Hinton" in text
    assert "ICML, 2020; https://arxiv.org/abs/2002.05709" in text
    assert "function rml.losses.nt_xent" in text
    assert f"{DIGITS}: SimCLR on scikit-learn's 8x8 digits" in text
    assert f"python -m experiments.run --config={DIGITS} --workdir=runs/simclr_digits" in text
    assert main(["show", "lorat"]) == 0
    assert "not built" in capsys.readouterr().out


def test_a_system_is_shown_from_any_folder(capsys, monkeypatch, tmp_path):
    assert main(["show", "simclr"]) == 0
    shown = capsys.readouterr().out
    assert "3 seeds" in shown
    monkeypatch.chdir(tmp_path)
    assert main(["show", "simclr"]) == 0
    assert capsys.readouterr().out == shown


def test_show_has_the_whole_command_of_each_config():
    for system in read_systems().values():
        for config in system.configs:
            _, command = registry.describe(ROOT / config)
            assert command.startswith("python -m experiments.run ")
            assert f"--config={config}" in command
            assert "--workdir=" in command
            assert not command.endswith("\\")


def test_show_what_was_measured(tmp_path):
    simclr = find_system("simclr")
    claim = dict(
        statement="kNN is above pixels", metric="knn", relation=">=", threshold=0.9,
        source="a paper", mean=0.9671, low=0.9624, high=0.9718, verdict="holds",
    )  # fmt: skip
    result = dict(
        config=DIGITS, claims=[claim], seconds=[100.0, 140.0], seeds=[0, 1], device="cpu",
        commit="abc123", finished="2025-01-02",
    )  # fmt: skip
    path = tmp_path / "simclr" / "simclr_digits.json"
    path.parent.mkdir()
    path.write_text(json.dumps(result))
    text = systems.show_system(simclr, tmp_path)
    before, after = text.split(f"{DIGITS}: ")
    assert "holds" not in before
    after = after.split("\n\n")[0]
    assert "holds: kNN is above pixels [knn 0.967" in after
    assert ">= 0.9]" in after
    assert "2 seeds, 120 s a run, cpu, commit abc123, 2025-01-02" in after

    ablation = "configs/contrastive/ablation_fashion.py"
    for config, runs, words in (
        (DIGITS, 1, "1 seed, 120 s a run"),
        (ablation, 1, "1 run of 3 seeds, 120 s a run"),
        (ablation, 2, "2 runs of 3 seeds each, 120 s a run"),
    ):
        path.write_text(json.dumps(dict(result, config=config, seeds=[*range(runs)])))
        assert f"  {words}, cpu" in systems.show_system(simclr, tmp_path)

    path.write_text("{}")
    with pytest.raises(UserError, match=re.escape(str(path))):
        systems.show_system(simclr, tmp_path)


def test_show_a_config(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides = ("--config.train.steps=7", "--config.data.name=mnist5k",
                 "--config.augment.order=('random_affine',)")  # fmt: skip
    assert main(["show", f"--config={DIGITS}"]) == 0
    plain = capsys.readouterr().out.splitlines()
    assert main(["show", f"--config={DIGITS}", *overrides]) == 0
    changed = capsys.readouterr().out.splitlines()
    assert plain == sorted(plain)
    assert [new for old, new in zip(plain, changed, strict=True) if old != new] == [
        "augment.order = ('random_affine',)",
        "data.name = 'mnist5k'",
        "train.steps = 7",
    ]
    assert "data.data_dir = None" in plain
    assert "optimizer.learning_rate = 0.002" in plain
    values = dict(line.split(" = ", 1) for line in plain)
    assert eval(values["model.widths"]) == (32, 64)


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["show", "simclrr"], ["system 'simclrr'", "'simclr'?"]),
        (["list", "--area=contrastiv"], ["area 'contrastiv'", "'contrastive'?"]),
        (["list", "--are=contrastive"], ["--are"]),
        (["show"], ["key of a system"]),
        (["show", "simclr", f"--config={DIGITS}"], ["one of them"]),
        (["show", "simclr", "--config.seed=1"], ["--config.seed=1"]),
        (["show", f"--config={DIGITS}", "--config.train.stepz=1"], ["'train.stepz'", "steps'?"]),
        (["show", f"--config={DIGITS}", "--config.train.steps=x"], ["train.steps=x", "int"]),
        (["show", f"--config={DIGITS}", "--seed=1"], ["--seed=1"]),
        (["show", "--config=simclr_digits"], ["'simclr_digits'", f"'{DIGITS}'?"]),
        (["show", "--config=configs/hydra/simclr_digit.py"], [f"'{DIGITS}'?"]),
        (["show", "--config=Makefile"], ["Makefile", "SyntaxError"]),
        ([], ["COMMAND"]),
        (["chekc"], ["'chekc'", "'check'"]),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(capsys, monkeypatch, args, parts):
    monkeypatch.chdir(ROOT)
    error = refused(capsys, *args)
    for part in parts:
        assert part in error


# The launcher's list of configs.


@pytest.mark.slow
def test_launcher_lists_configs_by_area(launch):
    result = launch("--list", "MNIST5K")
    assert result.returncode == 0
    blocks = [block.splitlines() for block in result.stdout.strip().split("\n\n")]
    expected = [path for path in registry.config_files() if "mnist5k" in path]
    listed = [line.split() for _, *lines in blocks for line in lines]
    assert set(expected) <= {path for path, *_ in listed}
    assert all("mnist5k" in " ".join(line).lower() for line in listed)
    for area, *lines in blocks:
        assert all(line.startswith(f"  configs/{area}/") for line in lines)
    assert "MoCo v2 on 5,000 handwritten digits." in result.stdout
    for args, part in [(["--list", "no such"], "'no such'"), (["--list", "a", "b"], "'b'")]:
        refusal = launch(*args)
        assert refusal.returncode == 1
        assert part in refusal.stderr


def test_unknown_experiments_and_configs_are_suggested():
    for name in ("contrastive.simcl", "simclr"):
        with pytest.raises(UserError, match=r"did you mean 'contrastive\.simclr'"):
            registry.find_experiment(name)
    with pytest.raises(UserError):  # a module of the folder, and no experiment
        registry.find_experiment("contrastive.__init__")


# What its check finds.


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A small repository, and a system that is all right in it."""
    for name, text in {
        "configs/metric/first.py": FIRST,
        "configs/metric/shared.py": '"""What configs share."""\n',
        "rml/losses/__init__.py": '"""Losses."""\n',
    }.items():  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "systems.toml").write_text(
        TABLE + 'functions = ["rml.losses.nt_xent"]\nconfigs = ["configs/metric/first.py"]\n'
    )
    monkeypatch.setattr("experiments.tables.stale", list)
    first = read_systems(tmp_path / "systems.toml")["first"]
    assert checks.check({"first": first}, tmp_path) == []
    return tmp_path, first


@pytest.mark.parametrize(
    ("functions", "finding"),
    [
        (("rml.losses.nt_xnet",), "first: function rml.losses.nt_xnet cannot be imported"),
        (("rml.loses.nt_xent",), "first: function rml.loses.nt_xent cannot be imported"),
        (("rml.losses.ntxent",), "first: function rml.losses.ntxent is a module"),
    ],
)
def test_check_finds_wrong_functions(tree, functions, finding):
    root, first = tree
    found = checks.check({"first": dataclasses.replace(first, functions=functions)}, root)
    assert len(found) == 1
    assert found[0].startswith(finding)


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (None, "first: config configs/metric/first.py does not exist"),
        ("1 +", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("contrastive.simcl", "'contrastive.simclr'?"),
        ("contrastive.commons", "unknown experiment"),
    ],
)
def test_check_finds_wrong_configs(tree, text, finding):
    root, first = tree
    path = root / "configs/metric/first.py"
    if text is None:
        path.unlink()
    elif text.startswith("contrastive"):
        path.write_text(path.read_text().replace("contrastive.simclr", text))
    else:
        path.write_text(f"{path.read_text()}\n{text}\n")
    found = checks.check({"first": first}, root)
    assert found[0].startswith("first: config configs/metric/first.py")
    assert finding in found[0]
    cannot_be_parsed = text == "1 +"
    assert len(found) == 1 + cannot_be_parsed


def test_check_finds_experiments_without_claims(tree, monkeypatch):
    root, first = tree
    monkeypatch.setattr("experiments.contrastive.simclr.CLAIMS", ())
    found = checks.check({"first": first}, root)
    assert len(found) == 1
    assert "first.py: the CLAIMS of experiment contrastive.simclr are empty" in found[0]


def test_check_finds_experiments_that_cannot_end_a_run(tree, monkeypatch):
    root, first = tree
    monkeypatch.setattr("experiments.contrastive.simclr.PICTURE", "knm.png", raising=False)
    assert checks.check({"first": first}, root) == [
        "first: config configs/metric/first.py: the PICTURE of experiment contrastive.simclr is "
        "'knm.png', which its CAPTIONS lack"
    ]
    monkeypatch.delattr("experiments.contrastive.simclr.CAPTIONS")
    (found,) = checks.check({"first": first}, root)
    assert "experiment contrastive.simclr has no CAPTIONS; expected run, CLAIMS" in found


def test_check_finds_nulls_that_cannot_be_run(tree, monkeypatch):
    root, first = tree
    path = root / "configs/metric/first.py"
    monkeypatch.setattr("experiments.contrastive.simclr.NULLS", {"blank": {"augment.blank": True}})
    assert checks.check({"first": first}, root) == [
        f"first: config {path.relative_to(root)}: the NULLS of experiment contrastive.simclr lack "
        "'strangers'",
        f"first: config {path.relative_to(root)}: null 'blank' changes 'augment.blank', which it "
        "lacks",
    ]


def test_check_finds_runs_that_nobody_makes(tree, monkeypatch):
    root, first = tree
    reads = {"experiment": "configs/metric/none.py", "bed.run": "configs/metric/first.py"}
    monkeypatch.setattr(
        "experiments.contrastive.simclr.READS", lambda config: reads | {}, raising=False
    )
    by_config = checks.check({"first": first}, root)
    monkeypatch.setattr("experiments.contrastive.simclr.READS", reads, raising=False)
    found = checks.check({"first": first}, root)
    assert found == by_config
    assert found == [
        "first: config configs/metric/first.py: the READS of experiment contrastive.simclr name "
        "'configs/metric/none.py', a config of no system",
        "first: config configs/metric/first.py: the READS of experiment contrastive.simclr set "
        "'bed.run', which it lacks",
    ]


def test_check_finds_what_no_system_names(tree):
    root, first = tree
    second = root / "configs/metric/second.py"
    second.write_text((root / "configs/metric/first.py").read_text())
    for name in ("first/second", "none/first"):
        path = root / "results" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert checks.check({"first": first}, root) == [
        "configs/metric/second.py: no system names this config",
        "results/first/second.json: no system names a config of this result",
        "results/none/first.json: no system names a config of this result",
    ]


def describe(config, text):
    """Gives the file of a config a docstring with this text."""
    body = config.read_text().split('"""', 2)[2]
    config.write_text(f'"""First.\n\n{text}\n"""{body}')


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("Result: results/first, 97 s a run.", ""),
        ("Nothing.", "it has a result, expected a line 'Result: results/first'"),
        (
            "Not run in full here.\n\nResult: results/first.",
            "it says 'Not run in full here', but it has a result",
        ),
        (
            "Half an hour on 2 CPU cores.\n\nResult: results/first.",
            "it says 'hour on 2 CPU cores', expected times in the line of its result alone",
        ),
        ("Flights that arrive late by 2 hours.\n\nResult: results/first.", ""),
    ],
)
def test_check_holds_what_a_config_says_against_its_result(tree, text, finding):
    root, first = tree
    config, result = root / "configs/metric/first.py", root / "results/first/first.json"
    describe(config, text)
    unmeasured = checks.check({"first": first}, root)
    says = "Result" in text
    cost = checks.COST.findall(text)  # with its own test below
    assert unmeasured[: len(unmeasured) - len(cost)] == says * [
        "first: config configs/metric/first.py: it says 'Result: results/', but it has no result"
    ]
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text("{}")
    found = checks.check({"first": first}, root)
    assert found == [f"first: config configs/metric/first.py: {finding}"] * bool(finding)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Eight minutes of CPU time a fit.", "minutes"),
        ("An hour on two cores.", "hour"),
        ("A fit takes an hour.", "takes an hour"),
        ("It needs 6 GB.", "needs 6 GB"),
        ("For 256 chips of 32 GiB, in 10 epochs.", ""),
        ("Ten hours of speech, of flights two hours late.", ""),
    ],
)
def test_check_finds_a_cost_that_nothing_measured(tree, text, said):
    root, first = tree
    config = root / "configs/metric/first.py"
    describe(config, f"{text}\n\nNot run in full here.")
    assert checks.check({"first": first}, root) == bool(said) * [
        f"first: config configs/metric/first.py: it says '{said}', but it has no result that "
        "measured it"
    ]


@pytest.mark.parametrize(
    ("headline", "finding"),
    [
        ("first/first: knn", None),
        ("first/first: knm", "names 'knm', expected a claim of first/first: knn"),
        ("first/frist: knn", "names 'first/frist', which has no result"),
        ("first: knn", "is 'first: knn', expected 'KEY/CONFIG: METRIC'"),
        ("first/first", "is 'first/first', expected 'KEY/CONFIG: METRIC'"),
    ],
)
def test_check_finds_headlines_that_no_result_has(tree, headline, finding):
    root, first = tree
    file = root / "results/first/first.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"claims": [{"metric": "knn"}]}))
    config = root / "configs/metric/first.py"
    ending = '\n\nResult: results/first, 1 s a run on cpu.\n"""'
    config.write_text(re.sub(r'(?<=\w|\.)"""', lambda _: ending, config.read_text(), count=1))
    system = dataclasses.replace(first, headline=headline)
    found = checks.check({"first": system}, root)
    assert found == ([] if finding is None else [f"first: headline {finding}"])


@pytest.mark.parametrize("text", ["x = 1\n", '"""."""\n', '""""""\n'])
def test_check_finds_modules_without_docstring(tree, text):
    root, first = tree
    (root / "configs/metric/shared.py").write_text(text)
    found = checks.check({"first": first}, root)
    assert found == ["configs/metric/shared.py: module without docstring"]


def test_check_finds_exports_without_docstring(tree, monkeypatch):
    import rml.losses

    @dataclasses.dataclass
    class Bare:
        x: int

    class Half:
        """One method of this says what it does, a dot says nothing."""

        def said(self):
            """Returns nothing."""

        def dot(self):
            """."""

        def _own(self):
            pass

    Half.__module__ = "rml.losses.half"
    root, first = tree
    monkeypatch.setattr(rml.losses, "__all__", ["bare", "Bare", "Half", "NAMES", "nt_xent"])
    monkeypatch.setattr(rml.losses, "Half", Half, raising=False)
    monkeypatch.setattr(rml.losses, "bare", lambda x: x, raising=False)
    monkeypatch.setattr(rml.losses, "Bare", Bare, raising=False)
    monkeypatch.setattr(rml.losses, "NAMES", ("a", "b"), raising=False)
    assert checks.check({"first": first}, root) == [
        "rml.losses.bare: exported without docstring",
        "rml.losses.Bare: exported without docstring",
        "rml.losses.Half.dot: exported without docstring",
    ]


def test_check_finds_stale_tables(tree, monkeypatch):
    root, first = tree
    monkeypatch.setattr("experiments.tables.stale", lambda: ["README.md: systems"])
    found = checks.check({"first": first}, root)
    assert found == ["stale generated table: README.md: systems"]


@pytest.mark.slow
def test_check_of_this_repository_finds_nothing(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code = main(["check"])
    assert capsys.readouterr().out == "no findings\n"
    assert code == 0


def test_check_fails_with_a_line_a_finding(capsys, monkeypatch):
    monkeypatch.setattr(systems, "check", lambda _: ["one", "two"])
    assert main(["check"]) == 1
    assert capsys.readouterr().out == "one\ntwo\n"
