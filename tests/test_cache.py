"What is not run again, and what is: by edits of code, config, files, data and packages; after kills, damage and beside other runs."
import json, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest

from conftest import ROOT, Shell
from mlproj import pipeline
from mlproj.config import compose
from mlproj.ledger import Cache, verify_cache
from mlproj.project import Project

ALL = [s.name for s in pipeline.STAGES if s.name not in ("calibrate", "report", "notebooks")]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A project whose own mlproj/ is a copy of ours, to be edited; nothing of it is imported."
    root = tmp_path_factory.mktemp("copy")
    for name in ("mlproj", "conf"): shutil.copytree(ROOT/name, root/name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT/"settings.ini", root)
    return root


def keys(root: Path, *overrides) -> dict[str, str]:
    "The key of each stage, as if every stage before it had made what it always makes."
    c = pipeline.Context(compose(overrides), Project(root, "mlproj"), None, None)
    c.manifests = {s.name: dict(content="same") for s in pipeline.STAGES}
    return {s.name: pipeline.key_of(pipeline.stage_fingerprint(c, s)) for s in c.stages}


def run_again(before: dict, after: dict) -> set[str]: return {name for name in after if before.get(name) != after[name]}


# what each change must reach at least, and what it must leave alone
CODE = {
    "a helper of a helper of the dataset": ("examples/flights.py", "(pl.col(column)//100*60", "(pl.col(column)//100*61", {"data"}, {"contract", "features", "train"}),
    "the label's limit": ("examples/flights.py", 'pl.col("arr_delay") > 15', 'pl.col("arr_delay") > 20', {"data"}, {"contract", "split", "train"}),
    "a constant of the dataset": ("examples/flights.py", '"plane_year", "manufacturer"', '"manufacturer", "plane_year"', {"data"}, {"train"}),
    "the digest of a table": ("data/snapshot.py", "return digest.hexdigest()", "return digest.hexdigest()[::-1]", {"data"}, {"gate"}),
    "the audit's limit": ("data/leakage.py", "VIEWS, RARE = 3, 50", "VIEWS, RARE = 3, 60", {"audit"}, {"data", "contract", "split", "features", "train"}),
    "how missing numbers are filled": ("train/features.py", "def _scaled(g: GraphBuilder, value: str, mean, scale, missing) -> str:", "def _scaled(g: GraphBuilder, value: str, mean, scale, missing=0) -> str:", {"features"}, {"data", "contract", "audit", "train"}),  # train runs again if the graph is another one
    "the iterations of the baseline": ("train/baseline.py", "max_iter: int = 300", "max_iter: int = 301", {"baseline", "evaluate"}, {"data", "contract", "features", "train"}),
    "a layer of the network": ("train/network.py", "nn.init.normal_(table.weight, std=0.05)", "nn.init.normal_(table.weight, std=0.06)", {"train", "evaluate", "bundle"}, {"data", "features", "baseline"}),
    "how an epoch is chosen": ("train/fit.py", 'return dict(binary=("average_precision", "max")', 'return dict(binary=("average_precision", "min")', {"train"}, {"data", "features", "baseline"}),
    "what a bundle holds": ("serve/bundle.py", "FORMAT = ", "FORMAT = 1 + ", {"bundle"}, {"data", "features", "train", "evaluate", "gate"}),
}
HARMLESS = {
    "a comment": ("train/features.py", "\ndef fit_features(", "\n# which encoder, and why\ndef fit_features("),
    "a docstring": ("data/split.py", '"""', '"""Changed words. '),
    "blank lines": ("train/network.py", "\nclass TabularMLP(", "\n\n\nclass TabularMLP("),
    "an annotation": ("train/baseline.py", "C: float = 1.0", "C: int = 1.0"),
    "a function nobody calls": ("train/evaluate.py", "\ndef by_slice(", "\ndef nobody_calls_this(x): return x + 1\n\ndef by_slice("),
    "a class nobody uses": ("data/contract.py", "\ndef infer_contract(", "\nclass Unused:\n    limit = 3\n\ndef infer_contract("),
    "the page of the browser": ("serve/web.py", "<html", "<html data-x"),
    "the service": ("serve/service.py", "\nimport ", "\nSLOWER = 7\nimport "),
    "a command": ("cli.py", "\nHYDRA = ", "\nEXTRA = 1\nHYDRA = "),
    "drift": ("watch/drift.py", "\nimport ", "\nEXTRA = 1\nimport "),
}
CONFIG = {
    "data.source.fraction=0.5": {"data"}, "split.train_before=2013-08-15": {"contract", "split", "evaluate"}, "seed=3": {"audit", "features", "train", "evaluate", "bundle"},
    "baseline.C=2": {"baseline", "evaluate"}, "model.hidden=32": {"train", "evaluate", "bundle"}, "train.max_epochs=3": {"train"}, "evaluate.replicates=300": {"evaluate"},
    "gate.criteria.test_gain.at_least=0.02": {"split", "gate"}, "package.golden_rows=500": {"bundle"}, "audit.accept=[distance]": {"audit"}, "data.units.distance=km": {"contract", "split"},
    "task.threshold=0.4": {"split"}, "tracking=disabled": set(), "registry.promote=false": {"registry"}, "data.card.question=Late?": set(), "audit.refuse=false": set(),
}


