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
    (lambda root: edit(root/"tiny"/"geo"/"area.py", "# in square units", "# in units"), "tiny/geo/area.py", "edited by hand, and mlproj sync carries it into nbs/geo/10_area.ipynb, cell 3"),
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
    changed = sync(project)
    assert named in changed or "carries it into" in said and changed == ["nbs/geo/10_area.ipynb"]
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
    with pytest.raises(MlprojError, match="11_broken.ipynb: is not a notebook"): sync(project)
    assert (project/"tiny"/"shape.py").read_bytes() == before


# Which side changed

def snapshot(root: Path) -> dict: return {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def git(root: Path, *arguments):
    subprocess.run(["git", "-c", "user.name=me", "-c", "user.email=me@x.org", *arguments], cwd=root, check=True, capture_output=True)


def cell_source(path: Path, id: str) -> str: return "".join(next(c["source"] for c in nbformat.read(path, 4).cells if c["id"] == id))


def test_a_module_edit_goes_into_its_cell_and_nothing_else_changes(project):
    before = nbformat.read(project/"nbs"/"geo"/"10_area.ipynb", 4)
    edit(project/"tiny"/"geo"/"area.py", "square.side**2  # in square units", "square.side * square.side  # in m²\n\ndef none(): ...")
    assert sync(project) == ["nbs/geo/10_area.ipynb", "tiny/_modidx.py", "tiny/geo/area.py"]  # a new name: __all__ and the index have it
    after = nbformat.read(project/"nbs"/"geo"/"10_area.ipynb", 4)
    assert after.cells[3].source == "#| export\ndef area(square): return square.side * square.side  # in m²\n\ndef none(): ..."
    assert [c for i, c in enumerate(after.cells) if i != 3] == [c for i, c in enumerate(before.cells) if i != 3]
    assert check_sync(project) == [] and outcome(run_pytest(project, "nbs")) == {"passed": 5}


def test_imports_come_back_absolute(project):
    edit(project/"tiny"/"geo"/"area.py", "from ..shape import Square", "from ..shape import Square, _unit\nfrom .. import shape")
    assert sync(project) == ["nbs/geo/10_area.ipynb", "tiny/geo/area.py"] or check_sync(project) == []
    assert cell_source(project/"nbs"/"geo"/"10_area.ipynb", "area-2") == "#| export\nfrom tiny.shape import Square, _unit\nfrom tiny import shape"


def test_both_directions_in_one_sync(project):
    edit(project/"tiny"/"geo"/"area.py", "# in square units", "# in m²")
    edit(project/"nbs"/"00_shape.ipynb", "_unit = 1.0", "_unit = 2.0")
    assert sync(project) == ["nbs/geo/10_area.ipynb", "tiny/shape.py"]
    assert "m²" in cell_source(project/"nbs"/"geo"/"10_area.ipynb", "area-3") and "_unit = 2.0" in (project/"tiny"/"shape.py").read_text()


def test_different_cells_of_one_module_changed_on_different_sides(project):
    edit(project/"tiny"/"geo"/"area.py", "import Square", "import Square, math")
    edit(project/"nbs"/"geo"/"10_area.ipynb", "square.side**2", "square.side*square.side")
    sync(project)
    assert cell_source(project/"nbs"/"geo"/"10_area.ipynb", "area-2").endswith("import Square, math") and "side*square.side" in (project/"tiny"/"geo"/"area.py").read_text()


def test_one_cell_changed_on_both_sides_is_shown_and_nothing_is_touched(project):
    edit(project/"tiny"/"geo"/"area.py", "# in square units", "# in m²")
    edit(project/"nbs"/"geo"/"10_area.ipynb", "# in square units", "# in cm²")
    edit(project/"nbs"/"00_shape.ipynb", "_unit = 1.0", "_unit = 2.0")
    before = snapshot(project)
    with pytest.raises(MlprojError) as error: sync(project)
    said = str(error.value)
    assert "--- nbs/geo/10_area.ipynb, cell 3" in said and "+++ tiny/geo/area.py" in said and "# in cm²" in said and "# in m²" in said and "nothing was touched" in said
    assert snapshot(project) == before
    assert any("changed on both sides" in line for line in check_sync(project))


def test_the_same_change_on_both_sides_is_none(project):
    edit(project/"tiny"/"geo"/"area.py", "# in square units", "# in m²")
    edit(project/"nbs"/"geo"/"10_area.ipynb", "# in square units", "# in m²")
    assert check_sync(project) == [] and sync(project) == []
    edit(project/"tiny"/"geo"/"area.py", "# in m²", "# in km²")  # and the next export is measured from there
    assert sync(project) == ["nbs/geo/10_area.ipynb"]


def test_a_cell_deleted_in_the_module_is_said(project):
    text = (project/"tiny"/"geo"/"area.py").read_text()
    (project/"tiny"/"geo"/"area.py").write_text(text[:text.rindex("# %% ")])
    before = snapshot(project)
    with pytest.raises(MlprojError, match="the cell area-3 was deleted in the module; delete it in nbs/geo/10_area.ipynb, cell 3"): sync(project)
    assert snapshot(project) == before


def test_a_cell_written_by_hand_into_a_module_is_said(project):
    path = project/"tiny"/"geo"/"area.py"
    path.write_text(path.read_text() + "\n# %% ../../nbs/geo/10_area.ipynb #mine\nx = 1\n")
    with pytest.raises(MlprojError, match="has a cell mine that its notebook has not"): sync(project)


def test_cells_deleted_added_and_moved_in_the_notebook_are_exported(project):
    nb = nbformat.read(project/"nbs"/"geo"/"10_area.ipynb", 4)
    nb.cells = [*nb.cells[:3], new_code_cell("#| export\ndef edge(square): return 4*square.side", id="new"), nb.cells[4]]
    nbformat.write(nb, project/"nbs"/"geo"/"10_area.ipynb")
    assert "tiny/geo/area.py" in sync(project)
    assert "def edge" in (project/"tiny"/"geo"/"area.py").read_text() and "def area" not in (project/"tiny"/"geo"/"area.py").read_text()
    nb = nbformat.read(project/"nbs"/"geo"/"10_area.ipynb", 4)
    nb.cells[3].source = "#| export shape\ndef edge(square): return 4*square.side"
    nbformat.write(nb, project/"nbs"/"geo"/"10_area.ipynb")
    sync(project)
    assert "def edge" in (project/"tiny"/"shape.py").read_text() and check_sync(project) == []


def test_in_a_fresh_clone_the_last_commit_decides(project):
    git(project, "init", "-q")
    (project/".gitignore").write_text(".mlproj/\n__pycache__/\n")
    git(project, "add", ".")
    git(project, "commit", "-qm", "x")
    (project/".mlproj"/"sync.json").unlink()
    edit(project/"tiny"/"geo"/"area.py", "# in square units", "# in m²")
    assert sync(project) == ["nbs/geo/10_area.ipynb"]
    git(project, "commit", "-qam", "y")
    (project/".mlproj"/"sync.json").unlink()
    edit(project/"nbs"/"geo"/"10_area.ipynb", "# in m²", "# in square units")
    assert sync(project) == ["tiny/geo/area.py"]


def test_an_export_by_another_tool_does_not_confuse(project):
    git(project, "init", "-q")
    for path, old, new in [(project/"nbs"/"geo"/"10_area.ipynb", "# in square units", "# in m²"), (project/"tiny"/"geo"/"area.py", "# in square units", "# in m²")]: edit(path, old, new)
    git(project, "add", ".")
    git(project, "commit", "-qm", "exported by nbdev_export")
    edit(project/"tiny"/"geo"/"area.py", "# in m²", "# in km²")
    assert sync(project) == ["nbs/geo/10_area.ipynb"]


def test_without_any_earlier_text_both_sides_are_shown(project):
    (project/".mlproj"/"sync.json").unlink()
    edit(project/"tiny"/"geo"/"area.py", "# in square units", "# in m²")
    with pytest.raises(MlprojError, match="changed in the notebook and in the module"): sync(project)


def test_an_edited_orphan_is_not_deleted(project):
    (project/"nbs"/"geo"/"10_area.ipynb").unlink()
    edit(project/"tiny"/"geo"/"area.py", "# in square units", "# my work")
    with pytest.raises(MlprojError, match="changed in the notebook and in the module"): sync(project)
    assert "my work" in (project/"tiny"/"geo"/"area.py").read_text()


def in_git(project) -> Path:
    "The project, committed on the branch main; its state is not."
    git(project, "init", "-q", "-b", "main")
    (project/".gitignore").write_text(".mlproj/\n__pycache__/\n")
    git(project, "add", ".")
    git(project, "commit", "-qm", "x")
    return project


def test_an_export_on_another_branch_does_not_make_git_s_module_an_edit(project):
    root, notebook = in_git(project), project/"nbs"/"geo"/"10_area.ipynb"
    git(root, "checkout", "-qb", "feature")
    edit(notebook, "square.side**2", "square.side*square.side")
    sync(root)
    git(root, "commit", "-qam", "y")
    git(root, "checkout", "-q", "main")
    git(root, "checkout", "feature", "--", "nbs")  # the notebook alone
    assert sync(root) == ["tiny/geo/area.py"] and "side*square.side" in cell_source(notebook, "area-3")


def test_a_merge_that_left_the_modules_behind_goes_on_from_the_notebooks(project):
    root, notebook, module = in_git(project), project/"nbs"/"geo"/"10_area.ipynb", project/"tiny"/"geo"/"area.py"
    ours = module.read_bytes()
    git(root, "checkout", "-qb", "feature")
    edit(notebook, "square.side**2", "square.side*square.side")
    nb = nbformat.read(notebook, 4)
    nb.cells.append(new_code_cell("#| export\ndef edge(square): return 4*square.side", id="edge"))
    nbformat.write(nb, notebook)
    sync(root)
    git(root, "commit", "-qam", "y")
    git(root, "checkout", "-q", "main")
    git(root, "merge", "-q", "--no-ff", "--no-commit", "feature")
    module.write_bytes(ours)  # as the driver of modules does, when lines conflict
    git(root, "commit", "-qam", "merged")
    assert "tiny/geo/area.py" in sync(root)
    assert "side*square.side" in cell_source(notebook, "area-3") and "def edge" in module.read_text() and check_sync(root) == []


def test_a_module_edit_that_was_committed_is_carried_over(project):
    root = in_git(project)
    edit(root/"tiny"/"geo"/"area.py", "# in square units", "# in m²")
    git(root, "commit", "-qam", "by hand")
    assert sync(root) == ["nbs/geo/10_area.ipynb"] and "m²" in cell_source(root/"nbs"/"geo"/"10_area.ipynb", "area-3")


def test_code_that_looks_like_an_import_in_a_text_stays_as_it_is(project):
    edit(project/"nbs"/"geo"/"10_area.ipynb", "def area(", "TEXT = '''\\nfrom .x import y\\n'''\\ndef area(")
    sync(project)
    assert check_sync(project) == [] and sync(project) == []
    assert "\nfrom .x import y" in cell_source(project/"nbs"/"geo"/"10_area.ipynb", "area-3")


def test_code_above_the_first_cell_of_a_module_is_not_dropped(project):
    edit(project/"tiny"/"geo"/"area.py", "# %% auto", "import os\n\n# %% auto")
    before = snapshot(project)
    with pytest.raises(MlprojError, match="tiny/geo/area.py: has `import os` above its first cell"): sync(project)
    assert snapshot(project) == before


def test_cells_without_ids_get_those_of_their_export(project):
    import json
    path = project/"nbs"/"geo"/"10_area.ipynb"
    nb = json.loads(path.read_text()) | dict(nbformat_minor=4)
    for cell in nb["cells"]: del cell["id"]
    path.write_text(json.dumps(nb))
    sync(project)
    assert sync(project) == [] and check_sync(project) == []


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
