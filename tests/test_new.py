"A new project works at once, says what it assumed about a file, and takes later improvements without losing what its users did."
import json, os, re, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from mlproj import look as looking, new as room
from mlproj.fingerprint import Codebase
from mlproj.look import instants, label_of, look
from mlproj.new import new, pins, update
from mlproj.notebook import check_sync
from mlproj.project import ConfigError, DataError, MlprojError, Project

ROOT = Path(__file__).resolve().parents[1]


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment(folder: Path) -> dict:
    return os.environ | dict(BENTOML_HOME=str(folder/"bentoml"), BENTOML_DO_NOT_TRACK="True", PYTHONPATH=str(ROOT), PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                             OMP_NUM_THREADS="1") | ({} if "MLPROJ_STORE" not in os.environ else dict(MLPROJ_STORE=str(folder/"store")))


def in_project(root: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=root, env=environment(root.parent), capture_output=True, text=True, timeout=300)


def write(path: Path, columns: dict, separator=",") -> Path:
    pl.DataFrame(columns).write_csv(path, separator=separator)
    return path


def customers(rows: int = 300, seed: int = 0) -> dict:
    "A table in which `income` says something about the label, and not everything."
    rng = np.random.default_rng(seed)
    income = rng.normal(size=rows)
    left = income + 2*rng.normal(size=rows) > 0
    return dict(customer=[f"c{i}" for i in range(rows)], income=income.round(3), city=rng.choice(["Köln", "Bonn", "Ulm"], rows), left=["yes" if l else "no" for l in left])


def canonical(pin: str) -> str: return re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() + "==" + pin.partition("==")[2]


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    "The project that `mlproj new churn` makes, and never changed by a test."
    return new(tmp_path_factory.mktemp("work")/"churn", say=lambda line: None)


@pytest.fixture
def project(example, tmp_path) -> Project:
    "A copy of it that a test may change."
    return Project.find(shutil.copytree(example, tmp_path/"churn"))


@pytest.fixture
def template(tmp_path, monkeypatch) -> Path:
    "A copy of the template, which a test may improve."
    folder = shutil.copytree(ROOT/"template", tmp_path/"template")
    monkeypatch.setattr(room, "template_folder", lambda: folder)
    return folder


# The project

def test_a_project_is_committed_in_sync_and_holds_no_code_of_mlproj(example):
    assert git(example, "status", "--porcelain") == "" and len(git(example, "log", "--format=%h").split()) == 2
    assert not check_sync(example)
    code = sum(len(p.read_text().splitlines()) for p in example.rglob("*.py"))
    assert code < 100 and (example/"conf/config.yaml").read_text().count("\n") < 15


def test_the_example_trains_registers_and_tests_itself(project):
    done = in_project(project.root, "make", "run", "ARGS=tracking=disabled evaluate.replicates=20")
    assert done.returncode == 0, done.stderr
    assert "is champion" in done.stdout and "look at" in done.stdout
    assert {"churn.yaml"} == {p.name for folder in ("contracts", "encoders") for p in (project.root/"conf"/folder).iterdir()}
    tested = in_project(project.root, "make", "test")
    assert tested.returncode == 0 and " passed" in tested.stdout, tested.stdout + tested.stderr


def test_the_package_is_found_where_it_is_not_installed(project):
    said = "from mlproj.config import compose; from mlproj.target import call; print(call(compose().data.source, 'data.source').frame.height)"
    for folder in ("", "nbs"):
        done = in_project(project.root/folder, sys.executable, "-c", said)
        assert done.stdout.strip() == "26067", done.stderr


def test_overrides_groups_and_experiments_of_both_places_are_known(project):
    (project.root/"conf/model").mkdir()
    (project.root/"conf/model/mine.yaml").write_text("_target_: mlproj.train.baseline.Linear\nC: 0.1\n")
    for overrides in (["model=mine", "seed=3"], ["experiment=flights"], ["model=lightgbm", "gate=default"]):
        done = in_project(project.root, sys.executable, "-m", "mlproj.cli", "run", *overrides, "--cfg", "job")
        assert done.returncode == 0 and "seed" in done.stdout, done.stderr
    assert "C: 1.0" in done.stdout  # of the baseline
    wrong = in_project(project.root, sys.executable, "-m", "mlproj.cli", "run", "experiment=chrn")
    assert wrong.returncode == 1 and "churn" in wrong.stderr


