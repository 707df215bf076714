"The whole path as a process: what a user types, sees, and gets when something is wrong."
import json, re, shutil, signal, time, zipfile
from pathlib import Path

import polars as pl
import pytest

from conftest import ROOT
from mlproj.examples.flights import data_folder

STAGES = ["data", "contract", "split", "audit", "features", "baseline", "train", "evaluate", "gate", "bundle", "registry", "report"]


def test_a_run_prints_a_line_for_each_stage_and_says_what_comes_next(trained):
    names = [line.split(" ")[0] for line in trained.output.splitlines() if not line.startswith(" ")]
    assert [n for n in names if n in STAGES][:len(STAGES)] == STAGES
    assert "mlproj serve" in trained.output and "report.html" in trained.output and "curl" in trained.output
    assert "\x1b" not in trained.output  # plain when not a terminal


def test_a_run_folder_explains_the_run(trained):
    run, events = trained.run, trained.events(trained.run)
    assert events[0]["event"] == "started" and events[0]["command"][:2] == ["mlproj", "run"]
    assert events[-1]["event"] == "finished" and events[-1]["status"] == "succeeded" and events[-1]["peak_mb"] > 0
    order = [e["event"] + ":" + e.get("stage", "") for e in events]
    assert order.index("criteria:") < order.index("stage:baseline") < order.index("stage:train")
    assert {len(v) for v in next(e for e in events if e["event"] == "fingerprint")["fingerprint"].values()} == {64}
    for stage in STAGES: assert json.loads((run/"stages"/stage/"manifest.json").read_text())["stage"] == stage
    assert (run/"wandb").is_dir()  # W&B's offline copy stands in the run folder


def test_a_stage_names_the_hash_of_every_file_it_wrote(trained):
    from mlproj.project import sha256
    for folder in (trained.run/"stages").iterdir():
        files = json.loads((folder/"manifest.json").read_text())["files"]
        assert files == {str(p.relative_to(folder)): sha256(p.read_bytes()) for p in folder.rglob("*") if p.is_file() and p != folder/"manifest.json"}


def test_the_report_is_one_file_that_fetches_nothing(trained):
    page = (trained.run/"report.html").read_text()
    assert "Will a flight out of New York" in page and "must not be used for" in page and "image/svg+xml" in page
    assert "<script" not in page and not re.search(r"""(src|href)=["']?(https?:)?//""", page) and "import" not in page.partition("<body>")[2]
    card = json.loads((trained.run/"stages"/"evaluate"/"scorecard.json").read_text())
    assert f"{card['metrics']['test']['average_precision']['model']['value']:.4f}" in page  # the run's own figure


def test_status_names_the_champion_and_its_run(trained):
    from mlproj.serve.registry import Registry
    done, last = trained("status"), Registry(trained.folder/"bentoml").history("flights")[-1]
    assert done.returncode == 0 and last.run in {run.name for run in trained.runs()} and re.search(rf"flights +champion +{last.tag.partition(':')[2]} .* {last.run} ", done.stdout)


def test_a_second_run_is_held_to_the_contract_of_the_first_and_makes_no_new_data_version(trained):
    before = trained.contract.read_text()
    done = trained(*trained.small("experiment=flights_baseline", "gate=default", *[f"gate.criteria.{p}_gain.at_least=-1" for p in ("validation", "test")], "cost.per_hour=3600"))
    assert done.returncode == 0, done.stderr
    ended = trained.events()[-1]
    assert abs(ended["cost"] - ended["seconds"]) < 0.06 and ended["cpu_seconds"] > 0 and "cost" in trained("runs", "--sort=-cost").stdout
    assert "contract.yaml holds" in done.stdout and "snapshot v0" in done.stdout and "Linear" in done.stdout
    assert trained.contract.read_text() == before


def test_equal_seeds_give_equal_models(mlproj):
    for _ in range(2): assert mlproj(*mlproj.small("--fresh", "--until", "bundle")).returncode == 0  # nothing from the cache, or this could not fail
    graphs = [(run/"stages"/"bundle"/"flights"/"model.onnx").read_bytes() for run in mlproj.runs()]
    assert graphs[0] == graphs[1]


def test_a_sweep_runs_every_combination(mlproj):
    done = mlproj(*mlproj.small("-m", "seed=0,1", "model=linear", "--until", "evaluate"))
    assert done.returncode == 0, done.stderr
    assert not list(ROOT.glob("multirun*"))  # nothing beside the store
    assert sorted(json.loads((run/"config.json").read_text())["seed"] for run in mlproj.runs()) == [0, 1]


