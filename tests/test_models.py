"Models behind one protocol: whatever learned, its graph says what its library says, for every task."
from types import SimpleNamespace

import numpy as np
import onnx
import polars
import pytest
import pytorch_lightning as pl
import torch
from sklearn import datasets, linear_model, metrics
from sklearn.preprocessing import OneHotEncoder

from mlproj.data.profile import Profile
from mlproj.data.task import Task, fit_task
from mlproj.project import ConfigError, DataError
from mlproj.train.baseline import Linear
from mlproj.train.features import IR_VERSION, OPSETS, Tensors, session
from mlproj.train.fit import fit, monitored, validation_score
from mlproj.train.network import TabularMLP, as_model
from mlproj.train.tabm import TabM
from mlproj.train.trees import LightGBM, XGBoost

MODELS = dict(linear=Linear, mlp=lambda features, task: TabularMLP(features, task, hidden=16), tabm=lambda features, task: TabM(features, task, members=3, hidden=16),
              lightgbm=lambda features, task: LightGBM(features, task, rounds=15, min_child_samples=5, seed=0),
              xgboost=lambda features, task: XGBoost(features, task, rounds=15, max_depth=3, seed=0))
TASKS = ("binary", "multiclass", "regression", "quantiles")


def table(kind: str, columns: str = "both"):
    "A real table of scikit-learn as task, features and tensors: its numbers standardised, and two of them cut into codes."
    data = dict(binary=datasets.load_breast_cancer, multiclass=datasets.load_wine).get(kind, datasets.load_diabetes)()
    x = ((data.data - data.data.mean(0))/data.data.std(0)).astype(np.float32)
    codes = np.stack([np.digitize(x[:, i], [-1, 0, 1]) for i in (0, 1)], 1)
    y = data.target.astype(np.int64 if kind == "multiclass" else np.float32)
    of = dict(mean=float(y.mean()), scale=float(y.std()))
    task = dict(binary=Task("binary", "benign"), multiclass=Task("multiclass", "cultivar", ("a", "b", "c")), regression=Task("regression", "progression", **of),
                quantiles=Task("regression", "progression", quantiles=(0.1, 0.5, 0.9), **of))[kind]
    x, codes = (x[:, 2:10] if columns != "codes" else x[:, :0]), (codes if columns != "numbers" else codes[:, :0])
    edges = [tuple(np.unique(np.quantile(c, np.linspace(0, 1, 9)))) for c in x.T]
    return task, SimpleNamespace(width=x.shape[1], cardinalities=(4,)*codes.shape[1], edges=edges), Tensors(x, codes, y)


def trained(name: str, task, features, tensors, folder):
    torch.manual_seed(0)
    model = MODELS[name](features, task)
    if hasattr(model, "training_step"): fit(model, task, tensors, tensors, folder, max_epochs=2, batch_size=64, accelerator="cpu", threads=1, progress=False)
    else: model.fit(tensors)
    return model


def opened(model):
    "The model's graph as a session, after a look at what the join of graphs needs."
    graph = model.graph()
    onnx.checker.check_model(graph, full_check=True)
    assert (graph.ir_version, list(graph.opset_import)) == (IR_VERSION, OPSETS)
    return session(graph, threads=1)


def says(run, x_numbers, x_codes) -> np.ndarray:
    (found,) = run.run(None, {k: v for k, v in dict(x_numbers=x_numbers, x_codes=x_codes).items() if v.shape[1]})
    return found


