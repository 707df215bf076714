"What differs between two runs: the culprit stands in the first line, the innocent are acquitted, and a screen holds it all."
import hashlib, json, random, re, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from conftest import ROOT, Shell
from mlproj.data.profile import Profile, save_profile
from mlproj.diff import LINES, WIDTH, code_differences, column_differences, diff, diff_json, find_side, judged, profile_distances, side_before, side_of, steps_of, upstream
from mlproj.ledger import Ledger, Run
from mlproj.project import MlprojError, RegistryError, write_json
from mlproj.serve.registry import Registry

USERDATA = '''
"A night's delays."
import polars as pl
from mlproj.data.source import Dataset, read_csv

def impute(frame):
    "Winds that nobody has measured."
    return frame.with_columns(wind=pl.col("wind").fill_null(12.0))

def dataset(file):
    return Dataset(impute(read_csv(file, ["id", "wind", "rain", "carrier", "late"])))
'''
TOY = ["data=table", "data.name=toy", "data.label=late", "data.key=[id]", "split=group", "split.group=id", "model=linear", "tracking=disabled", "evaluate.replicates=20", "evaluate.slices=[carrier]", "train.accelerator=cpu",
       "gate.criteria.validation_gain.at_least=-1", "gate.criteria.test_gain.at_least=-1"]


def rows(n=1500, seed=0) -> pl.DataFrame:
    "Delays that the wind explains, and that are the likelier where nobody has measured it."
    rng = np.random.default_rng(seed)
    wind, lost = rng.normal(12, 5, n), rng.random(n) < .2
    late = rng.random(n) < 1/(1 + np.exp(-(wind - 14)/2))
    return pl.DataFrame(dict(id=np.arange(n), wind=wind, rain=rng.exponential(2, n), carrier=rng.choice(["UA", "B6", "EV"], n), late=late)).with_columns(wind=pl.when(~pl.Series(lost)).then("wind"))


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Shell:
    "A shell in whose folder six runs stand: as it was, another imputation, another encoder, other data, and as it was: until the evaluation, and whole."
    shell, names = Shell(tmp_path_factory.mktemp("story")), {}
    module, table, encoders = shell.folder/"userdata.py", shell.folder/"rows.csv", shell.folder/"encoders.yaml"
    def run(name, until="bundle"):
        done = shell("run", "--until", until, *TOY, f"data.source={{_target_:userdata.dataset,file:{table}}}", f"data.contract={shell.contract}", f"data.encoders={encoders}")
        assert done.returncode == 0, done.stdout + done.stderr
        names[name] = shell.runs()[-1]
    module.write_text(USERDATA)
    rows().write_csv(table)
    run("before")
    module.write_text(USERDATA.replace("fill_null(12.0)", "fill_null(60.0)").replace("nobody has", "no one"))
    run("imputed")
    module.write_text(USERDATA)
    text = encoders.read_text()
    encoders.write_text(re.sub(r"^wind: .*$", "wind: {encoder: drop, why: no use}", text, flags=re.M))
    run("dropped")
    encoders.write_text(text)
    rows().with_columns(rain=pl.col("rain")*3).write_csv(table)
    run("rained")
    rows().write_csv(table)
    run("short", "evaluate")
    run("again")
    shell.run = names
    return shell


def test_a_changed_imputation_is_the_first_line(story):
    found = diff(story.run["before"], story.run["imputed"])
    first, second, removed, added, *_ = str(found).splitlines()
    assert "`impute` changed" in first and "userdata.py" in first and "the only difference in `data`" in second
    assert "fill_null(12.0)" in removed and "fill_null(60.0)" in added
    precision = next(m for m in found.measures if m.metric == "average_precision" and m.part == "test")
    assert precision.delta < 0 and [d.name for d in found.of("cause")] == ["userdata.impute"]
    assert {d.role for d in found.differences if d.part == "data"} == {"follows"}  # the table differs because of it


def test_a_changed_encoder_is_the_first_line_with_its_place_in_the_file(story):
    found = diff(story.run["before"], story.run["dropped"])
    first, second = str(found).splitlines()[:2]
    line = (story.run["dropped"]/"given"/"encoders.yaml").read_text().splitlines()
    at = 1 + next(i for i, text in enumerate(line) if text.startswith("wind:"))
    assert "encoder of `wind`: standard → drop" in first and f"encoders.yaml:{at}" in first and "the only difference in `features`" in second
    assert found.shift.column == "wind" and found.shift.rows == 1000 and found.diverged[0] == "features"
    assert {"code", "data", "config", "environment"} <= set(found.equal)


