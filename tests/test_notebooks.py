"Notebooks and modules say the same; whatever drifts apart is found; and notebooks are tests."
import os, re, subprocess, sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mlproj.notebook import check_sync, execute, sync
from mlproj.project import MlprojError

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = "[DEFAULT]\nlib_name = tiny\nrepo = tiny\nuser = me\nauthor = me\nlib_path = tiny\nrecursive = True\nupdate_pyproject = False\n"
SHAPE = ["# shape\n\n> Shapes.", "#| default_exp shape", "#| export\nimport math\nclass Square:\n    def __init__(self, side): self.side = side\n_unit = 1.0",
         "side = 3", "assert Square(side).side == 3 * _unit", "assert math.pi > side", "#| eval: false\n1/0", "#| slow\nassert side == 4", "# only a comment"]
AREA = ["# area\n\n> Areas.", "#| default_exp geo.area", "#| export\nfrom tiny.shape import Square",
        "#| export\ndef area(square): return square.side**2  # in square units", "from tiny.shape import Square as Other\nassert Other is Square",
        "assert area(Square(2)) == 4"]


def write(path: Path, sources):
    cells = [(new_markdown_cell if s.startswith("# ") and ">" in s else new_code_cell)(s, id=f"{path.stem[3:]}-{i}") for i, s in enumerate(sources)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


def edit(path: Path, old: str, new: str):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def project(tmp_path) -> Path:
    "A project of two notebooks, one in a folder, in sync."
    root = tmp_path/"project"
    write(root/"nbs"/"00_shape.ipynb", SHAPE)
    write(root/"nbs"/"geo"/"10_area.ipynb", AREA)
    (root/"settings.ini").write_text(SETTINGS)
    sync(root)
    return root


def run_pytest(root: Path, *arguments, plugins=()) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "PYTHONDONTWRITEBYTECODE": "1"}
    plugins = [x for name in ("mlproj.testing", *plugins) for x in ("-p", name)]
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "--rootdir", root, *plugins, *arguments], cwd=root, env=env, capture_output=True, text=True)


def outcome(done) -> dict[str, int]: return {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|deselected|error)", done.stdout.splitlines()[-1])}


# Sync

def test_the_repository_is_in_sync():
    assert check_sync(ROOT) == []


def test_a_project_in_sync_has_no_differences_and_nothing_to_do(project):
    assert check_sync(project) == []
    assert sync(project) == []
    assert (project/"tiny"/"geo"/"__init__.py").exists() and "from ..shape import Square" in (project/"tiny"/"geo"/"area.py").read_text()


@pytest.mark.parametrize("change, named, said", [
    (lambda root: edit(root/"nbs"/"geo"/"10_area.ipynb", "square.side**2", "square.side*2"), "tiny/geo/area.py", "stale"),
    (lambda root: edit(root/"tiny"/"geo"/"area.py", "# in square units", "# in units"), "tiny/geo/area.py", "edited by hand"),
    (lambda root: (root/"tiny"/"shape.py").write_bytes((root/"tiny"/"shape.py").read_bytes() + b"\n"), "tiny/shape.py", "edited by hand"),
    (lambda root: (root/"tiny"/"geo"/"area.py").unlink(), "tiny/geo/area.py", "missing"),
    (lambda root: (root/"nbs"/"geo"/"10_area.ipynb").unlink(), "tiny/geo/area.py", "orphan"),
    (lambda root: edit(root/"nbs"/"geo"/"10_area.ipynb", "geo.area", "geo.plane"), "tiny/geo/area.py", "orphan"),
    (lambda root: edit(root/"nbs"/"00_shape.ipynb", '"execution_count": null', '"execution_count": 3'), "nbs/00_shape.ipynb", "not cleaned"),
    (lambda root: edit(root/"tiny"/"_modidx.py", "Square", "Circle"), "tiny/_modidx.py", "edited by hand"),
], ids=["stale export", "module edited by hand", "one byte more", "module deleted", "notebook deleted", "notebook exports elsewhere", "uncleaned notebook", "index edited"])
def test_what_drifts_apart_is_found_and_mended(project, change, named, said):
    change(project)
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    differences = check_sync(project)
    assert {p: p.read_bytes() for p in project.rglob("*") if p.is_file()} == before, "a check touches nothing"
    assert any(line.startswith(f"{named}: ") and said in line for line in differences), differences
    assert named in sync(project)
    assert check_sync(project) == []


