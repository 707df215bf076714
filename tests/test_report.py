"Reports: notebooks that anyone can edit, pages that can be read anywhere, figures that can be traced."
import html, json, re, shutil, subprocess, sys
from pathlib import Path

import nbformat
import polars as pl
import pytest

from mlproj.ledger import Run
from mlproj.project import DataError, MlprojError
from mlproj.report import new_rows, render, render_monitoring, render_profile, run_facts, source_rows
from mlproj.serve.bundle import Bundle
from sklearn.metrics import average_precision_score

ROOT = Path(__file__).resolve().parents[1]
CELL = "from mlproj.ledger import Run\nfrom IPython.display import Markdown, display\nrun = Run('', __import__('pathlib').Path(run_folder))\ndisplay(Markdown(f'# Ended as {run.status}'))"


@pytest.fixture(scope="module")
def run(trained) -> Run: return Run(trained.run.name, trained.run)


@pytest.fixture(scope="module")
def bundle(run) -> Bundle: return Bundle.open(next(run.stage_folder("bundle").glob("*/facts.json")).parent)


@pytest.fixture(scope="module")
def december() -> pl.DataFrame:
    "Flights that the model has not seen, with their labels."
    from mlproj.examples.flights import dataset
    return dataset(fraction=0.05).frame.filter(pl.col("departure") >= pl.datetime(2013, 11, 1, time_zone="UTC"))


def text_of(page: Path) -> str:
    "What a page says, without tags."
    body = page.read_text(encoding="utf-8").partition("<body>")[2]
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", body).split()))


def self_contained(page: Path) -> bool:
    "Whether a page asks for nothing outside of it, and shows no code."
    source = page.read_text(encoding="utf-8")
    asks = re.findall(r"""(?:src|href)\s*=\s*["'](?!#)[^"']+|url\((?!#)|@import|<script|<link""", source)
    return not asks and "import " not in text_of(page)


def template(path: Path, *cells: str, parameters='run_folder = ""') -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (parameters, *cells)])
    notebook.cells[0].metadata.tags = ["parameters"]
    nbformat.write(notebook, path)
    return path


def test_the_model_card_tells_what_a_threshold_buys_and_where_each_figure_stands(run):
    page = run.path/"report.html"
    text = text_of(page)
    card = json.loads((run.stage_folder("evaluate")/"scorecard.json").read_text())
    first = card["decisions"][0]
    assert self_contained(page)
    assert f"{100*first['hits']/first['flagged']:.0f} of 100 warnings are right" in text
    for fact in (run.id, f"mlproj reproduce {run.id}", *(digest for _, _, digest in source_rows(run))): assert fact in text


def test_the_files_that_a_card_names_are_those_of_the_run_with_their_digests(run):
    import hashlib
    rows = source_rows(run)
    assert {name for name, _, _ in rows} >= {"data", "contract", "evaluate", "gate"}
    for _, file, digest in rows: assert hashlib.sha256((run.path/file).read_bytes()).hexdigest().startswith(digest)
    facts = dict(run_facts(run))
    commit = json.loads((run.path/"provenance.json").read_text())["git"]["commit"]
    assert facts["run"] == run.id and commit.startswith(facts["commit"].split()[0])


def test_a_template_of_the_users_own_is_rendered_beside_the_model_card(run, tmp_path):
    before = (run.path/"report.html").read_bytes()
    page = render(run, str(template(tmp_path/"mine.ipynb", CELL)))
    assert page == run.path/"mine.html" and "Ended as succeeded" in text_of(page)
    assert (run.path/"report.html").read_bytes() == before


def test_a_template_that_takes_no_run_is_refused_before_a_kernel_starts(run, tmp_path):
    with pytest.raises(MlprojError, match="parameter 'run_folder' is unknown"):
        render(run, str(template(tmp_path/"mine.ipynb", CELL, parameters='folder = ""')))
    assert not (run.path/"mine2.html").exists()


def test_a_template_that_is_not_there_is_named_with_those_that_are(run):
    with pytest.raises(MlprojError, match="there is no report 'nope'; there are data_profile, model_card, monitoring, run_diff"): render(run, "nope")
    with pytest.raises(MlprojError, match="there is no such notebook"): render(run, "nbs/reports/nope.ipynb")


def test_two_reports_at_a_time_do_not_take_each_others_kernel(run, tmp_path):
    paths = [template(tmp_path/f"t{i}.ipynb", f"from IPython.display import Markdown, display\ndisplay(Markdown('# Page {i}'))") for i in range(2)]
    code = "import sys; from pathlib import Path; from mlproj.ledger import Run; from mlproj.report import render; render(Run('r', Path(sys.argv[1])), sys.argv[2])"
    both = [subprocess.Popen([sys.executable, "-c", code, str(run.path), str(path)], cwd=ROOT, stderr=subprocess.PIPE, text=True) for path in paths]
    for i, process in enumerate(both):
        assert process.wait(120) == 0, process.stderr.read()
        assert f"Page {i}" in text_of(run.path/f"t{i}.html")


def test_a_cell_that_fails_is_named_and_no_page_is_written(run, tmp_path):
    with pytest.raises(MlprojError, match="cell 2 failed .ZeroDivisionError"): render(run, str(template(tmp_path/"broken.ipynb", "1/0")))
    assert not (run.path/"broken.html").exists()


