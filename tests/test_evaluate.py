"Metrics, intervals, gate, calibration, parts and audit for every task, against scikit-learn or a count by hand."
import numpy as np
import onnxruntime as ort
import polars as pl
import pytest
from sklearn import metrics as sk

from mlproj.data.leakage import audit
from mlproj.data.split import GroupSplit, cut, describe_split
from mlproj.data.task import Task
from mlproj.project import ConfigError, DataError
from mlproj.train.baseline import tail_values
from mlproj.train.calibrate import Calibrated, calibrate, corrected, edges
from mlproj.train.evaluate import (METRICS, Gate, Scorecard, by_slice, calibration, compare, decisions, load_scorecard, metrics_of, pick_threshold,
                                   save_scorecard, score, weighted_score)
from mlproj.train.features import GraphBuilder, Tensors

N, RNG = 3000, np.random.default_rng(0)
LATE, CUT = Task("binary", "late"), Task("multiclass", "cut", ("Fair", "Good", "Ideal"))
PRICE, SPREAD = Task("regression", "price", unit="dollars"), Task("regression", "price", quantiles=(.1, .5, .9))
X = RNG.normal(size=N)
LABELS = {LATE: (RNG.random(N) < 1/(1 + np.exp(-X))).astype(np.float32), CUT: np.digitize(X + RNG.normal(size=N), [-1.2, 0.3]).astype(np.int64)}
LABELS[PRICE] = LABELS[SPREAD] = (1000 + 300*X + 200*RNG.normal(size=N)).astype(np.float32)


def predicted(task, noise: float, seed: int = 0) -> np.ndarray:
    "Predictions of the task's shape that know X but for some noise."
    seen = X + noise*np.random.default_rng(seed).normal(size=N)
    if task.kind == "binary": return (1/(1 + np.exp(-seen))).round(2).astype(np.float32)
    if task.kind == "regression": return ((1000 + 300*seen)[:, None] + np.array([-200, 0, 200])*bool(task.quantiles)).astype(np.float32)[:, :3 if task.quantiles else 1].squeeze()
    odds = np.exp(-np.abs(seen[:, None] - np.array([-1.8, -.4, 1.2])))
    return (odds/odds.sum(1, keepdims=True)).astype(np.float32)

def oracle(task, y, p, w) -> list[float]:
    "The task's metrics by scikit-learn, of rows with weights."
    if task.kind == "binary": return [f(y, p, sample_weight=w) for f in (sk.average_precision_score, sk.roc_auc_score, sk.brier_score_loss)]
    if task.kind == "multiclass":
        exact = p.astype(np.float64)/p.sum(1, keepdims=True, dtype=np.float64)
        return [sk.log_loss(y, exact, sample_weight=w), sk.accuracy_score(y, p.argmax(1), sample_weight=w), sk.f1_score(y, p.argmax(1), average="macro", sample_weight=w)]
    if not task.quantiles: return [f(y, p, sample_weight=w) for f in (sk.root_mean_squared_error, sk.mean_absolute_error, sk.r2_score)]
    return [np.mean([sk.mean_pinball_loss(y, p[:, i], sample_weight=w, alpha=q) for i, q in enumerate(task.quantiles)]),
            np.average((p[:, 0] <= y) & (y <= p[:, 2]), weights=w), np.average(p[:, 2] - p[:, 0], weights=w), sk.mean_absolute_error(y, p[:, 1], sample_weight=w)]

TASKS = pytest.mark.parametrize("task", [LATE, CUT, PRICE, SPREAD], ids=["binary", "multiclass", "regression", "quantiles"])


@TASKS
def test_scores_and_weighted_scores_are_those_of_scikit_learn(task):
    y, p = LABELS[task], predicted(task, .5)
    w = np.random.default_rng(1).poisson(1, N).astype(float)
    assert [*score(task, y, p)] == [*metrics_of(task)]
    for found, weights in ((score(task, y, p), np.ones(N)), (weighted_score(task, y, p)(w), w)):
        np.testing.assert_allclose([*found.values()], oracle(task, y, p, weights), rtol=1e-5)