def test_make_uses_the_python_that_made_the_project_where_none_is_active(project):
    bare = dict(PATH="/usr/bin:/bin", HOME=str(project.root))
    said = subprocess.run(["make", "-n", "run"], cwd=project.root, env=bare, capture_output=True, text=True).stdout
    assert said.startswith(f"{sys.executable} -m mlproj.cli run")
    (project.root/".mlproj/python").unlink()
    made = subprocess.run(["make", "-n", "run"], cwd=project.root, env=bare, capture_output=True, text=True).stdout
    assert "-m venv .venv" in made and ".venv/bin/python -m mlproj.cli run" in made


def test_the_pins_are_what_is_installed_and_within_the_constraints(example):
    listed = (example/"constraints.txt").read_text().split()
    known = {*map(canonical, (ROOT/"constraints.txt").read_text().split())}
    assert len(listed) > 150 and not {*map(canonical, listed)} - known
    serving = yaml.safe_load((example/"bentofile.yaml").read_text())["python"]["packages"]
    assert {*serving[1:]} == {*pins(extras=())} and not [p for p in serving if p.startswith("torch")]


@pytest.mark.parametrize("name, said", [("Churn-2026", "churn_2026"), ("class", "class_project"), ("numpy", "installed"), ("json", "installed"), ("tests", "every project has"), ("größe", "gr_e")])
def test_a_name_that_would_break_something_is_refused(tmp_path, name, said):
    with pytest.raises(ConfigError, match=said): new(tmp_path/name)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path/"churn").mkdir()
    (tmp_path/"churn/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"): new(tmp_path/"churn")
    assert [p.name for p in (tmp_path/"churn").iterdir()] == ["mine.txt"]


def test_the_folder_that_a_shell_stands_in_is_not_replaced_under_it(tmp_path, monkeypatch):
    (tmp_path/"churn").mkdir()
    monkeypatch.chdir(tmp_path/"churn")
    with pytest.raises(ConfigError, match="cd .. && mlproj new churn"): new(Path("."))
    assert Path.cwd().samefile(tmp_path/"churn") and not list(Path.cwd().iterdir())


def test_what_fails_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    def fails(root, run=False): raise MlprojError("a cell failed")
    monkeypatch.setattr(room, "sync", fails)
    with pytest.raises(MlprojError, match="a cell failed"): new(tmp_path/"churn", say=print)
    assert not list(tmp_path.iterdir())


def test_beside_an_installed_mlproj_other_packages_are_nobodys_own_code(tmp_path):
    code, site = Codebase(tmp_path), Path(np.__file__).parents[1]
    code.folders.append(site)  # where a wheel of mlproj would stand
    assert str(site) in code.sites and code.locate("numpy") is None and code.locate("mlproj") is not None


# A look at a file

def test_a_file_becomes_a_model(tmp_path):
    file, said = write(tmp_path/"customers.csv", customers(), ";"), []
    root = new(tmp_path/"leavers", str(file), "left", say=said.append, run=False)
    assert any("yes" in line and "label" in line for line in said)
    done = in_project(root, sys.executable, "-m", "mlproj.cli", "run", "tracking=disabled", "evaluate.replicates=20", "--until", "registry")
    assert done.returncode == 0 and "is champion" in done.stdout, done.stdout + done.stderr
    assert (root/"data/customers.csv").read_bytes() == file.read_bytes() and git(root, "ls-files", "data") == "data/customers.csv\n"
    assert in_project(root, sys.executable, "-m", "pytest", "-q").returncode == 0