def test_the_profile_of_a_table_nobody_has_seen_is_one_page(tmp_path):
    n = 300
    table = pl.DataFrame({"Größe <m>": [None if i % 4 == 0 else i/7 for i in range(n)], "always": ["x"]*n, "id": [f"K{i:04}" for i in range(n)], "ok": [i % 3 == 0 for i in range(n)],
                          "when": pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 1, 13, 11), "1h", eager=True)[:n], "nothing": pl.Series([None]*n, dtype=pl.Float64)})
    table.write_csv(tmp_path/"küche.csv")
    page = render_profile(tmp_path/"küche.csv", tmp_path/"profile.html", ["id"])
    text = text_of(page)
    assert self_contained(page)
    for said in ("What is in küche.csv?", "300 rows, 6 columns :", "No row repeats the key id", "Größe <m> is missing in 25 of 100 rows", "always is the same in every row", "nothing is empty"): assert said in text, said


def test_a_profile_of_what_cannot_be_read_is_refused_before_a_kernel_starts(tmp_path):
    (tmp_path/"odd.xyz").write_text("?")
    with pytest.raises(DataError, match="odd.xyz"): render_profile(tmp_path/"odd.xyz", tmp_path/"page.html")
    assert not (tmp_path/"page.html").exists()


def test_rows_of_the_same_kind_have_not_moved_and_changed_ones_have(bundle, tmp_path):
    from mlproj.examples.flights import dataset
    learned = dataset(fraction=0.04).frame.filter(pl.col("departure") < pl.datetime(2013, 9, 1, time_zone="UTC"))
    learned.write_parquet(tmp_path/"same.parquet")
    assert new_rows(bundle, tmp_path/"same.parquet").moved == []
    learned.with_columns(temp=(pl.col("temp") - 32)/1.8, distance=pl.col("distance") + 1).write_parquet(tmp_path/"celsius.parquet")
    assert new_rows(bundle, tmp_path/"celsius.parquet").moved[0].name == "temp"


def test_labels_are_judged_with_the_predictions_of_their_own_rows(bundle, december, tmp_path):
    # every third label has not come, and some rows are refused: neither may shift the others
    late = pl.when(pl.int_range(pl.len()) % 3 > 0).then("late")
    december.with_columns(late, origin=pl.when(pl.int_range(pl.len()) % 10 == 0).then(None).otherwise("origin")).write_parquet(tmp_path/"late.parquet")
    seen = new_rows(bundle, tmp_path/"late.parquet")
    assert seen.refused == len(range(0, december.height, 10)) and len(seen.predictions) == seen.rows - seen.refused
    kept = december.with_row_index("i").filter((pl.col("i") % 3 > 0) & (pl.col("i") % 10 > 0))
    assert seen.labels.tolist() == kept["late"].cast(pl.Float32).to_list()
    p = bundle.predict_frame(kept)
    assert average_precision_score(kept["late"], seen.of_labels) == pytest.approx(average_precision_score(kept["late"], p), abs=1e-6)


def test_the_page_about_new_rows_names_what_moved_and_how_right_it_was(run, december, tmp_path):
    december.with_columns(temp=(pl.col("temp") - 32)/1.8).write_parquet(tmp_path/"new.parquet")
    page = render_monitoring(run, tmp_path/"new.parquet", tmp_path/"monitoring.html")
    text = text_of(page)
    assert self_contained(page)
    for said in ("Are these flights like those it learned from?", "the farthest: temp", "How right was it?", "is below", run.id): assert said in text, said
    late = december["late"].mean()
    assert f"In all, {100*late:.0f} of 100 were late" in text


def test_new_rows_without_labels_and_without_the_run_are_told_of_too(bundle, december, tmp_path):
    shutil.copytree(bundle.path, tmp_path/"bundle")  # the run is on another machine
    december.drop("late").head(200).write_csv(tmp_path/"new.csv")
    text = text_of(render_monitoring(str(tmp_path/"bundle"), tmp_path/"new.csv", tmp_path/"monitoring.html"))
    assert "How right was it?" not in text and "200 rows from new.csv" in text and "which is not on this machine" in text


def test_new_rows_without_a_column_of_the_model_are_refused_before_a_kernel_starts(run, december, tmp_path):
    december.drop("temp").write_parquet(tmp_path/"new.parquet")
    with pytest.raises(MlprojError, match="has no column 'temp', which the model needs"): render_monitoring(run, tmp_path/"new.parquet", tmp_path/"page.html")
    assert not (tmp_path/"page.html").exists()


@pytest.mark.parametrize("label, said", [(pl.col("late").cast(pl.String), "is 'false', and the model's label is true or false"), (pl.col("late").cast(pl.Int64) + 1, "is 2, and the model's")])
def test_labels_that_are_not_the_models_are_refused_and_not_counted_as_others(run, december, tmp_path, label, said):
    december.sort("late").with_columns(label.alias("late")).write_parquet(tmp_path/"new.parquet")
    with pytest.raises(DataError, match=said): render_monitoring(run, tmp_path/"new.parquet", tmp_path/"page.html")
    with pytest.raises(DataError, match=said): new_rows(Bundle.open(next(run.stage_folder("bundle").glob("*/facts.json")).parent), tmp_path/"new.parquet")
    assert not (tmp_path/"page.html").exists()