def test_modules_written_by_people_are_left_alone(project):
    (project/"tiny"/"by_hand.py").write_text("x = 1\n")
    assert sync(project) == ["tiny/_modidx.py"]  # nbdev's index lists it
    assert check_sync(project) == []
    assert (project/"tiny"/"by_hand.py").read_text() == "x = 1\n"


def test_a_notebook_that_cannot_be_exported_changes_nothing(project):
    (project/"nbs"/"11_broken.ipynb").write_text("{")
    before = (project/"tiny"/"shape.py").read_bytes()
    edit(project/"nbs"/"00_shape.ipynb", "_unit = 1.0", "_unit = 2.0")
    with pytest.raises(MlprojError, match="cannot be exported"): sync(project)
    assert (project/"tiny"/"shape.py").read_bytes() == before


def test_a_failing_notebook_keeps_its_old_outputs(project):
    path = project/"nbs"/"00_shape.ipynb"
    edit(path, "side = 3", "side = 3; print('new')")
    edit(path, "math.pi > side", "math.pi < side")
    before = path.read_bytes()
    with pytest.raises(MlprojError, match=r"nbs/00_shape.ipynb, cell 5: AssertionError"): execute(path)
    assert path.read_bytes() == before


def test_running_twice_gives_the_same_bytes(project):
    write(project/"nbs"/"00_shape.ipynb", [*SHAPE[:-2], "print(object, side)", "Square"])  # without the slow cell, which fails
    assert sync(project, run=True)
    assert sync(project, run=True) == []


# pytest

def test_cells_pass_with_the_classes_of_the_imported_module(project):
    done = run_pytest(project, "nbs")
    assert outcome(done) == {"passed": 5}, done.stdout
    assert sorted(re.findall(r"\S+::cell_\d+", run_pytest(project, "nbs", "--collect-only").stdout)) == [
        *(f"nbs/00_shape.ipynb::cell_0{i}" for i in (3, 4, 5)), *(f"nbs/geo/10_area.ipynb::cell_0{i}" for i in (4, 5))]


def test_slow_cells_run_when_asked_for(project):
    done = run_pytest(project, "nbs", "--slow")
    assert outcome(done) == {"passed": 5, "failed": 1} and "00_shape.ipynb::cell_07" in done.stdout


def test_a_failure_shows_notebook_cell_and_line(project):
    edit(project/"nbs"/"geo"/"10_area.ipynb", "assert area(Square(2)) == 4", "two = 2\\nassert area(Square(two)) == 5")
    done = run_pytest(project, "nbs")
    assert outcome(done) == {"passed": 4, "failed": 1}
    assert "FAILED nbs/geo/10_area.ipynb::cell_05" in done.stdout
    assert "nbs/geo/10_area.ipynb[cell 5]:2: in <module>\n    assert area(Square(two)) == 5" in done.stdout
    assert "testing.py" not in done.stdout


def test_a_traceback_goes_on_into_the_module(project):
    edit(project/"nbs"/"geo"/"10_area.ipynb", "assert area(Square(2)) == 4", "area(None)")
    done = run_pytest(project, "nbs/geo")
    assert "[cell 5]:1: in <module>" in done.stdout and "return square.side**2" in done.stdout and "AttributeError" in done.stdout


