"Notebooks in git: real merges by real git leave valid notebooks, mark conflicts in cells, and lose no cell."
import copy, json, os, random, shutil, subprocess
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mlproj.merge import as_text, check_staged, clean, install_git, merge, missing_git, to_text
from mlproj.notebook import MARKS, sync
from mlproj.project import MlprojError

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = "[DEFAULT]\nlib_name = tiny\nrepo = tiny\nuser = me\nauthor = me\nlib_path = tiny\nrecursive = True\nupdate_pyproject = False\nallowed_cell_metadata_keys = tags\n"
NB = "nbs/00_a.ipynb"


def cell(id: str, source: str, out: str = "", **metadata) -> dict:
    outputs = [new_output("stream", name="stdout", text=out)] if out else []
    return new_code_cell(source, id=id, outputs=outputs, metadata=metadata)


def note(id: str, source: str) -> dict: return new_markdown_cell(source, id=id)


def base() -> list: return [note("title", "# a\n\n> A."), cell("load", "a = 1\nb = 2\nc = 3\nd = 4\ne = 5"), cell("use", "print(a)", "1\n"), cell("plot", "show(b)", "2\n"), note("end", "The end.")]


def book(cells: list, **metadata) -> dict: return nbformat.from_dict(new_notebook(cells=copy.deepcopy(cells), metadata=metadata))


def text(nb: dict, id: str) -> str: return next("".join(c["source"]) for c in nb["cells"] if c["id"] == id)


def out(nb: dict, id: str) -> str: return "".join("".join(o["text"]) for c in nb["cells"] if c["id"] == id for o in c["outputs"])


def ids(nb: dict) -> list[str]: return [c["id"] for c in nb["cells"]]


def edit(cells: list, id: str, old: str, new: str, output: str | None = None) -> list:
    cells = copy.deepcopy(cells)
    found = next(c for c in cells if c["id"] == id)
    assert old in found["source"]
    found["source"] = found["source"].replace(old, new)
    if output is not None: found["outputs"] = [new_output("stream", name="stdout", text=output)] if output else []
    return cells


def without(cells: list, *gone: str) -> list: return [c for c in cells if c["id"] not in gone]


def insert(cells: list, after: str, *new) -> list:
    at = [c["id"] for c in cells].index(after) + 1
    return [*cells[:at], *new, *cells[at:]]


def moved(cells: list, id: str, after: str | None) -> list:
    rest, it = without(cells, id), next(c for c in cells if c["id"] == id)
    return insert(rest, after, it) if after else [it, *rest]


class Repository:
    "A git repository with the merge driver of this Python."
    def __init__(self, root: Path, install: bool = True, copy_of: Path | None = None):
        self.root = root
        if copy_of:
            shutil.copytree(copy_of, root)
            return
        root.mkdir()
        (root/"settings.ini").write_text(SETTINGS)
        self.git("init", "-q", "-b", "main")
        if install: install_git(root)

    def git(self, *arguments, code=0) -> str:
        env = os.environ | {"PYTHONPATH": str(ROOT), "GIT_AUTHOR_NAME": "me", "GIT_AUTHOR_EMAIL": "me@x.org", "GIT_COMMITTER_NAME": "me", "GIT_COMMITTER_EMAIL": "me@x.org"}
        done = subprocess.run(["git", *arguments], cwd=self.root, env=env, capture_output=True, text=True)
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def commit(self, nb: dict | str, message: str = "x", name: str = NB):
        path = self.root/name
        path.parent.mkdir(exist_ok=True)
        path.write_text(nb if isinstance(nb, str) else to_text(json.loads(nbformat.writes(nb))))
        self.git("add", ".")
        self.git("commit", "-qm", message, "--no-verify", "--allow-empty")

    def merged(self, was: dict, ours: dict, theirs: dict, how=("merge", "-q", "feature")) -> tuple[dict, bool]:
        "Merge two branches; returns the notebook, valid whatever happened, and whether git had no conflict."
        self.commit(was or book([]), "base", NB if was else "nbs/01_other.ipynb")
        self.git("checkout", "-qb", "feature")
        self.commit(theirs, "theirs")
        self.git("checkout", "-q", "main")
        self.commit(ours, "ours")
        self.said = self.git(*how, code=None)
        nb = json.loads((self.root/NB).read_text())
        nbformat.validate(nb)
        assert len({*ids(nb)}) == len(ids(nb))
        clean = not self.git("ls-files", "-u")
        assert clean != any(MARKS.search("".join(c["source"])) for c in nb["cells"]), "a conflict is marked in a cell, and only a conflict is"
        return nb, clean


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path: return Repository(tmp_path_factory.mktemp("installed")/"repository").root