@TASKS
def test_a_weight_is_a_number_of_copies(task):
    y, p, w = LABELS[task][:200], predicted(task, .5)[:200], np.random.default_rng(1).poisson(1, 200)
    assert [*weighted_score(task, y, p)(w.astype(float)).values()] == pytest.approx([*score(task, np.repeat(y, w), np.repeat(p, w, axis=0)).values()])


@TASKS
def test_a_model_compared_with_itself_gains_nothing_and_the_better_one_gains(task):
    y, good, bad = LABELS[task], predicted(task, .2), predicted(task, 1.5)
    for m in compare(task, y, good, good, replicates=20).values(): assert m["gain"] == dict(value=0, low=0, high=0) and m["n"] == N
    first, sign = metrics_of(task)[0], 1 if task is LATE else -1
    gain = compare(task, y, good, bad, replicates=50)[first]["gain"]
    assert sign*gain["low"] > 0 and sign*gain["high"] > 0


def test_intervals_by_group_are_those_of_resampled_groups():
    "Groups whose labels move together: the spread of a mean over groups, by the textbook formula."
    groups = np.repeat(np.arange(100), 30)
    y = np.random.default_rng(2).normal(size=100)[groups] + .1*RNG.normal(size=N)
    m = compare(PRICE, y, np.zeros(N), np.zeros(N), groups, replicates=400)["mae"]["model"]
    means = np.array([np.abs(y[groups == g]).mean() for g in range(100)])
    assert (m["high"] - m["low"])/2 == pytest.approx(1.96*means.std()/10, rel=.2)
    by_row = compare(PRICE, y, np.zeros(N), np.zeros(N), replicates=100)["mae"]["model"]
    assert m["high"] - m["low"] > 3*(by_row["high"] - by_row["low"])


def test_a_class_that_no_replicate_row_has_does_not_count_as_a_failure():
    y, p = np.array([0, 0, 1, 1, 2]), np.eye(3)[[0, 0, 1, 1, 2]]
    assert weighted_score(CUT, y, p)(np.array([1., 1, 1, 1, 0]))["macro_f1"] == 1


def test_labels_that_are_all_equal_are_refused_where_a_metric_has_no_meaning():
    with pytest.raises(DataError, match="label 'price' is the same in all 3 rows"): score(PRICE, np.ones(3), np.ones(3))
    with pytest.raises(DataError, match="too few different labels"): compare(CUT, np.zeros(9, int), *[np.eye(3)[np.zeros(9, int)]]*2, replicates=5)


@TASKS
def test_slices_are_scores_of_their_rows_and_the_weakest_comes_first(task):
    y, good, bad = LABELS[task], predicted(task, .2), predicted(task, 1.5)
    frame = pl.DataFrame(dict(side=np.where(X > 0, "right", "left"), rare=["x"]*10 + ["y"]*(N - 10)))
    mixed = np.where((X > 0).reshape(-1, *[1]*(good.ndim - 1)), good, bad)  # better than `bad` on the right only
    slices = by_slice(task, frame, ["side", "rare"], y, mixed, bad)
    assert [(s["column"], s["value"]) for s in slices][0] == ("side", "left") and ("rare", "x") not in {(s["column"], s["value"]) for s in slices}
    left = next(s for s in slices if s["value"] == "left")
    assert left["model"] == left["baseline"] == score(task, y[X <= 0], bad[X <= 0]) and left["n"] == (X <= 0).sum()


@TASKS
def test_a_scorecard_survives_its_file(task, tmp_path):
    y, p = LABELS[task], predicted(task, .5)
    card = Scorecard(task, dict(test=compare(task, y, p, p, replicates=5)), [], calibration(task, y, p), decisions(task, y, p, p))
    again = load_scorecard(save_scorecard(card, tmp_path/"scorecard.json"))
    assert again == card and [*again.metrics["test"]] == [*metrics_of(task)]


def test_honest_predictions_are_seen_to_be_so():
    spread = np.array([-1, 0, 1])*200*1.2816
    quantiles = [b for b in calibration(SPREAD, LABELS[PRICE], (1000 + 300*X)[:, None] + spread) if "quantile" in b]
    assert [b["observed"] for b in quantiles] == pytest.approx([.1, .5, .9], abs=.02)
    for task, p, close in ((LATE, predicted(LATE, 0), .08), (PRICE, 1000 + 300*X, 40)):
        assert all(abs(b["predicted"] - b["observed"]) < close for b in calibration(task, LABELS[task], p))


