"The search for the culprit: on a synthetic evaluator with noise and interactions; mixtures of code; and on real runs of a project under git."
import itertools, json, os, random, shutil, statistics, subprocess, sys

import pytest

from mlproj.bisect import Bisection, MovedTable, Trials, Unrunnable, Verdict, _listed, bisect, ddmin, search
from mlproj.ledger import Run
from mlproj.mixture import compare_code
from mlproj.project import MlprojError, write_json

# kind: how many changes belong to it, and what they do together, in units of the whole effect
KINDS = dict(single=(1, lambda p: p[0]), pair=(2, all), triple=(3, all), either=(2, any), sum=(2, lambda p: 0.6*p[0] + 0.4*p[1]), masked=(2, lambda p: 1.5*p[0] - 0.5*p[1]),
             needs=(2, lambda p: p[0]), coupled=(2, lambda p: p[0]))


class Case:
    "A planted regression of 0.1 among up to 16 changes; the harmless ones do nothing, or (in three of ten) move the metric by up to 2% of it."
    def __init__(self, seed: int, kind: str, sd: float = 0.0):
        r = random.Random(f"{seed}{kind}")
        n, (size, effect) = r.randint(4, 16), KINDS[kind]
        self.names = [f"c{i}" for i in range(n)]
        self.picked = r.sample(self.names, size)
        self.small = {c: r.uniform(-.02, .02) for c in self.names if c not in self.picked} if r.random() < 0.3 else {}
        self.kind, self.seed, self.sd, self.effect = kind, seed, sd, effect
        self.truth = set(self.picked[:1]) if kind in ("single", "masked", "needs") else set(self.picked)
        self.order = r.sample(self.names, n)
        self.requires = {}
        if kind == "needs":  # a change that cannot do without another one, which stands before it
            self.requires = {self.picked[0]: frozenset(self.picked[1:])}
            self.order.sort(key=lambda c: c == self.picked[0])

    def measure(self, chosen, seed) -> float:
        if self.kind == "coupled" and len(chosen & set(self.picked)) == 1: raise Unrunnable("a new argument")
        move = sum(self.small.get(c, 0) for c in chosen) + self.effect([c in chosen for c in self.picked])
        seen = sorted(chosen) if self.small else move  # what does nothing leaves every bit as it was
        return 0.5 - 0.1*(move + random.Random(f"{self.seed}{seed}{seen}").gauss(0, self.sd))

    def search(self, budget=40): return search(Trials(self.measure, requires=self.requires, budget=budget), self.order)