def agree(found, native, task, bits=False) -> None:
    assert found.dtype == native.dtype == np.float32 and found.shape == native.shape == (len(native), *([task.width] if task.width else []))
    unit = task.scale if task.kind == "regression" else 1.0  # a label's float32 is as exact as its spread allows
    if bits: assert np.array_equal(found, native)
    else: assert (np.abs(found - native) <= 1e-5*unit + 1e-5*np.abs(native)).all()


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", MODELS)
def test_the_graph_says_what_the_model_says_in_batches_and_row_by_row(name, kind, tmp_path):
    task, features, tensors = table(kind)
    model = trained(name, task, features, tensors, tmp_path)
    run, native = opened(model), model.predict(tensors.x_numbers, tensors.x_codes)
    assert [o.name for o in run.get_outputs()] == [task.output] and [i.name for i in run.get_inputs()] == ["x_numbers", "x_codes"]
    agree(says(run, tensors.x_numbers, tensors.x_codes), native, task)
    agree(np.concatenate([says(run, tensors.x_numbers[i:i + 1], tensors.x_codes[i:i + 1]) for i in range(40)]), native[:40], task)
    if kind == "multiclass": assert np.abs(native.sum(1) - 1).max() < 1e-5
    if kind == "quantiles": assert (np.diff(native, axis=1) >= 0).all()


@pytest.mark.parametrize("columns", ("numbers", "codes"))
@pytest.mark.parametrize("name", [name for name in MODELS if name != "tabm"])  # which has the mlp's inputs
def test_a_table_may_lack_numbers_or_categories(name, columns, tmp_path):
    task, features, tensors = table("binary", columns)
    model = trained(name, task, features, tensors, tmp_path)
    run = opened(model)
    assert [i.name for i in run.get_inputs()] == ["x_numbers" if columns == "numbers" else "x_codes"]
    agree(says(run, tensors.x_numbers, tensors.x_codes), model.predict(tensors.x_numbers, tensors.x_codes), task)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mlp"])
def test_equal_seeds_give_equal_graphs(name, tmp_path):
    one, two = (trained(name, *table("multiclass"), tmp_path).graph().SerializeToString() for _ in range(2))
    assert one == two


def dense(tensors): return np.hstack([tensors.x_numbers, OneHotEncoder(sparse_output=False).fit_transform(tensors.x_codes)]).astype(np.float64)


def test_the_linear_model_is_that_of_scikit_learn():
    for kind in ("binary", "multiclass"):
        task, features, tensors = table(kind)
        oracle = linear_model.LogisticRegression(max_iter=3000).fit(dense(tensors), tensors.y).predict_proba(dense(tensors))
        found = Linear(features, task, max_iter=3000).fit(tensors).predict(tensors.x_numbers, tensors.x_codes)
        assert np.abs(found - (oracle[:, 1] if kind == "binary" else oracle)).max() < 3e-3
    task, features, tensors = table("regression")
    z = (tensors.y.astype(np.float64) - task.mean)/task.scale
    oracle = linear_model.Ridge(alpha=1/0.3).fit(dense(tensors), z).predict(dense(tensors))*task.scale + task.mean
    assert np.abs(Linear(features, task, C=0.3).fit(tensors).predict(tensors.x_numbers, tensors.x_codes) - oracle).max() < 1e-2


def test_two_named_classes_are_a_softmax_of_two():
    _, features, tensors = table("binary")
    y = tensors.y.astype(np.int64)
    both = Linear(features, Task("multiclass", "kind", ("malign", "benign"))).fit(Tensors(tensors.x_numbers, tensors.x_codes, y)).predict(tensors.x_numbers, tensors.x_codes)
    one = Linear(features, Task("binary", "benign")).fit(tensors).predict(tensors.x_numbers, tensors.x_codes)
    assert np.abs(both[:, 1] - one).max() < 1e-5


def test_the_linear_quantiles_hold_as_many_labels_as_they_say():
    task, features, tensors = table("quantiles")
    found = Linear(features, task).fit(tensors).predict(tensors.x_numbers, tensors.x_codes)
    assert np.abs((tensors.y[:, None] <= found).mean(0) - task.quantiles).max() < 0.01


