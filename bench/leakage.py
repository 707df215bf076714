"""The audit of mlproj.data.leakage on leaks that were planted one by one, and on tables without any.

    python bench/leakage.py              prints a Markdown table; exits 1 when a target is missed

Targets: at least nine of ten planted leaks found, by name; at most one clean table in ten with an alarm. The thresholds stand in
the chapter, once, for all tables. The leaks under "held out" were not used to choose any of them, nor to write any check.
"""
import sys, time

import numpy as np
import polars as pl
from sklearn import datasets

from mlproj.data.leakage import audit
from mlproj.data.source import read_csv
from mlproj.data.split import GroupSplit, cut, time_split
from mlproj.examples.flights import data_folder, dataset, read_flights, schedule

SPLIT = time_split("departure", "2013-09-01", "2013-11-01", "America/New_York")
KEY = ["departure", "carrier", "flight", "origin"]
HONEST = ["dep_minute", "arr_minute", "distance", "dest_lat", "dest_lon", "temp", "dewp", "humid", "wind_dir", "wind_speed",
          "wind_gust", "precip", "pressure", "visib", "origin", "dest", "carrier", "weekday"]
AFTER = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]


def load() -> tuple[pl.DataFrame, pl.DataFrame]:
    "The labelled flights with what is known only afterwards; and all flights, those without a label too."
    on = ["carrier", "flight", "origin", "sched_dep_time", "month", "day"]
    after = read_csv(data_folder()/"flights.csv.zip", [*on, *AFTER])
    every = schedule(read_flights()).drop([c for c in AFTER if c in ("dep_time", "arr_delay")]).join(after, on=on)
    table = dataset().frame.join(every.select(*KEY, *AFTER), on=KEY, how="left", maintain_order="left")
    return table, every.select(*KEY, *AFTER, "dest", "dep_minute", "arr_minute", "distance", "tailnum", "late")


def flights(rows, extra=(), **options):
    "The arguments of an audit of the flights, split by time: honest columns and those given; nothing else that comes afterwards."
    rows = rows.drop([c for c in AFTER if c not in extra])
    return dict(parts=cut(SPLIT, rows), features=[*HONEST, *extra], label="late", time="departure", key=KEY) | options


def noise(n: int, seed: int = 0) -> np.random.Generator: return np.random.default_rng(seed).normal(size=n)


def again(arguments: dict, rows: int) -> dict:
    "Copies of training rows, put into the test; no key is declared that would tell."
    parts = arguments["parts"]
    return arguments | dict(parts=parts | dict(test=pl.concat([parts["test"], parts["train"].sample(rows, seed=0)])), key=())


