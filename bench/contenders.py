"""What bench/data.py measures: each function does one job with one tool, on a Parquet file of flights, and returns a note.

    PYTHON bench/contenders.py NAME CASE     prints one line of JSON: seconds from the file to plain figures, and the note

Libraries are imported before the clock starts. Peers run as their documentation shows it, with reports and progress bars off.
"""
import json, os, sys, time
from pathlib import Path

HOME = Path(os.environ.get("MLPROJ_BENCH", Path(__file__).resolve().parents[1]/".mlproj/bench"))
NUMERIC = ["year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time", "arr_delay", "flight", "air_time",
           "distance", "hour", "minute"]
STRINGS, TIMES = ["carrier", "tailnum", "origin", "dest"], ["time_hour"]
QUANTILES, BINS = [.01, .05, .25, .5, .75, .95, .99], 50
NOT_NULL = ["year", "month", "day", "sched_dep_time", "sched_arr_time", "carrier", "flight", "origin", "dest", "distance", "hour", "minute", "time_hour"]
RANGES = dict(month=(1, 12), day=(1, 31), hour=(0, 23), minute=(0, 59), distance=(0, 6000), dep_delay=(-120, 1500), arr_delay=(-120, 1500),
              dep_time=(1, 2400), arr_time=(1, 2400), air_time=(0, 1000))
SETS = dict(origin=["EWR", "JFK", "LGA"], carrier=["9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV"])


def files(case: str) -> list[str]:
    "The Parquet files of a case; 100m are ten times the same 10 million rows."
    if case == "100m": return [str(HOME/"data/10m.parquet")]*10
    return [str(HOME/f"data/{case}.parquet")]


def as_pandas(path):
    "Plain pandas with object strings: what the tools that take pandas expect."
    import pandas as pd
    frame = pd.read_parquet(path)
    for c in STRINGS:
        if frame[c].dtype != object: frame[c] = frame[c].astype(object)
    return frame


# profile: missing values, moments, extremes, quantiles, different values, histograms, commonest strings

def profile_limit_counts(case):
    "DuckDB, one GROUP BY for each column, all figures from the counts"
    import duckdb, numpy as np
    def go():
        con, out, path = duckdb.connect(), {}, files(case)
        for c in NUMERIC:
            d = con.execute(f"select {c} v, count(*) n from read_parquet({path}) group by 1 order by 1").fetchnumpy()
            v, n = d["v"], d["n"]
            m = np.ma.getmaskarray(v) | np.isnan(np.ma.getdata(v).astype(float))
            x, k = np.ma.getdata(v)[~m].astype(float), np.ma.getdata(n)[~m]
            total = k.sum(); mean = (x*k).sum()/total
            out[c] = dict(n=int(total), nulls=int(np.ma.getdata(n)[m].sum()), mean=mean, sd=(((x - mean)**2*k).sum()/(total - 1))**.5, min=x[0], max=x[-1],
                          q=x[np.searchsorted(k.cumsum(), np.array(QUANTILES)*(total - 1), side="right")], distinct=len(x), hist=np.histogram(x, BINS, weights=k)[0])
        for c in STRINGS: out[c] = con.execute(f"select {c} v, count(*) n from read_parquet({path}) group by 1 order by 2 desc").fetchnumpy()
        con.execute(f"select min(time_hour), max(time_hour), count(time_hour) from read_parquet({path})").fetchone()
    return go

def profile_limit_duckdb_approx(case):
    "DuckDB, one query, approximate quantiles, no histograms"
    import duckdb
    def go():
        asked = ["count(*) n"]
        for c in NUMERIC:
            asked += [f"count({c})", f"avg({c})", f"stddev({c})", f"min({c})", f"max({c})", f"approx_quantile({c}, {QUANTILES})", f"approx_count_distinct({c})"]
        for c in STRINGS: asked += [f"count({c})", f"approx_count_distinct({c})", f"approx_top_k({c}, 10)"]
        for c in TIMES: asked += [f"count({c})", f"min({c})", f"max({c})"]
        duckdb.connect().execute(f"select {', '.join(asked)} from read_parquet({files(case)})").fetchone()
    return go

