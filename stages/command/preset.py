"""Ready `params.yaml` files: a recipe and a data set laid over the commented values of the demo."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.runtime.errors import UserError
from stages.runtime.params_file import read_yaml

HERE = Path(__file__).parent
DEMO, RECOMMENDED = "demo", "recommended"


def names() -> tuple[list[str], list[str]]:
    """The data sets and the recipes there are."""
    known = read_yaml(HERE / "recipes.yaml")
    return [*known["datasets"], DEMO], list(known["recipes"])


def preset(dataset: str, recipe: str | None = None) -> str:
    """The text of a `params.yaml`; raises `UserError` for an unknown name.

    The demo has no recipes; for anything else the one recommended is the default.
    """
    template = (HERE / "demo.yaml").read_text(encoding="utf-8")
    datasets, recipes = names()
    if dataset not in datasets:
        raise UserError(f"no preset for {dataset!r}, but for {', '.join(datasets)}")
    if recipe not in (*recipes, None):
        raise UserError(f"no recipe {recipe!r}, but {', '.join(recipes)}")
    if dataset == DEMO:
        if recipe is not None:
            raise UserError("the demo has no recipes: its sizes are not the paper's")
        return template
    recipe = recipe or RECOMMENDED
    yaml = YAML()  # keeps comments, and numbers as they are written
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    content: Any = yaml.load(template.replace("the demo's values", f"{dataset}'s, recipe {recipe}"))
    known = yaml.load((HERE / "recipes.yaml").read_text(encoding="utf-8"))
    always = known["whatever_the_data_set"].get(recipe, {})
    for overlay in (known["common"], known["recipes"][recipe], known["datasets"][dataset], always):
        for section, values in overlay.items():
            for key, value in values.items():
                if key == "templates":  # in place: a comment hangs on the last item
                    content[section][key][0] = value[0]
                    content[section][key].extend(value[1:])
                else:
                    content[section][key] = value
    text = io.StringIO()
    yaml.dump(content, text)
    return re.sub(r"^( +\w.*?) +# ", lambda line: f"{line[1]:<28}  # ", text.getvalue(), flags=re.M)