@pytest.mark.parametrize("kind, most", dict(single=10, pair=16, triple=24, either=16, sum=16, masked=14, needs=12, coupled=36).items())
def test_without_noise_the_right_set_is_found_in_few_runs(kind, most):
    found = [(case := Case(seed, kind), case.search()) for seed in range(40)]
    assert [(c.seed, v) for c, v in found if v.outcome != "found" or set(v.culprits) != c.truth] == []
    assert max(v.runs for _, v in found) <= most
    assert {v.doubt for _, v in found} == {0.0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sd", [0.1, 0.2])
def test_with_noise_what_is_called_found_is_right(kind, sd):
    found = [(case := Case(seed, kind, sd), case.search()) for seed in range(40)]
    sure = [(c, v) for c, v in found if v.outcome == "found"]
    assert sum(set(v.culprits) != c.truth for c, v in sure) <= 1, [(c.seed, v) for c, v in sure if set(v.culprits) != c.truth]
    if sd == 0.1 and kind != "sum": assert len(sure) >= 38
    assert statistics.fmean(v.doubt for _, v in sure) < 0.05 if sure else True


def test_noise_as_large_as_the_effect_names_nobody():
    outcomes = []
    for seed in range(200):
        verdict = search(Trials(lambda chosen, s: random.Random(f"{seed}{s}{sorted(chosen)}").gauss(0, 1)), [f"c{i}" for i in range(8)])
        outcomes.append(verdict.outcome)
    assert "found" not in outcomes and outcomes.count("noise") >= 180


def test_a_gain_is_explained_as_a_regression_is():
    verdict = search(Trials(lambda chosen, s: 0.4 + 0.1*({"b", "d"} <= chosen)), list("abcde"))
    assert set(verdict.culprits) == {"b", "d"} and verdict.bad > verdict.good


def test_equal_ends_end_the_search_after_two_seeds():
    verdict = search(Trials(lambda chosen, s: 0.4), list("abcde"))
    assert (verdict.outcome, verdict.runs, verdict.sets) == ("noise", 4, ())


def test_an_end_that_cannot_run_is_said():
    def measure(chosen, seed):
        if len(chosen) == 3: raise Unrunnable("No module named 'xyz'")
        return 0.4
    verdict = search(Trials(measure), list("abc"))
    assert (verdict.outcome, verdict.sets, verdict.why) == ("unsure", (), "No module named 'xyz'")


def test_the_budget_ends_a_search_and_leaves_the_suspects():
    verdict = search(Trials(lambda chosen, s: 0.5 - 0.1*("c3" in chosen), budget=6), [f"c{i}" for i in range(16)])
    assert verdict.outcome == "budget" and verdict.runs == 6 and "c3" in verdict.suspects


def test_no_mixture_is_measured_twice_and_all_are_closed():
    seen = []
    requires = dict(a=frozenset("b"))
    def measure(chosen, seed):
        seen.append((chosen, seed))
        assert "a" not in chosen or "b" in chosen
        return 0.5 - 0.1*("a" in chosen)
    assert search(Trials(measure, requires=requires), list("cdba")).culprits == ("a",)
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("wanted", [{1}, {0, 7}, {2, 3, 11}, set(range(12))])
def test_ddmin_ends_at_the_smallest_part(wanted):
    assert set(ddmin(list(range(12)), lambda part: wanted <= set(part))) == wanted


# Mixtures of code

OLD = {"tiny/__init__.py": "", "tiny/clean.py": '''
import math
LIMIT = 60

def clip(x): return min(x, LIMIT)
def half(x): return x/2
def scale(x, by): return x*by

class Model:
    rate = 0.1
    def fit(self, x): return clip(x)*self.rate
    def score(self, x): return self.fit(x) + 1
''', "tiny/use.py": '''
from tiny.clean import Model, clip, half, scale
TABLE = {}
TABLE["clip"] = clip
def run(x): return TABLE["clip"](x) + half(x) + scale(x, 3)
def best(x): return Model().score(x)
'''}

NEW = OLD | {"tiny/clean.py": '''
import math
import operator
LIMIT = 90

def _floor(x, least=0): return operator.or_(int(max(x, least)), 0)
def clip(x): return min(_floor(x), LIMIT)
def halve(x): return x/2 + 1
def scale(x, by, plus): return x*by + plus

class Model:
    rate = 0.2
    bias = 5
    def fit(self, x): return clip(x)*self.rate + self.bias
    def predict(self, x): return self.fit(x)
    def score(self, x): return self.predict(x) + 1
''', "tiny/use.py": '''
from tiny.clean import Model, clip, halve, scale
from tiny.more import double
TABLE = {}
TABLE["clip"] = lambda x: double(clip(x))
def run(x): return TABLE["clip"](x) + halve(x) + scale(x, 3, plus=1)
def best(x): return Model().score(x) + 1
''', "tiny/more.py": "def double(x): return 2*x\n"}


def closed(code, chosen): return Trials(None, requires=code.requires).closed(chosen)


def evaluated(tmp_path, sources) -> str:
    "What the code of a mixture gives, in a process of its own."
    for path, source in sources.items():
        (tmp_path/path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/path).write_text(source)
    done = subprocess.run([sys.executable, "-B", "-c", "from tiny.use import best, run; print(run(70), best(70))"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_single_change_with_what_it_needs_runs(tmp_path):
    code = compare_code(OLD, NEW)
    assert set(code.changes) == {"tiny.clean.LIMIT", "tiny.clean.clip", "tiny.clean.scale", "tiny.clean.Model", "tiny.clean.Model.fit", "tiny.clean.Model.score", "tiny.use.TABLE[]", "tiny.use.run", "tiny.use.best"}
    found = {c: evaluated(tmp_path/c, OLD | code.mixed(closed(code, [c]))) for c in code.changes}
    assert evaluated(tmp_path/"old", OLD) == "305.0 7.0" and evaluated(tmp_path/"new", NEW) == "387.0 21.0"
    assert found["tiny.clean.LIMIT"] == "315.0 8.0"
    assert found["tiny.use.best"] == "305.0 8.0"
    assert found["tiny.clean.scale"] == found["tiny.use.run"] == "307.0 7.0"  # caller and new argument, with the renamed function


def test_all_changes_together_are_the_new_version(tmp_path):
    code = compare_code(OLD, NEW)
    assert evaluated(tmp_path, OLD | code.mixed(closed(code, code.changes))) == "387.0 21.0"


def test_any_mixture_runs(tmp_path):
    code = compare_code(OLD, NEW)
    for i, chosen in enumerate(random.Random(0).sample(list(itertools.combinations(code.changes, 3)), 12)):
        evaluated(tmp_path/str(i), OLD | code.mixed(closed(code, chosen)))


def test_what_can_matter_is_asked_and_what_others_need_comes_along():
    code = compare_code(OLD, NEW, lambda name: name == "tiny.use.run")
    assert code.changes == ("tiny.use.run",)
    assert {"tiny.clean.scale", "tiny.clean.halve", "tiny.use.halve"} <= closed(code, ["tiny.use.run"])


@pytest.mark.parametrize("old, new, changes", [
    ("def f(): return 1\n", "# a comment\ndef f():\n    'Doc.'\n    return 1\n", ()),
    ("def f(): return 1\n", "from m.other import f\n", ("m.a.f",)),  # moved: the name is another's now
    ("from m.b import f\n", "from m.c import f\n", ("m.a.f",)),
    ("def len(x): return 0\ny = len([])\n", "y = len([])\n", ("m.a.len",)),  # gone, and something else takes its place
    ("def f(): pass\n", "def f(): pass\ndef g(): pass\n", ()),  # nobody calls it
    ("def f(): pass\n", "def f(): pass\n@register\ndef g(): pass\n", ("m.a.g",)),
    ("class A(B):\n    def f(self): return 1\nA().fit()\n", "class A(B):\n    def f(self): return 1\n    def fit(self): return 2\nA().fit()\n", ("m.a.A.fit",)),  # overrides
    ("print(1)\n", "print(2)\n", ("m.a.<module>",)),
    ("a, b = 1, 2\n", "a = 1\nb = 3\n", ("m.a.a",)),  # bound together once: one unit
    ("try: import x\nexcept ImportError: x = None\n", "x = None\n", ("m.a.x",)),
    ("class A: x = 1\n", "class A:\n    x = 1\n    def f(self): return 1\n", ("m.a.A",)),  # stood on one line: taken whole
    ("def f(): return 1\n", "def f(: return\n", ("m.a",)),  # no Python: the module is one change
])
def test_what_counts_as_a_change(old, new, changes):
    assert compare_code({"m/a.py": old}, {"m/a.py": new}).changes == changes


# Real runs

@pytest.fixture(scope="module")
def story(tmp_path_factory):
    "Two runs of a project under git: between them two functions that carry the time of day lost it, and three changes did nothing. The second is not committed."
    from projects import GitProject
    home, os.environ["BENTOML_HOME"] = os.environ.get("BENTOML_HOME"), str(tmp_path_factory.mktemp("bentoml"))
    store = os.environ.pop("MLPROJ_STORE", None)
    project = GitProject.make(tmp_path_factory.mktemp("story")/"project")
    good = project.run()
    project.edit("cleaning.py", ("DEPARTURE = 1.0", "DEPARTURE = 0.0"), ('pl.col("arr_minute")*ARRIVAL', 'pl.col("arr_minute")*0*ARRIVAL'), (".clip(0, 200)", ".clip(0, 190)"),
                 ("def humidity(frame)", "def humid(frame)"), ("weekday, humidity]", "weekday, humid]"))
    yield project, good, project.run("baseline.C=0.5")
    for name, value in dict(BENTOML_HOME=home, MLPROJ_STORE=store).items():
        if value is None: os.environ.pop(name, None)
        else: os.environ[name] = value


def test_two_functions_that_hurt_together_are_named(story):
    project, good, bad = story
    before = project.git("status", "--short")
    found = bisect(good, bad, project.project, "average precision")
    assert set(found.verdict.culprits) == {"code cleaning.DEPARTURE", "code cleaning.arrival"}, str(found)
    assert {"code cleaning.wind", "code cleaning.steps", "config baseline.C"} <= found.changes.keys()
    assert found.verdict.outcome == "found" and found.verdict.runs <= 20 and found.verdict.good == found.recorded[0] and found.verdict.bad == found.recorded[1]
    assert "together 100% of it" in str(found) and "every comparison is exact" in str(found)
    assert project.git("status", "--short") == before and project.git("worktree", "list").count("\n") == 1


def test_a_search_that_was_stopped_goes_on_from_its_journal(story):
    project, good, bad = story
    journal = project.project.store/"bisect"/f"{good.id}..{bad.id}"/"journal.jsonl"
    lines, said = journal.read_text().splitlines(keepends=True), []
    journal.write_text("".join(lines[:-1]))
    found = bisect(good, bad, project.project, say=said.append)
    assert len(journal.read_text().splitlines()) == len(lines) and found.known == len(lines) - 1
    other = bisect(good, bad, project.project, "roc_auc")  # most of it is known already
    assert other.verdict.runs - other.known < 12 and other.verdict.culprits


def test_an_interrupted_run_of_a_mixture_leaves_nothing(story, monkeypatch):
    project, good, bad = story
    folder = project.project.store/"bisect"/f"{bad.id}..{good.id}"
    def interrupted(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr("mlproj.bisect.rerun", interrupted)
    with pytest.raises(KeyboardInterrupt): bisect(bad, good, project.project)
    assert [*folder.iterdir()] == [] and project.git("worktree", "list").count("\n") == 1


def test_where_the_source_has_moved_the_recorded_tables_are_one_change(story, monkeypatch):
    def measured(pair, chosen, seed, folder, project):
        if pair.called: raise MovedTable
        return dict(test_average_precision=0.5 - 0.1*("data" in chosen))
    monkeypatch.setattr("mlproj.bisect.run_mixture", measured)
    (project, good, bad), said = story, []
    found = bisect(bad, good, project.project, say=said.append)
    assert found.verdict.culprits == ("data",) and "the table, " in str(found) and "data" in found.changes
    assert sum("is no longer what it was" in line for line in said) == 1 and "data" not in said[0]


def test_runs_that_cannot_be_compared_are_one_line_and_no_search(story, tmp_path):
    project, good, bad = story
    with pytest.raises(MlprojError, match="in both: there is nothing to explain"): bisect(good, good, project.project)
    other = Run(bad.id, shutil.copytree(bad.path, tmp_path/bad.id))
    config = json.loads((other.path/"config.json").read_text())
    (other.path/"config.json").unlink()
    write_json(other.path/"config.json", config | dict(data=config["data"] | dict(name="diamonds")))
    with pytest.raises(MlprojError, match="one is of the data 'flights', the other of 'diamonds'"): bisect(good, other, project.project)


@pytest.mark.parametrize("why, said", [("No module named 'x'", "they cannot be had again (No module named 'x')"), ("", "give the search a larger --budget")])
def test_an_end_without_a_figure_is_no_rise_and_no_fall(why, said):
    verdict = Verdict("unsure" if why else "budget", (), 0.4, float("nan"), 0.0, 1, None, 0.0, (), ("c",), why)
    text = str(Bisection("a", "b", "test_brier", False, verdict, {}, (0.4, 0.5)))
    assert said in text.splitlines()[0] and "nan" not in text and "rises" not in text and text.count(why or "budget") == 1


def test_a_changed_encoder_is_said_as_the_comparison_says_it(story):
    project, good, bad = story
    given = dict(encoders=dict(dest=dict(encoder="category", min_count=10)), contract=None), dict(encoders=dict(dest=dict(encoder="drop", why="no use")), contract=None)
    found = _listed(compare_code({}, {}), {}, ({"config": {}}, {"config": {}}), given, False, ("a", "a"), {}, {})
    assert [c.said for c in found] == ["encoder of `dest`: category → drop, min_count 10 → none"]


def test_an_unknown_metric_is_one_line(story):
    project, good, bad = story
    with pytest.raises(MlprojError, match="metric 'f7' is unknown.*average_precision"): bisect(good, bad, project.project, "f7")
