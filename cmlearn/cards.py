"""A short model and data card in Markdown, made from a stored run and what the data says of itself.

Nothing in it is typed by hand but what nobody can compute: what the model is meant for, and where
it fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from cmlearn.assets import ASSETS, AssetError

__all__ = ["make_card"]

_FACTS = {
    "device": "Computed on",
    "seconds": "Seconds",
    "peak_memory_mib": "Peak memory in MiB",
    "commit": "Commit",
    "code_hash": "SHA-256 of the code",
}


def make_card(
    run: Mapping,
    *,
    title: str,
    scores: Mapping[str, Iterable[float]],
    descr: str,
    assets: Iterable[str],
    intended: str,
    limits: Iterable[str],
) -> str:
    """Return a model and data card.

    Parameters
    ----------
    run : dict
        What `cmlearn.runtime.load_run` returns; the card tells its ``provenance``.
    title : str
        The card's heading.
    scores : mapping of str to numbers
        Name of each score, with one value a seed.
    descr : str
        ``DESCR`` of the data set.
    assets : iterable of str
        Names in `cmlearn.assets.ASSETS` of the data and weights that went in.
    intended : str
        What the model is for, and what not.
    limits : iterable of str
        Known failures, a sentence each. A card without any is refused.

    Returns
    -------
    str
        Markdown that is the same for the same input.

    Raises
    ------
    ValueError
        If the run has no provenance, there are no scores, a score has no values, or there are no
        limits or a single string in the place of their list.
    AssetError
        If an asset is unknown.

    References
    ----------
    M. Mitchell et al., "Model cards for model reporting", FAT* 2019.
    https://doi.org/10.1145/3287560.3287596

    T. Gebru et al., "Datasheets for datasets", Communications of the ACM 64(12), 2021.
    https://doi.org/10.1145/3458723
    """
    if not run.get("provenance"):
        raise ValueError("the run has no provenance: give what cmlearn.runtime.load_run returns")
    if isinstance(limits, str):
        raise ValueError(f"limits must be a list of sentences, not one string: [{limits!r}]")
    limits = list(limits)
    if not limits:
        raise ValueError("name at least one limit: every model fails somewhere")
    parts = [
        f"# {title}",
        "## Intended use",
        intended,
        "## Scores",
        _score_table(scores),
        "## Known limits",
        "\n".join(f"- {limit}" for limit in limits),
        "## Data",
        _summary(descr),
        "## Licences and origin",
        _asset_table(assets),
        "## Provenance",
        _provenance(run),
    ]
    return "\n\n".join(parts) + "\n"


def _score_table(scores: Mapping[str, Iterable[float]]) -> str:
    if not scores:
        raise ValueError("a card needs at least one score")
    rows = []
    for name, values in scores.items():
        values = [float(value) for value in values]
        if not values:
            raise ValueError(f"the score {name!r} has no values")
        mean = sum(values) / len(values)
        span = f"{min(values):.3f} to {max(values):.3f}"
        rows.append((name, f"{mean:.3f}", span, str(len(values))))
    return _table(("score", "mean", "range", "seeds"), rows)


def _asset_table(names: Iterable[str]) -> str:
    names = list(names)
    unknown = [name for name in names if name not in ASSETS]
    if unknown:
        raise AssetError(f"no asset is called {unknown[0]!r}: choose from {', '.join(ASSETS)}")
    rows = [
        (asset.origin, asset.licence, f"{asset.package} {asset.version}", f"`{asset.sha256[:16]}…`")
        for asset in (ASSETS[name] for name in names)
    ]
    return _table(("what", "licence", "package", "SHA-256"), rows)


def _provenance(run: Mapping) -> str:
    known = run["provenance"]
    lines = [f"- {words}: {known[key]}" for key, words in _FACTS.items() if known.get(key)]
    versions = known.get("packages") or {}
    if versions:
        lines.append("- Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    if run.get("stale"):
        lines.append("- **The code has changed since this run.**")
    return "\n".join(lines)


def _summary(descr: str) -> str:
    """Return what a DESCR says before its first headed section, without its underlined title."""
    sections = re.split(r"\n(?=[^\n]+\n-{3,}\n)", descr.strip())
    text = re.sub(r"\A([^\n]+)\n=+\n", r"**\1**\n", sections[0]).strip()
    # A table in columns of blanks keeps its form only as code.
    return re.sub(r"(?m)^[^\n]+\n-+ +-+\n(?:[^\n]+(?:\n|\Z))+", _fenced, text)


def _fenced(found: re.Match) -> str:
    return f"```text\n{found.group().rstrip()}\n```\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