@pytest.mark.parametrize("edit", [*CODE, *HARMLESS])
def test_an_edit_of_our_own_code_reaches_the_stages_that_it_can_change_and_no_other(copy, edit):
    file, old, new, reached, left = CODE[edit] if edit in CODE else (*HARMLESS[edit], set(), set(ALL) - {"registry"})
    path = copy/"mlproj"/file
    source, before = path.read_text(), keys(copy)
    assert old in source, f"{file} no longer has {old!r}"
    try:
        path.write_text(source.replace(old, new, 1))
        again = run_again(before, keys(copy))
    finally: path.write_text(source)
    assert reached <= again and not left & again, again
    assert keys(copy) == before  # and back


@pytest.mark.parametrize("override", CONFIG)
def test_a_key_of_the_config_reaches_exactly_the_stages_that_read_it(copy, override):
    again = run_again(keys(copy), keys(copy, override))
    assert again & CONFIG[override] == CONFIG[override], again
    # beside those named, only stages that load by it what they build on
    loads = {"split": {"audit", "features", "baseline", "train", "evaluate", "bundle"}, "baseline": {"evaluate"}, "model": {"evaluate", "bundle"}}
    assert again <= CONFIG[override] | loads.get(override.split(".")[0], set()), again


def test_another_version_of_a_package_reaches_the_stages_whose_code_imports_it(copy, monkeypatch):
    real, before = pipeline.distributions, keys(copy)
    def as_if(name, version): monkeypatch.setattr(pipeline, "distributions", lambda *given: {k: version if k == name else v for k, v in real(*given).items()})
    as_if("scikit-learn", "0.1")
    assert "baseline" in (again := run_again(before, keys(copy))) and not {"data", "train", "contract"} & again
    as_if("pytorch-lightning", "0.1")
    assert "train" in (again := run_again(before, keys(copy))) and not {"data", "baseline", "contract"} & again
    as_if("polars", "0.1")
    assert {"data", "contract", "features", "evaluate"} <= run_again(before, keys(copy))
    as_if("jupyterlab", "0.1")
    assert not run_again(before, keys(copy))


def test_the_contract_and_the_encoders_reach_the_stages_that_read_them(copy):
    before = keys(copy)
    for file, stage in (("contracts", "contract"), ("encoders", "features")):
        path = copy/"conf"/file/"flights.yaml"
        text = path.read_text()
        path.write_text(text + "# a word\n")
        assert run_again(before, keys(copy)) == {stage}
        path.write_text(text)