def test_data_that_have_moved_are_named_by_column_and_by_file(story):
    found = diff(story.run["before"], story.run["rained"])
    first, second = str(found).splitlines()[:2]
    assert "`rain`: " in first and "`data`, the first stage whose result differs" in second
    assert [d.name for d in found.differences if d.part == "data" and isinstance(d.before, dict) and "shares" in d.before] == ["rain"]
    assert "rows.csv" in next(d for d in found.differences if d.name == "table").where


def test_two_equal_runs_have_no_difference(story):
    found = diff(story.run["before"], story.run["again"])
    assert not found.of("cause", "suspect", "follows") and not found.moved and not found.diverged
    assert str(found).startswith("result ") and "no " in str(found).splitlines()[0]


def test_a_run_that_was_asked_for_less_has_no_other_code(story):
    for pair in (("before", "short"), ("short", "before")):
        found = diff(*(story.run[name] for name in pair))
        assert "code" in found.equal and str(found).startswith("result       no difference"), str(found)
    changed = diff(story.run["imputed"], story.run["short"])
    assert [d.name for d in changed.differences if d.part == "code"] == ["userdata.impute"]


def test_without_a_score_nothing_is_said_to_be_unexplained(story, tmp_path):
    stopped = tmp_path/"20260101-000000-aaaa"
    stopped.mkdir()
    for name in ("config.json", "environment.json", "code.json"): shutil.copy(story.run["before"]/name, stopped)
    Run(stopped.name, stopped).record("finished", status="interrupted", seconds=1.0)
    said = str(diff(story.run["before"], stopped))
    assert said.startswith("result       no score to compare") and "20260101-000000-aaaa has none (interrupted)" in said and "deterministic" not in said and "bisect" not in said


def test_the_run_before_is_of_the_same_data_and_has_a_score(story, tmp_path):
    ledger, names = Ledger(tmp_path), ("before", "imputed", "dropped")
    for name in names: shutil.copytree(story.run[name], tmp_path/story.run[name].name)
    first, second, third = (tmp_path/story.run[name].name for name in names)
    assert side_before(side_of(third), ledger).run == second
    config = json.loads((second/"config.json").read_text())
    (second/"config.json").unlink()
    write_json(second/"config.json", config | dict(data=config["data"] | dict(name="other")))
    assert side_before(side_of(third), ledger).run == first
    shutil.rmtree(first/"stages"/"evaluate")
    with pytest.raises(MlprojError, match="no run before it has a score"): side_before(side_of(third), ledger)


@pytest.mark.parametrize("args", [(), ("latest",)])
def test_the_latest_run_alone_is_compared_with_the_one_before(story, args):
    done = story("diff", *args)
    assert done.returncode == 0 and not done.stderr
    sides = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("from ", "to "))]
    assert sides == [story.run["short"].name, story.run["again"].name]


def test_the_order_of_the_sides_is_before_and_after(story):
    there, back = diff(story.run["before"], story.run["imputed"]), diff(story.run["imputed"], story.run["before"])
    assert [m.delta for m in there.measures] == [-m.delta for m in back.measures]
    assert "-    return frame.with_columns(wind=pl.col(\"wind\").fill_null(60.0))" in back.of("cause")[0].detail


def test_a_bundle_leads_to_its_run_and_without_it_says_what_it_holds(story, tmp_path):
    runs = story.folder/"store"/"runs"
    bundle, other = (story.run[name]/"stages"/"bundle"/"toy" for name in ("before", "imputed"))
    assert side_of(bundle).run == story.run["before"]
    lone = shutil.copytree(bundle, tmp_path/"bundle")
    assert side_of(lone, runs).run == story.run["before"] and side_of(lone).run is None
    found = diff(lone, shutil.copytree(other, tmp_path/"other"))
    assert next(m for m in found.measures if m.metric == "average_precision").delta == next(m for m in diff(bundle, other).measures if m.metric == "average_precision").delta
    assert "`wind`" in str(found) and "differs, by its digest" in found.unknown["code"] and found.shift is None  # the rows hold other winds
    (tmp_path/"bundle"/"facts.json").write_text("{}")
    with pytest.raises(RegistryError): diff(lone, other)


