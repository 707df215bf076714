"Encoders and their graph against independent oracles: scikit-learn, Polars, Python's zones, numpy; and against themselves, row by row."
import json, string
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import onnx
import polars as pl
import pytest

import mlproj.train.features as module
from mlproj.data.contract import infer_contract, pack
from mlproj.data.profile import Profile, load_profile, save_profile
from mlproj.project import ConfigError, ContractError, DataError
from mlproj.train.encoders import (CYCLES, ENCODERS, RULE_YEARS, Choice, auto_features, choose_encoders, encoders_from_yaml, encoders_yaml, fit_encoder, load_encoders,
                                   save_encoders)
from mlproj.train.features import encode, features_graph, fit_features, session

HARD = [0.0, -0.0, 1.0, -1e-300, 5e-324, 1e9, -1e9, 1e38, -3.5e38, 1.7e308, -1.7e308, float("inf"), -float("inf"), float("nan"), None, 2.0**53]
WORDS = ["", "a", "A", "UA", "ua", "é", "Zürich ✈", "x"*300, "fog", "Fog", "FOG", "fog,", " fog  bay ", "\tbay", "\U0001f6eb", None, "None", "nan"]


def made(table: pl.DataFrame, choices: dict | None = None, features=None):
    "Contract, features and graph of a table, all of whose columns are features."
    profile = Profile.of(table)
    contract = infer_contract(profile, "t", features or table.columns)
    fitted = fit_features(profile, contract, choices)
    return contract, fitted, features_graph(fitted)


def column(table, choices=None, of: pl.DataFrame | None = None):
    "The tensors of a table, or of another one, and the features."
    contract, fitted, graph = made(table, choices)
    return (*encode(graph, contract, table if of is None else of), fitted)


def by_rows(graph, contract, table):
    "The tensors of a table, by the whole graph: all rows together, and one by one."
    run, names = session(graph, 1), [o.name for o in graph.graph.output]
    numbers, strings = pack(contract, table)
    feeds = {k: v for k, v in dict(numbers=numbers, strings=strings).items() if v.shape[1]}
    singles = [run.run(names, {k: v[i:i + 1] for k, v in feeds.items()}) for i in range(table.height)]
    return dict(zip(names, run.run(names, feeds))), {n: np.concatenate([s[i] for s in singles]) for i, n in enumerate(names)}


# numbers

