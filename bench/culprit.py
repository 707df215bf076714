"""Twenty planted regressions on the flights, each beside five to ten harmless changes: does `mlproj bisect` name the right set, and in how many runs?

    python bench/culprit.py             all twenty, a line for each; exits 1 below 18, or when one takes more than 40 runs
    python bench/culprit.py 3 16        only these

The last five are interactions of two changes: each does little alone. A project of a user, under git, one flight in twenty, the logistic model: a run takes seconds.
(The file is not called bisect.py: Python's own module of that name is imported by many.)
"""
import os, random, sys, tempfile, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/"tests"))
from projects import GitProject

from mlproj.bisect import bisect
from mlproj.project import aligned

# name: (edits of cleaning.py, edits of encoders.yaml, overrides)
DEPARTURE, ARRIVAL = ("DEPARTURE = 1.0", "DEPARTURE = 0.0"), ("ARRIVAL = 1.0", "ARRIVAL = 0.0")
def column(name, value): return (f'def {name[0]}(frame): return frame', f'def {name[0]}(frame): return frame.with_columns({name[1]}={value})')
def zero(name): return f'pl.col("{name}")*0'
def drop(name): return (f"\n{name}: {{encoder: standard", f"\n{name}: {{encoder: drop")

HARMLESS = {
    "code cleaning.wind": ([(".clip(0, 200)", ".clip(0, 190)")], [], []),
    "code cleaning.rain": ([(".clip(0, 10)", ".clip(0, 11)")], [], []),
    "code cleaning.FAR": ([("FAR = 9999", "FAR = 8888")], [], []),
    "code cleaning.weekday": ([('pl.col("weekday").str.strip_chars()', 'pl.col("weekday").str.strip_chars(None)')], [], []),
    "code cleaning.steps": ([("def humidity(frame)", "def humid(frame)"), ("weekday, humidity]", "weekday, humid]")], [], []),  # renamed, with its caller
    "code cleaning.table": ([("    return Dataset(frame)", "    return Dataset(frame.rechunk())")], [], []),
    "code cleaning.carrier": ([(".str.to_uppercase()", ".str.to_uppercase().str.strip_chars()")], [], []),
    "config baseline.C": ([], [], ["baseline.C=0.9"]),
    "config evaluate.replicates": ([], [], ["evaluate.replicates=21"]),
    "config train.max_epochs": ([], [], ["train.max_epochs=7"]),
    "config data.units.distance": ([], [], ["data.units.distance=mi"]),
}
PLANTED = [  # the culprits by the names of their changes, and how they are planted
    ({"code cleaning.DEPARTURE"}, ([DEPARTURE], [], [])),
    ({"code cleaning.wind"}, ([column(("wind", "dep_minute"), zero("dep_minute"))], [], [])),
    ({"code cleaning.rain"}, ([column(("rain", "precip"), zero("precip"))], [], [])),
    ({"code cleaning.carrier"}, ([column(("carrier", "carrier"), 'pl.lit("XX")')], [], [])),
    ({"code cleaning.weekday"}, ([column(("weekday", "weekday"), 'pl.lit("Mon")')], [], [])),
    ({"code cleaning.humidity"}, ([column(("humidity", "humid"), zero("humid"))], [], [])),
    ({"code cleaning.distance"}, ([column(("distance", "dest_lat"), zero("dest_lat"))], [], [])),
    ({"code cleaning.table"}, ([("    return Dataset(frame)", "    return Dataset(frame.with_columns(dewp=pl.col('temp')))")], [], [])),
    ({"code cleaning.steps"}, ([("def steps()", "def cold(frame): return frame.with_columns(temp=pl.col('temp')*0)\ndef steps()"), ("weekday, humidity]", "weekday, humidity, cold]")], [], [])),  # a new function
    ({"config model.C"}, ([], [], ["model.C=1e-5"])),
    ({"config split.train_before"}, ([], [], ["split.train_before=2013-03-01"])),
    ({"config data.features"}, ([], [], ["data.features=[dep_minute,distance,temp,origin,dest,weekday]"])),
    ({"encoders pressure"}, ([], [drop("pressure")], [])),
    ({"encoders dep_minute"}, ([], [drop("dep_minute")], [])),
    ({"encoders weekday"}, ([], [("\nweekday: {encoder: category", "\nweekday: {encoder: drop")], [])),
    ({"code cleaning.DEPARTURE", "code cleaning.ARRIVAL"}, ([DEPARTURE, ARRIVAL], [], [])),
    ({"code cleaning.rain", "code cleaning.ARRIVAL"}, ([ARRIVAL, column(("rain", "dep_minute"), zero("dep_minute"))], [], [])),
    ({"encoders dep_minute", "code cleaning.arrival"}, ([column(("arrival", "arr_minute"), zero("arr_minute"))], [drop("dep_minute")], [])),
    ({"encoders dep_minute", "encoders arr_minute"}, ([], [drop("dep_minute"), drop("arr_minute")], [])),
    ({"code cleaning.DEPARTURE", "code cleaning.wind"}, ([DEPARTURE, column(("wind", "arr_minute"), zero("arr_minute"))], [], [])),
]


def planted(folder: Path, i: int):
    "A project with a good and a bad run: the regression, and harmless changes drawn with its number as the seed."
    truth, parts = PLANTED[i][0], [PLANTED[i][1]]
    touched = {old for old, _ in parts[0][0]}
    free = [n for n, h in HARMLESS.items() if n not in truth and not any(old in t or t in old or old.split("(")[0] in t for old, _ in h[0] for t in touched)]
    r = random.Random(i)
    beside = r.sample(free, min(len(free), r.randint(5, 10)))
    project = GitProject.make(folder)
    project.run()  # writes the contract and the encoders
    project.commit("contract and encoders")
    good = project.run()
    for code, encoders, overrides in [*parts, *(HARMLESS[n] for n in beside)]:
        project.edit("cleaning.py", *code)
        project.edit("encoders.yaml", *encoders)
    bad = project.run(*PLANTED[i][1][2], *(o for n in beside for o in HARMLESS[n][2]))
    return project, good, bad, truth, beside


def main(numbers) -> int:
    rows, right = [], 0
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["BENTOML_HOME"] = f"{temporary}/bentoml"
        os.environ.pop("MLPROJ_STORE", None)
        for i in numbers:
            project, good, bad, truth, beside = planted(Path(temporary)/str(i), i)
            begun = time.monotonic()
            found = bisect(good, bad, project.project, "average_precision", say=lambda text: print("   ", text, file=sys.stderr))
            v = found.verdict
            ok = set(v.culprits) == truth and v.runs <= 40
            right += ok
            rows.append((str(i), "right" if ok else "WRONG", f"{v.runs} runs", f"{time.monotonic() - begun:.0f} s", f"{v.good:.4f} to {v.bad:.4f}", f"{len(beside)} harmless", ", ".join(sorted(v.culprits)) + ("" if ok else f" and not {sorted(truth)}")))
            print(aligned(rows[-1:]), flush=True)
    print(f"{right} of {len(rows)} right; runs: median {sorted(int(r[2].split()[0]) for r in rows)[len(rows)//2]}, most {max(int(r[2].split()[0]) for r in rows)}")
    return 0 if right >= 0.9*len(rows) else 1


if __name__ == "__main__": sys.exit(main([int(n) for n in sys.argv[1:]] or range(len(PLANTED))))