def stages(shell, run=None) -> dict[str, dict]: return {e["stage"]: e for e in shell.events(run) if e["event"] == "stage"}
def made(shell, run=None) -> set[str]: return {name for name, e in stages(shell, run).items() if not e["cached"]} - {"registry"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "A shell in which a small linear run has succeeded, twice: from the second on, contract and encoders are there."
    shell = Shell(tmp_path_factory.mktemp("cached"))
    for _ in range(2):
        ended = shell(*shell.small("model=linear"))
        assert ended.returncode == 0, ended.stderr
    return shell


def test_a_run_that_is_known_makes_nothing_and_imports_no_library_of_tables_or_models(done):
    args = [sys.executable, "-X", "importtime", "-m", "mlproj.cli", *done.small("model=linear")]
    ended = subprocess.run(args, cwd=ROOT, env=done.env, capture_output=True, text=True)
    assert ended.returncode == 0 and not made(done), ended.stderr[-500:]
    assert all(line.split()[1] == "cached" for line in ended.stdout.splitlines() if line.split(" ")[0] in ALL and not line.startswith("registry"))
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ended.stderr.splitlines()}
    assert not imported & {"torch", "numpy", "polars", "pytorch_lightning", "wandb", "sklearn", "onnx", "onnxruntime", "bentoml", "deltalake", "papermill", "duckdb"}
    folders = [run/"stages" for run in done.runs()]
    assert {p.name for p in folders[-1].iterdir()} == {p.name for p in folders[0].iterdir()}  # a folder complete by itself
    assert (done.runs()[-1]/"report.html").exists()


def test_a_changed_gate_judges_again_and_trains_nothing(done):
    ended = done(*done.small("model=linear", "gate.criteria.test_gain.at_least=-0.5"))
    assert ended.returncode == 0, ended.stderr
    assert made(done) == {"split", "gate", "report"}  # the split holds the criteria against the task
    assert "because gate.criteria.test_gain.at_least -1 → -0.5" in ended.stdout


def test_a_new_setting_of_the_proof_loads_the_model_and_proves_again(done):
    ended = done(*done.small("model=linear", "package.golden_rows=200"))
    assert ended.returncode == 0 and made(done) == {"bundle", "report"}, ended.stderr
    assert "200 golden rows agree" in ended.stdout


def test_a_fresh_run_makes_everything_again_with_equal_contents(done):
    ended = done(*done.small("model=linear"), "--fresh")
    assert ended.returncode == 0, ended.stderr
    first, last = ({name: json.loads((run/"stages"/name/"manifest.json").read_text())["content"] for name in ALL[:ALL.index("bundle")]} for run in (done.runs()[1], done.runs()[-1]))
    assert made(done) >= {*ALL} - {"registry"} and first == last


def test_an_entry_that_somebody_changed_is_made_again(done):
    manifest = json.loads((done.runs()[-1]/"stages"/"evaluate"/"manifest.json").read_text())
    entry = done.folder/"store"/"cache"/manifest["key"]/"scorecard.json"
    entry.chmod(0o644)
    entry.write_text(entry.read_text().replace("0.", "0.9", 1))
    ended = done(*done.small("model=linear"))
    assert ended.returncode == 0 and "evaluate" in made(done), ended.stderr
    assert not verify_cache(done.folder/"store"/"cache")


def test_a_version_of_the_table_that_is_gone_is_made_again(done):
    snapshot = json.loads((done.runs()[-1]/"stages"/"data"/"snapshot.json").read_text())
    for file in Path(snapshot["uri"]).glob("*.parquet"): file.unlink()
    ended = done(*done.small("model=linear"))
    assert ended.returncode == 0 and made(done) == {"data"}, ended.stderr
    assert "files of version 0 of its table are gone" in ended.stdout