def test_words_stand_for_sides(story, monkeypatch):
    ledger = Ledger(story.folder/"store"/"runs")
    assert find_side("latest", ledger).run == story.run["again"] and find_side(story.run["before"].name, ledger).run == story.run["before"]
    monkeypatch.setenv("BENTOML_HOME", str(story.folder/"bentoml"))
    registry = Registry()
    registry.promote(registry.add(story.run["imputed"]/"stages"/"bundle"/"toy"))
    assert find_side("toy@champion", ledger).run == story.run["imputed"]
    assert find_side("toy", ledger).run == story.run["imputed"]
    with pytest.raises(MlprojError, match="no run, no model and no folder; the latest runs are " + story.run["again"].name): find_side("nothing", ledger)
    with pytest.raises(MlprojError, match="6 runs have an id"): find_side("2", ledger)
    with pytest.raises(MlprojError, match="neither a run folder nor a bundle"): find_side(str(story.folder), ledger)


def test_the_report_names_the_culprit_without_scripts_or_addresses(story, tmp_path):
    from mlproj.report import render_diff
    page = render_diff(side_of(story.run["before"]), side_of(story.run["imputed"]), tmp_path/"diff.html").read_text()
    assert "<code>impute</code>" in page and 'class="ins"' in page and "fill_null(60.0)" in page and "The columns that have moved" in page
    assert "<script" not in page and not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "@import" not in page


# --- by hand: many differences, strange ones, and runs that did not come far ---

def folder(path: Path, config=None, code=None, packages=None, profile=None, precision=None, status="succeeded") -> Path:
    "A run folder with what is given, and no fingerprints."
    path.mkdir(parents=True)
    Run(path.name, path).record("finished", status=status)
    write_json(path/"config.json", config or {})
    if code is not None: write_json(path/"code.json", code)
    if packages is not None: write_json(path/"environment.json", dict(packages=packages))
    if profile: save_profile(profile, path/"stages"/"contract"/"profile.json")
    if precision: write_json(path/"stages"/"evaluate"/"scorecard.json", dict(metrics=dict(test=dict(average_precision=dict(n=10, model=dict(value=precision, low=0, high=1))))))
    return path


def unit(digest: str) -> dict: return dict(digest=digest, source=f"def f():\n    return {digest!r}", file="m.py", line=1, cell="")


def test_any_number_of_differences_fits_a_screen(tmp_path):
    wide = lambda k: Profile.of(pl.DataFrame({f"x{i}": np.arange(500)*k + i for i in range(60)}))
    a, b = (folder(tmp_path/n, dict(model={f"k{i}": f"{n}"*200 for i in range(100)}), {f"m.f{i}": unit(n) for i in range(300)}, {f"p{i}": n for i in range(200)}, wide(k), precision)
            for n, k, precision in (("a", 1, .4), ("b", 7, .3)))
    found = diff(a, b)
    lines = str(found).splitlines()
    assert len(lines) <= LINES and max(map(len, lines)) <= WIDTH and len(found.differences) > 600
    assert all(any(line.startswith(part) for line in lines) for part in ("likeliest", "metrics", "code", "config", "data", "environment"))  # no part hides another
    assert len(json.dumps(diff_json(found))) > 10_000 and found._repr_html_()


def test_a_value_cannot_move_the_cursor_or_write_html(tmp_path):
    a = folder(tmp_path/"a", dict(name="x"), precision=.4)
    b = folder(tmp_path/"b", dict(name="\x1b[2J\r<script>\u202e"), precision=.3)
    found = diff(a, b)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", str(found)) and "<script>" not in found._repr_html_()


def test_a_run_that_failed_has_suspects(tmp_path):
    a, b = folder(tmp_path/"a", dict(lr=1), precision=.4), folder(tmp_path/"b", dict(lr=2), status="failed")
    assert "likeliest" in str(diff(a, b)) and "lr 1 → 2" in str(diff(a, b)).splitlines()[0] and "failed" in str(diff(a, b))
    assert "neither side was evaluated" in str(diff(b, b))


def test_metrics_that_differ_for_no_recorded_reason_are_called_so(tmp_path):
    a, b = (folder(tmp_path/n, {}, {}, {}, precision=p) for n, p in (("a", .4), ("b", .3)))
    assert "nothing that is recorded explains it" in str(diff(a, b)).splitlines()[0]


def test_comments_and_layout_are_no_difference():
    assert not code_differences({"m.f": unit("1")}, {"m.f": unit("1") | dict(source="def f():  # a comment\n    return '1'")})


