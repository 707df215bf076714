"The real config: every option of every group composes, and what it names can be made."
from pathlib import Path

import pytest
import yaml

from mlproj.config import compose, compose_once
from mlproj.target import call, guarded, target
from mlproj.project import ConfigError

CONF = Path(__file__).resolve().parents[1]/"conf"
OPTIONS = [f"{path.parent.name}={path.stem}" for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name not in ("contracts", "encoders")]
NEEDED = {"split=group": ["split.group=tailnum"], "data=table": ["data.name=flights", "data.source={_target_: mlproj.examples.flights.dataset}", "data.label=late", "data.time=departure"]}


@pytest.fixture(scope="module")
def given():
    "The features and the task of a small table: what a model is made with."
    from mlproj.data.contract import infer_contract
    from mlproj.data.profile import Profile
    from mlproj.data.task import fit_task
    from mlproj.train.features import fit_features
    import polars as pl
    profile = Profile.of(pl.DataFrame(dict(hour=[5, 6, 7], origin=["JFK", "LGA", None], late=[True, False, True])))
    return dict(features=fit_features(profile, infer_contract(profile, "flights", ["hour", "origin"])), task=fit_task(profile, "late"))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_what_it_names_can_be_made(option, given):
    config = compose([option, *NEEDED.get(option, [])])
    from mlproj.train.evaluate import Gate
    from mlproj.pipeline import split_of
    assert Gate.of(config.gate.criteria).criteria
    assert split_of(config)
    assert callable(target(config.data.source, "data.source"))
    for section in ("baseline", "model"): assert hasattr(call(getattr(config, section), section, **given), "predict")


def test_the_default_is_the_flights_with_slices_and_a_gate_over_the_baseline():
    config = compose()
    assert config.data.name == "flights" and config.evaluate.slices == ["origin", "carrier"]
    assert {c["at_least"] for c in config.gate.criteria.values()} == {0.01}


def test_nothing_known_only_after_departure_is_a_feature():
    assert not set(compose().data.features) & {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "late"}


@pytest.mark.parametrize("override, said", [
    ("+train.epochs=3", "epochs"), ("train.max_epochs=many", "train.max_epochs"), ("+model.hiden=3", "hiden"), ("tracking.mode=wandb", "tracking.mode"),
    ("baseline._target_=mlproj.nothing.Here", "mlproj.nothing.Here"), ("data.source._target_=flights", "data.source"), ("++data.features=3", "features")])
def test_a_wrong_key_or_value_is_named(override, said):
    with pytest.raises(ConfigError, match=said): compose([override])


def test_a_project_needs_one_experiment_file_and_no_copy_of_conf(tmp_path, monkeypatch):
    folder = tmp_path/"my tables"/"conf"/"experiment"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder.parent.parent)
    (folder/"wine.yaml").write_text("""# @package _global_
defaults: [override /data: table, override /split: group, override /gate: lower_log_loss]
data: {name: wine, label: kind, source: {_target_: mlproj.examples.diamonds.dataset}}
split: {group: row}
""")
    assert compose(["experiment=wine", "model=lightgbm"]).data.name == "wine"
    assert compose(["experiment=flights"]).data.name == "flights"  # and those of mlproj


@pytest.mark.parametrize("override, said", [
    ("train.max_epochs=0", "train.max_epochs: max_epochs is 0; 1 or more"), ("train.batch_size=0", "train.batch_size: batch_size is 0; 1 or more"), ("package.int8_budget=-1", "package.int8_budget: int8_budget is -1.0; 0 or more"),
    ("task.quantiles=[0.5,0.1]", "task.quantiles: quantiles are"), ("task.quantiles=[nan]", r"task.quantiles.0: is nan; a finite number"), ("package.int8_budget=nan", "package.int8_budget: is nan"),
    ("+data.source.weight=inf", "data.source.weight: is inf"), ("gate.criteria.test_gain.at_least=nan", "gate.criteria.test_gain.at_least: is nan"), ("gate.criteria.test_gain.at_least=true", "gate.criteria.test_gain: at_least is True; a number"),
    ("data.contract=''", "data.contract: is empty"), ("data.encoders=''", "data.encoders: is empty"), ("data.label=''", "data.label: is empty"),
    ("model._target_=...", "model: _target_ '...' cannot be imported"), ("model._target_=math.pi", "model: _target_ 'math.pi' is no function or class with a signature")])
def test_a_value_that_no_run_can_have_is_refused_before_it_begins_and_named(override, said):
    with pytest.raises(ConfigError, match=said): compose([override])


def test_a_mistake_in_a_users_own_module_is_told_with_its_line(tmp_path, monkeypatch):
    (tmp_path/"broken_rows.py").write_text("import math\n\nrows = maths.pi\n")
    (tmp_path/"broken_words.py").write_text("def of(:\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"data.source: _target_ 'broken_rows.of' cannot be imported \(NameError: name 'maths' is not defined\); raised in .*broken_rows.py, line 3"): target(dict(_target_="broken_rows.of"), "data.source")
    with pytest.raises(ConfigError, match=r"cannot be imported \(SyntaxError: invalid syntax \(broken_words.py, line 1\)\)"): target(dict(_target_="broken_words.of"), "data.source")


def test_what_a_library_raises_is_told_with_the_line_that_called_it():
    def wrong():
        import torch
        return torch.nn.Linear(2, 3)(torch.zeros(1, 5))
    with pytest.raises(ConfigError, match=r"model: RuntimeError: mat1 and mat2 .*; raised in .*test_config.py, line \d+"): guarded(wrong, "model")


def test_every_group_has_a_comment_that_says_what_it_is_for():
    for path in CONF.rglob("*.yaml"):
        if path.name == "contract.yaml": continue
        assert "#" in path.read_text(), f"{path.relative_to(CONF)} explains nothing"


def test_the_committed_contract_has_every_feature_of_the_config():
    contract = yaml.safe_load((CONF/"contracts"/"flights.yaml").read_text())
    assert set(compose().data.features) <= set(contract["columns"])


@pytest.mark.parametrize("asked", ["hydra.verbose=true", "hydra/job_logging=default", "data.card.question=${hydra:runtime.output_dir}", "data.card.question=${hydra:job.name}", "hydra.output_subdir=x", "hydra.job.chdir=true"])
def test_what_only_hydras_main_does_is_left_to_it(asked): assert compose_once([asked]) is None


def test_a_notebook_may_require_what_its_run_gives_it(tmp_path, monkeypatch):
    import nbformat
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("run: str\nconfig: dict", metadata=dict(tags=["parameters"]))])
    (tmp_path/"settings.ini").write_text("[DEFAULT]\nlib_name = churn\n")
    nbformat.write(notebook, tmp_path/"after.ipynb")
    monkeypatch.chdir(tmp_path)
    assert compose(["notebooks=[{path: after.ipynb}]"]).notebooks == [dict(path="after.ipynb")]