@pytest.fixture
def repository(tmp_path, installed) -> Repository: return Repository(tmp_path/"repository", copy_of=installed)


b = base()
reran = [c | dict(outputs=[new_output("stream", name="stdout", text="again\n")], execution_count=i) if c["cell_type"] == "code" else c for i, c in enumerate(b)]
new_ids = [{**c, "id": f"new-{i}"} for i, c in enumerate(b)]

# name, base, ours, theirs, what is said of the result
CLEAN = [
    ("different cells", b, edit(b, "load", "a = 1", "a = 10"), edit(b, "plot", "show(b)", "show(b, b)", "2 2\n"),
     lambda nb: (text(nb, "load").startswith("a = 10"), text(nb, "plot") == "show(b, b)", out(nb, "plot") == "2 2\n")),
    ("different lines of one cell", b, edit(b, "load", "a = 1", "a = 10"), edit(b, "load", "e = 5", "e = 50"),
     lambda nb: (text(nb, "load") == "a = 10\nb = 2\nc = 3\nd = 4\ne = 50",)),
    ("the same edit", b, edit(b, "use", "print(a)", "print(a, b)", "1 2\n"), edit(b, "use", "print(a)", "print(a, b)", "1 2\n"),
     lambda nb: (text(nb, "use") == "print(a, b)", out(nb, "use") == "1 2\n")),
    ("only outputs, by both", b, edit(b, "use", "print(a)", "print(a)", "one\n"), edit(b, "use", "print(a)", "print(a)", "uno\n"),
     lambda nb: (out(nb, "use") == "one\n", len(nb["cells"]) == 5)),
    ("outputs of different cells", b, edit(b, "use", "print(a)", "print(a)", "one\n"), edit(b, "plot", "show(b)", "show(b)", "two\n"),
     lambda nb: (out(nb, "use") == "one\n", out(nb, "plot") == "two\n")),
    ("an edit, and everything run again", b, edit(b, "use", "print(a)", "print(a, a)", "1 1\n"), reran,
     lambda nb: (text(nb, "use") == "print(a, a)", out(nb, "use") == "1 1\n", out(nb, "plot") == "again\n")),
    ("an edit that was not run, and everything run again", b, edit(b, "use", "print(a)", "print(-a)", ""), reran,
     lambda nb: (text(nb, "use") == "print(-a)", out(nb, "use") == "")),
    ("lines of both in one cell: no output is theirs", b, edit(b, "load", "a = 1", "a = 10", "ours\n"), edit(b, "load", "e = 5", "e = 50", "theirs\n"),
     lambda nb: (out(nb, "load") == "",)),
    ("cells added in different places", b, insert(b, "title", cell("n1", "import os")), insert(b, "plot", cell("n2", "save()")),
     lambda nb: (ids(nb) == ["title", "n1", "load", "use", "plot", "n2", "end"],)),
    ("cells added in the same place", b, insert(b, "use", cell("n1", "first()")), insert(b, "use", cell("n2", "second()"), cell("n3", "third()")),
     lambda nb: (ids(nb) == ["title", "load", "use", "n1", "n2", "n3", "plot", "end"],)),
    ("the same cell added by both", b, insert(b, "use", cell("n1", "import os")), insert(b, "use", cell("n2", "import os")),
     lambda nb: (ids(nb) == ["title", "load", "use", "n1", "plot", "end"],)),
    ("cells added at both ends", b, [note("n1", "Before."), *b], [*b, cell("n2", "after()")],
     lambda nb: (ids(nb) == ["n1", "title", "load", "use", "plot", "end", "n2"],)),
    ("different cells deleted", b, without(b, "use"), without(b, "plot"), lambda nb: (ids(nb) == ["title", "load", "end"],)),
    ("a cell deleted by both", b, without(b, "use"), without(b, "use"), lambda nb: (ids(nb) == ["title", "load", "plot", "end"],)),
    ("a cell deleted, and only run by the other", b, without(b, "use"), reran, lambda nb: (ids(nb) == ["title", "load", "plot", "end"],)),
    ("a cell moved, and edited by the other", b, moved(b, "plot", "title"), edit(b, "plot", "show(b)", "show(b, b)"),
     lambda nb: (ids(nb) == ["title", "plot", "load", "use", "end"], text(nb, "plot") == "show(b, b)")),
    ("moved by them, edited by us", b, edit(b, "plot", "show(b)", "show(b, b)"), moved(b, "plot", None),
     lambda nb: (ids(nb) == ["plot", "title", "load", "use", "end"], text(nb, "plot") == "show(b, b)")),
    ("different cells moved", b, moved(b, "title", "end"), moved(b, "plot", "load"), lambda nb: (ids(nb) == ["load", "plot", "use", "end", "title"],)),
    ("moved to the same place by both", b, moved(b, "plot", "title"), moved(b, "plot", "title"), lambda nb: (ids(nb) == ["title", "plot", "load", "use", "end"],)),
    ("a cell added next to a deleted one", b, without(b, "use"), insert(b, "use", cell("n1", "after_use()")),
     lambda nb: (ids(nb) == ["title", "load", "n1", "plot", "end"],)),
    ("text of the prose, code of the next cell", b, edit(b, "title", "> A.", "> A notebook."), edit(b, "load", "a = 1", "a = 7"),
     lambda nb: ("A notebook" in text(nb, "title"), "a = 7" in text(nb, "load"))),
    ("a cell split by one, another edited", b, insert(edit(b, "load", "\nd = 4\ne = 5", ""), "load", cell("n1", "d = 4\ne = 5")), edit(b, "use", "print(a)", "print(d)"),
     lambda nb: (ids(nb) == ["title", "load", "n1", "use", "plot", "end"], text(nb, "use") == "print(d)")),
    ("new ids for all cells, an edit by the other", b, edit(b, "load", "a = 1", "a = 10"), new_ids,
     lambda nb: (ids(nb) == ids(book(new_ids)), text(nb, "new-1").startswith("a = 10"))),
    ("code that became prose, another cell edited", b, [note("use", "It prints.") if c["id"] == "use" else c for c in b], edit(b, "plot", "show(b)", "show(d)"),
     lambda nb: (nb["cells"][2]["cell_type"] == "markdown", text(nb, "plot") == "show(d)")),
]
CONFLICTS = [
    ("the same line", b, edit(b, "use", "print(a)", "print(a, b)"), edit(b, "use", "print(a)", "print(a, c)"),
     lambda nb: (text(nb, "use") == "<<<<<<< ours\nprint(a, b)\n=======\nprint(a, c)\n>>>>>>> feature", ids(nb) == ids(book(b)), out(nb, "use") == "")),
    ("one line of many", b, edit(b, "load", "c = 3", "c = 30"), edit(b, "load", "c = 3", "c = 33"),
     lambda nb: (text(nb, "load").startswith("a = 1\nb = 2\n<<<<<<< ours\nc = 30\n"), text(nb, "load").endswith(">>>>>>> feature\nd = 4\ne = 5"))),
    ("the same prose", b, edit(b, "end", "end", "finish"), edit(b, "end", "end", "close"), lambda nb: ("finish" in text(nb, "end"), "close" in text(nb, "end"))),
    ("deleted by us, edited by them", b, without(b, "use"), edit(b, "use", "print(a)", "print(a, a)"),
     lambda nb: (text(nb, "use") == "print(a, a)", ids(nb).index("use") == 3, "ours deleted it" in text(nb, ids(nb)[2]))),
    ("edited by us, deleted by them", b, edit(b, "use", "print(a)", "print(a, a)"), without(b, "use"), lambda nb: (text(nb, "use") == "print(a, a)", len(nb["cells"]) == 7)),
    ("moved by both to different places", b, moved(b, "plot", "title"), moved(b, "plot", "end"), lambda nb: (ids(nb)[0] == "title" and ids(nb)[2] == "plot", len(nb["cells"]) == 6)),
    ("one conflict among clean changes", b, insert(edit(b, "use", "print(a)", "print(1)"), "end", cell("n1", "ours()")), insert(edit(b, "use", "print(a)", "print(2)"), "title", cell("n2", "theirs()")),
     lambda nb: (ids(nb) == ["title", "n2", "load", "use", "plot", "end", "n1"],)),
]