def test_the_confusion_is_that_of_scikit_learn_and_the_errors_are_quantiles():
    y, p = LABELS[CUT], predicted(CUT, .5)
    found = decisions(CUT, y, p, p)
    assert [[d["calls"].get(c, 0) for c in CUT.classes] for d in found] == sk.confusion_matrix(y, p.argmax(1)).tolist()
    assert [d["hits"]/d["called"] for d in found] == pytest.approx(sk.precision_score(y, p.argmax(1), average=None))
    half = decisions(PRICE, LABELS[PRICE], predicted(PRICE, .5), np.zeros(N))[0]
    assert half["share"] == .5 and half["model"] == pytest.approx(np.median(np.abs(LABELS[PRICE] - predicted(PRICE, .5)))) and half["baseline"] > half["model"]


def test_the_threshold_that_is_picked_has_the_best_f1_and_decides_as_the_task_does():
    y, p = LABELS[LATE], predicted(LATE, .5)
    t = pick_threshold(y, p)
    assert sk.f1_score(y, Task("binary", "late", threshold=t).named(p)["prediction"]) == max(sk.f1_score(y, p >= s) for s in np.unique(p))
    for p in (np.array([0, 0, 1, 1.], np.float32), np.array([1, 1, 0, 0.], np.float32)): assert 0 < pick_threshold(np.array([0, 0, 1, 1]), p) < 1


# The gate.

def test_every_metric_of_every_task_may_be_asked_for_and_its_direction_is_checked():
    for metric in {m for names in METRICS.values() for m in names}:
        bounds = [bound for bound in ("at_least", "at_most") if _allowed(metric, bound)]
        assert bounds == {"coverage": ["at_least", "at_most"]}.get(metric, ["at_most" if metric in ("brier", "log_loss", "rmse", "mae", "pinball", "width") else "at_least"])

def _allowed(metric, bound) -> bool:
    try: Gate.of(dict(a=dict(part="test", metric=metric, **{bound: 0.0})))
    except ConfigError: return False
    return True


def test_a_criterion_on_a_metric_of_another_task_names_those_there_are():
    gate = Gate.of(dict(better=dict(part="test", metric="roc_auc", at_least=0.01)))
    gate.check(LATE)
    with pytest.raises(ConfigError, match="gate.criteria.better: roc_auc is no metric of label 'price', which is regression with quantiles; one of pinball, coverage, width, mae"): gate.check(SPREAD)
    card = Scorecard(CUT, {}, [], [], [])
    with pytest.raises(ConfigError, match="one of log_loss, accuracy, macro_f1"): gate.judge(card, gate.plain())


def test_a_lower_error_passes_and_a_higher_one_does_not():
    gate = Gate.of(dict(nearer=dict(part="test", metric="rmse", at_most=0)))
    cards = [Scorecard(PRICE, dict(test=compare(PRICE, LABELS[PRICE], predicted(PRICE, a), predicted(PRICE, b), replicates=5)), [], [], []) for a, b in ((.2, 1.5), (1.5, .2))]
    assert [gate.judge(card, gate.plain())[0].passed for card in cards] == [True, False]


@pytest.mark.parametrize("task", [LATE, CUT, PRICE, SPREAD], ids=["binary", "multiclass", "regression", "quantiles"])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_predictions_that_are_not_finite_have_no_score(task, odd):
    "Sorted to the end, they would pass for a ranking; as the largest, for a class."
    p = predicted(task, .5).copy()
    p[3] = odd
    with pytest.raises(DataError, match=r"predictions of label '\w+' are not finite in 1 of [\d,]+ rows"): score(task, LABELS[task], p)
    with pytest.raises(DataError, match="has no rows"): score(task, LABELS[task][:0], p[:0])


# Calibration.

class Fixed:
    "A model whose prediction is its first columns: so that any output can be tried."
    def __init__(self, task): self.task = task
    def predict(self, x_numbers, x_codes): return x_numbers if self.task.width else x_numbers[:, 0]
    def graph(self):
        g = GraphBuilder("m_")
        g.Identity("x_numbers", outputs=[self.task.output]) if self.task.width else g.Squeeze("x_numbers", np.array([1], np.int64), outputs=[self.task.output])
        return g.model("fixed", *tail_values(self.task.width or 1, 0, self.task))

