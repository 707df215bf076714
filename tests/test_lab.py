"Runs from a notebook: they outlive the kernel that started them."
import os, platform, signal, time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from projects import OVERRIDES, GitProject

from mlproj.lab import RunHandle, attach, start
from mlproj.ledger import Ledger, utc_now
from mlproj.project import MlprojError, Project

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--until", "evaluate", *OVERRIDES]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> GitProject: return GitProject.make(tmp_path_factory.mktemp("lab")/"project", fraction=0.02)


@pytest.fixture
def kernel(project, monkeypatch):
    "A real kernel in the project's folder; yields its manager and a function that runs a cell and returns what it gives: texts and the last value."
    from jupyter_client.manager import start_new_kernel
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MLPROJ_STORE", raising=False)
    manager, client = start_new_kernel(cwd=str(project.folder))
    def run(code: str):
        said = []
        reply = client.execute_interactive(code, timeout=300, output_hook=lambda m: said.append((m["msg_type"], m["content"])))
        assert reply["content"]["status"] == "ok", said
        return said
    yield manager, run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def texts(said) -> str: return "".join(c["text"] for kind, c in said if kind == "stream") + " ".join(c["data"].get("text/plain", "") for _, c in said if "data" in c)


def test_a_run_goes_on_when_the_kernel_is_restarted(kernel, project):
    manager, run = kernel
    run(f"from mlproj.lab import start\nhandle = start(*{SMALL})")
    said = run("import time\nwhile not handle.progress.run: time.sleep(.05)\nprint(handle.process.pid, handle.progress.status)")
    pid, status = texts(said).split()
    assert status == "running"
    manager.interrupt_kernel()  # as the stop button does: to all of its session
    time.sleep(.5)
    manager.restart_kernel(now=True)
    run("1")
    os.kill(int(pid), 0)  # it is still there
    assert texts(run("from mlproj.lab import attach\nprint(attach().wait(300).status)")).strip() == "succeeded"
    assert project.ledger.get().status == "succeeded"
    assert project.ledger.get().events()[0]["pid"] == int(pid)


def test_a_shown_run_is_kept_up_to_date_below_its_cell(kernel):
    _, run = kernel
    said = run(f"from mlproj.lab import start\nhandle = start(*{SMALL}, 'seed=1')\nhandle")
    first = next(c for kind, c in said if kind == "display_data")
    assert "text/html" in first["data"]
    said = run("handle.wait(300)\nimport time; time.sleep(1)\nprint('ended')")
    updates = [c for kind, c in said if kind == "update_display_data" and c["transient"]["display_id"] == first["transient"]["display_id"]]
    assert "running" in updates[0]["data"]["text/html"] and "succeeded" in updates[-1]["data"]["text/html"]
    assert "evaluate" in updates[-1]["data"]["text/html"]


def test_a_run_is_stopped_as_by_ctrl_c(project, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    handle = start(*SMALL, "seed=2", project=project.project)
    while not handle.progress.run: time.sleep(.02)
    handle.stop()
    with pytest.raises(MlprojError, match="ended as interrupted"): handle.wait(60)
    assert project.ledger.get(handle.run.id).status == "interrupted"


def test_a_killed_run_is_told_from_one_that_works(project, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    handle = start(*SMALL, "seed=3", project=project.project)
    while not handle.progress.run: time.sleep(.02)
    assert attach(handle.run.id, project.project).progress.status == "running"
    os.kill(handle.process.pid, signal.SIGKILL)
    with pytest.raises(MlprojError, match="ended as killed"): attach(handle.run.id, project.project).wait(60)


def test_what_a_process_said_last_is_the_error_of_a_run_that_never_began(project):
    handle = start("model=mpl", project=project.project)
    with pytest.raises(MlprojError, match="ended as failed: mlproj: .*model/mpl"): handle.wait(60)


def test_an_older_run_of_a_process_with_the_same_number_is_not_taken_for_ours(tmp_path):
    process, store = SimpleNamespace(pid=os.getpid(), poll=lambda: None), Project(tmp_path, "")
    ledger = Ledger(store.store/"runs")
    ledger.start({}, [], utc_now() - timedelta(hours=1))
    handle = RunHandle(store, tmp_path/f"{utc_now():%Y%m%d-%H%M%S}-ab.log", process=process)
    assert handle.progress.run == ""
    ours = ledger.start({}, [])
    assert handle.progress.run == ours.id


def test_a_run_of_another_machine_is_not_stopped_by_the_number_of_its_process(tmp_path, monkeypatch):
    run = Ledger(tmp_path/"runs").start({}, [])
    path = run.path/"events.jsonl"
    path.write_text(path.read_text().replace(f'"host": "{platform.node()}"', '"host": "elsewhere"'))
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a process of ours was sent a signal"))
    with pytest.raises(MlprojError, match="runs on elsewhere"): RunHandle(Project(tmp_path, ""), tmp_path/"x.log", run).stop()
