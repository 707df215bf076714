"""Somebody slightly modified the pre-processing. Each mutation is one such slip, made in the graph that would be served, or in how a service fills it;
the proof has to refuse it, and the golden rows have to show it."""
import numpy as np
import onnx
import polars as pl
import pytest
import torch
from onnx import TensorProto, numpy_helper

from mlproj.data.contract import infer_contract, pack
from mlproj.data.profile import Profile
from mlproj.data.task import fit_task
from mlproj.examples.flights import dataset
from mlproj.project import ParityError
from mlproj.train.baseline import Linear
from mlproj.train.encoders import Choice
from mlproj.train.export import golden_rows, join, prove
from mlproj.train.features import GraphBuilder, Tensors, encode, features_graph, fit_features, session
from mlproj.train.function import derive, export_function, with_function

# one column for each kind and each encoder; wind and temperature come from a join, and are missing where it found nothing
CHOICES = dict(departure=Choice("time", dict(zone="America/New_York", trend=True)), dep_minute=Choice("piecewise"), arr_minute=Choice("quantile"), distance=Choice("log1p"),
               dest=Choice("category", dict(min_count=5)), weekday=Choice("ordinal", dict(values=["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"])), airline=Choice("text"))
COLUMNS = ["departure", "dep_minute", "arr_minute", "distance", "temp", "humid", "wind_dir", "wind_speed", "place", "weekend", "origin", "dest", "carrier", "weekday", "airline"]


def wind(c):
    "A user's function."
    angle = torch.deg2rad(c["wind_dir"])
    return dict(west=-c["wind_speed"]*torch.sin(angle), south=-c["wind_speed"]*torch.cos(angle), warm=(c["temp"] > 70))


class Trained:
    "A model of the flights that has learned, with everything that its proof needs."
    def __init__(self):
        frame = dataset(fraction=0.02).frame.with_columns(weekend=pl.col("weekday").is_in(["Sat", "Sun"]), place=pl.when(pl.col("dest_lat").is_not_null()).then(pl.concat_arr("dest_lat", "dest_lon")))
        profile = Profile.of(frame)
        self.contract, self.task = infer_contract(profile, "flights", COLUMNS, label="late"), fit_task(profile, "late")
        self.golden = golden_rows(frame, self.contract, label="late")
        numbers = pack(self.contract, frame)[0]
        self.function = export_function(wind, self.contract, pack(self.contract, self.golden)[0][:200])
        derived = Profile.of(pl.DataFrame(dict(zip(self.function.names, derive(self.function, numbers).T))).fill_nan(None))
        self.features = fit_features(profile, self.contract, CHOICES, list(derived.columns.items()))
        self.encoders = with_function(self.function, features_graph(self.features))
        tensors = Tensors(*encode(self.encoders, self.contract, frame), self.task.encode(frame["late"]))
        self.model = Linear(self.features, self.task).fit(tensors)
        self.whole = join(self.encoders, self.model.graph(), self.task)

    def prove(self, whole=None, **more): return prove(whole or self.whole, self.encoders, self.model, self.contract, self.golden, self.task, **more)
    def encoder(self, name): return next(e for e in self.features.numbers if e.name == name)
    def at(self, name) -> int: return self.contract.number_slices[name].start


@pytest.fixture(scope="module")
def trained(): return Trained()


# How a graph is changed

def rewired(whole: onnx.ModelProto, value: str, build) -> onnx.ModelProto:
    "The graph in which whatever read a value reads what `build(g, value)` makes of it."
    out, g = onnx.ModelProto(), GraphBuilder("slip_")
    out.CopyFrom(whole)
    last = value in [o.name for o in out.graph.output]
    source = f"{value}_before" if last else value
    new, nodes, at = build(g, source), list(out.graph.node), 0
    for i, node in enumerate(nodes):
        if value in node.output:
            at = i + 1
            if last: node.output[:] = [source if n == value else n for n in node.output]
        node.input[:] = [new if n == value else n for n in node.input]
    if last: g.nodes[-1].output[0] = value
    del out.graph.node[:]
    out.graph.node.extend([*nodes[:at], *g.nodes, *nodes[at:]])
    out.graph.initializer.extend(g.initializers.values())
    onnx.checker.check_model(out)
    return out


