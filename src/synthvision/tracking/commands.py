"""The stages that ask the tracking store alone: what each prints, and in which files it leaves what it found."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthvision.tracking.config import RegistryConfig, TrackingConfig


@dataclass(frozen=True)
class Place:
    """Which study is meant, and below which folder studies lie."""

    study: str
    root: Path


def register(config: TrackingConfig, place: Place, **values: Any) -> None:
    """Name the best classifier of the study."""
    from synthvision.tracking.registry import register
    from synthvision.tracking.store import open_store

    wanted = RegistryConfig(**values)
    done = register(open_store(config, place.study), wanted)
    print(f"{done.uri} is version {done.version}, run {done.run_id}: {wanted.metric} {done.value:.4g}, "
          f"the best of {done.among}")  # fmt: skip
    serve = ["mlflow", "models", "serve", "--model-uri", done.uri, "--env-manager", "local"]
    print(f"serve it: {shlex.join([f'MLFLOW_TRACKING_URI={config.uri}', *serve])}")


def sync(config: TrackingConfig, _: Place) -> None:
    """Send what waits since the store did not answer."""
    from synthvision.tracking.store import sync

    done = sync(config)
    if done.journals:
        print(f"sent {done.entries} entries, {done.rows} of them metric rows, to {config.place}")
    else:
        print(f"nothing waits for {config.place}")
    if done.held:
        print(f"{done.held} runs are at work and send theirs themselves")
    if done.refused:
        print(f"{done.refused} entries were refused by the store; they and the reasons are in {config.refused}")


def compare(config: TrackingConfig, place: Place, **values: Any) -> None:
    """Compare runs, in the terminal and in an HTML file."""
    from rich.console import Console

    from synthvision import artifact
    from synthvision.tracking.compare import MOST_PRINTED, CompareConfig, compare, page, terminal_table, words

    lists = {name: tuple(values[name]) for name in ("runs", "metrics")}
    asked = CompareConfig(**{**values, **lists})
    found = compare(config, place.study, asked)
    name = artifact.digest_of([asked.runs, asked.sweep, asked.metrics])[:8]
    file = (
        Path(asked.out) if asked.out else place.root / place.study / "compare" / f"{asked.sweep or 'runs'}-{name}.html"
    )
    console = Console()
    console.print(terminal_table(found, console.width))
    for sentence in words(found):
        console.print(sentence, highlight=False)
    artifact.write_text(file, page(found, config))
    more = len(found.lines) - MOST_PRINTED
    print(f"{f'{more} more lines, ' if more > 0 else ''}figure and links: {file.absolute()}")


def clean(config: TrackingConfig, place: Place, remove: bool) -> None:
    """Show what no run refers to, and remove it where that is asked for."""
    from synthvision.tracking import cleaning

    found = cleaning.find(config, place.study, place.root)
    for each in found:
        print(f"{_megabytes(each.size)}  {each.why}: {each.path}")
    total = _megabytes(sum(each.size for each in found)).strip()
    if not found:
        print(f"every stage folder of study={place.study} and every artifact in {config.place} has its run")
    elif not remove:
        print(f"{len(found)} of no run, {total}; nothing was removed. To remove them: the same with stage.remove=true")
        print("Runs that were deleted in the UI can be restored there, but without what is removed here.")
    else:
        freed, left = cleaning.remove(found)
        print(f"removed {len(found) - len(left)}, {_megabytes(freed).strip()}")
        for path in left:
            print(f"a run is at work in {path}; it was left")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:10,.1f} MB"