@pytest.mark.parametrize("was, ours, theirs, said", [c[1:] for c in CLEAN], ids=[c[0] for c in CLEAN])
def test_a_merge_without_conflict(repository, was, ours, theirs, said):
    nb, clean = repository.merged(book(was), book(ours), book(theirs))
    assert clean, repository.said
    assert all(said(nb)), as_text(nb)


@pytest.mark.parametrize("was, ours, theirs, said", [c[1:] for c in CONFLICTS], ids=[c[0] for c in CONFLICTS])
def test_a_conflict_is_marked_in_its_cell(repository, was, ours, theirs, said):
    nb, clean = repository.merged(book(was), book(ours), book(theirs))
    assert not clean and all(said(nb)), as_text(nb)
    assert "cell" in repository.said and "CONFLICT" in repository.said


@pytest.mark.parametrize("was, ours, theirs, said", [c[1:] for c in CONFLICTS[:1]], ids=["the same line"])
def test_without_the_driver_git_leaves_what_jupyter_cannot_open(tmp_path, was, ours, theirs, said):
    with pytest.raises(json.JSONDecodeError): Repository(tmp_path/"plain", install=False).merged(book(was), book(ours), book(theirs))


def test_a_notebook_that_both_added_is_merged_from_nothing(repository):
    nb, clean = repository.merged(None, book([cell("x", "a = 1")]), book([cell("x", "a = 1"), cell("y", "b = 2")]))
    assert clean and ids(nb) == ["x", "y"]


