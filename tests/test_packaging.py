"What is installed: the wheel holds everything it needs, works away from the checkout, and the pins are what runs."
import os, re, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def settings() -> dict[str, str]:
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT/"settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT/"constraints.txt").read_text().splitlines()]
    return {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines if line)}


def run(*command, **kwargs) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "The wheel, built from a copy of the checkout, so that no build folder is left in it."
    copy, out = tmp_path_factory.mktemp("build")/"checkout", tmp_path_factory.mktemp("dist")
    left_out = (ROOT/".gitignore").read_text().replace("/\n", "\n").split()  # environments, run folders, caches
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", *left_out))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, copy, cwd=copy)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_and_every_config(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {p.relative_to(ROOT).as_posix() for p in (ROOT/"mlproj").rglob("*.py")}
    expected |= {f"mlproj/{p.relative_to(ROOT).as_posix()}" for p in (ROOT/"conf").rglob("*") if p.suffix in (".yaml", ".py") and "__pycache__" not in p.parts}
    expected |= {f"mlproj/reports/{p.name}" for p in (ROOT/"nbs"/"reports").glob("*.ipynb")}
    assert "mlproj/conf/__init__.py" in expected
    assert not expected - held
    assert not [name for name in held if name.startswith(("tests/", "nbs/", "conf/"))]


def test_the_metadata_is_that_of_settings_ini(wheel):
    with zipfile.ZipFile(wheel) as archive:
        read = lambda name: next(archive.read(n).decode() for n in archive.namelist() if n.endswith(f".dist-info/{name}"))
        metadata, entries = read("METADATA"), read("entry_points.txt")
    cfg = settings()
    assert wheel.name.startswith(f"{cfg['lib_name']}-{cfg['version']}-")
    for line in [f"Name: {cfg['lib_name']}", f"Version: {cfg['version']}", f"Summary: {cfg['description']}", f"Requires-Python: >={cfg['min_python']}"]:
        assert line in metadata.splitlines()
    base = {Requirement(line.partition(": ")[2]).name for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line}
    assert base == {Requirement(r).name for r in cfg["requirements"].split()}
    script = cfg["console_scripts"].split("=")
    assert f"{script[0]} = {script[1]}" in entries and "mlproj = mlproj.testing" in entries


def test_the_installed_wheel_answers_from_an_empty_folder(wheel, tmp_path):
    target, empty = tmp_path/"site", tmp_path/"empty"
    empty.mkdir()
    run(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps", "--target", target, wheel)
    env = os.environ | {"PYTHONPATH": str(target)}
    assert run(sys.executable, "-c", "import mlproj.cli; print(mlproj.cli.__file__)", cwd=empty, env=env).startswith(str(target))
    assert "run" in run(sys.executable, "-m", "mlproj.cli", "--help", cwd=empty, env=env)
    assert "run" in run(sys.executable, target/"bin"/"mlproj", "--help", cwd=empty, env=env)
    assert not list(empty.iterdir())  # asking for help leaves nothing behind


REQUIREMENTS = sorted({r for key, value in settings().items() if re.fullmatch(r"(\w+_)?requirements", key) for r in value.split()})


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_every_requirement_is_pinned_within_its_bounds_and_installed_as_pinned(requirement):
    wanted = Requirement(requirement)
    pin = pins().get(canonicalize_name(wanted.name))
    assert pin, f"constraints.txt does not pin {wanted.name}"
    assert wanted.specifier.contains(pin, prereleases=True)
    installed = version(wanted.name)
    assert installed.split("+")[0] == pin  # torch's 2.13.0+cpu is its 2.13.0


def test_every_pin_is_exact():
    assert all(re.fullmatch(r"[\w.!+-]+", pin) for pin in pins().values()), "constraints.txt has a line without =="