def test_names_with_spaces_umlauts_and_quotes_reach_the_model(tmp_path):
    columns = customers(200)
    rows = "\n".join(f"{c};{str(i).replace('.', ',')};{t};7;{'' if k % 20 == 3 else l}" for k, (c, i, t, l) in enumerate(zip(*columns.values())))
    file = tmp_path/"kunden.csv"
    file.write_bytes(f'Kunden-ID;Höhe ""netto"";wo genau;fest;\'gekündigt\'\n{rows}\n'.encode("latin-1"))
    root = new(tmp_path/"kuendiger", str(file), "'gekündigt'", say=lambda line: None, run=False)
    done = in_project(root, sys.executable, "-m", "mlproj.cli", "run", "tracking=disabled", "evaluate.replicates=20", "--until", "bundle", "audit.refuse=false")
    assert done.returncode == 0, done.stdout + done.stderr
    contract = yaml.safe_load((root/"conf/contracts/kuendiger.yaml").read_text())
    assert contract["features"] == ["Höhe netto", "wo genau"] and contract["key"] == ["Kunden-ID"]
    assert "10 without 'gekündigt'" in done.stdout and "190 rows" in done.stdout


def test_the_line_that_reads_a_file_stands_in_the_notebook_and_reads_it_right(tmp_path):
    path = tmp_path/"a.csv"
    path.write_bytes("a;b;c;d\n1,5;?;x;.5\n2;7;ü;1e3\n".encode("latin-1"))
    table = eval(looking.reading(path))
    assert table.rows() == [(1.5, None, "x", 0.5), (2.0, 7, "ü", 1000.0)]
    (tmp_path/"b.tsv").write_text("'a'\t'b c'\n1\t2\n")
    assert eval(looking.reading(tmp_path/"b.tsv"), dict(pl=pl, path=tmp_path/"b.tsv")).columns == ["a", "b c"]


@pytest.mark.parametrize("values, kind, told", [
    ([True, False, None], "binary", [True, False, None]), (["yes", "no", "Yes "], "multiclass", None), (["Yes", "no", None], "binary", [True, False, None]),
    (["N", "Y", "N"], "binary", [False, True, False]), ([0, 1, 1], "binary", [False, True, True]), ([1.0, 2.0, None], "binary", [False, True, None]),
    (["good", "bad", "good"], "binary", [False, True, False]), ([1, 2, 3], "multiclass", ["1", "2", "3"]), ([0.5, 2.0, float("nan")], "regression", [0.5, 2.0, None]), ([10, 20, 31], "regression", [10.0, 20.0, 31.0])])
def test_a_label_becomes_what_it_means(values, kind, told):
    frame = pl.DataFrame(dict(y=values*20), strict=False)
    label = label_of(frame, "y")
    assert label.kind == kind
    made = frame.with_columns(eval(label.expression).alias("y")) if label.expression else frame
    if told: assert [None if v != v else v for v in made["y"].to_list()[:3]] == told


@pytest.mark.parametrize("values", [["01.02.2024", "28.02.2024"], ["2024-02-01", "2024-02-28"], ["2024-02-01 00:00:00", "2024-02-28 13:30:00"], ["02/01/2024", "02/28/2024"],
                                    ["2024-02-01T00:00:00Z", "2024-02-28T00:00:00Z"], ["2024-02-01T00:00:00+0000", "2024-02-28T00:00:00+0000"], [20240201, 20240228], [1706745600, 1709078400], [1706745600000, 1709078400000]])
def test_an_instant_is_read_in_whatever_form_it_comes(values):
    frame = pl.DataFrame(dict(t=values))
    found = instants(frame, "t", told=True)
    at = frame.select(eval(found[0])).to_series()
    assert [str(v.date()) for v in at] == ["2024-02-01", "2024-02-28"] and str(at.dtype) == "Datetime(time_unit='us', time_zone='UTC')"


def test_a_time_makes_a_split_in_which_nothing_is_learned_from_the_future(tmp_path):
    columns = customers(400) | dict(month=[f"2024-{1 + i//40:02}-01" for i in range(400)])
    seen = look(write(tmp_path/"a.csv", columns), "left")
    assert seen.time == "month" and seen.split["method"] == "time" and "2024-01-01" < seen.split["train_before"] < seen.split["validation_before"] <= "2024-10-01"
    tied = look(write(tmp_path/"b.csv", columns | dict(month=["2024-01-01"]*400)), "left")
    assert tied.split["method"] == "group" and "fewer than three" in tied.split_why