def test_trees_are_those_of_their_library():
    import lightgbm, xgboost
    for kind, objective, margin in (("binary", ("binary", "binary:logistic"), {}), ("multiclass", ("multiclass", "multi:softprob"), dict(num_class=3))):
        task, features, tensors = table(kind)
        X = np.hstack([tensors.x_numbers, tensors.x_codes.astype(np.float32)])
        ours = LightGBM(features, task, rounds=15, min_child_samples=5, seed=0).fit(tensors)
        native = lightgbm.train(dict(objective=objective[0], min_child_samples=5, seed=0, verbose=-1, deterministic=True, force_row_wise=True, **margin), lightgbm.Dataset(X, tensors.y), 15)
        assert np.abs(says(opened(ours), tensors.x_numbers, tensors.x_codes) - native.predict(X)).max() < 1e-6
        ours = XGBoost(features, task, rounds=15, max_depth=3, seed=0).fit(tensors)
        native = xgboost.train(dict(objective=objective[1], max_depth=3, seed=0, tree_method="hist", **margin), xgboost.DMatrix(X, tensors.y), 15)
        assert np.abs(says(opened(ours), tensors.x_numbers, tensors.x_codes) - native.predict(xgboost.DMatrix(X))).max() < 1e-6


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", ("lightgbm", "xgboost"))
def test_no_row_at_a_threshold_turns_the_other_way(name, kind):
    task, features, tensors = table(kind)
    model, rng = MODELS[name](features, task).fit(tensors), np.random.default_rng(0)
    f, rows = model.forest, np.empty((5000, features.width), np.float32)
    for column in range(features.width):
        at = f.threshold[~f.leaf & (f.feature == column)].astype(np.float32)
        at = np.concatenate([at, np.nextafter(at, np.float32(np.inf)), np.nextafter(at, np.float32(-np.inf)), np.float32([0, 1e-35, -1e-35, 1e-40])])
        rows[:, column] = rng.choice(at, len(rows))
    codes = rng.integers(0, 4, (len(rows), 2))
    agree(says(opened(model), rows, codes), model.predict(rows, codes), task, bits=(name, task.kind) == ("lightgbm", "regression"))


@pytest.mark.parametrize("model, params, said", (
    (LightGBM, dict(boosting="rf", bagging_freq=1, bagging_fraction=0.5), r"boosting: trees that are averaged \(rf\)"),
    (LightGBM, dict(linear_tree=True), "linear_tree: trees with linear leaves"),
    (LightGBM, dict(categorical_feature=[0], min_data_per_group=1, min_child_samples=1), "categorical_feature: native categories"),
    (LightGBM, dict(objective="huber"), "objective is decided by the task"),
    (LightGBM, dict(num_leafs=3), "no parameter num_leafs"),
    (XGBoost, dict(booster="dart"), "booster: models of booster dart"),
    (XGBoost, dict(booster="gblinear"), "booster: models of booster gblinear"),
    (XGBoost, dict(multi_strategy="multi_output_tree"), "multi_strategy: trees that answer several questions at once"),
    (XGBoost, dict(quantile_alpha=[0.1, 0.9]), "quantile_alpha is decided by the task"),
    (XGBoost, dict(max_dept=3), 'no parameter "max_dept"'),
    (XGBoost, dict(max_depth="deep"), "Invalid Parameter format for max_depth"),
    (LightGBM, dict(objective_type="huber"), "objective_type is decided by the task"),
    (LightGBM, dict(verbose=-1, num_leafs=3), "no parameter num_leafs"),
    (LightGBM, dict(verbosity=-1, num_leafs=3), "no parameter num_leafs"),
    (LightGBM, dict(n_estimators=3), "model.rounds: rounds is 2, and another name of it says 3"),
    (XGBoost, dict(verbosity=0, max_dept=3), 'no parameter "max_dept"'),
    (XGBoost, dict(max_dept=3), 'no parameter "max_dept"'),  # silence does not last either
    (XGBoost, dict(validate_parameters=False, max_dept=3), 'no parameter "max_dept"'),
    (XGBoost, dict(rounds=0), "model.rounds: rounds is 0; a whole number, 1 or more"),
    (LightGBM, dict(rounds="many"), "model.rounds: rounds is 'many'")))
def test_what_has_no_exact_graph_is_refused_with_the_reason(model, params, said):
    task, features, tensors = table("multiclass", "codes")
    with pytest.raises(ConfigError, match=said): model(features, task, **dict(rounds=2) | params).fit(tensors)