# Bad input: one line that says what, where and what to do; an exit code; nothing half-written; nothing registered.

def raw_files(folder: Path) -> Path:
    shutil.copytree(data_folder(), folder)
    return folder

def rewritten(folder: Path, change) -> Path:
    "The raw files, with the flights changed."
    raw_files(folder)
    with zipfile.ZipFile(folder/"flights.csv.zip") as archive: frame = pl.read_csv(archive.read("flights.csv"), null_values="NA", infer_schema_length=None)
    with zipfile.ZipFile(folder/"flights.csv.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive: archive.writestr("flights.csv", change(frame).write_csv(null_value="NA"))
    return folder

def truncated(folder: Path) -> Path:
    file = raw_files(folder)/"flights.csv.zip"
    file.write_bytes(file.read_bytes()[:100_000])
    return folder

def shortened(folder: Path) -> Path:
    file = raw_files(folder)/"weather.csv"
    file.write_bytes(file.read_bytes()[:-10])
    return folder

BAD = dict(
    unknown_override=(["train.epochs=3"], "train.epochs"),
    unknown_added_key=(["+train.epochs=3"], "epochs"),
    override_with_dashes=(["--train.max_epochs=3"], "an override has no dashes: train.max_epochs=3"),
    unknown_option=(["model=mpl"], "model/mpl"),
    wrong_type=(["train.max_epochs=many"], "train.max_epochs"),
    unparsable_override=(["train.max_epochs=[1"], "override 'train.max_epochs=[1'"),
    no_files=(["data.source.folder=/nonexistent"], "flights.csv.zip: no such file"),
    truncated_archive=(truncated, "flights.csv.zip: cannot be read"),
    truncated_file=(shortened, "weather.csv: ends in the middle of a line"),
    column_missing=(lambda f: rewritten(f, lambda d: d.drop("distance")), "column 'distance' is missing"),
    column_renamed=(lambda f: rewritten(f, lambda d: d.rename({"carrier": "airline_code"})), "column 'carrier' is missing"),
    column_of_another_type=(lambda f: rewritten(f, lambda d: d.with_columns(carrier=pl.lit(7))), "column 'carrier' is Int64 on the left and String on the right"),
    constant_label=(lambda f: rewritten(f, lambda d: d.with_columns(arr_delay=pl.when(pl.col("arr_delay").is_not_null()).then(0))), "label 'late' is constant"),
    empty_split=(["split.validation_before=2015-01-01"], "part 'test': has no rows"),
    cuts_in_the_wrong_order=(["split.train_before=2013-12-01"], "is not before"),
    label_among_the_features=(["data.features=[distance,late]"], "label 'late' is among the features"),
    unknown_feature=(["data.features=[distance,gate]"], "column 'gate' is not in the table"),
    unknown_slice=(["evaluate.slices=[gate]"], "column 'gate' is not in the table"),
    impossible_epochs=(["train.max_epochs=0"], "max_epochs is 0"),
    impossible_dropout=(["model.dropout=2"], "dropout probability"),
    impossible_penalty=(["baseline.C=-1"], "baseline: InvalidParameterError"),
    impossible_size=(["model.hidden=0"], "hidden, layers and embedding are at least 1"),
    unknown_accelerator=(["train.accelerator=abacus"], "train: "),
    unknown_precision=(["train.precision=7"], "train: "),
    negative_seed=(["seed=-1"], "seed is -1"),
    divergence=(["model.lr=1e30"], "the training diverged in epoch 1"),
    no_replicates=(["evaluate.replicates=0"], "replicates is 0"),
    criterion_without_number=(["gate.criteria.test_gain.at_least=much"], "at_least is 'much'"),
    criterion_of_no_shape=(["gate.criteria.test_gain=5"], "gate.criteria.test_gain: is 5"),
    illegal_name=(["data.name=My Flights"], "'My Flights' is not allowed"),
    dataset_raises=(["data.source._target_=userdata.broken"], "ZeroDivisionError: division by zero; raised in"),
    dataset_returns_nothing=(["data.source._target_=userdata.nothing"], "userdata.nothing returned NoneType"),
    dataset_without_times=(["data.source._target_=userdata.untimed"], "column 'departure': is missing in 1 rows"),
    dataset_with_duplicates=(["data.source._target_=userdata.twice"], "1 keys occur more than once"),
)

USERDATA = """
from dataclasses import replace
import polars as pl
from mlproj.examples.flights import dataset

def broken(folder, fraction): return 1/0
def nothing(folder, fraction): return None
def untimed(folder, fraction): return replace(d := dataset(folder, fraction), frame=d.frame.with_columns(departure=pl.when(pl.int_range(pl.len()) > 0).then("departure")))
def twice(folder, fraction): return replace(d := dataset(folder, fraction), frame=pl.concat([d.frame, d.frame[:1]]))
"""

@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(mlproj, case):
    (mlproj.folder/"userdata.py").write_text(USERDATA)
    given, said = BAD[case]
    overrides = given if isinstance(given, list) else [f"data.source.folder={given(mlproj.folder/'raw')}"]
    done = mlproj(*mlproj.small(*overrides))
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stderr and done.stderr.startswith("mlproj: ") and done.stderr.count("\n") == 1, done.stderr
    assert not mlproj.half_written() and not (mlproj.folder/"bentoml"/"models"/"flights").exists()
    assert not mlproj.runs() or mlproj.events()[-1]["status"] == "failed"
    if case.startswith("dataset"): assert not mlproj.contract.exists()  # nothing is inferred from data that were refused


def test_a_store_that_is_a_file_is_one_line(mlproj):
    (mlproj.folder/"store").write_text("")
    done = mlproj(*mlproj.small())
    assert done.returncode == 1 and done.stderr.startswith("mlproj: ") and done.stderr.count("\n") == 1, done.stderr


def test_a_column_that_changed_since_the_contract_is_named(trained, tmp_path):
    contract = tmp_path/"contract.yaml"
    contract.write_text(trained.contract.read_text().replace("  late:\n    kind: boolean", "  late:\n    kind: string"))
    done = trained(*trained.small(f"data.contract={contract}"))
    assert done.returncode == 1 and "column 'late': is boolean, and should be string" in done.stderr and done.stderr.count("\n") == 1


def test_a_misspelt_rule_in_the_contract_is_named(trained, tmp_path):
    contract = tmp_path/"contract.yaml"
    contract.write_text(trained.contract.read_text().replace("nullable: true", "nulable: true", 1))
    done = trained(*trained.small(f"data.contract={contract}"))
    assert done.returncode == 1 and "did you mean 'nullable'?" in done.stderr and done.stderr.count("\n") == 1


def test_a_model_that_does_not_pass_the_gate_is_reported_and_not_registered(mlproj):
    done = mlproj(*mlproj.small("model=linear", "gate.criteria.test_gain.at_least=0.9"))
    assert done.returncode == 1 and "the model did not pass" in done.stderr and done.stderr.count("\n") == 1
    assert "not pass" in (mlproj.runs()[-1]/"report.html").read_text()
    assert mlproj.events()[-1]["status"] == "rejected" and not (mlproj.folder/"bentoml"/"models"/"flights").exists()


def wait_for(mlproj, stage: str, process, seconds=120):
    "Wait until a stage is done (or, for `started`, until the run is)."
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        if any(stage in (e["event"], e.get("stage")) for e in mlproj.events()): return
        time.sleep(0.02)
    raise AssertionError(f"{stage} was never reached: {process.communicate()}")

@pytest.mark.parametrize("after, number, code", [("started", signal.SIGINT, 130), ("started", signal.SIGTERM, 143), ("features", signal.SIGTERM, 143), ("baseline", signal.SIGINT, 130),
                                                 ("baseline", signal.SIGTERM, 143), ("train", signal.SIGINT, 130), ("registry", signal.SIGTERM, 143)])
def test_an_interruption_leaves_nothing_half_written_and_the_next_run_works(mlproj, after, number, code):
    process = mlproj.start(*mlproj.small("train.max_epochs=20"))
    wait_for(mlproj, after, process)
    time.sleep(0.3)  # into the next stage
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    said = "interrupted" if code == 130 else "terminated"
    assert err.strip().splitlines()[-1].startswith(f"mlproj: {said}; ") and "Traceback" not in err and mlproj.events()[-1]["status"] == "interrupted"
    assert not mlproj.half_written()
    if after in ("started", "train"): assert mlproj(*mlproj.small("model=linear", "--until", "registry")).returncode == 0


def test_help_is_fast_because_it_imports_little(mlproj):
    import subprocess, sys
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "mlproj.cli", "--help"], env=mlproj.env, capture_output=True, text=True)
    assert done.returncode == 0 and "run" in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {"torch", "numpy", "polars", "hydra", "bentoml", "rich", "pytorch_lightning", "onnxruntime", "asyncio"}