def planted(t: pl.DataFrame, every: pl.DataFrame) -> dict:
    "Leaks, each alone in the honest flights: name → (the check, and the column, that should be named; the arguments)."
    n, late, rng = t.height, pl.col("late").cast(pl.Float64), np.random.default_rng(7)
    temp, plane = pl.col("temp"), "tailnum"
    wrong, digit = pl.Series(rng.random(n) < .2), pl.Series(rng.integers(0, 9, n)).cast(pl.String)
    about = ((pl.col("arr_delay") + pl.Series(30*noise(n)))/30).round()*30
    smooth = (late.sum().over(plane) + 5)/(pl.len().over(plane) + 20)
    others = ((late.sum().over(plane) - late)/(pl.len().over(plane) - 1)).fill_nan(None)
    of_dest = SPLIT.part(t, "test").group_by("dest").agg(late.mean().alias("dest_late")).collect()
    landed = pl.col("departure") + pl.duration(minutes=pl.col("dep_delay") + pl.col("air_time"))
    by_label = t.sample(fraction=1, shuffle=True, seed=1).sort("late", maintain_order=True)
    code = pl.when(pl.col("late")).then(pl.lit("L")).otherwise(pl.lit("O")) + digit
    new = lambda name, values: flights(t.with_columns(values.alias(name)), [name])
    changed = lambda **values: flights(t.with_columns(**values))
    return {
        "arr_time: the hour of landing": ("together", "arr_time", lambda: flights(t, ["arr_time"])),
        "air_time: minutes in the air": ("together", "air_time", lambda: flights(t, ["air_time"])),
        "dep_delay: minutes late at departure": ("alone", "dep_delay", lambda: flights(t, ["dep_delay"])),
        "arr_delay, noisy and rounded to 30": ("alone", "about", lambda: new("about", about)),
        "the label, every fifth row wrong": ("alone", "flag", lambda: new("flag", pl.col("late") ^ wrong)),
        "share of late flights by aircraft, all rows": ("targets", "plane_late", lambda: new(
            "plane_late", late.mean().over(plane))),
        "the same, smoothed": ("targets", "plane_late", lambda: new("plane_late", smooth)),
        "the same, without the row itself": ("left out", "plane_late", lambda: new("plane_late", others)),
        "share late by destination in the test": ("targets", "dest_late", lambda: flights(
            t.join(of_dest, on="dest", how="left", maintain_order="left"), ["dest_late"])),
        "row number of a table sorted by label": ("alone", "row", lambda: flights(by_label.with_row_index("row"), ["row"])),
        "500 rows of train again in test": ("duplicates", "", lambda: again(flights(t), 500)),
        "temp standardised over all rows": ("fitted", "temp", lambda: changed(temp=(temp - temp.mean())/temp.std())),
        "pressure as ranks over all rows": ("fitted", "pressure", lambda: changed(
            pressure=pl.col("pressure").rank()/pl.col("pressure").count())),
        "gusts filled with the mean of all rows": ("fitted", "wind_gust", lambda: changed(
            wind_gust=pl.col("wind_gust").fill_null(pl.col("wind_gust").mean()))),
        "aircraft on both sides of the cut": ("groups", plane, lambda: flights(t, group=plane)),
        "time of landing, in the table": ("times", "landed", lambda: changed(landed=landed)),
        "code of the delay's reason": ("alone", "code", lambda: new("code", code)),
        "air_time, missing where cancelled": ("missing", "air_time", lambda: flights(t, ["air_time"], table=every)),
        "20 looks at the test": ("looks", "", lambda: flights(t, looks=20)),
        "dep_delay, with arr_time and air_time": ("alone", "dep_delay", lambda: flights(
            t, ["dep_delay", "arr_time", "air_time"])),
    }


def held_out(t: pl.DataFrame, every: pl.DataFrame) -> dict:
    "Leaks that no threshold was chosen on, in the same form."
    late, hour = pl.col("late").cast(pl.Float64), ("origin", pl.col("departure").dt.truncate("1h"))
    of_hour = ((late.sum().over(*hour) - late)/(pl.len().over(*hour) - 1)).fill_nan(None)
    new = lambda name, values: flights(t.sort("departure").with_columns(values.alias(name)), [name])
    landing = t.with_columns(landing=pl.col("arr_time") + pl.Series(5*noise(t.height)))
    return {
        "dep_time: the hour of departure on the clock": ("together", "dep_time", lambda: flights(t, ["dep_time"])),
        "share late of the other flights of that hour and airport": ("alone", "hour_late", lambda: new(
            "hour_late", of_hour)),
        "mean delay in minutes by aircraft, all rows": ("targets", "plane_delay", lambda: new(
            "plane_delay", pl.col("arr_delay").mean().over("tailnum"))),
        "delay of the aircraft's next flight": ("alone", "next", lambda: new(
            "next", pl.col("dep_delay").shift(-1).over("tailnum"))),
        "arr_time twice, once with noise": ("together", "arr_time", lambda: flights(landing, ["arr_time", "landing"])),
    }


def dealt(x, y, seed=0) -> dict:
    "The arguments of an audit of a table of numbers, dealt at random, 60/20/20."
    frame = pl.DataFrame(np.asarray(x, float), schema=[f"x{i}" for i in range(x.shape[1])])
    frame = frame.with_columns(y=pl.Series(np.asarray(y, bool))).sample(fraction=1, shuffle=True, seed=seed)
    a, b = len(y)*6//10, len(y)*8//10
    return dict(parts=dict(train=frame[:a], validation=frame[a:b], test=frame[b:]), features=frame.columns[:-1], label="y")


