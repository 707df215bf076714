"pytest --changed leaves out what need not run, and never what has to."
import atexit, functools, os, re, shutil, subprocess, sys, tempfile, time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mlproj.notebook import sync

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = "[DEFAULT]\nlib_name = tiny\nrepo = tiny\nuser = me\nauthor = me\nlib_path = tiny\nrecursive = True\nupdate_pyproject = False\n"
NOTEBOOKS = {
    "00_unit": ["#| default_exp unit", "#| export\nUNIT = 1.0\ndef unit(): return UNIT", "assert unit() == 1.0", "#| slow\nassert UNIT == 1.0"],
    "10_direct": ["from tiny.unit import unit\nassert unit() == 1.0"],
    "11_lazy": ["#| default_exp lazy", "#| export\ndef twice():\n    from .unit import unit\n    return 2*unit()".replace(".unit", "tiny.unit"), "assert twice() == 2.0"],
    "12_through": ["import tiny.lazy as lazy\nassert lazy.twice() == 2.0"],
    "20_text": ["assert open('../pages/page.md').read() == 'page'"],
    "21_native": ["import polars as pl\nassert pl.read_csv('../rates.csv')['rate'].sum() == 3"],
    "22_listing": ["import os\nassert sorted(os.listdir('../pages')) == ['page.md']"],
    "23_outside": ["from pathlib import Path\nassert Path('OUTSIDE').read_text() == 'out'"],
    "30_process": ["import subprocess, sys\nassert subprocess.run([sys.executable, '../scripts/script.py'], cwd='.').returncode == 0"],
    "33_spawned": ["import multiprocessing as mp\nmp.set_start_method('spawn', force=True)\nfrom tiny.byhand import work\nimport sys\nwith mp.get_context('spawn').Pool(1) as pool: assert pool.apply(work) == 'script'"],
    "31_by_name": ["from importlib import import_module\nimport yaml\nname = yaml.safe_load(open('../conf/config.yaml'))['_target_']\nassert import_module(name.rpartition('.')[0]).VALUE == 1"],
    "32_in_text": ["assert __import__('tiny.byhand', fromlist=['x']).x == 1"],
    "40_alone": ["assert 1 + 1 == 2"]}
ALL = set(NOTEBOOKS)


def write(path: Path, sources):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[new_markdown_cell(f"# {path.stem}\n\n> Of it.", id="title"), *(new_code_cell(s, id=f"{path.stem[3:]}-{i}".replace("_", "-")) for i, s in enumerate(sources))]), path)


