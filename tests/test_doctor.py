"The doctor, on machines and environments that are really ill."
import json, os, shutil, socket, subprocess, sys, time
from pathlib import Path

import pytest

from mlproj.doctor import Machine, examine
from mlproj.project import Project

ROOT = Path(__file__).resolve().parents[1]
LOOK = "import json, sys\nfrom dataclasses import asdict\nfrom mlproj.doctor import examine\nfrom mlproj.project import Project\nfound = examine(Project.find())\n"
TELL = "print(json.dumps([asdict(f) for f in found]))"


@pytest.fixture
def churn(tmp_path) -> Path:
    "A project with nothing in it."
    (tmp_path/"churn").mkdir()
    (tmp_path/"churn"/"settings.ini").write_text("[DEFAULT]\nlib_name = churn\n")
    return tmp_path/"churn"


def seen_from(folder, *before, python=sys.executable, code=LOOK + TELL, **environ) -> dict[str, dict]:
    "What a new process finds there, by name; the last finding of each."
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    done = subprocess.run([*before, python, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return {f["name"]: f for f in json.loads(done.stdout.splitlines()[-1])}


def alone(*command) -> list[str]:
    "A command that mounts something in a namespace of its own, and then runs what follows."
    before = ["unshare", "-m", "sh", "-c", " && ".join(command) + ' && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*before, "true"], capture_output=True).returncode: pytest.skip("this machine lets nobody mount")
    return before


def test_a_healthy_environment_has_no_error(churn):
    found = seen_from(churn)
    assert [f for f in found.values() if f["status"] == "error"] == []
    assert {"python", "mlproj", "pins", "torch", "threads", "memory", "store", "bentoml", "disk", "clock", "ports", "tracking", "kernel", "git", "exports"} <= found.keys()


def test_nothing_heavy_is_imported(churn):
    code = LOOK + "print(json.dumps([dict(name=m) for m in ('torch', 'wandb', 'hydra', 'bentoml', 'pytorch_lightning', 'nbdev', 'polars') if m in sys.modules]))"
    assert seen_from(churn, code=code) == {}


def test_the_modules_of_this_repository_are_those_of_its_notebooks():
    [found] = [f for f in examine(Project(ROOT, "mlproj")) if f.name == "exports"]
    assert found.status == "ok", found.said


def test_another_checkout_that_python_imports_is_named(tmp_path):
    shutil.copytree(ROOT/"mlproj", tmp_path/"other"/"mlproj", ignore=shutil.ignore_patterns("__pycache__"))
    found = seen_from(ROOT/"tests", PYTHONPATH=str(tmp_path/"other"))["mlproj"]
    assert found["status"] == "error" and f"imported from {tmp_path}/other/mlproj" in found["said"]
    assert found["mend"].endswith(f"-m pip install -e {ROOT}")


def test_a_command_of_another_python_is_named(tmp_path, churn):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path/"other"], check=True)
    command = tmp_path/"other"/"bin"/"mlproj"
    command.write_text(f"#!{tmp_path}/other/bin/python3\n")
    command.chmod(0o755)
    found = seen_from(churn, PATH=f"{tmp_path}/other/bin{os.pathsep}{os.environ['PATH']}")["command"]
    assert found["status"] == "warning" and f"runs {tmp_path}/other/bin/python3" in found["said"]
    assert found["mend"] == f"export PATH={Path(sys.executable).parent}:$PATH"


def test_a_package_that_is_not_the_pinned_one_is_named_with_the_command_that_installs_it(churn):
    import numpy
    (churn/"constraints.txt").write_text(f"numpy==1.0.0\npolars>=1\npytest=={pytest.__version__}\n")
    found = seen_from(churn)["pins"]
    assert (found["status"], found["said"]) == ("warning", f"numpy is {numpy.__version__}, pinned 1.0.0")
    assert found["mend"].endswith("constraints.txt numpy==1.0.0")


def test_a_cpu_build_of_torch_beside_a_gpu_is_named(tmp_path, churn):
    (tmp_path/"machine"/"dev").mkdir(parents=True)
    (tmp_path/"machine"/"dev"/"nvidia0").touch()
    [found] = [f for f in examine(Project.find(churn), Machine(tmp_path/"machine", {"PATH": os.environ["PATH"]})) if f.name == "torch"]
    import torch.version
    if torch.version.cuda: pytest.skip("torch is no CPU build here")
    assert found.status == "warning" and "CPU build, on a machine with a GPU" in found.said and "pip install" in found.mend


def test_a_full_disk_and_one_that_cannot_be_written_are_errors(tmp_path, churn):
    (churn/".mlproj").mkdir()
    full = seen_from(churn, *alone(f"mount -t tmpfs -o size=1m tmpfs {churn}/.mlproj"), code=LOOK.replace("examine(Project.find())", "[f for f in examine(Project.find()) if f.status == 'error']") + TELL)
    assert full.keys() == {"disk"} and f"0.0 GiB free in {churn}/.mlproj" in full["disk"]["said"]
    fixed = seen_from(churn, *alone(f"mount -t tmpfs -o size=1m tmpfs {churn}/.mlproj", f"mount -o remount,ro {churn}/.mlproj"))["store"]
    assert fixed["status"] == "error" and fixed["said"] == f"{churn}/.mlproj cannot be written (Read-only file system)"
    assert "MLPROJ_STORE" in fixed["mend"]


def test_a_disk_without_room_for_another_file_is_an_error(churn):
    (churn/".mlproj").mkdir()
    code = LOOK.replace("examine(Project.find())", "[f for f in examine(Project.find()) if f.status == 'error']") + TELL
    found = seen_from(churn, *alone(f"mount -t tmpfs -o size=20g,nr_inodes=50 tmpfs {churn}/.mlproj"), code=code)["disk"]
    assert "files can be made in" in found["said"]


def test_who_has_the_port_is_named(churn):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0: break
            time.sleep(0.05)
        from mlproj.doctor import check_ports
        [found] = [f for f in check_ports(Project.find(churn), Machine(), [port]) if f.status != "ok"]
        assert f"port {port} is taken by process {server.pid}: " in found.said and "http.server" in found.said
        assert f"kill {server.pid}" in found.mend
    finally:
        server.kill()
        server.wait()


def test_a_server_of_wandb_that_never_answers_is_not_waited_for(churn):
    (churn/"conf").mkdir()
    (churn/"conf"/"config.yaml").write_text("defaults:\n  - tracking: online\n")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = [socket.socket() for _ in range(4)]  # its queue is full: whoever comes now hears nothing at all
        for s in waiting:
            s.setblocking(False)
            s.connect_ex(server.getsockname())
        found = seen_from(churn, WANDB_BASE_URL=f"http://127.0.0.1:{server.getsockname()[1]}", WANDB_API_KEY="x"*40)["tracking"]
        for s in waiting: s.close()
    assert found["status"] == "warning" and "did not answer within a second" in found["said"]


def test_the_command_exits_with_1_for_what_breaks_a_run_and_speaks_json(churn):
    def doctor(*args): return subprocess.run([sys.executable, "-P", "-m", "mlproj.cli", "doctor", *args], cwd=churn, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    well = doctor()
    assert well.returncode == 0, well.stdout + well.stderr
    (churn/"random.py").touch()
    ill = doctor("--json")
    broken = [f for f in json.loads(ill.stdout) if f["status"] == "error"]
    assert ill.returncode == 1 and [f["name"] for f in broken] == ["names"] and ill.stderr.count("\n") == 1
    assert broken[0]["mend"] == f"mv {churn}/random.py {churn}/my_random.py"


def test_fix_registers_the_kernel_of_an_environment_that_has_none(tmp_path, churn):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path/"env"], check=True)
    here, python = [p for p in sys.path if p.endswith("site-packages")], str(tmp_path/"env"/"bin"/"python")
    paths = dict(PYTHONPATH=os.pathsep.join([str(ROOT), *here]), JUPYTER_PREFER_ENV_PATH="1", JUPYTER_DATA_DIR=str(tmp_path/"data"))
    before = seen_from(churn, python=python, **paths)["kernel"]
    assert before["status"] == "warning" and "no kernel python3 is registered" in before["said"]
    code = LOOK.replace("import examine", "import examine, mend") + "mend(found, Project.find()); found = examine(Project.find())\n" + TELL
    after = seen_from(churn, python=python, code=code, **paths)["kernel"]
    assert (after["status"], after["said"]) == ("ok", str(tmp_path/"env"/"share"/"jupyter"/"kernels"/"python3"))