def test_a_syntax_error_is_reported_in_its_cell(project):
    edit(project/"nbs"/"geo"/"10_area.ipynb", "assert area(Square(2)) == 4", "assert area(")
    done = run_pytest(project, "nbs/geo")
    assert outcome(done) == {"passed": 1, "failed": 1} and "nbs/geo/10_area.ipynb[cell 5]" in done.stdout and "was never closed" in done.stdout


def test_a_later_cell_alone_finds_what_earlier_cells_made(project):
    assert outcome(run_pytest(project, "nbs", "-k", "00_shape and cell_04")) == {"passed": 1, "deselected": 4}
    assert outcome(run_pytest(project, "nbs/00_shape.ipynb::cell_05")) == {"passed": 1}


def test_last_failed_cells_run_again_on_their_own(project):
    edit(project/"nbs"/"00_shape.ipynb", "math.pi > side", "math.pi < side")
    assert outcome(run_pytest(project, "nbs")) == {"passed": 4, "failed": 1}
    assert outcome(run_pytest(project, "nbs", "--lf"))["failed"] == 1
    edit(project/"nbs"/"00_shape.ipynb", "math.pi < side", "math.pi > side")
    assert "1 passed" in run_pytest(project, "nbs", "--lf").stdout


def test_a_failed_cell_fails_in_its_own_name_only_and_is_named_in_what_follows(project):
    edit(project/"nbs"/"00_shape.ipynb", "side = 3", "side = 1/0")
    done = run_pytest(project, "nbs/00_shape.ipynb")
    assert outcome(done) == {"failed": 3}
    assert done.stdout.count("ZeroDivisionError: division by zero") >= 1 and "nbs/00_shape.ipynb[cell 3] failed before" in done.stdout


def test_a_stale_export_fails_every_cell_after_it(project):
    edit(project/"nbs"/"geo"/"10_area.ipynb", "square.side**2", "square.side * square.side")
    for selection in [(), ("-k", "cell_05")]:
        done = run_pytest(project, "nbs/geo", *selection)
        assert "passed" not in outcome(done) and "the export is stale, tiny.geo.area says something else; run mlproj sync" in done.stdout


def test_a_cell_runs_in_the_folder_of_its_notebook_as_main_and_leaves_the_process_as_it_was(project):
    write(project/"nbs"/"11_process.ipynb", [
        "import os, pickle, sys\nassert os.path.exists('00_shape.ipynb')",
        "class Local: ...\nassert type(pickle.loads(pickle.dumps(Local()))) is Local", "os.environ['LEFT_BEHIND'] = '1'",
        "import asyncio\nawait asyncio.sleep(0)", "display(Local)", "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.close()",
        "files = !ls\nassert '00_shape.ipynb' in files", "%time x = 1\nassert x == 1"])
    (project/"nbs"/"test_after.py").write_text("import os, sys\ndef test_after():\n    assert 'LEFT_BEHIND' not in os.environ and os.getcwd() != os.path.dirname(__file__)\n")
    done = run_pytest(project, "nbs/11_process.ipynb", "nbs/test_after.py")
    assert outcome(done) == {"passed": 9}, done.stdout


def test_reports_checkpoints_and_notebooks_elsewhere_are_not_collected(project):
    for folder in ["nbs/reports", "nbs/.ipynb_checkpoints", "other"]: write(project/folder/"00_no.ipynb", ["1/0"])
    assert outcome(run_pytest(project, "nbs", "other", "--override-ini", "norecursedirs=none")) == {"passed": 5}


def test_parallel_workers_agree_with_one(project):
    for dist in ["loadfile", "load"]:
        assert outcome(run_pytest(project, "nbs", "-n", "2", "--dist", dist, plugins=["xdist"])) == {"passed": 5}


def test_coverage_counts_what_cells_use(project):
    done = run_pytest(project, "nbs", "--cov=tiny", "--cov-report=term", plugins=["pytest_cov"])
    assert re.search(r"tiny/geo/area.py\s+\d+\s+0\s+100%", done.stdout), done.stdout
