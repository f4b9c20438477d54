"""The alert rules that come with the package."""

from __future__ import annotations

from importlib import resources


def rules() -> str:
    """The rule file for Prometheus, as YAML; its series are those of the scrape job ``fwdb``.

    Each alert has a severity, a summary, a description with the value, and a section in
    docs/runbooks.md. `fwdb rules` prints it.
    """
    return resources.files("fwdb.metrics").joinpath("rules.yml").read_text(encoding="utf-8")
