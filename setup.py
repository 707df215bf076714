"""Packaging. All metadata stands in settings.ini; here only what settings.ini cannot say."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

extras = {name: cfg[f"{key}_requirements"].split()
          for name, key in [("train", "train"), ("trees", "trees"), ("sign", "sign"), ("examples", "examples"), ("dvc", "dvc"), ("lakefs", "lakefs"), ("notebooks", "notebook"), ("dev", "dev")]}
extras["all"] = sorted({requirement for name, group in extras.items() if name not in ("dvc", "lakefs") for requirement in group})

# conf/ stands at the top level for people, and inside the package as mlproj.conf for Hydra's search path.
conf = ["mlproj.conf"] + [f"mlproj.conf.{path.relative_to(here / 'conf').as_posix().replace('/', '.')}"
                          for path in sorted((here / "conf").rglob("*")) if path.is_dir() and path.name != "__pycache__"]

# What `mlproj new` renders, file by file: patterns leave out names that begin with a dot.
template = [path.relative_to(here / "template").as_posix() for path in sorted((here / "template").rglob("*")) if path.is_file()]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["mlproj", "mlproj.*"]) + conf + ["mlproj.reports", "mlproj.template"],
    # the report templates are notebooks: they stand with the notebooks, and in the package as mlproj.reports
    package_dir={"mlproj.conf": "conf", "mlproj.reports": "nbs/reports", "mlproj.template": "template"},
    package_data={"mlproj.conf": ["*.yaml", "**/*.yaml"], "mlproj.reports": ["*.ipynb"], "mlproj.template": template},
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": [cfg["console_scripts"]],
        "pytest11": ["mlproj = mlproj.testing"],  # collects the test cells of notebooks
    },
    zip_safe=False,
)