def edited(whole: onnx.ModelProto, edit) -> onnx.ModelProto:
    "The graph after `edit(graph)`."
    out = onnx.ModelProto()
    out.CopyFrom(whole)
    edit(out.graph)
    onnx.checker.check_model(out)
    return out


def nodes(graph, *kinds) -> list: return [n for n in graph.node if n.op_type in kinds and not n.name.startswith("m_")]
def attribute(node, name): return next(a for a in node.attribute if a.name == name)


def constant(graph, kind, place, change) -> None:
    "Change the constants that nodes of a kind read at a place."
    read, found = {n.input[place] for n in nodes(graph, kind)}, False
    for tensor in graph.initializer:
        if tensor.name in read and not tensor.name.startswith("m_"):
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))
            found = True
    assert found, (kind, place)


def figure(kind, name, change):
    "Change a list of figures that stands in nodes of a kind."
    def edit(graph):
        for node in nodes(graph, kind):
            a = attribute(node, name)
            a.floats[:] = change(np.array(a.floats)).tolist()
    return edit


def bypass(*kinds):
    "Take nodes of some kinds out: what read them reads their first input."
    def edit(graph):
        gone = {n.output[0]: n.input[0] for n in nodes(graph, *kinds)}
        kept = [n for n in graph.node if n.output[0] not in gone]
        def source(name):
            while name in gone: name = gone[name]
            return name
        for node in kept: node.input[:] = [source(n) for n in node.input]
        assert gone and not set(gone) & {"x_numbers", "x_codes"}
        del graph.node[:]
        graph.node.extend(kept)
    return edit


def listed(name, kind):
    "A way to change a list that the encoders of strings hold."
    def of(change):
        def edit(graph):
            for node in nodes(graph, "LabelEncoder"):
                values = getattr(attribute(node, name), kind)
                values[:] = change(list(values))
        return edit
    return of


words, ids = listed("keys_strings", "strings"), listed("values_int64s", "ints")  # what they know, and what they make of it


def unknown(graph):
    for node in nodes(graph, "LabelEncoder"): attribute(node, "default_int64").i = 1


def swapped(a):
    a = list(a)
    a[1], a[2] = a[2], a[1]
    return a


def order(trained, first, second, names) -> np.ndarray:
    "Places of the columns when two are swapped."
    places = np.arange(names)
    places[[first, second]] = places[[second, first]]
    return places


def column(trained, name, build):
    "Change one column of the numbers: `build(g, all numbers)` gives all of them changed."
    at = np.zeros(trained.contract.number_width, bool)
    at[trained.contract.number_slices[name]] = True
    return rewired(trained.whole, "numbers", lambda g, x: g.Where(at, build(g, x), x))


f64 = lambda *values: np.array(values, np.float64)
nan = np.array(np.nan)