def tensors(task, p) -> Tensors: return Tensors(np.asarray(p, np.float32).reshape(N, -1), np.zeros((N, 0), np.int64), LABELS[task])

@pytest.mark.parametrize("task", [LATE, CUT, SPREAD], ids=["binary", "multiclass", "quantiles"])
def test_the_calibrated_graph_says_what_the_calibrated_model_says_for_extreme_outputs_too(task):
    p = predicted(task, .5)
    hard = p.copy()
    hard[:4] = [[0, 0, 1], [1, 0, 0], [1e-9, 1 - 1e-7, 0], [.5, .5, 0]] if task is CUT else [[0, 0, 0], [-1e6, 0, 1e6], [5, 4, 3], [1e9, 1e9, 1e9]] if task is SPREAD else [0, 1, 1e-9, 1 - 6e-8]
    model = calibrate(Fixed(task), task, tensors(task, p))
    native, graph = model.predict(tensors(task, hard).x_numbers, None), model.graph()
    served = ort.InferenceSession(graph.SerializeToString()).run(None, dict(x_numbers=tensors(task, hard).x_numbers))[0]
    assert [o.name for o in graph.graph.output] == [task.output] and served.shape == native.shape and served.dtype == native.dtype == np.float32
    assert (np.abs(native - served) <= 1e-5 + 1e-5*np.abs(native)).all() and np.isfinite(native).all()


@pytest.mark.parametrize("parameters", [dict(a=a, b=b) for a in (.2, .5, 1, 2, 3, 20) for b in (-14, -7, -3, 0, 3, 7, 14)])
def test_a_last_digit_of_a_probability_never_moves_the_corrected_one_beyond_the_budget(parameters):
    p = np.concatenate([np.geomspace(1e-8, .5, 2000), 1 - np.geomspace(1e-8, .5, 2000)]).astype(np.float32)
    settings = parameters | edges(**parameters)
    moved = corrected("platt", settings, np.minimum(np.nextafter(p, np.float32(2)), np.float32(1)))
    assert np.abs(moved - corrected("platt", settings, p)).max() <= 1e-5


@pytest.mark.parametrize("shift, slope", [(-3, 1), (-2, 1), (4, 1), (0, 1.5), (0, .5), (-7, 1), (7, 1), (0, .2)])
def test_a_rare_event_is_calibrated_or_its_correction_is_refused(shift, slope):
    "What a model says that was taught with weights of classes: its logits are moved. A correction may not make the likeliest rows alike, nor leave the mean wrong."
    rng, task = np.random.default_rng(0), Task("binary", "fraud")
    z = rng.normal(-5, 1.5, 50_000)
    y, p = (rng.random(len(z)) < 1/(1 + np.exp(-z))).astype(np.float32), (1/(1 + np.exp(-(z + shift)/slope))).astype(np.float32)
    try: after = calibrate(Fixed(task), task, Tensors(p[:, None], np.zeros((len(z), 0), np.int64), y)).predict(p[:, None], None)
    except ConfigError as error:
        assert abs(shift) == 7 or slope < 1
        assert str(error).startswith("task.calibration: the correction (a ") and "too steep" in str(error)
        return
    assert after.mean() == pytest.approx(y.mean(), rel=.02)
    assert score(task, y, after)["average_precision"] == pytest.approx(score(task, y, p)["average_precision"], abs=.003)


def test_calibration_repairs_what_is_too_sure_and_keeps_the_ranking():
    sure = (1/(1 + np.exp(-3*X))).astype(np.float32)
    model = calibrate(Fixed(LATE), LATE, tensors(LATE, sure))
    after = model.predict(tensors(LATE, sure).x_numbers, None)
    before, found = score(LATE, LABELS[LATE], sure), score(LATE, LABELS[LATE], after)
    assert found["brier"] < before["brier"] - .01 and found["roc_auc"] == pytest.approx(before["roc_auc"], abs=1e-3)
    assert model.parameters["a"] == pytest.approx(1/3, rel=.1)


