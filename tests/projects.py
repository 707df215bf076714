"A project of a user under git, with runs that take seconds: the flights, cleaned by functions of its own."
import os, subprocess, sys
from dataclasses import dataclass
from pathlib import Path

from mlproj.examples.flights import dataset
from mlproj.ledger import Ledger, Run
from mlproj.project import Project

ROOT = Path(__file__).resolve().parents[1]
OVERRIDES = ["model=linear", "gate=no_worse", "tracking=disabled", "evaluate.replicates=20", "data.source._target_=cleaning.table", "data.contract=contract.yaml", "data.encoders=encoders.yaml",
             "audit.refuse=false"]
CLEANING = '''"The flights, cleaned."
from pathlib import Path
import polars as pl
from mlproj.data.source import Dataset

DEPARTURE = 1.0
ARRIVAL = 1.0
FAR = 9999

def departure(frame): return frame.with_columns(pl.col("dep_minute")*DEPARTURE)
def arrival(frame): return frame.with_columns(pl.col("arr_minute")*ARRIVAL)
def wind(frame): return frame.with_columns(pl.col("wind_gust").clip(0, 200))
def rain(frame): return frame.with_columns(pl.col("precip").clip(0, 10))
def distance(frame): return frame.with_columns(pl.col("distance").clip(0, FAR))
def carrier(frame): return frame.with_columns(pl.col("carrier").str.to_uppercase())
def weekday(frame): return frame.with_columns(pl.col("weekday").str.strip_chars())
def humidity(frame): return frame.with_columns(pl.col("humid").clip(0, 100))

def steps(): return [departure, arrival, wind, rain, distance, carrier, weekday, humidity]

def table(folder=None, fraction=1.0):
    frame = pl.read_parquet(Path(__file__).parent/"raw.parquet")
    for step in steps(): frame = step(frame)
    return Dataset(frame)
'''


@dataclass
class GitProject:
    "A folder under git with its own store; `raw.parquet` holds one flight in `every`, and is tracked."
    folder: Path

    @classmethod
    def make(cls, folder: Path, fraction: float = 0.05) -> "GitProject":
        folder.mkdir(parents=True)
        (folder/"settings.ini").write_text("[DEFAULT]\nlib_name = cleaning\n")
        (folder/".gitignore").write_text(".mlproj/\n__pycache__/\n")
        dataset(fraction=fraction).frame.write_parquet(folder/"raw.parquet")
        (folder/"cleaning.py").write_text(CLEANING)
        project = cls(folder)
        project.git("init", "-q", "-b", "main")
        project.commit("first")
        return project

    @property
    def project(self) -> Project: return Project.find(self.folder)
    @property
    def ledger(self) -> Ledger: return Ledger(self.folder/".mlproj"/"runs")

    def git(self, *args) -> str:
        return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false", *args], cwd=self.folder, check=True, capture_output=True, text=True).stdout

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", message)

    def edit(self, path: str, *changes: tuple[str, str]) -> None:
        "Replace texts that stand in a file once."
        text = (self.folder/path).read_text()
        for old, new in changes:
            assert text.count(old) == 1, (path, old, text.count(old))
            text = text.replace(old, new)
        (self.folder/path).write_text(text)

    def run(self, *overrides: str) -> Run:
        env = {k: v for k, v in os.environ.items() if k != "MLPROJ_STORE"} | dict(PYTHONPATH=str(ROOT), BENTOML_DO_NOT_TRACK="True")
        done = subprocess.run([sys.executable, "-m", "mlproj.cli", "run", "--until", "evaluate", *OVERRIDES, *overrides], cwd=self.folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.ledger.get()