GRAPH = dict(
    # the numbers, before the encoders
    float32_for_float64=lambda t: rewired(t.whole, "numbers", lambda g, x: g.Cast(g.Cast(x, to=TensorProto.FLOAT), to=TensorProto.DOUBLE)),
    number_columns_swapped=lambda t: rewired(t.whole, "numbers", lambda g, x: g.Gather(x, order(t, t.at("temp"), t.at("humid"), t.contract.number_width), axis=1)),
    joined_column_dropped=lambda t: column(t, "temp", lambda g, x: g.Mul(x, nan)),
    join_of_all_weather_empty=lambda t: rewired(t.whole, "numbers", lambda g, x: g.Where(np.isin(np.arange(t.contract.number_width), [t.at(n) for n in ("temp", "humid", "wind_dir", "wind_speed")]), nan, x)),
    missing_numbers_as_zero=lambda t: rewired(t.whole, "numbers", lambda g, x: g.Where(g.IsNaN(x), f64(0), x)),
    missing_numbers_as_minus_999=lambda t: rewired(t.whole, "numbers", lambda g, x: g.Where(g.IsNaN(x), f64(-999), x)),
    numbers_truncated_to_integers=lambda t: rewired(t.whole, "numbers", lambda g, x: g.Floor(x)),
    a_column_rounded=lambda t: column(t, "humid", lambda g, x: g.Round(x)),
    another_unit=lambda t: column(t, "temp", lambda g, x: g.Div(g.Sub(x, f64(32)), f64(1.8))),
    miles_as_kilometres=lambda t: column(t, "distance", lambda g, x: g.Mul(x, f64(1.609344))),
    time_in_milliseconds=lambda t: column(t, "departure", lambda g, x: g.Mul(x, f64(1000))),
    time_on_another_clock=lambda t: column(t, "departure", lambda g, x: g.Sub(x, f64(5*3600))),
    log1p_where_not_fitted=lambda t: column(t, "humid", lambda g, x: g.Log(g.Add(x, f64(1)))),
    boolean_inverted=lambda t: column(t, "weekend", lambda g, x: g.Sub(f64(1), x)),
    vector_reversed=lambda t: rewired(t.whole, "numbers", lambda g, x: g.Gather(x, order(t, t.at("place"), t.at("place") + 1, t.contract.number_width), axis=1)),
    centred_by_the_batch=lambda t: rewired(t.whole, "numbers", lambda g, x: g.Sub(x, g.ReduceMean(g.Where(g.IsNaN(x), f64(0), x), np.array([0])))),
    the_first_row_for_all=lambda t: rewired(t.whole, "numbers", lambda g, x: g.Add(g.Mul(x, f64(0)), g.Slice(x, np.array([0]), np.array([1]), np.array([0])))),
    # the strings, before the encoders
    string_columns_swapped=lambda t: rewired(t.whole, "strings", lambda g, x: g.Gather(x, order(t, 0, 1, len(t.contract.strings)), axis=1)),
    an_emptied_string_column=lambda t: rewired(t.whole, "strings", lambda g, x: g.Where(np.arange(len(t.contract.strings)) == 2, np.array("", object), x)),
    missing_strings_as_the_word_none=lambda t: rewired(t.whole, "strings", lambda g, x: g.Where(g.Equal(x, np.array("", object)), np.array("None", object), x)),
    missing_strings_as_the_commonest=lambda t: rewired(t.whole, "strings", lambda g, x: g.Where(g.Equal(x, np.array("", object)), np.array("JFK", object), x)),
    # the encoders of numbers
    median_changed=lambda t: edited(t.whole, figure("Imputer", "imputed_value_floats", lambda a: a + 0.01)),
    mean_changed=lambda t: edited(t.whole, figure("Scaler", "offset", lambda a: a*1.001)),
    scale_changed=lambda t: edited(t.whole, figure("Scaler", "scale", lambda a: a*1.001)),
    scale_of_one_column_changed=lambda t: edited(t.whole, figure("Scaler", "scale", lambda a: np.where(np.arange(len(a)) == len(a) - 1, a*1.001, a))),
    clip_removed=lambda t: edited(t.whole, bypass("Min", "Max")),
    upper_clip_removed=lambda t: edited(t.whole, bypass("Min")),
    upper_clip_changed=lambda t: edited(t.whole, lambda graph: constant(graph, "Min", 1, lambda a: a*np.float32(1.01))),
    lower_clip_changed=lambda t: edited(t.whole, lambda graph: constant(graph, "Max", 1, lambda a: a - a.dtype.type(0.01))),
    log1p_forgotten=lambda t: edited(t.whole, bypass("Log")),
    a_scaler_applied_twice=lambda t: column(t, "humid", lambda g, x: g.Div(g.Sub(x, f64(t.encoder("humid").mean)), f64(t.encoder("humid").scale))),
    indicators_dropped=lambda t: rewired(t.whole, "x_numbers", lambda g, x: g.Where(np.array(["missing" in n for n in t.features.names]), np.array(0, np.float32), x)),
    indicators_inverted=lambda t: rewired(t.whole, "x_numbers", lambda g, x: g.Where(np.array(["missing" in n for n in t.features.names]), g.Sub(np.array(1, np.float32), x), x)),
    quantile_edges_shifted=lambda t: edited(t.whole, lambda graph: constant(graph, "GreaterOrEqual", 1, lambda a: a + 1)),
    sine_and_cosine_swapped=lambda t: edited(t.whole, lambda graph: [setattr(n, "op_type", {"Sin": "Cos", "Cos": "Sin"}[n.op_type]) for n in nodes(graph, "Sin", "Cos")]),
    a_constant_of_the_users_function_changed=lambda t: edited(t.whole, lambda graph: constant(graph, "Greater", 1, lambda a: a + 5)),
    the_users_function_skipped=lambda t: rewired(t.whole, "derived", lambda g, x: g.Mul(x, f64(0))),
    # the encoders of strings
    categories_shifted_by_one=lambda t: edited(t.whole, ids(lambda a: [*a[:1], *(i + 1 for i in a[1:-1]), 0])),
    two_categories_swapped=lambda t: edited(t.whole, words(swapped)),
    category_order_reversed=lambda t: edited(t.whole, words(lambda a: [*a[:1], *a[:0:-1]])),
    a_category_forgotten=lambda t: edited(t.whole, words(lambda a: [w if w != b"JFK" else b"~" for w in a])),
    unseen_as_missing=lambda t: edited(t.whole, unknown),
    missing_as_unseen=lambda t: edited(t.whole, ids(lambda a: [0, *a[1:]])),
    a_rare_word_counted_as_another=lambda t: edited(t.whole, lambda graph: constant(graph, "GatherElements", 0, np.flipud)),
    # between encoders and model
    embedding_off_by_one=lambda t: rewired(t.whole, "x_codes", lambda g, x: g.Max(g.Sub(x, np.array(1)), np.array(0))),
    code_columns_swapped=lambda t: rewired(t.whole, "x_codes", lambda g, x: g.Gather(x, order(t, 0, 1, len(t.features.code_names)), axis=1)),
    feature_columns_rolled=lambda t: rewired(t.whole, "x_numbers", lambda g, x: g.Gather(x, np.roll(np.arange(t.features.width), 1), axis=1)),
    normalised_by_the_batch=lambda t: rewired(t.whole, "x_numbers", lambda g, x: g.Sub(x, g.ReduceMean(x, np.array([0])))),
    float16_between=lambda t: rewired(t.whole, "x_numbers", lambda g, x: g.Cast(g.Cast(x, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)),
    # behind the model
    sigmoid_twice=lambda t: rewired(t.whole, "probability", lambda g, x: g.Sigmoid(x)),
    softmax_over_the_batch=lambda t: rewired(t.whole, "probability", lambda g, x: g.Softmax(x, axis=0)),
    the_other_class=lambda t: rewired(t.whole, "probability", lambda g, x: g.Sub(np.array(1, np.float32), x)),
    rounded_probability=lambda t: rewired(t.whole, "probability", lambda g, x: g.Div(g.Round(g.Mul(x, np.array(1000, np.float32))), np.array(1000, np.float32))),
    threshold_applied=lambda t: rewired(t.whole, "probability", lambda g, x: g.Cast(g.GreaterOrEqual(x, np.array(0.5, np.float32)), to=TensorProto.FLOAT)),
)


def test_what_was_trained_is_proven(trained):
    parity = trained.prove()
    assert parity.rows == 1000 and max(parity.worst.values()) < 1e-6 and parity.predictions.std() > 0.05


@pytest.mark.parametrize("name", GRAPH)
def test_a_mutated_graph_is_refused(trained, name):
    mutant = GRAPH[name](trained)
    assert mutant.SerializeToString(deterministic=True) != trained.whole.SerializeToString(deterministic=True)
    with pytest.raises(ParityError) as refused: trained.prove(mutant)
    assert "no golden row reaches" not in str(refused.value)  # the rows show it, not only the text of the graph


def test_a_constant_that_no_row_reaches_is_refused_too(trained):
    # a word that neither training nor the golden rows have, so that no answer differs
    def add(graph):
        for node in nodes(graph, "LabelEncoder"):
            attribute(node, "keys_strings").strings.append(b"QQQQ")
            attribute(node, "values_int64s").ints.append(1)
    with pytest.raises(ParityError, match="in a part that no golden row reaches"): trained.prove(edited(trained.whole, add))


# The same graph, filled otherwise: a service with its own idea of a missing value, of text or of time. It is compared as another form of the model.

def filled(trained, change):
    "A form that changes numbers (n, k) and strings (n, m) before it runs the graph."
    run = session(trained.whole)
    def form(golden):
        numbers, strings = change(trained, *pack(trained.contract, golden))
        return run.run(None, dict(numbers=numbers, strings=strings))[0], np.ones(len(golden), bool)
    return form


def each_string(change): return lambda t, numbers, strings: (numbers, np.vectorize(change, otypes=[object])(strings))
def each_number(change): return lambda t, numbers, strings: (change(t, numbers.copy()), strings)


def with_column(name, change):
    def done(t, numbers):
        at = t.contract.number_slices[name]
        numbers[:, at] = change(numbers[:, at])
        return numbers
    return each_number(done)


# Not here, since they change no answer: a boolean as a percentage (clipped to 1), strings as ASCII (an unseen word stays unseen).
FILLED = dict(
    strings_stripped=each_string(str.strip), strings_lower=each_string(str.lower), strings_upper=each_string(str.upper), strings_cut_at_ten=each_string(lambda s: s[:10]),
    missing_as_none=each_string(lambda s: s or "None"), missing_as_nan=each_string(lambda s: s or "nan"),
    numbers_filled_with_zero=each_number(lambda t, x: np.nan_to_num(x)), numbers_filled_with_the_mean=each_number(lambda t, x: np.where(np.isnan(x), np.nanmean(x, 0), x)),
    numbers_clipped_to_a_million=each_number(lambda t, x: np.clip(x, -1e6, 1e6)), columns_sorted_by_name=each_number(lambda t, x: x[:, np.argsort(t.contract.numbers)[:1].repeat(x.shape[1])]),
    columns_rolled=each_number(lambda t, x: np.roll(x, 1, 1)), rows_rolled=each_number(lambda t, x: np.roll(x, 1, 0)),
    time_in_milliseconds=with_column("departure", lambda x: x*1000), time_on_the_local_clock=with_column("departure", lambda x: x - 5*3600), day_instead_of_time=with_column("departure", lambda x: x//86400*86400),
    boolean_inverted=with_column("weekend", lambda x: 1 - x), temperature_in_celsius=with_column("temp", lambda x: (x - 32)/1.8), integers_of_16_bits=with_column("distance", lambda x: (x + 2**15) % 2**16 - 2**15),
    missing_as_minus_one=with_column("wind_speed", lambda x: np.where(np.isnan(x), -1, x)), numbers_of_32_bits=each_number(lambda t, x: x.astype(np.float32).astype(np.float64)),
)


def test_the_graph_filled_as_it_should_be_is_proven(trained):
    assert trained.prove(others=dict(service=filled(trained, lambda t, *inputs: inputs))).worst["service"] < 1e-6


@pytest.mark.parametrize("name", FILLED)
def test_a_graph_that_is_filled_otherwise_is_refused(trained, name):
    with pytest.raises(ParityError, match="service gives"): trained.prove(others=dict(service=filled(trained, FILLED[name])))