def test_rows_of_one_customer_stay_together(tmp_path):
    columns = customers(300) | dict(customer=[f"c{i % 60}" for i in range(300)])
    seen = look(write(tmp_path/"a.csv", columns), "left", key=("customer",))
    assert seen.split["group"] == "customer" and seen.key == ("customer", "row")


def test_a_large_file_stays_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(looking, "LARGE", 100)
    file = write(tmp_path/"a.csv", customers())
    seen = look(file, "left")
    assert seen.file == str(file) and "too large" in seen.file_said


def test_columns_that_no_table_can_hold_are_left_out_or_changed(tmp_path):
    frame = pl.DataFrame(customers(100)).with_columns(pl.lit(None).alias("empty"), pl.struct("income").alias("nested"), pl.col("city").cast(pl.Categorical), pl.col("income").cast(pl.Decimal(10, 3)).alias("price"))
    frame.write_parquet(tmp_path/"a.parquet")
    root = new(tmp_path/"leavers", str(tmp_path/"a.parquet"), "left", say=lambda line: None, run=False)
    done = in_project(root, sys.executable, "-m", "mlproj.cli", "run", "--until", "contract")
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load((root/"conf/contracts/leavers.yaml").read_text())["columns"]) == {"row", "customer", "income", "city", "left", "price"}


@pytest.mark.parametrize("change, options, error, said", [
    ({}, dict(label=""), ConfigError, "one of: customer, income, city, left"), ({}, dict(label="lft"), ConfigError, "did you mean 'left'"), ({}, dict(label="customer"), DataError, "different words"),
    (dict(left=["no"]*300), dict(label="left"), DataError, "constant"), (dict(born=["1999-01-01", "2000-05-05"]*150), dict(label="left"), ConfigError, "--time.*born, none"), ({}, dict(label="left", time="city"), DataError, "no time"),
    (dict(left=["no"]*299 + ["yes"]), dict(label="left"), DataError, "more rows"), ({}, dict(label="left", key=("cust",)), ConfigError, "--key")])
def test_what_cannot_be_decided_is_an_error_that_names_the_choices(tmp_path, change, options, error, said):
    file = write(tmp_path/"a.csv", customers() | change)
    with pytest.raises(error, match=said): new(tmp_path/"leavers", str(file), **options)
    assert not (tmp_path/"leavers").exists()


@pytest.mark.parametrize("content, said", [(b"", "empty"), (b"a,b\n1,2\n", "50 or more"), (b"\x00\x01PAR1", "rows|cannot|empty"), (None, "no such file")])
def test_a_file_that_is_none_is_one_line(tmp_path, content, said):
    path = tmp_path/"a.csv"
    if content is not None: path.write_bytes(content)
    with pytest.raises(DataError, match=said): look(path, "a")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252", "latin-1"])
def test_a_file_is_read_in_the_encoding_that_it_has(tmp_path, encoding):
    odd, path = "Größe" if encoding != "latin-1" else "Gr\x81", tmp_path/"a.csv"
    sure = "5 €" if encoding not in ("latin-1",) else "5"
    rows = "".join(f"{i},plain\n" for i in range(30_000))  # what is odd comes late, too
    path.write_bytes((f"n,{odd}\n1,{sure}\n{rows}9,{odd}\n").encode(encoding))
    table = eval(looking.reading(path), dict(pl=pl, path=path))
    assert table.columns == ["n", odd] and table[odd][0] == sure and table[odd][-1] == odd and table["n"].dtype == pl.Int64


def test_numbers_behind_a_space_are_numbers(tmp_path):
    path = tmp_path/"a.csv"
    path.write_text("a, b, c\n1, 2.5, yes\n2, 7, no\n")
    assert eval(looking.reading(path))[" b"].to_list() == [2.5, 7.0]


@pytest.mark.parametrize("values, days", [
    (["01.02.24", "28.02.24"], "2024-02-01"), (["24-02-01", "24-02-28"], "2024-02-01"), (["02/01/24", "02/28/24"], "2024-02-01"), (["1/2/99 10:30", "28/2/99 10:30"], "1999-02-01"),
    (["2024-02-01 01:30:00+02:00", "2024-02-28 10:30:00+02:00"], "2024-01-31"), (["2024-02-01 01:30:00.5+00", "2024-02-28 10:30:00+00"], "2024-02-01")])