def test_what_one_side_added_twice_stays_twice():
    both = book([*base(), cell("x", "show()")]), book([cell("p", "show()"), *base(), cell("q", "show()")])
    merged, conflicts = merge(book(base()), *both)
    assert conflicts == [] and [text(merged, i) for i in ids(merged)].count("show()") == 2


def test_metadata_of_notebook_and_cells_is_merged_by_key(repository):
    ours, theirs = (book(edit(b, "use", "print(a)", "print(a)"), kernelspec=dict(name="python3", display_name="python3")) for _ in range(2))
    ours["cells"][2]["metadata"], theirs["cells"][2]["metadata"] = dict(tags=["parameters"]), dict(tags=["slow"])
    nb, clean = repository.merged(book(b, kernelspec=dict(name="python3", display_name="python3")), ours, theirs)
    assert clean and nb["cells"][2]["metadata"]["tags"] == ["parameters", "slow"] and nb["metadata"]["kernelspec"]["name"] == "python3"


def test_a_rebase_and_a_cherry_pick_use_the_driver_too(repository):
    nb, clean = repository.merged(book(b), book(edit(b, "load", "a = 1", "a = 10")), book(edit(b, "plot", "show(b)", "show(c)")), how=("cherry-pick", "feature"))
    assert clean and text(nb, "load").startswith("a = 10") and text(nb, "plot") == "show(c)"


def test_theirs_that_is_no_notebook_leaves_ours_and_a_conflict(repository):
    repository.commit(book(b))
    repository.git("checkout", "-qb", "feature")
    repository.commit('{"cells": [', "broken")
    repository.git("checkout", "-q", "main")
    repository.commit(book(edit(b, "use", "print(a)", "print(b)")), "ours")
    said = repository.git("merge", "feature", code=1)
    assert "is not a notebook of format 4" in said and repository.git("ls-files", "-u")
    assert text(json.loads((repository.root/NB).read_text()), "use") == "print(b)"