def profile_limit_polars(case):
    "Polars streaming, exact quantiles, histograms"
    import polars as pl
    def go():
        frame, asked = pl.scan_parquet(files(case)), [pl.len().alias("n")]
        for c in NUMERIC:
            x = pl.col(c)
            asked += [x.null_count().alias(c + "_null"), x.mean().alias(c + "_mean"), x.std().alias(c + "_sd"), x.min().alias(c + "_min"),
                      x.max().alias(c + "_max"), x.approx_n_unique().alias(c + "_d")] + [x.quantile(q, "linear").alias(f"{c}_q{q}") for q in QUANTILES]
        for c in STRINGS: asked += [pl.col(c).null_count().alias(c + "_null"), pl.col(c).approx_n_unique().alias(c + "_d")]
        for c in TIMES: asked += [pl.col(c).null_count().alias(c + "_null"), pl.col(c).min().alias(c + "_min"), pl.col(c).max().alias(c + "_max")]
        r = frame.select(asked).collect(engine="streaming").to_dicts()[0]
        queries = [frame.group_by(c).len().top_k(10, by="len") for c in STRINGS]
        for c in NUMERIC:
            low, high = r[c + "_min"], r[c + "_max"]; width = (high - low)/BINS or 1
            queries.append(frame.group_by(((pl.col(c) - low)/width).floor().clip(upper_bound=BINS - 1).alias("b")).len())
        pl.collect_all(queries, engine="streaming")
    return go

def profile_mlproj(case):
    "mlproj, Profile of a lazy Polars frame"
    import polars as pl
    from mlproj.data.profile import Profile
    def go():
        profile = Profile.of(pl.scan_parquet(files(case)))
        return f"quantiles within {max(c.quantile_error for c in profile.columns.values()):.2g}"
    return go

def profile_mlproj_duckdb(case):
    "mlproj, Profile of a DuckDB relation"
    import duckdb
    from mlproj.data.profile import Profile
    return lambda: Profile.of(duckdb.connect().read_parquet(files(case))) and None

def profile_skrub(case):
    "skrub TableReport, no plots, no associations"
    import polars as pl
    from skrub import TableReport
    return lambda: TableReport(pl.read_parquet(files(case)), plot_distributions=False, compute_associations=False, verbose=0).json() and None

def profile_evidently(case):
    "Evidently DataSummaryPreset"
    from evidently import Report
    from evidently.presets import DataSummaryPreset
    return lambda: Report([DataSummaryPreset()]).run(as_pandas(files(case)[0]), None).dict() and None

def profile_whylogs(case):
    "whylogs, default sketches"
    import whylogs
    def go(): whylogs.log(as_pandas(files(case)[0])).view().to_pandas()
    return go


# drift: PSI, Jensen-Shannon, KS, Wasserstein of 18 columns against a reference

def drift_limit_saved(case):
    "DuckDB counts against saved counts, by value"
    import duckdb, numpy as np
    def counts(con, path):
        out = {}
        for c in NUMERIC + STRINGS:
            d = con.execute(f"select {c} v, count(*) n from read_parquet('{path}') where {c} is not null group by 1 order by 1").fetchnumpy()
            v = np.ma.getdata(d["v"]); out[c] = (v.astype(float) if c in NUMERIC else v.astype(str), np.ma.getdata(d["n"]).astype(float))
        return out
    con = duckdb.connect(); reference = counts(con, files(case + "_ref")[0])
    def go():
        top = 0
        for c, (v, n) in counts(con, files(case)[0]).items():
            w, m = reference[c]
            x = np.union1d(v, w); p = np.zeros(len(x)); q = np.zeros(len(x)); p[np.searchsorted(x, v)] = n/n.sum(); q[np.searchsorted(x, w)] = m/m.sum()
            mid = (p + q)/2; kl = lambda a: float((a[a > 0]*np.log(a[a > 0]/mid[a > 0])).sum()); js = ((kl(p) + kl(q))/2)**.5
            if c in NUMERIC:
                d = np.abs(np.cumsum(p - q)); sd = ((x - (x*q).sum())**2*q).sum()**.5
                top = max(top, d.max()); (d[:-1]*np.diff(x)).sum()/(sd or 1)
                b = np.searchsorted(np.cumsum(q)[:-1], np.arange(.1, 1, .1)); k = np.searchsorted(b, np.arange(len(x)), side="left")
                pb, qb = np.bincount(k, p, 10) + 1e-6, np.bincount(k, q, 10) + 1e-6; ((pb - qb)*np.log(pb/qb)).sum()
        return f"largest KS {top:.5f}"
    return go

def drift_mlproj(case):
    "mlproj, counts on a stored profile's bins and the four distances"
    import polars as pl, tempfile
    from mlproj.data.profile import Profile, load_profile, save_profile
    from mlproj.data.reference import Reference
    from mlproj.watch.drift import distances
    with tempfile.TemporaryDirectory() as folder:
        stored = load_profile(save_profile(Profile.of(pl.scan_parquet(files(case + "_ref"))), f"{folder}/profile.json"))
    reference = Reference(stored)
    def go():
        found = distances(reference, reference.count(pl.scan_parquet(files(case))))
        return f"largest KS {max(d.ks or 0 for d in found.values()):.5f}"
    return go

def drift_evidently(case):
    "Evidently DataDriftPreset (Wasserstein, Jensen-Shannon)"
    from evidently import Report
    from evidently.presets import DataDriftPreset
    return lambda: Report([DataDriftPreset()]).run(as_pandas(files(case)[0]), as_pandas(files(case + "_ref")[0])).dict() and None

