"Notebooks as functions: what a parameter may be, what a kernel may do, what must be there afterwards. Real kernels."
import json, os, re, subprocess, sys, time
from pathlib import Path

import nbformat
import pytest

from projects import GitProject
from mlproj.notebook_run import find_failure, run_notebook
from mlproj.project import ConfigError, MlprojError, Project
from mlproj.sweep import sweep_notebook

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    monkeypatch.delenv("MLPROJ_STORE", raising=False)
    (tmp_path/"settings.ini").write_text("[DEFAULT]\nlib_name = churn\n")
    return Project.find(tmp_path)


def write(project: Project, *cells: str, parameters: str = "", name: str = "late") -> Path:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s, id=f"c{i}") for i, s in enumerate((parameters, *cells)) if s])
    if parameters: nb.cells[0].metadata["tags"] = ["parameters"]
    path = project.root/"nbs"/f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nb, path)
    return path


def runs(project: Project, name: str = "late") -> list[Path]: return sorted((project.store/"notebooks"/name).glob("2*"))


def events(run: Path) -> list[dict]: return [json.loads(line) for line in (run/"events.jsonl").read_text().splitlines()]


def ends(project, *cells, parameters="", **more) -> str:
    "What a notebook that does not end well is refused with."
    with pytest.raises(MlprojError) as caught: run_notebook(write(project, *cells, parameters=parameters), (), project, say=lambda text: None, **more)
    return str(caught.value)


def test_the_notebook_sees_what_was_given_and_the_page_says_it(project):
    path = write(project, "print(lr, name, sizes)", parameters="lr = 0.1\nname = 'a'\nsizes: list[int] = [1]")
    run = run_notebook(path, ["lr=1", "name='x y'", "sizes=[3,4]"], project)
    nb = nbformat.read(run/"output.ipynb", 4)
    assert nb.cells[2].outputs[0].text == "1.0 x y [3, 4]\n"
    facts = json.loads((run/"parameters.json").read_text())
    assert facts["parameters"] == dict(lr=1.0, name="x y", sizes=[3, 4])
    assert nb.cells[1].source.splitlines()[0] == f"# parameters, sha256 {facts['sha256']}"
    page = (run/"output.html").read_text()
    assert facts["sha256"][:12] in page and "http" not in page and "<script" not in page
    assert [e["event"] for e in events(run)] == ["started", "finished"] and events(run)[-1]["status"] == "succeeded"
    assert nbformat.read(path, 4).cells[1].outputs == []  # the source is as it was


def test_equal_parameters_have_equal_hashes_wherever_the_outputs_go(project):
    path = write(project, "1", parameters="lr = 0.1\nrun_folder = '.'")
    a, b, c = (json.loads((run_notebook(path, o, project)/"parameters.json").read_text())["sha256"] for o in ([], ["lr=0.1"], ["lr=0.2"]))
    assert a == b != c


def test_a_wrong_parameter_starts_no_kernel_and_leaves_no_run(project, monkeypatch):
    import mlproj.notebook_run as module
    monkeypatch.setattr(module, "execute_watched", lambda *a, **k: pytest.fail("a kernel was started"))
    path = write(project, "1", parameters="lr = 0.1\nepochs = 3\nfolder = str(1)")
    for given, said in {"lrr=1": "do you mean lr?", "epochs=2.5": "could not be converted to Integer", "lr=fast": "could not be converted to Float", "folder=a": "its type is unknown"}.items():
        with pytest.raises(ConfigError, match=re.escape(said)): run_notebook(path, [given], project)
        with pytest.raises(ConfigError, match=re.escape(said)): sweep_notebook(path, [given], project)
    assert not runs(project)


def test_a_notebook_without_parameters_takes_none(project):
    with pytest.raises(ConfigError, match="'lr' is unknown.*tag a cell with `parameters`"): run_notebook(write(project, "1"), ["lr=1"], project)
    assert run_notebook(write(project, "1"), [], project).is_dir()


def test_relative_paths_are_those_of_the_notebook_and_the_package_of_the_project_is_found(project):
    (project.root/"nbs").mkdir()
    (project.root/"nbs"/"raw.txt").write_text("17")
    (project.root/"churn.py").write_text("LATE = 15\n")
    run = run_notebook(write(project, "import churn\nprint(open('raw.txt').read(), churn.LATE)"), (), project)
    assert nbformat.read(run/"output.ipynb", 4).cells[0].outputs[0].text == "17 15\n"