# Any merge

def _random_side(rng: random.Random, cells: list, who: str) -> list:
    for n in range(rng.randint(1, 5)):
        at = rng.randrange(len(cells)) if cells else 0
        what = rng.choice(["edit", "add", "delete", "move", "run", "retype", "reid"])
        if what == "add" or not cells: cells = [*cells[:at], cell(f"{who}-{n}-{rng.randrange(99)}", rng.choice([f"x_{who}_{n}", "same = 1"])), *cells[at:]]
        elif what == "delete": cells = cells[:at] + cells[at + 1:]
        elif what == "move": cells = moved(cells, cells[at]["id"], rng.choice([None, *(c["id"] for c in without(cells, cells[at]["id"]))]))
        elif what == "run": cells = [c | dict(outputs=[new_output("stream", name="stdout", text=who)]) if c["cell_type"] == "code" else c for c in cells]
        elif what == "reid": cells = [{**c, "id": f"{who}-r-{n}-{i}"} if i == at else c for i, c in enumerate(cells)]
        else:
            lines = cells[at]["source"].split("\n")
            lines[rng.randrange(len(lines))] += f" # {who}{n}"
            cells = [{**c, "source": "\n".join(lines)} if i == at else c for i, c in enumerate(cells)]
    return cells


@pytest.mark.parametrize("seed", range(60))
def test_no_merge_loses_an_edit_or_makes_an_invalid_notebook(seed):
    rng = random.Random(seed)
    was = [cell(f"c{i}", "\n".join(f"v{i}_{j} = {j}" for j in range(rng.randint(1, 5))), "out" if rng.random() < .3 else "") for i in range(rng.randint(0, 6))]
    sides = [_random_side(rng, copy.deepcopy(was), who) for who in ("ours", "theirs")]
    plain = [json.loads(nbformat.writes(book(cells))) for cells in (was, *sides)]
    merged, conflicts = merge(*plain)
    nbformat.validate(merged)
    whole = "\n".join("".join(c["source"]) for c in merged["cells"])
    old = {line for c in was for line in c["source"].split("\n")}
    for who, cells in zip(("ours", "theirs"), sides):
        new = {line for c in cells for line in c["source"].split("\n")} - old
        lost = [line for line in new if line not in whole]
        assert not lost, (who, lost, as_text(merged))
    assert bool(conflicts) == bool(MARKS.search(whole)), (conflicts, as_text(merged))
    assert merge(plain[0], plain[1], plain[1]) == (plain[1], []), "equal sides are the result"
    assert merge(plain[0], plain[0], plain[2]) == merge(plain[0], plain[2], plain[0]) == (plain[2], []), "the side that changed is the result"


# Clean

def dirty(seed: int) -> dict:
    rng = random.Random(seed)
    cells = [cell(f"c{i}", f"x{i} = 1\ny = object()", collapsed=True, tags=["a"], hide_input=True) for i in range(4)] + [note("m", "text\n")]
    for i, c in enumerate(cells[:4]):
        c["execution_count"] = rng.randrange(9)
        c["outputs"] = [new_output("execute_result", {"text/plain": "<object object at 0x7f00aa>\n<a> b", "image/png": "aGk=\n\n", "text/html": ["<b at 0x12>", "x"]}, execution_count=3),
                        new_output("stream", name="stdout", text="<function f at 0xdead>\n"), new_output("error", ename="E", evalue="v", traceback=["t"])][:i]
    return book(cells, kernelspec=dict(name="python3", display_name="Python 3 (ipykernel)", language="python"), language_info=dict(name="python"), widgets=dict(x=1), vscode=dict(y=2))


@pytest.mark.parametrize("settings", [{}, dict(allowed_cell_metadata_keys="tags", allowed_metadata_keys="vscode"), dict(clean_ids="False"), dict(clear_all="True")])
def test_the_filter_cleans_as_nbdev_does(settings):
    from execnb.nbio import dict2nb, nb2str
    from nbdev.clean import clean_nb
    for seed in range(3):
        nb = json.loads(nbformat.writes(dirty(seed)))
        theirs = dict2nb(copy.deepcopy(nb))
        clean_nb(theirs, settings.get("clear_all") == "True", settings.get("allowed_metadata_keys", "").split(), settings.get("allowed_cell_metadata_keys", "").split(),
                 settings.get("clean_ids", "True") == "True")
        assert to_text(clean(nb, settings)) == nb2str(theirs)
        assert clean(clean(nb, settings), settings) == clean(nb, settings)