def test_years_of_two_digits_are_of_our_time_and_offsets_are_kept(values, days):
    frame = pl.DataFrame(dict(t=values))
    assert str(frame.select(eval(instants(frame, "t")[0])).item(0, 0).date()) == days


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_label_that_is_no_number_is_missing_and_not_false(tmp_path, odd, classes):
    rows = 300
    frame = pl.DataFrame(customers(rows)).with_columns(left=pl.Series([odd if i % 5 == 0 else float(i % classes) for i in range(rows)]))
    frame.write_parquet(tmp_path/"a.parquet")
    seen = look(tmp_path/"a.parquet", "left")
    assert "missing in 60 rows" in seen.said[0]
    table = looking._table(seen.read_source.replace(repr(seen.file), repr(str(tmp_path/"a.parquet"))), seen.dataset_source)
    assert table.height == 240 and table["left"].n_unique() == classes


def test_a_column_without_a_name_is_not_what_nobody_has_named(tmp_path):
    path = write(tmp_path/"a.csv", customers())
    path.write_text("".join(line + "," + "\n" for line in path.read_text().splitlines()))  # a comma too many at each end
    seen = look(path, "left")
    assert seen.time == "" and seen.key == ("row",) and any("column_5" in line and "always missing" in line for line in seen.said)


def test_names_that_polars_takes_for_patterns_and_hashes_too_large_for_int64_are_read(tmp_path):
    seen = look(write(tmp_path/"a.csv", customers() | {"^in.*$": [1]*300}), "left")
    assert "`in.*` was called `^in.*$`." in seen.said
    (pl.DataFrame(customers()).with_columns(id=pl.Series([2**64 - 1 - i for i in range(300)], dtype=pl.UInt64))).write_parquet(tmp_path/"a.parquet")
    assert look(tmp_path/"a.parquet", "left", key=("id",)).key == ("id",)


@pytest.mark.parametrize("columns, options, said", [
    ({}, dict(key=("left",)), "--key: column 'left' is the label"), ({}, dict(time="left"), "--time: column 'left' is the label"), (dict(k=[None]*300), dict(key=("k",)), "--key: column 'k' is always missing"),
    (dict(k=[None, 1, 2]*100), dict(key=("k",)), "column 'k': is missing in 100 rows"), (dict(k=[i/4 for i in range(300)]), dict(key=("k",)), "column 'k': is Float64"), (dict(day=[None]*300), dict(time="day"), "it is always missing")])
def test_a_role_that_a_column_cannot_have_is_named_and_nothing_else_is_blamed(tmp_path, columns, options, said):
    with pytest.raises(MlprojError, match=re.escape(said)) as raised: look(write(tmp_path/"a.csv", customers() | columns), "left", **options)
    assert "more rows" not in str(raised.value)


def test_a_key_named_twice_and_a_column_called_row_number_do_no_harm(tmp_path):
    file = write(tmp_path/"a.csv", customers() | dict(customer=[f"c{i % 90}" for i in range(300)], row=1, row_number=2, row_number_=3))
    assert look(file, "left", key=("customer", "customer")).key == ("customer", "row_number_number")


def test_what_settings_and_configs_would_take_for_more_than_words_stays_words(tmp_path):
    columns = customers() | {"100 % left": ["${no}\nreally" if l == "no" and i % 4 else "here" for i, l in enumerate(customers()["left"])]}
    del columns["left"]
    root = new(tmp_path/"leavers", str(write(tmp_path/"${a}.csv", columns)), "100 % left", say=lambda line: None, run=False)
    done = in_project(root, sys.executable, "-c", "from mlproj.config import compose; print(compose().data.card)")
    assert "100 % left $(no} really?" in done.stdout and "$(a}.csv" in done.stdout, done.stderr
    assert "100 % left" in in_project(root, sys.executable, "setup.py", "--description").stdout