def clean(t: pl.DataFrame, every: pl.DataFrame) -> dict:
    "Tables without a leak."
    train = SPLIT.part(t, "train").collect()
    of_plane = train.group_by("tailnum").agg(pl.col("late").mean().alias("plane_late"))
    temp, gust = train["temp"], train["wind_gust"].mean()
    aircraft = ["plane_year", "seats", "plane_model", "manufacturer", "tailnum"]
    unlabelled = every.drop(AFTER).with_columns(late=pl.when(every["arr_delay"].is_not_null()).then("late"))
    wine, iris, diabetes, digits = (getattr(datasets, f"load_{n}")() for n in ("wine", "iris", "diabetes", "digits"))
    made = lambda **kw: dealt(*datasets.make_classification(6000, 20, random_state=3, **kw))
    return {
        "flights, by time": lambda: flights(t),
        "flights, left the gate 15 minutes late": lambda: flights(t.with_columns(late=pl.col("dep_delay") > 15)),
        "flights, an hour late": lambda: flights(t.with_columns(late=pl.col("arr_delay") > 60)),
        "flights, with aircraft": lambda: flights(t, aircraft),
        "flights, by aircraft": lambda: flights(t, parts=cut(GroupSplit("tailnum", .2, .2), t.drop(AFTER)), group="tailnum"),
        **{f"flights from {o}": lambda o=o: flights(t.filter(pl.col("origin") == o)) for o in ("EWR", "JFK", "LGA")},
        "flights, share late by aircraft in train": lambda: flights(t.join(of_plane, on="tailnum", how="left"), ["plane_late"]),
        "flights, temp standardised by train": lambda: flights(t.with_columns((pl.col("temp") - temp.mean())/temp.std())),
        "flights, gusts filled with the mean of train": lambda: flights(t.with_columns(pl.col("wind_gust").fill_null(gust))),
        "flights, with the cancelled ones": lambda: flights(t, table=unlabelled),
        "breast cancer": lambda: dealt(*datasets.load_breast_cancer(return_X_y=True)),
        "wine, the first kind": lambda: dealt(wine.data, wine.target == 0),
        "wine, the second kind": lambda: dealt(wine.data, wine.target == 1),
        "digits, odd or even": lambda: dealt(digits.data, digits.target % 2),
        "digits, zero or not": lambda: dealt(digits.data, digits.target == 0),
        "diabetes, above the median": lambda: dealt(diabetes.data, diabetes.target > np.median(diabetes.target)),
        "iris, versicolor or virginica": lambda: dealt(iris.data[50:], iris.target[50:] == 2),
        "made, 10 informative": lambda: made(n_informative=10, n_redundant=5),
        "made, 3 informative": lambda: made(n_informative=3, n_redundant=0),
        "made, 2 informative and strong": lambda: made(n_informative=2, n_redundant=8, class_sep=2.0),
        "made, one cluster, far apart": lambda: made(n_informative=5, n_redundant=5, n_clusters_per_class=1, class_sep=1.5),
    }


def line(kind: str, name: str, check: str, column: str, make) -> tuple[bool, float]:
    "Audit one table and print its row: whether the leak was found by its name (on a clean table: anything was), and seconds."
    arguments = make()
    start = time.perf_counter()
    found = audit(**arguments).findings
    seconds = time.perf_counter() - start
    hits = [f for f in found if not check or (column in f.columns if column else f.check == check)]
    answer = ("yes" if hits else "**another column**" if found else "**no**") if check else ("**alarm**" if found else "quiet")
    said = "; ".join(f"{', '.join(f.columns) or 'rows'} {f.said}" for f in (hits or found))
    print(f"| {kind} | {name} | {answer} | {', '.join(dict.fromkeys(f.check for f in hits or found))} | {said} |", flush=True)
    return bool(hits), seconds


def main() -> int:
    table, every = load()
    print("| | table | found | by | said |\n| --- | --- | --- | --- | --- |")
    leaks = [line("leak", name, *leak) for name, leak in planted(table, every).items()]
    hard = [line("held out", name, *leak) for name, leak in held_out(table, every).items()]
    quiet = [line("clean", name, "", "", make) for name, make in clean(table, every).items()]
    hits, others, alarms = (sum(h for h, _ in rows) for rows in (leaks, hard, quiet))
    seconds = sorted(s for _, s in leaks + hard)
    print(f"| all | {hits} of {len(leaks)} leaks found, {others} of {len(hard)} held out; "
          f"{alarms} of {len(quiet)} clean tables with an alarm | | "
          f"| seconds per audit of the flights: median {seconds[len(seconds)//2]:.1f}, at most {seconds[-1]:.1f} |")
    return int(hits < .9*len(leaks) or alarms > .1*len(quiet))


if __name__ == "__main__": sys.exit(main())