def test_the_filter_agrees_with_nbdev_on_every_notebook_of_this_repository():
    from execnb.nbio import dict2nb, nb2str
    from nbdev.clean import clean_nb
    for path in sorted((ROOT/"nbs").rglob("*.ipynb")):
        theirs = dict2nb(json.loads(path.read_text()))
        clean_nb(theirs, False, [], ["tags"], True)
        assert to_text(clean(json.loads(path.read_text()), dict(allowed_cell_metadata_keys="tags"))) == nb2str(theirs), path.name


def test_what_runs_leave_behind_never_reaches_a_commit(repository):
    repository.commit(book(b))
    nb = book(b)
    nb["cells"][2]["execution_count"], nb["metadata"] = 12, dict(language_info=dict(name="python"))
    (repository.root/NB).write_text(nbformat.writes(nb))
    assert repository.git("diff", "--stat") == ""
    repository.git("add", ".")
    assert repository.git("status", "--porcelain") == ""


def test_a_diff_shows_cells_and_no_json(repository):
    repository.commit(book(b))
    (repository.root/NB).write_text(nbformat.writes(book(edit(b, "use", "print(a)", "print(a, b)", "1 2\n"))))
    said = repository.git("diff")
    assert "-print(a)\n-#> 1\n+print(a, b)\n+#> 1 2" in said and '"source"' not in said
    assert '"cell_type"' not in said


# Installed

def test_installing_twice_changes_nothing_and_what_is_missing_is_said(repository):
    assert missing_git(repository.root) == [] and install_git(repository.root) == []
    repository.git("config", "--local", "--unset", "merge.mlproj-notebook.driver")
    (repository.root/".git"/"hooks"/"pre-commit").unlink()
    assert missing_git(repository.root) == ["config merge.mlproj-notebook.driver", "hook pre-commit"]
    assert install_git(repository.root) == ["config merge.mlproj-notebook.driver", "hook pre-commit"] and missing_git(repository.root) == []


def test_a_driver_of_a_python_that_is_gone_is_missing(repository):
    repository.git("config", "--local", "merge.mlproj-notebook.driver", "/gone/bin/python -c 'from mlproj.merge import driver; driver()' %O %A %B %P")
    assert missing_git(repository.root) == ["config merge.mlproj-notebook.driver"]


def test_other_peoples_hooks_and_attributes_are_kept(tmp_path):
    repository = Repository(tmp_path/"r", install=False)
    hook = repository.root/".git"/"hooks"/"pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho theirs ran\n")
    hook.chmod(0o755)
    (repository.root/".gitattributes").write_text("*.bin binary\n*.ipynb text\n")
    install_git(repository.root)
    repository.git("add", ".")
    assert "theirs ran" in repository.git("commit", "-m", "x")
    lines = (repository.root/".gitattributes").read_text().splitlines()
    assert lines[0] == "*.bin binary" and sum(line.startswith("*.ipynb ") for line in lines) == 1


@pytest.mark.parametrize("theirs", ["#!/bin/sh\nexit 1\n", "#!/usr/bin/env bash\nexec false\n"])
def test_another_ones_hook_that_refuses_still_refuses_and_ours_runs_too(package, theirs):
    hook = package.root/".git"/"hooks"/"pre-commit"
    hook.write_text(theirs)
    install_git(package.root)
    assert missing_git(package.root) == [] and install_git(package.root) == []
    (package.root/"note.txt").write_text("x")
    package.git("add", "note.txt")
    commit = ["git", "-C", str(package.root), "-c", "user.name=me", "-c", "user.email=me@x.org", "commit", "-m", "x"]
    assert subprocess.run(commit).returncode
    hook.write_text(hook.read_text().replace("exit 1", "exit 0").replace("false", "true"))
    module = package.root/"tiny"/"shape.py"
    module.write_text(module.read_text().replace("a * b", "b * a"))
    package.git("add", "tiny")
    done = subprocess.run(commit, capture_output=True, text=True)
    assert done.returncode and "nothing was committed" in done.stderr


