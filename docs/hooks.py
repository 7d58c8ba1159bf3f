"""Makes the page of methods from the method files and the claims in the recipes, when mkdocs builds."""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def settings(source: str) -> list[tuple[str, str, str]]:
    """Name, default and comment of each field of the file's Config, in its order."""
    tree, lines = ast.parse(source), source.splitlines()
    (config,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Config"]
    rows = []
    for field in config.body:
        if isinstance(field, ast.AnnAssign) and field.value is not None:
            comment = lines[field.lineno - 1].partition("  # ")[2]
            rows.append((ast.unparse(field.target), ast.unparse(field.value), comment))
    return rows


def claims(method: str) -> list[tuple[str, dict]]:
    """Recipes of a method that say what they reached."""
    found = []
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        recipe = tomllib.loads(path.read_text())
        if recipe.get("method", {}).get("name") == method and "claim" in recipe:
            found.append((path.name, recipe["claim"]))
    return found


def page() -> str:
    text = ["# Methods", "", "Each is one file in `src/daybreak/methods/`; this page is made from them.", ""]
    for path in sorted((ROOT / "src/daybreak/methods").glob("*.py")):
        if path.stem in ("base", "__init__"):
            continue
        source = path.read_text()
        text += [f"## {path.stem}", "", ast.get_docstring(ast.parse(source)) or "", ""]
        text += ["| setting | default | |", "| --- | --- | --- |"]
        text += [f"| `method.{name}` | `{default}` | {comment} |" for name, default, comment in settings(source)]
        text.append("")
        found = claims(path.stem)
        text += [f"- `recipes/{name}`: {claim['summary']} (`{claim['command']}`)" for name, claim in found]
        text += ["" if found else "No claim yet: unproven.", ""]
    return "\n".join(text)


def on_pre_build(config) -> None:
    Path(config["docs_dir"], "methods.md").write_text(page())