def test_a_killed_run_is_gone_on_with_at_the_first_stage_that_was_not_finished(mlproj):
    process = mlproj.start(*mlproj.small("train.max_epochs=50"))
    until = time.monotonic() + 120
    while "baseline" not in stages(mlproj) and time.monotonic() < until and process.poll() is None: time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = {*stages(mlproj)}
    assert "baseline" in killed and "gate" not in killed
    ended = mlproj(*mlproj.small("train.max_epochs=1", "--until", "registry"))
    assert ended.returncode == 0, ended.stderr
    assert {name for name, e in stages(mlproj).items() if e["cached"]} >= {"data", "split", "audit", "baseline"} and not verify_cache(mlproj.folder/"store"/"cache")


def test_runs_at_the_same_time_share_what_they_make(mlproj):
    assert mlproj(*mlproj.small("model=linear", "--until", "features")).returncode == 0  # writes contract and encoders
    processes = [mlproj.start(*mlproj.small("model=linear", "--until", "registry", f"evaluate.replicates={n}")) for n in (21, 22, 23)]
    for process in processes:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, out + err
    runs = mlproj.runs()[1:]
    for name in ("contract", "split", "features", "baseline", "train"): assert sum(not stages(mlproj, run)[name]["cached"] for run in runs) <= 1, name
    assert all(not stages(mlproj, run)["evaluate"]["cached"] for run in runs)  # each has its own
    assert not verify_cache(mlproj.folder/"store"/"cache")


def test_a_model_without_save_and_load_is_fitted_again_when_somebody_asks_for_it(mlproj):
    (mlproj.folder/"usermodel.py").write_text("from mlproj.train.baseline import Linear\nclass Plain:\n    def __init__(self, features, task): self.inner = Linear(features, task)\n"
                                              "    def fit(self, train): self.inner.fit(train)\n    def predict(self, *x): return self.inner.predict(*x)\n    def graph(self): return self.inner.graph()\n")
    for more in ([], ["evaluate.replicates=30"]):
        ended = mlproj(*mlproj.small("~model.C", "model._target_=usermodel.Plain", "model=linear", "--until", "registry", *more))
        assert ended.returncode == 0, ended.stderr
    assert "train" not in made(mlproj) and "made again: its model was not kept" in ended.stdout


TOY = """
import json
from pathlib import Path
import numpy as np, polars as pl
from mlproj.data.source import Dataset
from mlproj.train.baseline import Linear
SCALE = json.loads(Path("scale.json").read_text())
def dataset(n=500):
    r = np.random.default_rng(0)
    x, z = r.normal(size=(2, n))
    return Dataset(pl.DataFrame(dict(id=np.arange(n), x=x, z=z, y=SCALE*x + z + r.normal(size=n) > 0)), (), ())
class Moved(Linear):
    "Learns more than `save` of its parent knows of."
    moved = 0.0
    def fit(self, train):
        self.moved = 0.1
        return super().fit(train)
    def predict(self, *x): return super().predict(*x)*(1 - np.float32(self.moved)) + np.float32(self.moved)
class Started(Linear):
    def __init__(self, features, task, weights="", head=None, **more): super().__init__(features, task, **more)
"""

EXPERIMENT = """# @package _global_
defaults: [override /data: table, override /split: group, override /gate: no_worse, override /model: linear]
data: {name: toy, source: {_target_: toy.dataset}, label: y, key: [id]}
split: {group: id}
"""