def drift_whylogs(case):
    "whylogs, profiles of both, drift scores"
    import whylogs
    from whylogs.viz.drift.column_drift_algorithms import calculate_drift_scores
    def go():
        views = [whylogs.log(as_pandas(files(c)[0])).view() for c in (case, case + "_ref")]
        calculate_drift_scores(target_view=views[0], reference_view=views[1], with_thresholds=True)
    return go


# check: 19 types, 13 columns never missing, 10 ranges, 2 vocabularies

def check_limit_polars(case):
    "Polars streaming, one query"
    import polars as pl
    def go():
        frame = pl.scan_parquet(files(case)); frame.collect_schema()
        asked = [pl.col(c).null_count().alias(c + "_null") for c in NOT_NULL]
        asked += [((pl.col(c) < low) | (pl.col(c) > high)).sum().alias(c + "_range") for c, (low, high) in RANGES.items()]
        asked += [(~pl.col(c).is_in(v)).sum().alias(c + "_set") for c, v in SETS.items()]
        return f"{sum(frame.select(asked).collect(engine='streaming').row(0))} failing"
    return go

def check_limit_duckdb(case):
    "DuckDB, one query"
    import duckdb
    def go():
        con, path = duckdb.connect(), files(case)
        con.execute(f"describe select * from read_parquet({path})").fetchall()
        asked = [f"count(*) - count({c})" for c in NOT_NULL] + [f"count(*) filter ({c} < {low} or {c} > {high})" for c, (low, high) in RANGES.items()]
        asked += [f"count(*) filter ({c} not in ({', '.join(map(repr, v))}))" for c, v in SETS.items()]
        return f"{sum(con.execute(f'select {chr(44).join(asked)} from read_parquet({path})').fetchone())} failing"
    return go

def check_mlproj(case):
    "mlproj, the contract of a lazy Polars frame"
    import polars as pl
    from mlproj.data.contract import Column, Contract
    from mlproj.data.guard import check
    kinds = {**{c: "integer" for c in NUMERIC}, **{c: "string" for c in STRINGS}, **{c: "time" for c in TIMES}}
    columns = {c: Column(c, kind, nullable=c not in NOT_NULL, **(dict(min=RANGES[c][0], max=RANGES[c][1]) if c in RANGES else {}),
                         **(dict(values=tuple(SETS[c])) if c in SETS else {})) for c, kind in kinds.items()}
    contract = Contract("flights", columns, ())
    return lambda: f"{len(check(contract, pl.scan_parquet(files(case))).violations)} rules broken"

def check_pandera(case):
    "pandera on Polars, lazy"
    import polars as pl
    import pandera.polars as pa
    def go():
        frame, columns = pl.read_parquet(files(case)), {}
        for c in frame.columns:
            checks = [pa.Check.in_range(*RANGES[c])] if c in RANGES else [pa.Check.isin(SETS[c])] if c in SETS else []
            columns[c] = pa.Column(frame[c].dtype, checks, nullable=c not in NOT_NULL)
        pa.DataFrameSchema(columns).validate(frame, lazy=True)
    return go

def check_great_expectations(case):
    "Great Expectations, pandas"
    import great_expectations as gx
    import great_expectations.expectations as E
    def go():
        frame = as_pandas(files(case)[0])
        context = gx.get_context(mode="ephemeral"); context.variables.progress_bars = {"globally": False}
        batch = context.data_sources.add_pandas("p").add_dataframe_asset("a").add_batch_definition_whole_dataframe("b")
        suite = context.suites.add(gx.ExpectationSuite(name="s"))
        for c in frame.columns:
            kind = {"object": "str", "datetime64[us]": "datetime64", "datetime64[ns]": "datetime64"}.get(str(frame[c].dtype), str(frame[c].dtype))
            suite.add_expectation(E.ExpectColumnValuesToBeOfType(column=c, type_=kind))
        for c in NOT_NULL: suite.add_expectation(E.ExpectColumnValuesToNotBeNull(column=c))
        for c, (low, high) in RANGES.items(): suite.add_expectation(E.ExpectColumnValuesToBeBetween(column=c, min_value=low, max_value=high))
        for c, v in SETS.items(): suite.add_expectation(E.ExpectColumnValuesToBeInSet(column=c, value_set=v))
        r = context.validation_definitions.add(gx.ValidationDefinition(name="v", data=batch, suite=suite)).run(
            batch_parameters={"dataframe": frame}, result_format="SUMMARY")
        return f"{r.statistics['successful_expectations']} of {r.statistics['evaluated_expectations']} met"
    return go


if __name__ == "__main__":
    name, case = sys.argv[1:]
    go = globals()[name](case)
    begun = time.perf_counter()
    note = go()
    print("RESULT " + json.dumps(dict(seconds=time.perf_counter() - begun, note=note or "")))
