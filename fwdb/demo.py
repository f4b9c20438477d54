"""What `fwdb demo`, `fwdb workload` and `fwdb lab` do: the parts, one after the other."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from fwdb import config, migrating, reports, seeding
from fwdb.database import connect
from fwdb.errors import FeatureUnavailable

Progress = Callable[[str], None]

# The demo lasts seconds, so its history is read far more often than every 30 s.
_SAMPLING_SECONDS = 0.5


def run_workload(*, seconds: float, seed: int, progress: Progress) -> seeding.WorkloadResult:
    """Load through a small pool, with its history sampled; what was done and what failed."""
    settings = config.settings().model_copy(update=seeding.POOL)
    with (
        connect(settings=settings, application_name="fwdb-workload", progress=progress) as db,
        db.monitor.sampling(every=_SAMPLING_SECONDS),
    ):
        return seeding.run_workload(
            db.postgres, db.mongodb, db.audit, seconds=seconds, seed=seed, progress=progress
        )


def run_demo(*, scale: int, seconds: float, out: Path, progress: Progress) -> Path:
    """Servers, schema, data, load and reports; the page that lists the reports."""
    prepare(progress)
    with connect(role="owner", progress=progress) as db:
        progress(f"adding {scale} users with a year of history")
        db.seeder.seed_scale(scale, progress=progress)
    # As the owner of the trail, which alone may write into it.
    with connect(role="owner", application_name="fwdb-follower", progress=progress) as owner:
        with owner.audit.following(progress=progress):  # up to the last change, at the end
            progress(f"running load for {seconds:g} s")
            run_workload(seconds=seconds, seed=1, progress=progress)
        owner.audit.seal(progress=progress)
        with owner.audit.following(progress=progress):
            reports.suite(out=out, progress=lambda at: progress(f"{at.report}: {at.doing}"))
    return out.resolve() / "index.html"


def prepare(progress: Progress) -> None:
    """Bring the schema up to date and put the seed data in."""
    with connect(role="owner", progress=progress) as db:
        for change in migrating.migrate(db.postgres, db.mongodb):
            progress(change.sentence)
        if db.users.count() == 0:
            progress("putting in the seed data")
            db.seeder.seed_all()


def run_lab(*, progress: Progress) -> int:
    """JupyterLab on `notebooks/`, with servers, schema and data ready; its exit code."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise FeatureUnavailable(
            "JupyterLab is not installed here; run: pip install 'fwdb[lab]' (or make lab)."
        )
    prepare(progress)
    folder = Path("notebooks")
    if not folder.is_dir():
        shutil.copytree(config.resource("notebooks"), folder)
        progress(f"the notebooks are copied to {folder.resolve()}")
    command = [sys.executable, "-m", "jupyterlab", str(folder)]
    if os.geteuid() == 0:
        command.append("--allow-root")  # JupyterLab refuses root, whom containers start as
    return subprocess.run(command, check=False).returncode