@pytest.mark.parametrize("code, said", [("pass", "a.csv was not written"), ("open(out/'a.csv', 'w')", "a.csv is empty"), ("open(out/'a.csv', 'w').write('x,y\\n')", "a.csv has no rows")])
def test_a_promised_output_that_is_not_there_or_holds_nothing_is_a_failure(project, code, said):
    assert said in ends(project, "import os, pathlib\nout = pathlib.Path(os.environ['MLPROJ_RUN'])", f"#| outputs: a.csv\n{code}")
    assert events(runs(project)[-1])[-1]["status"] == "failed"


def test_a_kernel_that_ends_is_told_from_one_that_was_killed(project):
    assert "cell 1: the kernel ended with exit code 3" in ends(project, "import os; os._exit(3)")
    assert "cell 2: the kernel was killed by SIGKILL" in ends(project, "import os", "os.kill(os.getpid(), 9)", "print('never')")
    kept = nbformat.read(runs(project)[-1]/"output.ipynb", 4)
    assert [c.execution_count for c in kept.cells][0] == 1 and not kept.cells[2].outputs


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="Linux only")
def test_a_stopped_kernel_is_noticed_and_killed(project):
    said = ends(project, "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", idle=1.)
    assert "cell 1: hangs: no output and no work for 1 s" in said


def test_a_cell_that_takes_the_interrupt_for_its_own_does_not_let_the_next_one_hang(project):
    said = ends(project, "import time\ntry: time.sleep(1000)\nexcept KeyboardInterrupt: pass", "time.sleep(1000)", idle=1.)
    assert "cell 1: hangs: no output and no work for 1 s" in said


def test_a_kernel_that_ended_is_a_failure_wherever_it_was():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("lr = 1", metadata=dict(tags=["injected-parameters"]))])
    assert find_failure(notebook, "the kernel ended", 0).said == "the kernel ended" and find_failure(notebook) is None


def test_a_cell_that_works_in_silence_or_whose_child_does_is_not_hung(project):
    busy = "import time\nend = time.time() + 3\nwhile time.time() < end: pass"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {busy!r}], check=True)"
    assert run_notebook(write(project, busy, child), (), project, idle=1.).is_dir()


def test_a_cell_has_the_limit_that_it_asks_for(project):
    assert "took longer than its limit of 0.5 s" in ends(project, "#| timeout: 0.5\nwhile True: pass")


def test_the_failing_cell_is_shown_with_its_line_and_the_projects_own_frames(project):
    (project.root/"churn.py").write_text("def share(n):\n    return 1/n\n")
    said = []
    with pytest.raises(MlprojError, match="cell 3: ZeroDivisionError: division by zero"):
        run_notebook(write(project, "import churn", "#| eval: false\nraise ValueError", "n = 0\nchurn.share(n)", parameters=""), (), project, say=said.append)
    assert ">   2  churn.share(n)" in said[0] and "churn.py, line 2, in share" in said[0] and "papermill" not in said[0] and "nbclient" not in said[0]


def test_a_notebook_may_end_itself_and_says_so(project):
    said = []
    run_notebook(write(project, "import sys; sys.exit(0)", "1", "2"), (), project, say=said.append)
    assert "ended by sys.exit(); 2 cells after it were not run" in said[0]
    assert "cell 1: SystemExit: 2" in ends(project, "import sys; sys.exit(2)")


