"Shared by the tests: the command as a process, in folders of its own."
import json, os, subprocess, sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlproj.project import python_path

ROOT = Path(__file__).resolve().parents[1]
# one flight in fifty, one epoch: seconds. So few rows can show no gain, so the gate asks for none.
SMALL = ["data.source.fraction=0.02", "train=quick", "train.accelerator=cpu", "tracking=disabled", "evaluate.replicates=20",
         "gate.criteria.validation_gain.at_least=-1", "gate.criteria.test_gain.at_least=-1"]


@dataclass
class Shell:
    "The command `mlproj`, with its store, its registry and its contract in a folder of the test."
    folder: Path

    @property
    def env(self) -> dict:
        # the checkout comes first, so that a test never runs an older, installed copy; then modules that a test writes
        return {**os.environ, "MLPROJ_STORE": str(self.folder/"store"), "BENTOML_HOME": str(self.folder/"bentoml"), "PYTHONPATH": python_path(ROOT, self.folder), "BENTOML_DO_NOT_TRACK": "True", "OMP_NUM_THREADS": "1"}

    @property
    def contract(self) -> Path: return self.folder/"contract.yaml"

    def small(self, *overrides) -> list[str]:
        "The arguments of a small run."
        return ["run", *SMALL, f"data.contract={self.contract}", *overrides]

    def start(self, *args, **more) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", "mlproj.cli", *args], cwd=ROOT, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)

    def __call__(self, *args, timeout=300) -> subprocess.CompletedProcess:
        process = self.start(*args)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def runs(self) -> list[Path]: return sorted((self.folder/"store"/"runs").iterdir()) if (self.folder/"store"/"runs").is_dir() else []

    def events(self, run: Path | None = None) -> list[dict]:
        "The events of a run, by default of the latest."
        runs = self.runs()
        path = (run or runs[-1])/"events.jsonl" if run or runs else None
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path and path.exists() else []

    def half_written(self) -> list[str]:
        "Temporary files and folders that something left behind."
        return [str(p) for p in self.folder.rglob(".*") if p.name != ".lock" and "wandb" not in p.parts]


@pytest.fixture
def mlproj(tmp_path) -> Shell: return Shell(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Shell:
    "A shell in whose folder one small run has succeeded."
    shell = Shell(tmp_path_factory.mktemp("trained"))
    done = shell(*shell.small("tracking=offline"))
    assert done.returncode == 0, done.stdout + done.stderr
    shell.output, shell.run = done.stdout, shell.runs()[-1]  # other tests add runs to the folder
    return shell