def test_fix_makes_git_ready_for_notebooks(churn):
    subprocess.run(["git", "init", "-q", churn], check=True)
    before = seen_from(churn)["git"]
    assert before["status"] == "warning" and before["mend"] == "mlproj doctor --fix" and before["said"].startswith("not installed: ")
    code = LOOK.replace("import examine", "import examine, mend") + "mend(found, Project.find()); found = examine(Project.find())\n" + TELL
    assert seen_from(churn, code=code)["git"]["status"] == "ok"


def test_a_kernel_of_an_environment_that_is_gone_is_an_error(tmp_path, churn):
    kernel = tmp_path/"jupyter"/"kernels"/"python3"/"kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps(dict(argv=[str(tmp_path/"gone"/"bin"/"python"), "-m", "ipykernel_launcher"])))
    found = seen_from(churn, JUPYTER_PATH=str(tmp_path/"jupyter"))["kernel"]
    assert found["status"] == "error" and f"notebooks run {tmp_path}/gone/bin/python, which is missing" in found["said"]


def test_a_look_that_fails_does_not_end_the_examination(churn):
    (churn/"nbs").mkdir()
    (churn/"nbs"/"00_torn.ipynb").write_text('{"cells": [')
    found = seen_from(churn)
    assert "cannot be looked at" in found["exports"]["said"] and "00_torn.ipynb" in found["exports"]["said"]
    assert found["disk"]["status"] == "ok"