def test_jobs_of_a_sweep_go_on_when_one_fails_and_the_launcher_may_be_joblib(project):
    path, said = write(project, "#| outputs: a.txt\nopen(run_folder + '/a.txt', 'w').write(str(1/(lr - 2)))", parameters="lr = 0.1\nrun_folder = '.'"), []
    with pytest.raises(MlprojError, match="ZeroDivisionError"):
        sweep_notebook(path, ["-m", "lr=1,2,3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], project, said.append)
    assert sorted(events(r)[-1]["status"] for r in runs(project)) == ["failed", "succeeded", "succeeded"]
    assert sorted(json.loads((r/"parameters.json").read_text())["parameters"]["lr"] for r in runs(project)) == [1, 2, 3]


def test_a_text_of_digits_stays_as_it_was_written(project):
    path = write(project, "print(version)", parameters="version: str = '1.0'")
    said = lambda *args: [json.loads((r/"parameters.json").read_text())["parameters"]["version"] for r in sweep_notebook(path, args, project, say=lambda text: None)]
    assert said("version=1.10") == ["1.10"] and said("-m", "version=007,true,b") == ["007", "true", "b"] and said("version='1.20,3'") == ["1.20,3"]


def test_a_notebook_that_asks_for_it_gets_the_config_of_a_run(project, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = write(project, "print(config['model']['_target_'], config['seed'], lr)", parameters="config: dict = {}\nlr = 0.1")
    run, = sweep_notebook(path, ["model=linear", "seed=7", "lr=0.2"], project)
    assert nbformat.read(run/"output.ipynb", 4).cells[2].outputs[0].text == "mlproj.train.baseline.Linear 7 0.2\n"
    with pytest.raises(ConfigError, match="do you mean train?"): sweep_notebook(path, ["trian.max_epochs=1"], project)
    with pytest.raises(ConfigError, match="parameter 'seed' is a key of the config as well"): sweep_notebook(write(project, "1", parameters="config: dict = {}\nseed = 0"), [], project)


def test_when_the_process_is_terminated_its_kernel_ends_and_the_run_is_interrupted(project):
    path = write(project, "import time, os, pathlib\npathlib.Path('pid').write_text(str(os.getpid()))\nwhile True: time.sleep(.1)")
    code = "import signal, sys\nfrom mlproj.notebook_run import run_notebook\nsignal.signal(signal.SIGTERM, lambda *a: sys.exit(143))\nrun_notebook(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=project.root, env=os.environ | dict(PYTHONPATH=str(ROOT)), stderr=subprocess.DEVNULL)
    pid = project.root/"nbs"/"pid"
    while not (pid.exists() and pid.read_text()): time.sleep(.1)
    process.terminate()
    assert process.wait(30) == 143
    deadline = time.time() + 15
    while Path(f"/proc/{pid.read_text()}").exists() and time.time() < deadline: time.sleep(.1)
    assert not Path(f"/proc/{pid.read_text()}").exists()
    assert events(runs(project)[-1])[-1]["status"] == "interrupted"


def test_two_runs_at_once_do_not_meet(project):
    path = write(project, "import time; time.sleep(.5)\nprint(lr)", parameters="lr = 0.1")
    found, threads = {}, []
    for lr in (1., 2.):
        process = subprocess.Popen([sys.executable, "-c", "import sys\nfrom mlproj.notebook_run import run_notebook\nprint(run_notebook(sys.argv[1], [sys.argv[2]]))", str(path), f"lr={lr}"],
                                   cwd=project.root, env=os.environ | dict(PYTHONPATH=str(ROOT)), stdout=subprocess.PIPE, text=True)
        threads.append((lr, process))
    for lr, process in threads: found[lr] = nbformat.read(Path(process.communicate(timeout=60)[0].strip())/"output.ipynb", 4).cells[2].outputs[0].text
    assert found == {1.: "1.0\n", 2.: "2.0\n"}


def test_notebooks_of_the_config_follow_a_run(tmp_path, monkeypatch):
    monkeypatch.delenv("MLPROJ_STORE", raising=False)
    made = GitProject.make(tmp_path/"made")
    write(made.project, "#| outputs: worst.csv\nimport json; from pathlib import Path", "card = json.loads((Path(run)/'stages'/'evaluate'/'scorecard.json').read_text())",
          "Path(run_folder, 'worst.csv').write_text('slice\\n' + '\\n'.join(s['value'] for s in card['slices'][:limit]))", parameters="run: str = ''\nrun_folder: str = ''\nlimit: int = 3")
    given = lambda limit: f"notebooks=[{{path: nbs/late.ipynb, parameters: {{limit: {limit}}}}}]"
    folder = made.run("evaluate.slices=[carrier]", given(2), "--until", "notebooks").stage_folder("notebooks")
    assert len((folder/"late"/"worst.csv").read_text().splitlines()) == 3 and (folder/"late"/"output.html").exists()
    with pytest.raises(AssertionError, match="parameter limit"): made.run("evaluate.slices=[carrier]", "seed=3", given("many"), "--until", "notebooks")
    assert not any(e["stage"] == "train" for e in made.ledger.get().events("stage"))  # refused before anything is trained