def test_lightgbm_may_not_take_zero_for_missing_nor_answer_with_a_root():
    "Zero is an ordinary number of the encoders: a graph would send it by the threshold, LightGBM in its default direction."
    task, features, tensors = table("regression")
    zeros = Tensors(np.where(np.abs(tensors.x_numbers) < 0.5, 0, tensors.x_numbers), tensors.x_codes, tensors.y)
    with pytest.raises(ConfigError, match="model.zero_as_missing: trees to which zero is missing have no exact graph"): LightGBM(features, task, rounds=5, zero_as_missing=True).fit(zeros)
    with pytest.raises(ConfigError, match="reg_sqrt is decided by the task"): LightGBM(features, task, reg_sqrt=True)


def test_xgboost_takes_the_lists_of_a_config_as_constraints():
    task, features, tensors = table("regression")
    up = XGBoost(features, task, rounds=15, monotone_constraints=[1] + [0]*9, interaction_constraints=[[0, 1], [2, 3]]).fit(tensors)
    rows = np.repeat(tensors.x_numbers[:1], 50, 0)
    rows[:, 0] = np.linspace(-3, 3, 50)
    says = up.predict(rows, np.zeros((50, 2), np.int64))
    assert (np.diff(says) >= 0).all() and says[-1] > says[0]


class Own(pl.LightningModule):
    "What a user brings: nothing of mlproj in it."
    def __init__(self, features, outputs, loss):
        super().__init__()
        self.loss, self.task, self.width = loss, "mine", -1  # names that mean something else here
        self.embedding, self.deep = torch.nn.Embedding(4, 2), torch.nn.Sequential(torch.nn.Linear(features.width + 4, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, outputs))
    def forward(self, x_numbers, x_codes): return self.deep(torch.cat([x_numbers, self.embedding(x_codes).flatten(1)], 1))
    def training_step(self, batch, i): return self.loss(self(batch[0], batch[1]), batch[2])
    def configure_optimizers(self): return torch.optim.Adam(self.parameters(), 1e-2)


@pytest.mark.parametrize("kind", TASKS)
def test_a_lightning_module_of_ones_own_trains_predicts_and_becomes_a_graph(kind, tmp_path):
    task, features, tensors = table(kind)
    losses = dict(binary=lambda z, y: torch.nn.functional.binary_cross_entropy_with_logits(z[:, 0], y), multiclass=torch.nn.functional.cross_entropy)
    torch.manual_seed(0)
    model = as_model(Own(features, task.width or 1, losses.get(kind, lambda z, y: ((z - (y[:, None] - task.mean)/task.scale)**2).mean())), features, task)
    fitted = fit(model, task, tensors, tensors, tmp_path, max_epochs=5, batch_size=64, accelerator="cpu", threads=1, progress=False)
    native = model.predict(tensors.x_numbers, tensors.x_codes)
    agree(says(opened(model), tensors.x_numbers, tensors.x_codes), native, task)
    assert model.task == "mine" and fitted.best == validation_score(task, tensors.y, native)  # and the weights are those of the best epoch
    if kind == "binary": assert fitted.best > 0.95


def test_a_module_that_writes_into_its_inputs_changes_no_table(tmp_path):
    class Writes(Own):
        def forward(self, x_numbers, x_codes): return super().forward(x_numbers.mul_(2), x_codes)
    task, features, tensors = table("binary")
    before = tensors.x_numbers.copy()
    model = as_model(Writes(features, 1, lambda z, y: torch.nn.functional.binary_cross_entropy_with_logits(z[:, 0], y)), features, task)
    fit(model, task, tensors, tensors, tmp_path, max_epochs=1, batch_size=64, accelerator="cpu", threads=1, progress=False)
    one, two = (model.predict(tensors.x_numbers, tensors.x_codes) for _ in range(2))
    assert np.array_equal(tensors.x_numbers, before) and np.array_equal(one, two)
    agree(says(opened(model), before, tensors.x_codes), one, task)


