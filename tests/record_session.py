"""A newcomer's first session, run for real and written into the README between its two marks.

Run: python tests/record_session.py [--folder NEW_FOLDER] [--steps N] [--print]

Commands run one after another in a new folder, as one types them after `make demo` has installed the package; a command
that fails ends it. What is printed goes into the README as it is, without trailing spaces and paths of this machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- first session -->", "<!-- end of the first session -->"
COMMANDS = (
    "curator demo > demo.txt   # prints what is shown above, with figures of its own",
    "curator doctor curator-demo/lake",
    "curator init curator-demo/lake",
    "curator plan curator-demo/lake --target curator-demo/target.parquet",
    """curator sql curator-demo/lake \\
    "SELECT domain, avg(sample_weight) AS weight, count(*) AS rows FROM samples GROUP BY ALL ORDER BY weight DESC\"""",
    'curator sql curator-demo/lake "SELECT domain, left(text, 50) AS beginning FROM weighted_sample(3, 0)"',
    "curator history curator-demo/lake",
    "curator materialize curator-demo/lake --token-budget 500000 --out train --dry-run",
    "curator export curator-demo/lake --format datasets --out mixture.json --dry-run",
    "curator report curator-demo/lake",
    "curator refresh --config curator-demo/curator.toml",
)


def record(folder: Path, steps: int | None = None) -> str:
    """The commands with what each printed; `steps` shortens the demo's run."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = os.environ | {"PATH": path, "CURATOR_HOME": str(folder / "home")}
    lines: list[str] = []
    for command in COMMANDS:
        asked = command.replace(" > ", f" --steps {steps} > ") if steps and "curator demo" in command else command
        done = subprocess.run(["bash", "-c", asked], cwd=folder, env=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{asked}\nended with {done.returncode}\n{done.stdout}{done.stderr}")
        lines += [f"$ {command}", *_without_places(done.stdout, folder).splitlines(), ""]
    return "\n".join(line.rstrip() for line in lines[:-1])


def _without_places(text: str, folder: Path) -> str:
    """`text` without the paths of this machine."""
    return text.replace(str(folder), "…").replace(str(README.parent), "…")


def main() -> None:
    """Run the session and put it into the README, or print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--print", action="store_true", dest="only_print")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        said = record(arguments.folder or Path(made), arguments.steps)
    if arguments.only_print:
        print(said)
        return
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n```console\n{said}\n```\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
