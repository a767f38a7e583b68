"""What the loaders of all data sets share."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from sklearn.utils import Bunch

_SHOWN = 5  # problems that one message lists


class DatasetError(ValueError):
    """A data set cannot be used as it is; the message names the place and the way out."""


def _bunch(images, texts, target, target_names, groups, descr, return_X_y, **extra):
    import pandas

    # Column type "object": pandas would turn a missing (None) string into NaN.
    columns = {"image": list(images), "text": list(texts)}
    data = pandas.DataFrame({k: pandas.Series(v, dtype=object) for k, v in columns.items()})
    target = np.asarray(target, dtype=np.int64)
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        target=target,
        target_names=list(target_names),
        groups=np.asarray(groups),
        DESCR=descr,
        **extra,
    )


def _count_table(target: Iterable[int], names: list[str], title: str) -> str:
    counts = Counter(target)
    width = max(len(title), *(len(name) for name in names))
    rows = [(title, "pairs"), ("-" * width, "-----")]
    rows += [(name, f"{counts[index]:>5}") for index, name in enumerate(names)]
    return "\n".join(f"{name:<{width}}  {count}" for name, count in rows)


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
