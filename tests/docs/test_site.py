"""The site: what its generators write, where its links lead, and that it needs no network."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import markdown
import pytest

import rml
from benchmarks import record
from docs import comparison, generate, hooks
from docs.benchmark_page import benchmarks_page
from experiments import tables
from experiments.registry import read_config
from experiments.results import config_hash, interval, read_benchmarks
from experiments.systems import System, read_systems
from rml.training.claims import Claim, judge

ROOT = Path(__file__).parents[2]


def reach(name):
    """What Python has under a dotted name: modules are imported where they are no attribute."""
    found = importlib.import_module("rml")
    for part in name.split(".")[1:]:
        if isinstance(found, ModuleType) and not hasattr(found, part):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found


SYSTEM = System(
    key="simclr", title="A Title", authors=("A", "B", "C", "D", "E", "F"), year=2020,
    arxiv="2002.05709", venue="ICML", area="contrastive", section="Baselines",
    claim="kNN is above pixels", functions=("rml.losses.nt_xent",),
    configs=("configs/contrastive/simclr_cifar10.py",),
)  # fmt: skip


@pytest.fixture(scope="module")
def library():
    return generate.load_library()


@pytest.fixture(scope="module")
def pages():
    return generate.pages()


@pytest.fixture
def measured(monkeypatch):
    """Toy results of `SYSTEM`: one claim that holds and one that does not."""
    stated = {"stated": "2026-01-03", "null": "knn_untrained"}
    claims = [
        Claim("kNN is above 90%", "knn", ">=", 0.9, "a paper", **stated),
        Claim("The gain is 2 points", "gain", ">=", 0.02, "a paper", **stated),
    ]
    metrics = {"knn": [0.95, 0.952], "gain": [0.01, 0.0102], "rankme": [None, 12.0]}
    result = dict(
        system="simclr", config=SYSTEM.configs[0], seeds=[0, 1], metrics=metrics,
        claims=[judge(claim, metrics[claim.metric], nulls=[0.012, 0.013]) for claim in claims],
        options={"simclr": 4, "pixels": 4}, first_measured="2026-01-02", seconds=[100.0, 140.0],
        versions={"jax": "0.10.2"}, device="cpu", commit="0123456789abcdef",
        finished="2026-01-02T03:04:05",
        config_hash=config_hash(read_config(SYSTEM.configs[0]).to_dict()),
    )  # fmt: skip
    results = {"simclr": {"simclr_cifar10": result}}
    monkeypatch.setattr(tables, "read_results", lambda: results)
    return results["simclr"]


@pytest.mark.slow
def test_page_of_a_system_has_equation_commands_and_what_was_measured(library, measured):
    shown = {"results/simclr/simclr_cifar10.png": Path("x.png"), "results/other/y.png": Path("y")}
    page = generate.system_page(SYSTEM, {"simclr": measured}, library, shown)
    assert "A, B, C, and others, 2020, ICML, [arXiv:2002.05709](https://arxiv.org/" in page
    assert "$$\n" in page
    assert "In the library: `rml.losses.nt_xent`." in page
    assert "kNN is above pixels." in page
    first = page.partition("## What was found\n\n")[2].partition("\n")[0]
    assert re.match(r"kNN is above 90%: 0.951 \(.*\). Verdict: \*\*holds\*\*, by 2 seeds", first)
    assert first.endswith(
        " of `simclr_cifar10`; without the idea: knn_untrained 0.0125 (0.0061 to 0.0189)."
    )
    assert page.index("## What was found") < page.index("## What it is")
    assert "Arms of" not in page
    assert "Also measured" not in page
    command = "python -m experiments.run --config=configs/contrastive/simclr_cifar10.py"
    assert f"```\n{command} \\\n    --workdir=runs/simclr_cifar10\n```" in page
    row = r"\| kNN is above 90% \| holds: stated after the first measurement \| knn 0.951 .*"
    assert re.search(row + r"\| knn_untrained 0.0125 .*\| `simclr_cifar10` \|", page)
    tried = "Options were chosen without test data, of so many combinations: simclr 4, pixels 4."
    assert tried in page
    failed = page.partition("### Not reproduced")[2].partition("## Run")[0]
    assert "The gain is 2 points: 0.0101" in failed
    assert "90%" not in failed
    assert "](../results/simclr/simclr_cifar10.png)" in page
    assert "results/other" not in page
    assert "2 seeds, 2 min 0\u00a0s a run on cpu".replace("2 min", "2\u00a0min") in page
    assert "commit 0123456789ab, 2026-01-02" in page
    assert "| `rankme` |  | not finite | 12.0 |" in page


def test_arms_stand_beside_the_strongest_baseline_and_rows_have_no_verdict(measured):
    (result,) = measured.values()
    shared = {"metric": "accuracy", "tries": 3, "over": "plain", "steps": 100}
    plain = shared | {
        "name": "plain", "says": "plain training", "role": "baseline", "mean": 0.8, "low": 0.7,
        "high": 0.9, "difference": 0.0, "difference_low": 0.0, "difference_high": 0.0,
        "options": {"rate": 0.001}, "at_edge": [],
    }  # fmt: skip
    mixed = plain | {
        "name": "mixed", "says": "mixed examples", "role": "method", "mean": 0.85, "low": None,
        "high": None, "difference": 0.05, "difference_low": 0.04, "difference_high": 0.06,
        "options": {"rate": 1, "kind": "a|b"}, "at_edge": ["rate"],
    }  # fmt: skip
    *_, first, second = generate.arms_section({**result, "arms": [plain, mixed]}).splitlines()
    assert first == (
        "| plain training | baseline | accuracy | 0.800 (0.700 to 0.900) |  | rate 0.001 | 3 "
        "| steps 100 |"
    )
    assert second == (
        "| mixed examples | method | accuracy | 0.850 | plain training: 0.0500 (0.0400 to 0.0600) "
        "| rate 1, kind a\\|b | 3, at the edge | steps 100 |"
    )
    assert generate.arms_section(result) == ""
    row = {"statement": "It is wide", "metric": "w", "mean": 0.5, "low": 0.25, "high": 0.75}
    section = generate.rows_section({"simclr_cifar10": {**result, "rows": [row]}})
    assert section.splitlines()[-1] == (
        "| It is wide | `simclr_cifar10` | w 0.500 (0.250 to 0.750) |"
    )


def test_verdicts_and_tables_of_systems_are_marked_in_pages():
    head = "".join(f"<th>{name}</th>\n" for name in generate.COLUMNS)
    page = hooks.coloured(
        f"<table>\n<thead>\n<tr>\n{head}</tr></thead><td>holds</td><td>undecided: late</td>"
        "<td>not reproduced</td><td>holds water</td></table><table>\n<thead><th>system</th>"
    )
    assert page.count('<table class="systems">') == 1
    assert '<td class="verdict holds">holds</td>' in page
    assert '<td class="verdict undecided">undecided: late</td>' in page
    assert '<td class="verdict not-reproduced">not reproduced</td>' in page
    assert "<td>holds water</td>" in page


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_the_table_of_systems_is_sorted_and_filtered_in_its_page(tmp_path):
    kinds = [("zebra", "hydra", "undecided"), ("ant", "metric", "holds")]
    kinds += [(f"m{n:02}", "hydra", "not built") for n in range(12)]
    rows = "".join(
        f"<tr><td>{key}<td>paper<td>{area}<td>found<td>{verdict}</tr>"
        for key, area, verdict in kinds
    )
    head = "".join(f"<th>{name}</th>" for name in generate.COLUMNS)
    script = (generate.DOCS / "assets/systems.js").read_text()
    does = """
      const names = () => [...document.querySelectorAll("tbody tr")].filter((row) => !row.hidden)
        .map((row) => row.cells[0].textContent);
      const choose = (name, value) => {
        const select = document.querySelector(`select[aria-label=${name}]`);
        select.value = value;
        select.dispatchEvent(new Event("change"));
      };
      const count = () => document.querySelector("[role=status]").textContent;
      const sort = (column) => document.querySelectorAll("th button")[column].click();
      const found = [names()[0]];
      sort(0); found.push(names()[0]); sort(0); found.push(names()[0]);
      sort(4); found.push(names().slice(0, 2));
      choose("area", "hydra"); found.push(names().length, count());
      choose("verdict", "undecided"); found.push(names(), count());
      choose("area", "metric"); found.push(count());
      document.body.textContent = JSON.stringify(found);
    """
    page = tmp_path / "page.html"
    page.write_text(
        f"<body><table class=systems><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<script>{script}</script><script>{does}</script></body>"
    )
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", page.as_uri()]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    found = json.loads(re.search(r"<body>(.*)</body>", done.stdout, re.S)[1])
    assert found == [
        "zebra", "ant", "zebra", ["ant", "zebra"], 13, "13 of 14 systems", ["zebra"],
        "1 of 14 systems", "0 of 14 systems",
    ]  # fmt: skip


def test_conditions_name_every_commit_and_the_seeds_of_a_run(measured):
    (result,) = measured.values()
    joined = dict(result, commit="0123456789abcdef, fedcba9876543210, unknown")
    assert "; commits 0123456789ab, fedcba987654, unknown, 2026-01-02; " in generate.conditions(
        joined
    )
    assert "| metric | mean (95% interval) | seed 0 | seed 1 |" in generate.conditions(joined)
    several = dict(result, config="configs/contrastive/ablation_fashion.py", seeds_a_run=3)
    assert ".py`: 2 runs of 3 seeds each, " in generate.conditions(several)
    assert "| metric | mean (95% interval) | run 0 | run 1 |" in generate.conditions(several)


def test_metrics_have_the_mean_and_interval_by_which_claims_go():
    metrics = {
        "gain": [0.1, 0.2, 0.3], "own": [0.1, 0.2, 0.3], "own_low": [-0.9, -0.8, -0.7],
        "own_high": [0.4, 0.5, 0.6], "equal": [2.0, 2.0, 2.0], "absent": [None, 1.0, 2.0],
        "bounded": [0.1, 0.2, 0.3], "bounded_low": [0.0, 0.0, 0.0],
    }  # fmt: skip
    # Student's interval of three values: 0.2 ± 4.3027 * 0.1 / √3. A run's own ends are 1.0 below
    # and 0.3 above its value: 0.2 - √(0.248² + 1²) and 0.2 + √(0.248² + 0.3²).
    expected = {"gain": "0.200 (−0.048 to 0.448)", "own": "0.200 (−0.830 to 0.589)", "equal": "",
                "absent": "", "bounded": "0.200 (−0.048 to 0.448)"}  # fmt: skip
    found = {name: generate.mean_over_runs(name, metrics) for name in expected}
    assert found == expected
    assert generate.mean_over_runs("gain", {"gain": [0.1]}) == ""
    claim = Claim("own", "own", ">=", 0.0, "here", stated="2026-11-29", null="gain")
    ends = [metrics["own_low"], metrics["own_high"]]
    judged = judge(claim, metrics["own"], ends=list(zip(*ends, strict=True)))
    assert expected["own"] == interval(judged["mean"], judged["low"], judged["high"])


def test_pictures_stand_in_the_order_of_configs():
    system = replace(SYSTEM, key="toy", configs=("configs/a/second.py", "configs/a/first.py"))
    names = ("other/first", "toy/first", "toy/second")
    shown = {f"results/{name}.png": Path(name) for name in names}
    order = ["results/toy/second.png", "results/toy/first.png"]
    assert generate.pictures_of(system, shown) == order
    gallery = generate.gallery_page([system], shown)
    assert 0 < gallery.find("toy/second.png") < gallery.find("toy/first.png")


@pytest.mark.slow
def test_every_picture_of_a_result_is_in_the_gallery():
    shown = generate.pictures()
    gallery = generate.gallery_page(generate.read_systems().values(), shown)
    of_systems = [one for one in shown if one.split("/")[1] in generate.read_systems()]
    assert len(of_systems) > 50
    assert [one for one in of_systems if f"({one})" not in gallery] == []


@pytest.mark.slow
def test_page_of_a_built_system_without_results_says_so(library, monkeypatch):
    monkeypatch.setattr(tables, "read_results", dict)
    page = generate.system_page(SYSTEM, {}, library, {})
    assert "Not measured" in page
    assert "How it was measured" not in page
    assert "Not reproduced" not in page


def test_page_of_a_system_that_is_not_built_says_so_and_shows_no_command(library):
    unbuilt = System(**{**vars(SYSTEM), "functions": (), "configs": ()})
    page = generate.system_page(unbuilt, {}, library, {})
    assert "Not built" in page
    assert "kNN is above pixels." in page
    assert "experiments.run" not in page


def test_a_system_without_a_text_is_described_by_its_first_docstring(library):
    other = System(**{**vars(SYSTEM), "key": "unwritten"})
    text = generate.description(other, library)
    assert text.startswith("Computes")
    assert "Chen et al. 2020" in text
    assert "temperature:" not in text  # arguments belong to the API


@pytest.mark.slow
def test_a_benchmark_keeps_what_each_device_measured_last(tmp_path):
    def measured(device, day, ratio, flags=""):
        row = {"case": "ten", "metric": "s", "ours": 1.0, "peer": "floor", "peer_value": ratio}
        about = {"command": f"python -m benchmarks.many{flags}", "device": device, "commit": "a1"}
        return about | {"finished": f"2026-01-{day}T", "rows": [row | {"ratio": ratio}]}

    file = tmp_path / "results" / "many.json"
    days = ("one", "01", 1.25), ("two", "02", 2.25), ("two", "02", 5.5, " --quick")
    for found in (*days, ("one", "03", 3.25)):
        record.keep(file, measured(*found))
    kept = read_benchmarks(file.parent)
    assert [one["command"][-7:] for one in kept["many"]] == ["ks.many", "--quick", "ks.many"]
    del kept["many"][1]
    assert [(one["device"], one["finished"][:10]) for one in kept["many"]] == [
        ("one", "2026-01-03"), ("two", "2026-01-02"),
    ]  # fmt: skip
    _, _, page = benchmarks_page(kept).partition("\n## many\n")
    latest, folded, others = page.partition('??? note "Measured elsewhere"\n\n    | case')
    assert folded
    assert "2026-01-03, one, commit `a1`" in latest
    assert "| 3.25 |" in latest
    assert "    `python -m benchmarks.many`, 2026-01-02, two" in others
    assert "1.25" not in page


def test_every_system_area_and_room_has_a_page_that_the_navigation_names(pages):
    def leaves(items):
        for item in items:
            if isinstance(item, str):
                yield item
            else:
                (value,) = item.values()
                yield from [value] if isinstance(value, str) else leaves(value)

    named = list(leaves(generate.navigation()))
    assert sorted(named) == sorted(set(pages) - {"index.md", "gallery.md"})
    assert {f"systems/{key}.md" for key in read_systems()} < set(named)
    packages = (path.parent.relative_to(ROOT / "rml") for path in ROOT.glob("rml/*/**/__init__.py"))
    assert {f"api/{package}.md" for package in packages} | {"api/rml.md"} == {
        page for page in named if page.startswith("api/") and page != "api/index.md"
    }
    assert "api/models/pretrained.md" in named


@pytest.mark.slow
def test_rooms_list_what_they_export(library, pages):
    for room in generate.rooms(library):
        page = pages[generate.room_address(room)]
        for name in room.exports or ():
            assert re.search(rf"^::: rml\.[\w.]*\b{name}$", page, re.M)
            full = f"{room.path}.{name}"  # of a function that may lie in a module of its name
            assert generate.find(full, library).is_module == isinstance(reach(full), ModuleType)


@pytest.mark.slow
def test_what_the_library_itself_exports_has_a_page(library, pages):
    assert list(library.exports) == rml.__all__
    assert re.findall(r"^::: (.*)$", pages["api/rml.md"], re.M) == [
        "rml", *(f"{getattr(rml, name).__module__}.{name}" for name in rml.__all__)
    ]  # fmt: skip
    assert "| [rml](rml.md) |" in pages["api/index.md"]


def test_links_between_pages_lead_somewhere(pages):
    written = {
        str(path.relative_to(generate.DOCS)): path.read_text()
        for path in generate.DOCS.rglob("*.md")
        if path.parent.name != "about"
    }
    texts = {**written, **pages}
    known = {*texts, *generate.pictures()}
    for address, text in texts.items():
        text = re.sub(r"```.*?```", "", text, flags=re.S)
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if not target.startswith("https://"):
                path = (ROOT / address).parent.joinpath(target).resolve().relative_to(ROOT)
                assert str(path) in known, f"{address} links to {target}"


def test_names_and_files_in_written_pages_exist(library):
    for page in generate.DOCS.rglob("*.md"):
        text = page.read_text()
        for name in re.findall(r"`(rml(?:\.\w+)+)`", text):
            assert generate.find(name, library), f"{page} names {name}"
            assert reach(name) is not None, f"{page} names {name}"
        files = re.findall(r"\b(?:configs|docs|experiments|rml|tests|tpu)/[\w/]+\.\w+", text)
        for file in files:
            copied = "align_uniform" in file or "warps" in file
            assert copied or (ROOT / file).exists(), f"{page} names {file}"


def test_names_in_docstrings_and_comments_of_the_library_exist():
    named = {
        (name, str(file.relative_to(ROOT)))
        for folder in ("rml", "experiments")
        for file in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"`(rml(?:\.\w+)+)`", file.read_text())
    }
    assert len(named) > 100
    assert [(name, file) for name, file in sorted(named) if reach(name) is None] == []


@pytest.mark.slow
def test_what_pages_and_the_registry_name_is_in_the_api(library, pages):
    listed = [
        name
        for address, text in pages.items()
        if address.startswith("api/")
        for name in re.findall(r"^::: (\S+)$", text, re.M)
    ]
    modules = {name for name in listed if library.modules_collection[name].is_module}
    whole = modules - {room.path for room in generate.rooms(library)}  # shown with their members
    functions = [name for system in read_systems().values() for name in system.functions]
    texts = (page.read_text() for page in generate.DOCS.rglob("*.md"))
    named = [name for text in texts for name in re.findall(r"`(rml(?:\.\w+)+)`", text)]
    assert functions
    assert named
    for name in (*functions, *named):
        path = generate.path(name, library)
        parent, _, last = path.rpartition(".")
        assert path in listed or (parent in whole and last[0] != "_"), name


@pytest.mark.slow
def test_pages_name_the_functions_of_systems_as_python_reaches_them(pages):
    for system in read_systems().values():
        shown = re.findall(r"^In the library: (.*)\.$", pages[f"systems/{system.key}.md"], re.M)
        names = [name.strip("`") for line in shown for name in line.split(", ")]
        assert names == list(system.functions if system.built else ())
        assert all(callable(reach(name)) for name in names)


def test_texts_about_systems_are_of_systems():
    assert {path.stem for path in (generate.DOCS / "about").glob("*.md")} <= set(read_systems())


def render(text):
    extensions = [hooks.LiteralAngles(), "pymdownx.arithmatex"]
    configs = {"pymdownx.arithmatex": {"generic": True}}
    return hooks.mathml(markdown.markdown(text, extensions=extensions, extension_configs=configs))


def test_formulas_become_mathml():
    page = render("So $x_1 < y$ holds:\n\n$$\n\\frac{1}{n} \\sum_i z_i\n$$\n\n`$FLAGS` and $5 a $")
    assert re.search(r"<math[^>]*inline.*<msub><mi>x</mi><mn>1</mn></msub>", page)
    assert re.search(r"<math[^>]*block.*<mfrac>.*</math>", page)
    assert "<code>$FLAGS</code> and $5 a $" in page
    assert "arithmatex" not in page


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "docs/about").glob("*.md")), ROOT / "docs/skeletons/method.py"],
    ids=lambda path: path.stem,
)
def test_all_formulas_are_understood(path):
    text = path.read_text()
    if path.suffix == ".py":
        text = "\n\n".join(ast.get_docstring(n) for n in ast.parse(text).body if ast_has_doc(n))
    math = re.findall(r"<math.*?</math>", render(text), re.S)
    assert math
    assert not [formula for formula in math if "\\" in formula or "merror" in formula]


def ast_has_doc(node):
    return isinstance(node, ast.FunctionDef) and ast.get_docstring(node)


def test_inner_products_are_shown_as_written():
    assert "&lt;W_m, x0 xiᵀ&gt;" in render("relu(<W_m, x0 xiᵀ>) and more")


@pytest.mark.slow
def test_the_site_builds_strictly_and_reads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", f"--site-dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = sorted(set(tmp_path.rglob("*.html")) - {tmp_path / "404.html"})  # that of a server
    assert len(found) > len(read_systems())
    loaded = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"?([^\"\s>]+)")
    for page in found:
        text = page.read_text()
        addresses = loaded.findall(text)
        assert addresses
        if "api" not in page.relative_to(tmp_path).parts:
            assert '<span title="rml.' not in text, f"{page} names what has no entry in the API"
        for address in addresses:
            assert not re.match(r"(https?:)?//", address), f"{page} loads {address}"
            file = (page.parent / address.partition("?")[0]).resolve()
            assert address.startswith("data:") or file.exists(), f"{page} lacks {address}"
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text()), style
    assert (tmp_path / "search/search_index.js").stat().st_size > 100_000
    assert "<math" in (tmp_path / "systems/simclr.html").read_text()
    losses = (tmp_path / "api/losses.html").read_text()
    assert 'href="training.html#rml.training' in losses
    system = (tmp_path / "systems/dcl.html").read_text()  # in a module of its name
    assert 'href="../api/losses.html#rml.losses.dcl.dcl"><code>rml.losses.dcl<' in system
    guide = (tmp_path / "guides/encoders.html").read_text()
    assert re.search(r'href="\.\./api/rml\.html#rml\.(encoder\.)?load"><code>rml\.load<', guide)


def test_systems_that_share_data_and_metrics_stand_side_by_side(monkeypatch, tmp_path):
    def result(config, **metrics):
        return {"config": config, "seeds": [0, 1], "metrics": metrics}

    pixels = {"knn_pixels": [0.8, 0.8], "linear_probe_pixels": [0.7, 0.7]}
    digits = "configs/contrastive/{}_mnist5k.py".format
    results = {
        "simclr": {
            "simclr_mnist5k": result(
                digits("simclr"), knn=[0.9, 0.92], linear_probe=[0.95, 0.95], **pixels
            ),
            "simclr_fashion": result(
                "configs/contrastive/simclr_fashion.py", knn=[0.5, 0.5], linear_probe=[0.6, 0.6]
            ),
        },
        "byol": {
            "byol_mnist5k": result(digits("byol"), knn=[0.8, 0.82], linear_probe=[0.97, 0.97])
        },
        "dino": {"dino_mnist5k": result(digits("dino"), rankme=[3.0, 4.0])},
    }
    systems = [replace(SYSTEM, key=key) for key in results]
    monkeypatch.chdir(tmp_path)  # configs are found from any folder
    text = comparison.comparison("contrastive", systems, results)
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    # The best linear probe first, and last what needs no training where it was measured.
    assert [row.split("|")[1].split("]")[0].strip(" [") for row in rows] == ["byol", "simclr"]
    assert "0.910 (0.783 to 1.037)" in rows[1]
    assert text.count("### On `") == 1
    swapped = dict(reversed(results.items()))
    swapped["byol"]["byol_mnist5k"]["metrics"] |= pixels
    text = comparison.comparison("contrastive", systems, swapped)
    assert "| raw pixels |  | 2 | 0.800 (0.800 to 0.800) | 0.700 (0.700 to 0.700) |" in text
    assert "untrained" not in text
    for area, members in (("kernels", systems), ("contrastive", systems[:1])):
        assert comparison.comparison(area, members, results) == ""
