"""What the book's pages share: numbers that prose can quote, one look, one footer.

Nothing here is needed to use the package on your own data.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

BUILDING = "CMLEARN_BOOK_BUILD"
"""Name of the environment variable that the book's build sets for the pages' kernels."""


def glue(name: str, value: Any, format_spec: str = "") -> None:
    """Give a computed value a name under which the page's prose quotes it.

    While the book is built the value goes to MyST-NB, and ``{glue:text}`` puts it into the
    sentence. Anywhere else, for instance in a hosted notebook, it is printed as
    ``name = value``, so that a reader can look up what the sentence refers to.

    Parameters
    ----------
    name : str
        Unique in the whole book, for example ``"fusion-accuracy"``.
    value : object
        Number or text.
    format_spec : str, default=""
        As in :func:`format`, for example ``".2f"`` or ``".0%"``. Without it a float is
        rounded to three decimals and anything else is shown as ``str`` shows it.

    Examples
    --------
    >>> glue("accuracy", 0.84219)
    accuracy = 0.842
    >>> glue("improvement", 0.0716, ".1%")
    improvement = 7.2%
    """
    if not format_spec and isinstance(value, float | np.floating):
        format_spec = ".3f"
    shown = format(value, format_spec)
    if not os.environ.get(BUILDING):
        print(f"{name} = {shown}")
        return
    import myst_nb

    myst_nb.glue(name, shown, display=False)


@contextmanager
def claim() -> Iterator[None]:
    """Hold what a page says against the run; where the book is not being built, only tell.

    The text was written for a run with the versions that the book is built with. With others a
    number can come out differently: then a reader should learn that, and read on.

    Examples
    --------
    >>> with claim():
    ...     assert 1 + 1 == 3
    In this run the text nearby is not quite true: it was written for one in which this holds:
        assert 1 + 1 == 3
    """
    try:
        yield
    except Exception as error:
        if os.environ.get(BUILDING):
            raise
        line = traceback.extract_tb(error.__traceback__)[1].line
        print("In this run the text nearby is not quite true: "
              f"it was written for one in which this holds:\n    {line}")  # fmt: skip


def use_style() -> None:
    """Set matplotlib to the book's look.

    Figures are drawn on white with the Okabe-Ito colours, which readers with any of the common
    kinds of colour blindness can tell apart [1]_, and sharp enough for a high-density screen.

    References
    ----------
    .. [1] M. Okabe and K. Ito, "Color Universal Design", 2008,
       https://jfly.uni-koeln.de/color/
    """
    import matplotlib as mpl

    okabe_ito = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]
    mpl.rcParams.update(
        {
            "axes.prop_cycle": mpl.cycler(color=okabe_ito),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "figure.facecolor": "white",
            "figure.figsize": (6.4, 3.6),
            "image.cmap": "cividis",
            "legend.frameon": False,
            "savefig.dpi": 200,
        }
    )


def page_footer() -> Any:
    """Say where a page's numbers came from: the last cell of every page.

    Returns
    -------
    pandas.DataFrame
        One column, "this run": profile, device, versions, seconds since the kernel started,
        peak memory, commit and code hash, where Keras is loaded its
        precision, and on a GPU the peak of its memory, from :func:`cmlearn.runtime.provenance`.
    """
    import pandas as pd

    from cmlearn.runtime import provenance

    facts = provenance()
    facts["code_hash"] = facts["code_hash"][:12]
    run = {_label(name): _shown(value) for name, value in facts.items()}
    pd.set_option("display.max_colwidth", None)
    return pd.DataFrame({"this run": run})


def _label(name: str) -> str:
    return name.replace("_mib", " (MiB)").replace("_", " ").replace("gpu", "GPU")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, float):
        return f"{value:.1f}"
    return "unknown" if value is None else str(value)