def test_conformal_ranges_hold_their_nominal_share_of_rows_they_have_not_seen():
    narrow = (1000 + 300*X)[:, None] + np.array([-20, 0, 20])
    first, p = np.arange(N) < N//2, narrow.astype(np.float32)
    seen = Tensors(p[first], np.zeros((first.sum(), 0), np.int64), LABELS[SPREAD][first])
    after = calibrate(Fixed(SPREAD), SPREAD, seen).predict(p[~first], None)
    assert score(SPREAD, LABELS[SPREAD][~first], p[~first])["coverage"] < .2
    assert score(SPREAD, LABELS[SPREAD][~first], after)["coverage"] == pytest.approx(.8, abs=.04)
    assert (np.diff(after, axis=1) >= 0).all()


def test_a_method_of_another_task_is_refused_and_null_changes_nothing():
    model = Fixed(PRICE)
    assert calibrate(model, PRICE, None) is model and calibrate(model, LATE, None, None) is model
    with pytest.raises(ConfigError, match="'platt' is not for label 'cut'; write temperature, auto or null"): calibrate(model, CUT, None, "platt")
    assert isinstance(calibrate(Fixed(CUT), CUT, tensors(CUT, predicted(CUT, .5)), "temperature"), Calibrated)


# Parts and audit, without a time.

HONEST = ["one", "two", "three", "four"]

def parts_of(**labels):
    "A table whose columns know much the same of a label, split at random by its key."
    blurred = {name: X + np.random.default_rng(seed).normal(size=N) for seed, name in enumerate(HONEST, 10)}
    frame = pl.DataFrame(dict(row=np.arange(N), **blurred, **labels))
    return cut(GroupSplit("row", .2, .2), frame)

@pytest.mark.parametrize("values, said", [
    (LABELS[LATE] > 0, "% label)"), (np.array(CUT.classes)[LABELS[CUT]], "3 values of label, "), (LABELS[PRICE], "(mean label 9"), (LABELS[CUT], "(mean label 1.")])
def test_a_part_says_what_its_label_is_like(values, said):
    frame = pl.concat([*parts_of(label=values).values()])
    parts = describe_split(GroupSplit("row", .2, .2), frame, "label")
    assert said in parts["train"].say("label") and parts["train"].first == "" and sum(p.rows for p in parts.values()) == N


@pytest.mark.parametrize("values, question", [(LABELS[PRICE], "whether label is above"), (np.array(CUT.classes)[LABELS[CUT]], "whether label is '"), (LABELS[LATE] > 0, "knows the label")])
def test_a_copy_of_the_label_is_a_leak_for_every_kind_of_label(values, question):
    codes = np.unique(values, return_inverse=True)[1]
    found = audit(parts_of(label=values, copy=codes + .01*RNG.normal(size=N)), [*HONEST, "copy"], "label", key=["row"])
    assert [(f.check, f.columns, f.severity) for f in found.findings] == [("alone", ("copy",), "leak")] and question in found.findings[0].said


@pytest.mark.parametrize("values", [LABELS[PRICE], np.array(CUT.classes)[LABELS[CUT]], LABELS[LATE] > 0], ids=["number", "classes", "boolean"])
def test_an_honest_table_without_a_time_raises_no_alarm(values):
    found = audit(parts_of(label=values, level=RNG.choice([*"abcdefghijkl"], N)), [*HONEST, "level"], "label", key=["row"])
    assert found.findings == () and dict(found.skipped)["times"] == "no time column is declared"


def test_the_mean_of_a_number_by_level_over_all_rows_is_a_leak():
    level = RNG.choice([*"abcdefghijklmnopqrstuvwxyz"], N)
    frame = pl.DataFrame(dict(label=LABELS[PRICE].astype(np.float64) + 50*(np.unique(level, return_inverse=True)[1] % 5), level=level, row=np.arange(N)))
    frame = frame.with_columns(encoded=pl.col("label").mean().over("level"), others=(pl.col("label").sum().over("level") - pl.col("label"))/(pl.len().over("level") - 1))
    found = audit(cut(GroupSplit("row", .2, .2), frame), ["level", "encoded", "others"], "label")
    assert {(f.check, f.columns[0]) for f in found.leaks} >= {("targets", "encoded"), ("left out", "others")}
