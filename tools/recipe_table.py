"""Writes the table of recipes on real data sets into docs/training.md.

python tools/recipe_table.py [--check]
"""

import argparse
import sys
from pathlib import Path

from perfconv.train.recipes import RECIPES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "training.md"
BEGIN = "<!-- recipes: begin (tools/recipe_table.py) -->\n"
END = "<!-- recipes: end -->"


def table() -> str:
    lines = ["| recipe | stages | the authors report | here |", "|---|---|---|---|"]
    for name, recipe in RECIPES.items():
        if recipe.needs_weights is None:
            continue
        reported = recipe.expected.removesuffix(" (reported; not run here)")
        stages = ", ".join(stage.name for stage in recipe.stages)
        lines.append(f"| `{name}` | {stages} | {reported} | not run |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """``text`` with the table of today."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + table() + END + tail


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the page is not up to date")
    args = parser.parse_args(argv)
    before = PAGE.read_text()
    after = page(before)
    if args.check:
        return int(before != after)
    PAGE.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