def test_no_rows_in_a_batch_are_refused_by_name(tmp_path):
    task, features, tensors = table("binary")
    for key in ("batch_size", "max_epochs"):
        with pytest.raises(ConfigError, match=f"train.{key}: {key} is 0; 1 or more"): fit(MODELS["mlp"](features, task), task, tensors, tensors, tmp_path, accelerator="cpu", progress=False, **{key: 0})


def test_the_epoch_is_chosen_by_the_metric_of_the_task(tmp_path):
    for kind in TASKS:
        task, features, tensors = table(kind)
        torch.manual_seed(0)
        fitted = fit(TabularMLP(features, task, hidden=16), task, tensors, tensors, tmp_path, max_epochs=3, batch_size=64, accelerator="cpu", threads=1, progress=False)
        metric, mode = monitored(task)
        assert fitted.metric == metric and fitted.best == (max if mode == "max" else min)(fitted.scores) and len(fitted.scores) == fitted.epochs == 3


def test_the_scores_are_those_of_scikit_learn():
    rng, n = np.random.default_rng(0), 300
    y, p, wide = rng.integers(0, 3, n), rng.random(n).astype(np.float32), rng.dirichlet([1, 1, 1], n).astype(np.float32)
    task = {kind: table(kind)[0] for kind in TASKS}
    assert validation_score(task["binary"], y > 0, p) == pytest.approx(metrics.average_precision_score(y > 0, p), abs=1e-6)
    assert validation_score(task["multiclass"], y, wide) == pytest.approx(metrics.log_loss(y, wide), abs=1e-6)
    assert validation_score(task["regression"], y, p) == pytest.approx(metrics.root_mean_squared_error(y, p))
    assert validation_score(task["quantiles"], y, wide) == pytest.approx(np.mean([metrics.mean_pinball_loss(y, wide[:, i], alpha=q) for i, q in enumerate((0.1, 0.5, 0.9))]))


# What a label may be

@pytest.mark.parametrize("label, said", [([1e308, -1e308], "goes from -1e+308 to 1e+308, beyond 32-bit floats"), ([1e39, 2e39], "beyond 32-bit floats"), ([1.7e9 + 1, 1.7e9 + 4], "a spread of 1.5 at 1.7e+09, which 32-bit floats cannot tell apart"),
                                         ([1e-320, 2e-320], "cannot tell apart"), ([2**53, 2**53 + 2], "cannot tell apart")])
def test_a_label_that_float32_cannot_hold_is_refused(label, said):
    with pytest.raises(DataError) as refused: fit_task(Profile.of(polars.DataFrame(dict(y=label))), "y")
    assert "label 'y': " in str(refused.value) and said in str(refused.value) and "dataset function" in str(refused.value)


@pytest.mark.parametrize("label, said", [([1.0, float("nan"), None], "is missing in 2 rows"), ([1.0, float("inf")], "in 1 rows"), ([1.0, 1e39], "is infinite, or beyond 32-bit floats, in 1 rows")])
def test_a_target_that_is_no_number_is_refused(label, said):
    with pytest.raises(DataError, match=said): Task("regression", "y").encode(polars.Series(label))


@pytest.mark.parametrize("given, said", [(dict(threshold="0.5"), "task.threshold: '0.5' is no number"), (dict(quantiles=[0.5, "a"]), "task.quantiles: 'a' is no number"), (dict(quantiles=0.5), "task.quantiles: is 0.5; a list: [0.5]")])
def test_a_task_of_another_type_is_refused(given, said):
    with pytest.raises(ConfigError) as refused: fit_task(Profile.of(polars.DataFrame(dict(y=[1.0, 2.0]))), "y", **given)
    assert said in str(refused.value)


def test_every_quantile_has_a_name_of_its_own():
    task = Task("regression", "y", quantiles=(0.1, 0.1000001, 0.5))
    assert len(task.named(np.float32([[1, 2, 3]]))) == 4 and task.quantile_names[::2] == ("0.1", "0.5")