def test_standard_is_scikit_learn_with_clipping():
    from sklearn.pipeline import make_pipeline
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import StandardScaler
    rng = np.random.default_rng(0)
    train = np.where(rng.random((3001, 3)) < .2, np.nan, rng.normal([0, 1013, -5e6], [1, 8, 3e6], (3001, 3)))
    later = np.where(rng.random((500, 3)) < .2, np.nan, rng.normal([0, 1013, -5e6], [2, 16, 6e6], (500, 3)))
    contract, features, graph = made(pl.DataFrame(train, schema=["x", "p", "money"], nan_to_null=True))
    x, _ = encode(graph, contract, pl.DataFrame(later, schema=["x", "p", "money"], nan_to_null=True))
    scale, impute = StandardScaler().fit(train), SimpleImputer(strategy="constant", fill_value=0).fit(train)
    median = [np.sort(c[~np.isnan(c)])[(~np.isnan(c)).sum() - 1 - (~np.isnan(c)).sum()//2] for c in train.T]  # the lower of two in the middle
    filled = np.where(np.isnan(later), median, later).clip(np.nanmin(train, 0), np.nanmax(train, 0))
    np.testing.assert_allclose(x[:, :3], scale.transform(filled), atol=1e-5)  # the mean is kept as float32 can hold it
    np.testing.assert_array_equal(x[:, 3:], np.isnan(later))
    assert features.names == ("x", "p", "money", "x missing", "p missing", "money missing")


@pytest.mark.parametrize("middle, spread", [(2003.5, 6), (1.7e9, 3600), (1.7e9, 2e7), (1e12, 1e6), (-40.7, .01), (3e-5, 1e-6)])
def test_values_far_from_zero_keep_their_digits(middle, spread):
    x = middle + spread*np.random.default_rng(0).normal(size=4000)
    got = column(pl.DataFrame(dict(x=x)))[0][:, 0]
    shift = abs(np.float32(middle) - middle)/spread  # the zero of the scale may be off by the rounding of the mean, the distances not
    np.testing.assert_allclose(got.astype(float) - got.mean(dtype=float), (x - x.mean())/x.std(), atol=3e-7*(4 + shift))


def test_log1p_is_scikit_learn_of_logarithms():
    from sklearn.preprocessing import StandardScaler
    amounts = np.random.default_rng(0).lognormal(3, 2, 9000).round(0)
    x, _, features = column(pl.DataFrame(dict(amount=amounts)))
    assert features.numbers[0].log  # chosen, since it is skewed
    np.testing.assert_allclose(x[:, 0], StandardScaler().fit_transform(np.log1p(amounts)[:, None])[:, 0], atol=1e-5)
    below = column(pl.DataFrame(dict(amount=amounts)), of=pl.DataFrame(dict(amount=[-5.0, -0.5, None])))[0][:, 0]
    assert below[0] == below[1] == x.min() and x.min() < below[2] < x.max()  # clipped, imputed


def test_quantile_codes_are_those_of_scikit_learn():
    from sklearn.preprocessing import KBinsDiscretizer
    x = np.random.default_rng(0).gamma(2, 3, 5000).round(1)  # ties, also at edges
    for bins in (2, 8, 16, 32):
        oracle = KBinsDiscretizer(bins, encode="ordinal", strategy="quantile", quantile_method="inverted_cdf", subsample=None).fit(x[:, None])
        later = np.concatenate([x, oracle.bin_edges_[0], [-99, 99]])
        _, codes, features = column(pl.DataFrame(dict(x=x)), dict(x=Choice("quantile", dict(bins=bins))), pl.DataFrame(dict(x=later)))
        np.testing.assert_array_equal(codes[:, 0] - 2, oracle.transform(later[:, None])[:, 0])
        assert codes.max() == features.cardinalities[0] - 1


def test_a_missing_number_has_a_code_of_its_own_and_infinities_the_outer_ones():
    _, codes, features = column(pl.DataFrame(dict(x=[1.0, 2, 3, 4], y=[1.0, 1, 1, None])), dict(x=Choice("quantile", dict(bins=2)), y=Choice("quantile")),
                                pl.DataFrame(dict(x=[None, float("nan"), -np.inf, np.inf], y=[1.0, None, 9, -9])))
    assert codes.tolist() == [[1, 2], [1, 1], [2, 2 + len(features.numbers[1].edges)], [3, 2]] and features.cardinalities[0] == 4


def test_piecewise_columns_add_up_to_the_place_among_the_quantiles():
    x = np.random.default_rng(0).exponential(5, 4000)
    later = np.concatenate([x[:500], [-1, 0, 1e30, -1e30, np.inf]])
    got, _, features = column(pl.DataFrame(dict(x=x)), dict(x=Choice("piecewise", dict(bins=8))), pl.DataFrame(dict(x=later)))
    edges = np.array(features.numbers[0].edges)
    np.testing.assert_allclose(got.sum(1), np.interp(later, edges, np.arange(9)), atol=1e-5)
    assert ((got[:, 1:] == 0) | (got[:, :-1] == 1)).all()  # an interval begins when the one before is full
    assert (got.min(), got.max(), features.width) == (0, 1, 8)


def test_a_boolean_is_zero_or_one_and_missing_has_an_indicator():
    x, _, features = column(pl.DataFrame(dict(b=[True, False, True, None])))
    assert (x.tolist(), features.names) == ([[1, 0], [0, 0], [1, 0], [1, 1]], ("b", "b missing"))


def test_a_vector_is_standardised_as_one_and_missing_is_zero():
    rng = np.random.default_rng(0)
    vectors = rng.normal(3, 2, (500, 4))
    rows = [None if i % 7 == 0 else v.tolist() for i, v in enumerate(vectors)]
    table = pl.DataFrame(dict(a=range(500), v=rows, z=rng.random(500)), schema_overrides=dict(v=pl.List(pl.Float64)))
    x, _, features = column(table)
    there = np.array([r is not None for r in rows])
    expected = (vectors - vectors[there].mean())/vectors[there].std()
    np.testing.assert_allclose(x[there][:, 1:5], expected[there], atol=1e-5)
    assert (x[~there][:, 1:5] == 0).all() and (x[:, 6] == ~there).all()
    assert features.names == ("a", "v[0]", "v[1]", "v[2]", "v[3]", "z", "v missing")


def test_what_no_float32_can_hold_is_chosen_as_intervals_and_refused_as_a_number():
    table = pl.DataFrame(dict(x=[1e200, 2e200, -1e250, 3e200]*10))
    assert choose_encoders(Profile.of(table), infer_contract(Profile.of(table), "t", ["x"]))["x"].encoder == "quantile"
    codes = column(table)[1][:4, 0]
    assert np.argsort(codes).tolist() == [2, 0, 1, 3]
    for encoder in ("standard", "log1p", "piecewise"):
        with pytest.raises((DataError, ConfigError), match="column 'x'"): column(table, dict(x=Choice(encoder)))


@pytest.mark.parametrize("middle, spread", [(1.7e9, 20), (1.7e12, 1000), (2.0**53, 50), (-1e15, 1e3)])
def test_values_that_share_their_first_digits_are_standardised_all_the_same(middle, spread):
    x = middle + (spread*np.random.default_rng(0).normal(size=4000)).round()
    table = pl.DataFrame(dict(x=x, y=x, t=pl.Series([0, 1]*2000)))
    contract, features, graph = made(table, dict(y=Choice("piecewise", dict(bins=8))))
    got = encode(graph, contract, table)[0].astype(float)
    np.testing.assert_allclose(got[:, 0], (x - x.mean())/x.std(), atol=2e-3)
    np.testing.assert_allclose(got[:, 2:].sum(1), np.interp(x, features.numbers[1].edges, np.arange(len(features.numbers[1].edges))), atol=1e-5)
    assert got.shape[1] == 2 + 8 and len(set(features.names)) == features.width


@pytest.mark.parametrize("value", [1700000001, 1e12 + 1, 123456789.123, 1e20, -3e-12, 0])
def test_a_constant_is_zero_however_large_it_is(value):
    for choice in (None, Choice("log1p"), Choice("piecewise")):
        if choice != Choice("log1p") or value >= 0:
            assert np.abs(column(pl.DataFrame(dict(x=[value]*5)), choice and dict(x=choice))[0]).max() < 1e-3


def test_what_no_float_can_measure_is_refused():
    wide, vector = pl.DataFrame(dict(x=[1.7e308, -1.7e308, 0.0])), pl.DataFrame(dict(x=[[1e300, -1e300]]))
    with pytest.raises(DataError, match="column 'x': its mean or its spread is beyond 64-bit floats; encoder: quantile"): column(wide, dict(x=Choice("standard")))
    with pytest.raises(DataError, match="column 'x': its mean or its spread is beyond 64-bit floats; encoder: drop"): column(vector)
    with pytest.raises(DataError, match="column 'x': values from 0 to 1e-310 are beyond 32-bit floats"): column(pl.DataFrame(dict(x=[5e-324, 0.0, 1e-310])), dict(x=Choice("piecewise")))


def test_edges_differ_as_a_network_holds_them():
    edges = column(pl.DataFrame(dict(x=[5e-324, 0.0, 1e-310])), dict(x=Choice("standard")))[2].edges[0]
    assert (np.diff(np.float32(edges)) > 0).all()


# strings

def test_categories_are_those_of_scikit_learn_with_two_more():
    from sklearn.preprocessing import OrdinalEncoder
    rng = np.random.default_rng(0)
    words = rng.choice([f"w{i}" for i in range(60)], (4000, 3), p=np.r_[np.full(10, .08), np.full(50, .004)])
    table, later = pl.DataFrame(words, schema=list("abc")), pl.DataFrame(rng.choice([f"w{i}" for i in range(90)], (1000, 3)), schema=list("abc"))
    for least in (1, 12):
        oracle = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-2, min_frequency=least).fit(words)
        _, codes, features = column(table, {c: Choice("category", dict(min_count=least)) for c in "abc"}, later)
        rare = [len(v) - (0 if i is None else len(i)) for v, i in zip(oracle.categories_, oracle.infrequent_categories_)] if least > 1 else [999]*3
        expected = oracle.transform(later.to_numpy()) + 2
        np.testing.assert_array_equal(codes, np.where(expected >= np.array(rare) + 2, 0, expected))  # scikit-learn gives rare ones a code behind all others
        assert all(n == r + 2 for n, r in zip(features.cardinalities, rare)) or least == 1


def test_a_word_of_one_column_is_unseen_in_another():
    table = pl.DataFrame(dict(carrier=["UA", "AA", "UA"], dest=["ORD", "ATL", "AA"]))
    _, codes, _ = column(table, of=pl.DataFrame(dict(carrier=["UA", "ORD", None, ""], dest=["UA", "ORD", "AA", None])))
    assert codes.tolist() == [[3, 0], [0, 4], [1, 2], [1, 1]]


def test_many_words_take_another_way_to_the_same_codes(monkeypatch):
    rng = np.random.default_rng(0)
    table = pl.DataFrame({c: rng.choice(WORDS[:10], 300).tolist() for c in "abcd"}).with_columns(d=pl.col("d").replace("a", "b"))
    choices = dict(c=Choice("ordinal", dict(values=["é", "ua", "UA", "a"])))
    later = pl.DataFrame({c: rng.choice(np.array(WORDS, object), 200).tolist() for c in "abcd"})
    contract, features, graph = made(table, choices)
    monkeypatch.setattr(module, "SHARED", 10)
    apart = features_graph(features)
    assert sum(n.op_type == "LabelEncoder" for n in apart.graph.node) == 4 and sum(n.op_type == "LabelEncoder" for n in graph.graph.node) == 1
    for one, other in zip(encode(graph, contract, later), encode(apart, contract, later)): np.testing.assert_array_equal(one, other)


def test_an_ordinal_is_its_standardised_rank():
    from sklearn.preprocessing import OrdinalEncoder, StandardScaler
    sizes, order = np.random.default_rng(0).choice(["S", "M", "L", "XL"], 400, p=[.1, .2, .3, .4]), ["S", "M", "L", "XL"]
    x, _, _ = column(pl.DataFrame(dict(size=sizes)), dict(size=Choice("ordinal", dict(values=order))))
    ranks = OrdinalEncoder(categories=[order]).fit_transform(sizes[:, None])
    np.testing.assert_allclose(x[:, 0], StandardScaler().fit_transform(ranks)[:, 0], atol=1e-6)
    known = pl.DataFrame(dict(size=["S", "M", None, "odd"]))
    x, _, features = column(known, dict(size=Choice("ordinal", dict(values=["S", "M"]))), pl.DataFrame(dict(size=["M", "S", None, "new", "odd"])))
    assert (x.tolist(), features.names) == ([[1, 0], [-1, 0], [0, 1], [0, 1], [0, 1]], ("size", "size unknown"))


def texts(n: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(w if rng.random() < .5 else rng.choice([w.upper(), w.capitalize(), w + ",", f"({w})", w + "!"]) for w in rng.choice([f"word{i}" for i in range(40)], rng.integers(2, 9), replace=False))
            for _ in range(n)]


@pytest.mark.parametrize("weight", ["tfidf", "counts"])
def test_text_is_what_scikit_learn_makes_of_it(weight):
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    train, later = texts(600, 0), texts(200, 1) + ["", "unknown words only", "  word1   word2\tword1 ", "word3\r\n\r\nWord4\n\tword3,\n"]
    choice = Choice("text", dict(weight=weight, min_count=1))
    x, _, features = column(pl.DataFrame(dict(note=train)), dict(note=choice), pl.DataFrame(dict(note=later)))
    split = dict(tokenizer=lambda text: [w.strip(string.punctuation) for w in text.lower().split()], token_pattern=None)
    oracle = (TfidfVectorizer if weight == "tfidf" else CountVectorizer)(**split).fit(train)
    assert features.names == tuple(f"note: {w}" for w in oracle.get_feature_names_out())
    np.testing.assert_allclose(x, oracle.transform(later).toarray(), atol=1e-6)


def test_an_endless_text_does_not_fill_the_memory():
    contract, _, graph = made(pl.DataFrame(dict(note=texts(600, 0))))
    endless = pl.DataFrame(dict(note=["word1 "*200_000, "\n".join(["word2"]*50_000), "\t".join(["word3"]*50_000)] + ["word4"]*1000))
    x, _ = encode(graph, contract, endless)
    assert x.shape[0] == 1003 and np.isfinite(x).all() and (x[3:] == x[3]).all()


def test_a_text_is_chosen_and_only_its_commonest_words_are_kept():
    table = pl.DataFrame(dict(note=texts(600, 0), carrier=["UA", "AA"]*300))
    profile = Profile.of(table)
    assert choose_encoders(profile, infer_contract(profile, "t", table.columns))["note"].encoder == "text"
    assert column(table, dict(note=Choice("text", dict(top_k=5))))[2].width == 5
    with pytest.raises(DataError, match="column 'note': no word occurs in 9999 rows; lower min_count"): column(table, dict(note=Choice("text", dict(min_count=9999))))


# time

ZONES = ["UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu", "Europe/Dublin", "America/Sao_Paulo", "Africa/Casablanca", "Asia/Tehran"]

@pytest.mark.parametrize("zone", ZONES)
def test_the_clock_of_a_zone_is_that_of_polars_around_every_change(zone):
    begin, end = datetime(2005, 1, 1, tzinfo=timezone.utc), datetime(2024, 1, 1, tzinfo=timezone.utc)
    hours = pl.datetime_range(begin, end, "30m", time_zone="UTC", eager=True).alias("t")
    offset = lambda s: (s.dt.convert_time_zone(zone).dt.base_utc_offset() + s.dt.convert_time_zone(zone).dt.dst_offset()).dt.total_seconds()
    changes = hours.filter(offset(hours).diff().fill_null(0) != 0)
    near = pl.concat([changes.dt.offset_by(by) for by in ("-3600s", "-61s", "-1s", "0s", "1s", "59m")] + [hours.sample(2000, seed=0)])
    x, _, features = column(pl.DataFrame(dict(t=hours.gather_every(11))), dict(t=Choice("time", dict(zone=zone))), pl.DataFrame(dict(t=near)))
    local = near.dt.convert_time_zone(zone).dt.replace_time_zone(None).dt.epoch("s").to_numpy().astype(float)
    for i, (length, begun) in enumerate(CYCLES[c] for c in ("day", "week", "year")):
        turn = 2*np.pi*((local + begun) % length)/length
        np.testing.assert_allclose(x[:, [i, i + 3]], np.stack([np.sin(turn), np.cos(turn)], 1), atol=3e-7, err_msg=features.names[i])


def test_the_rule_of_a_zone_reaches_beyond_the_training_data_as_python_knows_it():
    train = pl.datetime_range(datetime(2020, 1, 1), datetime(2022, 12, 31), "6h", time_zone="UTC", eager=True)
    later = [datetime(2022 + RULE_YEARS - 1, 7, 1, 12, tzinfo=timezone.utc), datetime(2045, 1, 1, tzinfo=timezone.utc), datetime(2030, 10, 27, 0, 59, 59, tzinfo=timezone.utc)]
    x, _, _ = column(pl.DataFrame(dict(t=train)), dict(t=Choice("time", dict(zone="Europe/Paris", cycles=["day"]))), pl.DataFrame(dict(t=later), schema=dict(t=pl.Datetime("us", "UTC"))))
    day = np.array([(lambda t: t.hour*3600 + t.minute*60 + t.second)(t.astimezone(ZoneInfo("Europe/Paris"))) for t in later])/86400
    np.testing.assert_allclose(x, np.stack([np.sin(2*np.pi*day), np.cos(2*np.pi*day)], 1), atol=3e-7)


def test_times_before_1970_go_round_the_same_way():
    old = pl.datetime_range(datetime(1950, 1, 1), datetime(1955, 1, 1), "7h", time_zone="UTC", eager=True)
    x, _, _ = column(pl.DataFrame(dict(t=old)), dict(t=Choice("time", dict(cycles=["day"]))))
    day = old.dt.hour().to_numpy().astype(float)/24
    np.testing.assert_allclose(x, np.stack([np.sin(2*np.pi*day), np.cos(2*np.pi*day)], 1), atol=3e-7)


def test_a_trend_is_the_standardised_moment_and_missing_times_are_zero():
    moments = [datetime(2020, 1, 1, tzinfo=timezone.utc) + timedelta(days=i) for i in range(800)]
    table = pl.DataFrame(dict(t=[*moments, None]))
    x, _, features = column(table, dict(t=Choice("time", dict(cycles=["week"], trend=True))))
    days = np.arange(800)
    np.testing.assert_allclose(x[:-1, 2], (days - days.mean())/days.std(), atol=1e-4)
    assert x[-1].tolist() == [0, 0, 0, 1] and features.names == ("t sine of week", "t cosine of week", "t", "t missing")


def test_a_cycle_that_the_data_do_not_go_round_twice_is_not_chosen():
    def chosen(days, every="1h"):
        table = pl.DataFrame(dict(t=pl.datetime_range(datetime(2020, 1, 1), datetime(2020, 1, 1) + timedelta(days=days), every, eager=True)))
        return choose_encoders(Profile.of(table), infer_contract(Profile.of(table), "t", ["t"]))["t"]
    assert [chosen(d).options.get("cycles") for d in (3, 30, 800)] == [["day"], ["day", "week"], None]
    assert (chosen(1).encoder, chosen(800, "1d").options) == ("drop", dict(cycles=["week", "year"]))


# the graph and the fast way through it

def random_table(rng, n: int, hard: bool) -> pl.DataFrame:
    "A table of every kind of column, with values that hurt."
    pick = lambda values, dtype=None: pl.Series([values[i] for i in rng.integers(0, len(values), n)], dtype=dtype)
    number = lambda: pick(HARD, pl.Float64) if hard else pl.Series(np.where(rng.random(n) < .1, np.nan, rng.normal(rng.normal(), 3, n))).fill_nan(None)
    table = dict(a=number(), b=number(), amount=pl.Series(rng.lognormal(2, 2, n)) if not hard else number(), k=pick([0, 1, -7, 2**53, None] if hard else [1, 2, 3], pl.Int64), flag=pick([True, False, None], pl.Boolean),
                 t=pl.Series(rng.integers(-2**40 if hard else 1_400_000_000, 2**40 if hard else 1_600_000_000, n)*1_000_000).cast(pl.Datetime("us", "UTC")),
                 v=pl.Series([None if rng.random() < .2 else rng.normal(size=3).tolist() for _ in range(n)], dtype=pl.List(pl.Float64)))
    return pl.DataFrame(table | {c: pick(WORDS if hard else WORDS[:8] + [None], pl.String) for c in ("s", "u", "size")} | dict(note=pl.Series(texts(n, 5)) if not hard else pick(WORDS, pl.String)))


def random_choices(rng) -> dict:
    number = lambda: rng.choice([Choice("standard"), Choice("quantile", dict(bins=int(rng.integers(2, 33)))), Choice("piecewise", dict(bins=int(rng.integers(2, 33)))), Choice("drop")])
    text = lambda: rng.choice([Choice("category"), Choice("category", dict(top_k=3)), Choice("category", dict(min_count=3)), Choice("ordinal", dict(values=["UA", "a", "é"])), Choice("drop")])
    return dict(a=number(), b=number(), k=number(), amount=rng.choice([number(), Choice("log1p")]), s=text(), u=text(), size=text(), flag=rng.choice([Choice("boolean"), Choice("standard"), Choice("drop")]),
                t=Choice("time", dict(zone=str(rng.choice(ZONES)), cycles=rng.permutation(list(CYCLES))[:rng.integers(1, 4)].tolist(), trend=bool(rng.integers(2)))),
                v=rng.choice([Choice("vector"), Choice("drop")]), note=Choice("text", dict(weight=str(rng.choice(["tfidf", "counts"])), top_k=20)))


@pytest.mark.parametrize("seed", range(12))
def test_table_batch_and_single_rows_give_the_same_bits_whatever_comes(seed):
    rng = np.random.default_rng(seed)
    train, choices = random_table(rng, 200, False), random_choices(rng)
    columns = [c for c in train.columns if c == "a" or rng.random() < .7]
    contract, features, graph = made(train.select(rng.permutation(columns).tolist()), {c: choices[c] for c in columns if c != "a"} | dict(a=Choice("standard")))
    later = pl.concat([random_table(rng, 60, True), train.head(40)]).select(train.columns)
    together, alone = by_rows(graph, contract, later)
    x_numbers, x_codes = encode(graph, contract, later, rows=int(rng.integers(1, 50)))
    for name, fast in dict(x_numbers=x_numbers, x_codes=x_codes).items():
        if name not in together: assert fast.shape[1] == 0; continue
        np.testing.assert_array_equal(fast, together[name], err_msg=name)
        np.testing.assert_array_equal(alone[name], together[name], err_msg=name)
    assert np.isfinite(x_numbers).all() and x_numbers.dtype == np.float32
    assert x_numbers.shape[1] == features.width == len(features.names) == len(features.edges) == len(set(features.names))
    assert (x_codes >= 0).all() and (x_codes < np.array(features.cardinalities or [1])).all() and x_codes.shape[1] == len(features.code_names)
    assert all(list(e) == sorted(set(e)) and len(e) > 1 for e in features.edges)


def test_a_table_larger_than_a_chunk_keeps_its_order():
    n = module.CHUNK + 5_000
    table = pl.DataFrame(dict(x=np.arange(n, dtype=float), s=[str(i % 7) for i in range(n)]))
    x, codes, _ = column(table)
    assert (np.diff(x[:, 0]) > 0).all() and (codes[:, 0] == np.arange(n) % 7 + 2).all()


def test_no_rows_give_tensors_without_rows():
    rng = np.random.default_rng(0)
    train = random_table(rng, 100, False)
    contract, features, graph = made(train)
    assert [t.shape for t in encode(graph, contract, train.clear())] == [(0, features.width), (0, len(features.cardinalities))]
    together, _ = {n: t for n, t in zip([o.name for o in graph.graph.output], session(graph, 1).run(None, dict(zip(("numbers", "strings"), pack(contract, train.clear())))))}, None
    assert [t.shape for t in together.values()] == [(0, features.width), (0, len(features.cardinalities))]


@pytest.mark.parametrize("columns", [["a"], ["s"], ["note"], ["s", "u"], ["a", "s"], ["flag", "note"], ["t"], ["v"]])
def test_tables_of_one_kind_have_graphs_without_the_other(columns):
    rng = np.random.default_rng(0)
    train = random_table(rng, 100, False).select(columns)
    contract, features, graph = made(train)
    assert {i.name for i in graph.graph.input} == {n for n, c in (("numbers", contract.numbers), ("strings", contract.strings)) if c}
    assert {o.name for o in graph.graph.output} == {n for n, w in (("x_numbers", features.width), ("x_codes", len(features.cardinalities))) if w}
    together, _ = by_rows(graph, contract, train)
    for name, tensor in zip(("x_numbers", "x_codes"), encode(graph, contract, train)):
        if name in together: np.testing.assert_array_equal(tensor, together[name])
        else: assert tensor.shape == (100, 0)


def test_a_column_of_another_kind_is_refused_before_any_work():
    contract, _, graph = made(pl.DataFrame(dict(x=[1.0, 2.0], s=["a", "b"])))
    for wrong in (dict(x=[1.0], s=[5]), dict(x=["a"], s=["a"])):
        with pytest.raises(ContractError, match="column '[xs]'"): encode(graph, contract, pl.DataFrame(wrong))


def test_the_row_of_a_wrong_vector_is_that_of_the_table(monkeypatch):
    table = pl.DataFrame(dict(v=[[1.0, 2.0]]*100))
    contract, _, graph = made(table)
    monkeypatch.setattr(module, "CHUNK", 100)
    with pytest.raises(ContractError, match="column 'v': is not 2 numbers in row 300;"): encode(graph, contract, pl.concat([table]*3 + [pl.DataFrame(dict(v=[[1.0]]))]), rows=10)


def test_equal_features_are_equal_bytes_and_the_graph_holds_all_it_needs():
    train = random_table(np.random.default_rng(0), 100, False)
    one, other = made(train)[2], made(train)[2]
    assert one.SerializeToString() == other.SerializeToString()
    assert not any(i.external_data for i in one.graph.initializer) and {o.domain for o in one.opset_import} == {"", "ai.onnx.ml"}
    onnx.checker.check_model(one, full_check=True)


def test_a_table_that_drops_everything_is_refused():
    with pytest.raises(DataError, match="every column is dropped"): made(pl.DataFrame(dict(x=[1, 2])), dict(x=Choice("drop")))


# fitted from the profile alone

def test_a_profile_that_was_saved_gives_the_same_features(tmp_path):
    train = random_table(np.random.default_rng(1), 300, False)
    profile = Profile.of(train)
    contract = infer_contract(profile, "t", train.columns)
    assert fit_features(load_profile(save_profile(profile, tmp_path/"p.json")), contract) == fit_features(profile, contract)


def test_another_engine_gives_the_same_features():
    duckdb = pytest.importorskip("duckdb")
    rng = np.random.default_rng(0)
    train = pl.DataFrame(dict(x=rng.normal(size=500).round(2), n=rng.integers(0, 9, 500), s=rng.choice(["a", "b", "c"], 500)))
    profile = Profile.of(train)
    contract = infer_contract(profile, "t", train.columns)
    ours, theirs = fit_features(profile, contract), fit_features(Profile.of(duckdb.from_arrow(train.to_arrow())), contract)
    assert ours.categories == theirs.categories
    for a, b in zip(ours.numbers, theirs.numbers): np.testing.assert_allclose([a.median, a.mean, a.scale, *a.edges], [b.median, b.mean, b.scale, *b.edges], rtol=1e-6)


def test_a_derived_column_is_encoded_behind_the_others():
    train = pl.DataFrame(dict(x=[1.0, 2, 3], s=["a", "b", "a"]))
    profile = Profile.of(train)
    derived = Profile.of(pl.DataFrame(dict(square=[1.0, 4, 9], skewed=[1.0, 1, 100]))).columns
    features = fit_features(profile, infer_contract(profile, "t", ["x", "s"]), dict(skewed=Choice("quantile")), tuple(derived.items()))
    assert features.names == ("x", "square") and features.code_names == ("skewed", "s") and features.number_width == 3
    run = session(features_graph(features), 1)
    numbers, codes = run.run(["x_numbers", "x_codes"], dict(numbers=np.array([[1.0, 9, 50]]), strings=np.array([["b"]], object)))
    assert abs(numbers[0, 1] - (9 - 14/3)/np.std([1, 4, 9])) < 1e-6 and codes.tolist() == [[2 + sum(50 >= e for e in features.numbers[2].edges), 3]]


# choices

def test_every_encoder_is_written_read_and_explained(tmp_path):
    rng = np.random.default_rng(3)
    for i in range(20):
        choices = random_choices(rng)
        assert load_encoders(save_encoders(choices, tmp_path/f"{i}.yaml")) == choices
    header = encoders_yaml({}, "t")
    for name, (fit, _) in ENCODERS.items(): assert f"\n#   {name} " in header
    assert encoders_from_yaml(encoders_yaml(choices, "a\nb: {encoder: drop}")) == choices  # a name ends no comment
    text = encoders_yaml(choices, "t").splitlines()
    assert sum(not line.startswith("#") for line in text if line) <= len(choices) + 1  # a line each


@pytest.mark.parametrize("line, said", [
    ("temp: {encoder: standart}", "f.yaml, column 'temp': encoder 'standart' is unknown; did you mean 'standard'?"),
    ("temp: {encoder: quantile, bin: 3}", "f.yaml, column 'temp': key 'bin' is unknown; did you mean 'bins'?"),
    ("temp: {encoder: quantile, bins: many}", "f.yaml, column 'temp': bins is 'many'; a whole number from 2 to 32"),
    ("temp: {encoder: standard, bins: 3}", "f.yaml, column 'temp': key 'bins' is unknown"),
    ("tmp: {encoder: standard}", "f.yaml, column 'tmp': is no column; did you mean 'temp'?"),
    ("temp: {encoder: category}", "f.yaml, column 'temp': encoder category is for string, and this is number; one of standard, log1p, quantile, piecewise, drop"),
    ("dest: {encoder: ordinal, values: [x, y]}", "column 'dest': none of the values ['x', 'y'] was seen; it has: ATL, ORD"),
    ("temp: standard", "f.yaml, column 'temp': says no encoder; write {encoder: …, why: …}"),
    ("- temp", "f.yaml: is no mapping of columns to encoders"), ("[]", "f.yaml: is no mapping of columns to encoders"), ("false", "f.yaml: is no mapping"), ("temp: {encoder: [standard]}", "encoder ['standard'] is unknown"), ("temp: {encoder: {a: 1}}", "is unknown; one of"),
    ("dest: {encoder: ordinal, values: ['', ORD]}", "values is ['', 'ORD']; a list of two or more different texts"),
    ("t: {encoder: time, zone: Europe/Pariss}", "zone 'Europe/Pariss' is unknown; did you mean 'Europe/Paris'?")])
def test_a_wrong_line_is_refused_with_its_place_and_what_may_be_meant(line, said):
    table = pl.DataFrame(dict(temp=[1.0, 2.5], dest=["ATL", "ORD"], t=[datetime(2020, 1, 1), datetime(2022, 1, 1)]))
    with pytest.raises(ConfigError) as error: column(table, encoders_from_yaml(line, "f.yaml"))
    assert said in str(error.value)


def test_a_line_for_a_column_that_is_no_feature_is_passed_over_and_one_that_is_missing_is_chosen():
    table = pl.DataFrame(dict(a=[1.0, 2.0], b=[1.0, 2.0], c=["x", "y"]))
    profile = Profile.of(table)
    features = fit_features(profile, infer_contract(profile, "t", ["a", "c"]), encoders_from_yaml("b: {encoder: drop}\na: {encoder: quantile, bins: 2}"))
    assert (features.code_names, features.width) == (("a", "c"), 0)


def test_auto_features_leave_out_what_says_nothing_about_the_next_row_with_the_reason():
    n = 400
    rng = np.random.default_rng(0)
    table = pl.DataFrame(dict(id=[f"n{i}" for i in range(n)], row=rng.permutation(n), day=pl.date_range(datetime(2020, 1, 1), datetime(2020, 1, 1) + timedelta(days=n - 1), eager=True), constant=[1]*n,
                              empty=pl.Series([None]*n, dtype=pl.Float64), shop=rng.choice(["a", "b"], n), temp=rng.normal(size=n), note=texts(n, 0), late=rng.random(n) < .5))
    profile = Profile.of(table)
    names, reasons = auto_features(profile, infer_contract(profile, "t", []), key=["id"], time="day", label="late")
    assert names == ["shop", "temp", "note"] and set(reasons) == {"id", "row", "day", "constant", "empty", "late"}
    assert "identifier" in reasons["row"] and reasons["constant"] == "constant" and reasons["id"] == "the key"
    made(table, features=names)  # and what is left can be encoded


def test_the_encoders_of_the_flights_are_known_and_fit_the_contract_of_the_flights():
    from pathlib import Path
    from mlproj.config import compose
    from mlproj.data.contract import load_contract
    root = Path(__file__).resolve().parents[1]
    choices, contract = load_encoders(root/"conf/encoders/flights.yaml"), load_contract(root/"conf/contracts/flights.yaml")
    assert set(choices) <= set(contract.columns) and all(c.why for c in choices.values())
    for name, choice in choices.items(): assert contract.columns[name].kind in ENCODERS[choice.encoder][1]
