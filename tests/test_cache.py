"What is not run again, and what is: by edits of code, config, files, data and packages; after kills, damage and beside other runs."
import json, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest

from conftest import ROOT
from mlproj import pipeline
from mlproj.config import compose
from mlproj.ledger import verify_cache
from mlproj.project import Project

ALL = [s.name for s in pipeline.STAGES if s.name not in ("calibrate", "report")]


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
    "a command": ("cli.py", "\nSWEEP, ", "\nEXTRA = 1\nSWEEP, "),
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
    def as_if(name, version): monkeypatch.setattr(pipeline, "distributions", lambda modules: {k: version if k == name else v for k, v in real(modules).items()})
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
    from conftest import Shell
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
    ended = mlproj(*mlproj.small("train.max_epochs=1"))
    assert ended.returncode == 0, ended.stderr
    assert {name for name, e in stages(mlproj).items() if e["cached"]} >= {"data", "split", "audit", "baseline"} and not verify_cache(mlproj.folder/"store"/"cache")


def test_runs_at_the_same_time_share_what_they_make(mlproj):
    assert mlproj(*mlproj.small("model=linear", "--until", "features")).returncode == 0  # writes contract and encoders
    processes = [mlproj.start(*mlproj.small("model=linear", f"evaluate.replicates={n}")) for n in (21, 22, 23)]
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
        ended = mlproj(*mlproj.small("~model.C", "model._target_=usermodel.Plain", "model=linear", *more))
        assert ended.returncode == 0, ended.stderr
    assert "train" not in made(mlproj) and "made again: its model has no `save` and `load`" in ended.stdout