def test_what_is_not_said_is_asked(tmp_path):
    asked, answers = [], iter(["left", "born"])
    def ask(question, choices, default):
        asked.append((question, list(choices), default))
        return next(answers)
    seen = look(write(tmp_path/"a.csv", customers() | dict(born=[f"19{i % 60 + 40}-01-01" for i in range(300)])), ask=ask)
    assert (seen.label, seen.time) == ("left", "born")
    assert asked[0][1] == ["customer", "income", "city", "left", "born"] and asked[1][1:] == (["born", "none"], "none")


# update

def improve(template: Path, name: str, old: str, text: str) -> None:
    path = template/name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, text))


def test_there_is_nothing_to_update_where_the_template_is_the_same(project):
    said = []
    assert update(project, said.append) == [] and "is the one that the project has" in said[0]


def test_an_improvement_comes_in_and_what_the_user_changed_stays(project, template):
    readme, notebook = project.root/"README.md", project.root/"nbs/10_data.ipynb"
    readme.write_text(readme.read_text().replace("# churn\n", "# churn\n\nOurs.\n"))
    cells = json.loads(notebook.read_text())
    cells["cells"][0]["source"].append("\n\nOur own words.")
    notebook.write_text(json.dumps(cells, indent=1) + "\n")
    (project.root/"churn/extra.py").write_text("ours = 1\n")
    git(project.root, "add", "-A")
    git(project.root, "commit", "-q", "--no-verify", "-m", "ours")
    improve(template, "README.md.jinja", "What to try next:", "What to try now:")
    improve(template, "nbs/10_data_example.py.jinja", "## How hard is it?", "## How easy is it?")
    improve(template, "nbs/10_data_example.py.jinja", 'known = frame.drop_nulls("rain")', 'known = frame.drop_nulls("rain")  # a gap of the station')
    changed = update(project, lambda line: None)
    assert {"README.md", "nbs/10_data.ipynb"} <= {*changed}
    assert "Ours." in readme.read_text() and "to try now" in readme.read_text() and (project.root/"churn/extra.py").exists()
    text = "".join("".join(c["source"]) for c in json.loads(notebook.read_text())["cells"])
    assert "Our own words." in text and "How easy is it?" in text and not check_sync(project.root)
    assert "# a gap of the station" in (project.root/"churn/data.py").read_text()
    git(project.root, "commit", "-q", "--no-verify", "--allow-empty", "-am", "synced")
    assert update(project, lambda line: None) == []


def test_what_both_changed_is_marked_and_can_be_taken_back(project, template):
    makefile, before = project.root/"Makefile", git(project.root, "rev-parse", "HEAD")
    makefile.write_text(makefile.read_text().replace("pytest -q", "pytest -x"))
    git(project.root, "commit", "-q", "--no-verify", "-am", "ours")
    improve(template, "Makefile.jinja", "pytest -q", "pytest -q --changed")
    said = []
    assert "Makefile" in update(project, said.append) and any("both changed" in line for line in said)
    assert "<<<<<<<" in makefile.read_text() and "pytest -x" in makefile.read_text() and "pytest -q --changed" in makefile.read_text()
    with pytest.raises(MlprojError, match="not finished"): update(project)
    git(project.root, "merge", "--abort")
    assert "<<<<<<<" not in makefile.read_text() and git(project.root, "rev-parse", "HEAD~1") == before


def test_a_clone_updates_too(project, template, tmp_path):
    git(tmp_path, "clone", "-q", str(project.root), "clone/churn")
    improve(template, "README.md.jinja", "What to try next:", "What to try now:")
    assert update(Project.find(tmp_path/"clone/churn"), lambda line: None) == ["README.md"]


def test_changes_that_are_not_committed_are_not_put_at_risk(project, template):
    (project.root/"README.md").write_text("mine\n")
    with pytest.raises(MlprojError, match="README.md.*commit"): update(project)
    assert (project.root/"README.md").read_text() == "mine\n"


def test_a_folder_that_was_not_made_by_new_says_so(tmp_path):
    (tmp_path/"settings.ini").write_text("[DEFAULT]\nlib_name = a\n")
    with pytest.raises(MlprojError, match="not made by mlproj new"): update(Project.find(tmp_path))