@pytest.fixture
def toy(tmp_path):
    "A project of a user, with a store of its own: `toy(*args)` runs it up to its evaluation."
    for folder in ("conf/experiment", "conf/contracts", "conf/encoders"): (tmp_path/folder).mkdir(parents=True)
    for name, text in {"settings.ini": "[DEFAULT]\nlib_name = toy\n", "toy.py": TOY, "scale.json": "1", "conf/experiment/toy.yaml": EXPERIMENT}.items(): (tmp_path/name).write_text(text)
    shell = Shell(tmp_path)
    def run(*args, until="evaluate"):
        command = ["run", "experiment=toy", "tracking=disabled", "evaluate.replicates=20", "--until", until, *args]
        ended = subprocess.run([sys.executable, "-m", "mlproj.cli", *command], cwd=tmp_path, env=shell.env, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout
    run.shell = shell
    return run


def test_what_a_dataset_s_module_reads_when_it_is_imported_is_read_by_the_dataset(toy):
    toy(until="data")
    (toy.shell.folder/"scale.json").write_text("3")
    assert "because scale.json changed" in toy(until="data")
    (toy.shell.folder/"another.txt").write_text("of no interest")
    toy(until="data")
    assert not made(toy.shell)


def test_contract_and_encoders_that_somebody_deleted_are_there_again(toy):
    toy(until="features")
    files = [toy.shell.folder/f"conf/{kind}/toy.yaml" for kind in ("contracts", "encoders")]
    before = [f.read_bytes() for f in files]
    for f in files: f.unlink()
    toy(until="features")
    assert not made(toy.shell) and [f.read_bytes() for f in files] == before
    assert all(f.stat().st_nlink == 1 for f in files)  # to be edited, and the cache is not


def test_a_store_that_was_moved_makes_its_table_once(toy):
    toy(until="data")
    snapshot = lambda: json.loads((toy.shell.runs()[-1]/"stages"/"data"/"snapshot.json").read_text())
    shutil.move(snapshot()["uri"], snapshot()["uri"] + "-elsewhere")
    toy(until="data")
    assert made(toy.shell) == {"data"} and Path(snapshot()["uri"]).is_dir()
    toy(until="data")
    assert not made(toy.shell)


def test_a_model_that_predicts_something_else_when_it_is_loaded_is_fitted_again(toy):
    figures = lambda: {k: v for k, v in stages(toy.shell)["evaluate"].items() if k.startswith("test_")}
    assert "predicts something else after `save` and `load`" in toy("model._target_=toy.Moved")
    before = figures()
    said = toy("model._target_=toy.Moved", "--fresh")
    assert figures() == before, said
    said = toy("model._target_=toy.Moved", "evaluate.replicates=21")
    assert "train" not in made(toy.shell) and "made again: its model was not kept" in said and figures() == before


def test_a_file_and_code_that_arguments_of_a_model_name_are_part_of_what_it_depends_on(toy, monkeypatch):
    weights, helper = toy.shell.folder/"weights.bin", toy.shell.folder/"helper.py"
    def key():
        c = pipeline.Context(config, Project(toy.shell.folder, "toy"), None, None)
        c.manifests = {s.name: dict(content="same") for s in pipeline.STAGES}
        return {s.name: pipeline.key_of(pipeline.stage_fingerprint(c, s)) for s in pipeline.STAGES if s.name in ("features", "baseline", "train")}
    weights.write_bytes(b"1")
    helper.write_text("def widen(x): return 2*x\ndef narrow(x): return x/2\ndef other(x): return x\n")
    monkeypatch.chdir(toy.shell.folder)
    monkeypatch.syspath_prepend(toy.shell.folder)
    config = compose(["experiment=toy"])
    config.model |= dict(_target_="toy.Started", weights="weights.bin", head=[dict(_target_="helper.widen"), dict(inner="helper.narrow")])
    before = key()
    for change in (lambda: weights.write_bytes(b"2"), lambda: helper.write_text(helper.read_text().replace("2*x", "3*x")), lambda: helper.write_text(helper.read_text().replace("x/2", "x/3"))):
        change()
        assert run_again(before, before := key()) == {"train"}
    helper.write_text(helper.read_text().replace("return x\n", "return -x\n"))
    assert key() == before  # nobody names `other`


@pytest.mark.parametrize("text", ["", "[]", "null", '"x"', "{", '{"files": {}}'])
def test_a_damaged_memory_of_the_last_time_is_no_memory(tmp_path, text):
    cache = Cache(tmp_path)
    cache.remember("toy-data", dict(code={}, files={}))
    assert cache.last("toy-data", "code") == dict(code={}, files={})
    (tmp_path/"last"/"toy-data.json").write_text(text)
    assert cache.last("toy-data", "code") == {}