@pytest.mark.parametrize("seed", range(60))
def test_a_culprit_is_never_acquitted_and_the_innocent_are(seed):
    "Random stages whose results are made of their inputs and of those of their own functions that matter: an oracle by construction."
    rng = random.Random(seed)
    names = ["data", "contract", "split", "features", "baseline", "train", "evaluate"]
    above = {s: set(rng.sample(names[:i], rng.randint(1, min(i, 3)))) if i else set() for i, s in enumerate(names)}
    functions = {f"m.f{i}": (rng.sample(names, rng.choice([1, 1, 2])), rng.random() < .5) for i in range(14)}  # where it runs, and whether it changes a result
    changed = set(rng.sample(sorted(functions), rng.randint(1, 5)))
    def run(new):
        version = {f: "2" if new and f in changed else "1" for f in functions}
        made = {}
        for s in names:
            mine = {f: version[f] for f, (stages, _) in functions.items() if s in stages}
            inputs = {p: made[p]["content"] for p in sorted(above[s])}
            matters = sorted((f, v) for f, v in mine.items() if functions[f][1])
            made[s] = dict(content=hashlib.sha256(repr((s, inputs, matters)).encode()).hexdigest(), fingerprint=dict(code=mine, inputs=inputs))
        return made
    old, new = run(False), run(True)
    path = upstream(old)
    found = judged(code_differences({f: dict(digest="1") for f in functions}, {f: dict(digest="2" if f in changed else "1") for f in functions}),
                   steps_of(old, new), path, dict(encoders=set(), contract=set()), True, False)
    roles = {d.name: d.role for d in found}
    assert roles.keys() == changed
    for f in changed:
        stages, matters = functions[f]
        moves = matters and bool(set(stages) & path)
        if moves: assert roles[f] in ("cause", "suspect")
        if not matters and all(old[s]["content"] == new[s]["content"] for s in stages): assert roles[f] == "harmless"
        if not set(stages) & path: assert roles[f] == "harmless"
    first = [d for d in found if d.role == "cause"]
    for d in first:
        p, q = old[d.stage], new[d.stage]
        assert p["fingerprint"]["inputs"] == q["fingerprint"]["inputs"] and p["content"] != q["content"] and d.stage in functions[d.name][0]
    if len({d.name for d in first}) == 1: assert functions[first[0].name][1]  # alone in a stage that was given the same: it must matter
    assert [d.role == "harmless" for d in found] == sorted(d.role == "harmless" for d in found)


@pytest.mark.parametrize("kinds", ["counts and counts", "bins and bins", "counts and bins", "bins and counts"])
def test_distances_of_profiles_are_those_of_the_values(kinds):
    rng = np.random.default_rng(3)
    few, many = (lambda loc: np.round(rng.normal(loc, 2, 40_000), 1)), (lambda loc: rng.normal(loc, 2, 40_000))
    make = [dict(counts=few, bins=many)[kind] for kind in kinds.split(" and ")]
    a, b = make[0](10), make[1](10.5)
    before, after = (Profile.of(pl.DataFrame(dict(x=x))) for x in (a, b))
    assert [bool(p["x"].counts) for p in (before, after)] == [kind == "counts" for kind in kinds.split(" and ")]
    d = profile_distances(before, after)["x"]
    apart = .03 if "counts" in kinds and "bins" in kinds else .006  # of rounded values each has up to .02 of the rows, and a bin ends somewhere within
    assert abs(d.ks - stats.ks_2samp(a, b).statistic) < apart
    assert abs(d.wasserstein*a.std()/stats.wasserstein_distance(a, b) - 1) < .05
    (moved,) = column_differences(before, after)
    assert moved.name == "x" and not column_differences(before, before)


def test_samples_of_one_table_have_not_moved():
    "Of 400 columns in 20 pairs of samples, at most one is called out by chance."
    rng, called = np.random.default_rng(0), 0
    for _ in range(20):
        of = lambda n: pl.DataFrame(dict(a=rng.normal(size=n), b=rng.exponential(size=n), c=rng.integers(0, 9, n), d=rng.choice(["x", "y", "z"], n, p=[.9, .09, .01]), e=rng.random(n) < .1,
                                         f=[f"id{i}" for i in rng.integers(0, 6000, n)], g=np.where(rng.random(n) < .3, np.nan, rng.normal(size=n)), h=rng.zipf(1.5, n) % 1000,
                                         i=[f"v{v}" for v in rng.zipf(1.3, n) % 500], j=rng.poisson(.1, n)))
        called += len(column_differences(Profile.of(of(rng.integers(500, 5000))), Profile.of(of(rng.integers(500, 5000)))))
    assert called <= 1


def test_the_module_is_light_until_it_is_used():
    code = "import sys, mlproj.diff; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {"polars", "numpy", "yaml", "onnxruntime", "torch", "narwhals", "msgspec"} & set(loaded)