def edit(path: Path, old: str, new: str):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@functools.cache
def library() -> Path:
    "A copy of mlproj: it is a dependency too, and somebody may be editing the other one."
    folder = Path(tempfile.mkdtemp(prefix="mlproj-tested-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(ROOT/"mlproj", folder/"mlproj", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(root: Path, *arguments, plugins=(), **env) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(library()), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "PYTHONDONTWRITEBYTECODE": "1", "MLPROJ_STORE": ""} | env
    plugins = [x for name in ("mlproj.testing", *plugins) for x in ("-p", name)]
    return subprocess.run([sys.executable, "-m", "pytest", "-v", "--tb=short", "--rootdir", root, *plugins, *arguments], cwd=root, env=env, capture_output=True, text=True)


def ran(done) -> set[str]:
    "The notebooks of which cells ran."
    return set(re.findall(r"nbs/(\w+)\.ipynb::cell_\d+ (?:PASSED|FAILED|SKIPPED)", done.stdout)) | set(re.findall(r"(?:PASSED|FAILED) nbs/(\w+)\.ipynb::cell", done.stdout))


@pytest.fixture(scope="module")
def passed(tmp_path_factory) -> Path:
    "A project in whose store it stands that all its notebooks passed."
    root = tmp_path_factory.mktemp("passed")/"in"/"project"
    outside = root.parent.parent/"outside.txt"
    for name, sources in NOTEBOOKS.items(): write(root/"nbs"/f"{name}.ipynb", [s.replace("OUTSIDE", str(outside)) for s in sources])
    for name, text in {"settings.ini": SETTINGS, "pages/page.md": "page", "rates.csv": "rate\n1\n2\n", "scripts/script.py": "import helper\n", "scripts/helper.py": "x = 1\n",
                       "conf/config.yaml": "_target_: tiny.named.VALUE\n", "tiny/named.py": "VALUE = 1\n", "tiny/byhand.py": "x = 1\ndef work():\n    from pathlib import Path\n    return Path('../scripts/note.md').read_text()\n", "scripts/note.md": "script", "../../outside.txt": "out"}.items():
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_text(text)
    sync(root)
    time.sleep(.2)
    done = run(root, "nbs")
    assert done.returncode == 0 and ran(done) == ALL, done.stdout
    return root


@pytest.fixture
def project(tmp_path, passed) -> Path:
    (passed.parent.parent/"outside.txt").write_text("out")
    root = tmp_path/"project"
    shutil.copytree(passed, root)
    return root


def outside(root) -> Path: return Path(re.search(r"/\S+outside.txt", (root/"nbs"/"23_outside.ipynb").read_text())[0])


def cell(name, old, new): return lambda root: (edit(root/"nbs"/f"{name}.ipynb", old, new), sync(root))


# what is done to the project; the notebooks that have to run
EDITS = {
    "nothing": (lambda root: None, set()),
    "a test cell": (lambda root: edit(root/"nbs"/"40_alone.ipynb", "== 2", "== 3"), {"40_alone"}),
    "a directive": (lambda root: edit(root/"nbs"/"00_unit.ipynb", "#| slow", "#| notest"), {"00_unit"}),
    "prose and outputs": (lambda root: (edit(root/"nbs"/"40_alone.ipynb", "> Of it.", "> Of something."), edit(root/"nbs"/"40_alone.ipynb", '"execution_count": null', '"execution_count": 5')), set()),
    "an exported function": (cell("00_unit", "return UNIT", "return 2*UNIT"), {"00_unit", "10_direct", "11_lazy", "12_through"}),
    "a constant that it uses": (cell("00_unit", "UNIT = 1.0", "UNIT = 2.0"), {"00_unit", "10_direct", "11_lazy", "12_through"}),
    "a module in between": (cell("11_lazy", "2*unit()", "3*unit()"), {"11_lazy", "12_through"}),
    "a module edited by hand": (lambda root: edit(root/"tiny"/"unit.py", "return UNIT", "return 3"), {"00_unit", "10_direct", "11_lazy", "12_through"}),
    "a notebook that was not exported": (lambda root: edit(root/"nbs"/"11_lazy.ipynb", "2*unit()", "3*unit()"), {"11_lazy"}),
    "a file that is opened": (lambda root: (root/"pages"/"page.md").write_text("other"), {"20_text"}),
    "a file that Python does not see being read": (lambda root: (root/"rates.csv").write_text("rate\n7\n"), ALL),
    "a file in a folder that was listed": (lambda root: (root/"pages"/"new.md").write_text("x"), {"22_listing"}),
    "a file that is gone": (lambda root: (root/"pages"/"page.md").unlink(), {"20_text", "22_listing"}),
    "a file outside of the project": (lambda root: outside(root).write_text("other"), {"23_outside"}),
    "what a process runs": (lambda root: (root/"scripts"/"script.py").write_text("raise SystemExit(1)"), set()),
    "what a spawned process reads": (lambda root: (root/"scripts"/"note.md").write_text("other"), set()),
    "what a process imports": (lambda root: (root/"scripts"/"helper.py").write_text("1/0"), set()),
    "a module named in a config": (lambda root: (root/"tiny"/"named.py").write_text("VALUE = 2\n"), {"31_by_name", "32_in_text"}),  # both import by name
    "a config": (lambda root: (root/"conf"/"config.yaml").write_text("_target_: tiny.unit.UNIT\n"), ALL),
    "a module named in a text": (lambda root: edit(root/"tiny"/"byhand.py", "x = 1", "x = 2"), {"32_in_text"}),
    "the package around": (lambda root: (root/"tiny"/"__init__.py").write_text("1/0"), {"00_unit", "10_direct", "11_lazy", "12_through", "31_by_name", "32_in_text"}),
    "a module in the place of another": (lambda root: (root/"polars.py").write_text("raise ImportError('mine')"), {"21_native"}),
    "fixtures for all": (lambda root: (root/"conftest.py").write_text("import os\n"), ALL),
    "a setting of pytest": (lambda root: (root/"pyproject.toml").write_text("[tool.pytest.ini_options]\n"), ALL),
    "another notebook": (lambda root: write(root/"nbs"/"41_new.ipynb", ["assert True"]), {"41_new"}),
    "a notebook that was renamed": (lambda root: (root/"nbs"/"40_alone.ipynb").rename(root/"nbs"/"42_alone.ipynb"), {"42_alone"}),
}
EVERYTHING = {"30_process", "33_spawned"}  # depends on every file


@pytest.mark.parametrize("change, expected", EDITS.values(), ids=EDITS)
def test_exactly_what_depends_on_an_edit_runs(project, change, expected):
    untouched = {p: p.read_bytes() for p in project.rglob("*") if p.is_file() and ".mlproj" not in p.parts}
    change(project)
    now = {p: p.read_bytes() for p in project.rglob("*") if p.is_file() and ".mlproj" not in p.parts}
    done = run(project, "nbs", "--changed")
    code = [p for p in untouched.keys() | now.keys() if untouched.get(p) != now.get(p) and "Of something" not in (now.get(p) or b"").decode()]
    # what lies outside of the project is not seen to be read by a process
    assert ran(done) == expected | (EVERYTHING if code else set()), done.stdout


def test_whatever_fails_in_a_full_run_fails_with_changed(project):
    for change in (EDITS[name][0] for name in ("an exported function", "a file that is opened", "a file in a folder that was listed", "a file outside of the project",
                                                "a module named in a config", "a module named in a text", "what a process imports", "a file that Python does not see being read")): change(project)
    full, changed = run(project, "nbs", "-p", "no:cacheprovider"), run(project, "nbs", "--changed")
    failures = lambda done: set(re.findall(r"FAILED (nbs/\S+)", done.stdout))
    assert failures(full) == failures(changed) and len(failures(full)) >= 8, full.stdout


def test_an_unchanged_project_succeeds_and_says_so(project):
    done = run(project, "nbs", "--changed")
    assert done.returncode == 0 and f"{len(ALL)} notebooks are unchanged since they passed" in done.stdout and "deselected" in done.stdout
    assert run(project, "nbs", "--changed", "-k", "no_such_cell").returncode == 5


def test_a_failed_notebook_runs_again_until_it_passes(project):
    path = project/"nbs"/"40_alone.ipynb"
    edit(path, "== 2", "== 3")
    for _ in range(2): assert "40_alone" in ran(run(project, "nbs", "--changed"))
    edit(path, "== 3", "== 2")
    assert ran(run(project, "nbs", "--changed")) == {"40_alone", *EVERYTHING}
    assert ran(run(project, "nbs", "--changed")) == set()


def test_a_failure_forgets_what_passed_before(project):
    edit(project/"nbs"/"40_alone.ipynb", "assert 1 + 1 == 2", "import os\\nassert 'BREAK' not in os.environ")
    assert ran(run(project, "nbs/40_alone.ipynb", "--changed")) == {"40_alone"}
    assert run(project, "nbs/40_alone.ipynb", BREAK="1").returncode == 1
    assert ran(run(project, "nbs/40_alone.ipynb", "--changed")) == {"40_alone"}


@pytest.mark.parametrize("part", [("-k", "00_unit and cell_03"), ("nbs/00_unit.ipynb::cell_03",), ("--deselect", "nbs/00_unit.ipynb::cell_04"), ("-x", "--slow")], ids=lambda p: p[0])
def test_a_part_of_a_notebook_is_no_pass(project, part):
    cells = ["#| default_exp unit", "#| export\nUNIT = 1.0\ndef unit(): return UNIT", "assert unit() == 1.0", "import os\nassert 'BREAK' not in os.environ"]
    write(project/"nbs"/"00_unit.ipynb", cells)
    run(project, "nbs" if "::" not in part[0] else "", *part, BREAK="1") if "::" not in part[0] else run(project, *part, BREAK="1")
    assert "00_unit" in ran(run(project, "nbs", "--changed"))


def test_slow_cells_have_a_record_of_their_own(project):
    assert ran(run(project, "nbs", "--changed", "--slow")) == ALL
    assert ran(run(project, "nbs", "--changed", "--slow")) == set() == ran(run(project, "nbs", "--changed"))


def test_a_file_touched_during_the_session_leaves_no_record(project):
    write(project/"nbs"/"43_writes.ipynb", ["from pathlib import Path\nPath('../rates.csv').write_text('rate\\n1\\n2\\n')"])
    assert ran(run(project, "nbs", "--changed")) == {"43_writes", *EVERYTHING}
    assert "43_writes" in ran(run(project, "nbs", "--changed"))


def test_a_skipped_cell_is_no_pass(project):
    write(project/"nbs"/"44_skips.ipynb", ["import pytest\npytest.skip('not here')"])
    for _ in range(2): assert "44_skips" in ran(run(project, "nbs", "--changed"))


@pytest.mark.parametrize("dist", ["loadfile", "load"])
def test_parallel_workers_record_and_skip(project, dist):
    shutil.rmtree(project/".mlproj"/"tests")
    parallel = lambda: run(project, "nbs", "--changed", "-n", "2", "--dist", dist, plugins=["xdist"])
    assert ran(parallel()) == ALL
    edit(project/"pages"/"page.md", "page", "page!")
    assert ran(parallel()) == {"20_text", *EVERYTHING}
    edit(project/"pages"/"page.md", "page!", "page")
    assert ran(parallel()) <= {"20_text", *EVERYTHING}
    done = parallel()
    assert done.returncode == 0 and not ran(done), done.stdout


def test_packages_variables_and_the_plugin_count(project, tmp_path):
    site = tmp_path/"site-packages"
    (site/"fancy-1.0.dist-info").mkdir(parents=True)
    (site/"fancy-1.0.dist-info"/"METADATA").write_text("Metadata-Version: 2.1\nName: fancy\nVersion: 1.0\n")
    assert ran(run(project, "nbs", "--changed", PYTHONPATH=f"{library()}:{site}")) == ALL
    assert ran(run(project, "nbs", "--changed", PYTHONPATH=f"{library()}:{site}")) == set()
    assert ran(run(project, "nbs", "--changed", PYTHONPATH=f"{library()}:{site}", MLPROJ_ANYTHING="1")) == ALL


def test_a_damaged_record_is_no_record(project):
    record = project/".mlproj"/"tests"/"nbs"/"40_alone.ipynb.json"
    record.write_text(record.read_text()[:50])
    (project/".mlproj"/"tests"/"read.json").write_text("{")
    assert ran(run(project, "nbs", "--changed")) == {"40_alone"}


def test_tests_that_are_no_notebooks_always_run(project):
    (project/"nbs"/"test_plain.py").write_text("def test_plain(): assert True\n")
    for _ in range(2): assert "1 passed" in run(project, "nbs/test_plain.py", "nbs/40_alone.ipynb", "--changed").stdout.replace("2 passed", "1 passed")


def test_data_behind_a_link_in_a_file_that_a_config_names_and_prose_of_another_notebook_count(tmp_path):
    root, disk = tmp_path/"project", tmp_path/"disk"
    disk.mkdir()
    for name in ("linked.csv", "named.csv"): (disk/name).write_text("x\n1\n2\n")
    (disk/"more").mkdir()
    (disk/"more"/"back").symlink_to(disk)  # a circle
    write(root/"nbs"/"10_linked.ipynb", ["import polars as pl\nassert pl.read_csv('../data/linked.csv')['x'].sum() == 3"])
    write(root/"nbs"/"20_named.ipynb", ["import polars as pl, yaml\nassert pl.read_csv(yaml.safe_load(open('../conf/paths.yaml'))['table'])['x'].sum() == 3"])
    write(root/"nbs"/"30_prose.ipynb", ["assert '> Of it.' in open('10_linked.ipynb').read()"])
    (root/"settings.ini").write_text(SETTINGS)
    (root/"conf").mkdir()
    (root/"conf"/"paths.yaml").write_text(f"table: {tmp_path}/other/named.csv  # elsewhere\n")
    (disk/"named.csv").rename((tmp_path/"other").mkdir() or tmp_path/"other"/"named.csv")
    (root/"data").symlink_to(disk)
    time.sleep(.2)
    assert run(root, "nbs").returncode == 0 and ran(run(root, "nbs", "--changed")) == set()
    for path, failing in ((disk/"linked.csv", "10_linked"), (tmp_path/"other"/"named.csv", "20_named")):
        path.write_text("x\n7\n")
        assert f"FAILED nbs/{failing}" in run(root, "nbs", "--changed").stdout
        path.write_text("x\n1\n2\n")
    edit(root/"nbs"/"10_linked.ipynb", "> Of it.", "> Of something.")
    assert "FAILED nbs/30_prose" in run(root, "nbs", "--changed").stdout
