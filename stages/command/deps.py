"""What of `dvc.yaml` follows from the code: the files of code that each stage depends on.

    make deps                        # python -m stages.command.deps

Also the `dvc.yaml` of a project that `ccd init` makes, which knows the code by `code.yaml` instead.
Tests compare, so that no edit is missed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.runtime.code import CODE_FILE, ROOT, code_of

CODE = ("stages", "demo/", "experiments/")
# by the file that declares stages, the package with a module for each
PACKAGES = {"dvc.yaml": "stages", "demo/dvc.yaml": "demo", "experiments/dvc.yaml": "experiments"}
PIPELINE = Path("stages/command/project/pipeline.yaml")
OF_A_PROJECT = f"""\
# The pipeline, as ccd-pipeline declares it: `ccd update` writes this file anew when another version
# is installed. Which code made a result is in {CODE_FILE}.
"""


def with_deps(file: Path, package: Path) -> Any:
    """The content of a file that declares stages, with the code of each among its deps."""
    content = _yaml().load(file)
    for name, stage in content["stages"].items():
        others = [dep for dep in stage["deps"] if not dep.startswith(CODE)]
        stage["deps"] = sorted([*others, *code_of(package / f"{name}.py")])
    return content


def of_a_project(content: Any) -> Any:
    """The same, with every stage's code known by its digest in `code.yaml`."""
    for name, stage in content["stages"].items():
        stage["deps"] = [dep for dep in stage["deps"] if not dep.startswith(CODE)]
        params = [*stage.pop("params", []), {str(CODE_FILE): [name]}]
        stage.insert(list(stage).index("outs"), "params", params)
    return {"stages": content["stages"]}


def write(content: Any, file: Path, above: str = "") -> None:
    """As YAML, below some comment."""
    with file.open("w", encoding="utf-8") as stream:
        stream.write(above)
        _yaml().dump(content, stream)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


if __name__ == "__main__":
    for declared, modules in PACKAGES.items():
        write(with_deps(ROOT / declared, ROOT / modules), ROOT / declared)
    own = with_deps(ROOT / "dvc.yaml", ROOT / PACKAGES["dvc.yaml"])
    write(of_a_project(own), ROOT / PIPELINE, OF_A_PROJECT)