def test_a_hook_in_another_language_is_left_as_it_is(tmp_path):
    repository = Repository(tmp_path/"r", install=False)
    hook = repository.root/".git"/"hooks"/"pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/usr/bin/env python3\nprint('theirs')\n")
    with pytest.raises(MlprojError, match="no shell script"): install_git(repository.root)
    assert hook.read_text() == "#!/usr/bin/env python3\nprint('theirs')\n"


def test_a_folder_without_git_is_told_apart(tmp_path):
    (tmp_path/"settings.ini").write_text(SETTINGS)
    assert missing_git(tmp_path) == []
    with pytest.raises(MlprojError, match="git init"): install_git(tmp_path)


# Before a commit, after a merge

@pytest.fixture
def package(repository) -> Repository:
    "A repository with a notebook and the module that was exported from it, committed."
    (repository.root/"nbs").mkdir()
    nb = book([note("t", "# shape\n\n> Shapes."), cell("d", "#| default_exp shape"), cell("f", "#| export\ndef area(a, b):\n    return a * b"), cell("g", "#| export\ndef edge(a, b):\n    return 2*a + 2*b")])
    (repository.root/"nbs"/"00_shape.ipynb").write_text(nbformat.writes(nb))
    sync(repository.root)
    repository.git("add", ".")
    repository.git("commit", "-qm", "base")
    return repository


def change(path: Path, old: str, new: str):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_commit_with_a_stale_module_is_refused_and_one_in_sync_is_not(package):
    change(package.root/"nbs"/"00_shape.ipynb", "a * b", "b * a")
    package.git("add", ".")
    assert "nbs/00_shape.ipynb, cell 2: tiny/shape.py says something else; run mlproj sync" in package.git("commit", "-m", "stale", code=1)
    sync(package.root)
    package.git("add", ".")
    package.git("commit", "-qm", "fresh")


def test_what_is_staged_counts_not_what_lies_in_the_folder(package):
    change(package.root/"nbs"/"00_shape.ipynb", "a * b", "b * a")
    sync(package.root)
    package.git("add", "nbs")
    assert any("says something else" in said for said in check_staged(package.root))
    package.git("add", "tiny")
    assert check_staged(package.root) == []


def test_modules_follow_merged_notebooks(package):
    package.git("checkout", "-qb", "feature")
    change(package.root/"nbs"/"00_shape.ipynb", "return a * b", "return b * a")
    sync(package.root)
    package.git("commit", "-qam", "theirs")
    package.git("checkout", "-q", "main")
    change(package.root/"nbs"/"00_shape.ipynb", "def area(a, b)", "def area(a, b, scale=1)")
    change(package.root/"nbs"/"00_shape.ipynb", "2*a + 2*b", "2*(a + b)")
    sync(package.root)
    package.git("commit", "-qam", "ours")
    package.git("merge", "-q", "feature", code=1)  # two lines of one cell that touch each other
    nb = package.root/"nbs"/"00_shape.ipynb"
    said = text(json.loads(nb.read_text()), "f")
    assert "<<<<<<< ours" in said and "<<<<<<<" not in (package.root/"tiny"/"shape.py").read_text()
    with pytest.raises(MlprojError, match="nbs/00_shape.ipynb, cell f: has conflict marks"): sync(package.root)
    decided = json.loads(nb.read_text())
    next(c for c in decided["cells"] if c["id"] == "f")["source"] = "#| export\ndef area(a, b, scale=1):\n    return b * a * scale"
    nb.write_text(to_text(clean(decided, {})))
    sync(package.root)
    package.git("add", ".")
    package.git("commit", "-qm", "merged")
    assert "return b * a * scale" in (package.root/"tiny"/"shape.py").read_text() and "2*(a + b)" in (package.root/"tiny"/"shape.py").read_text()
