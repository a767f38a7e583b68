"""Image-text pairs: emoji, photographs and drawings, drawn scenes, and pairs of your own.

Every loader returns a `sklearn.utils.Bunch` whose ``data`` is a DataFrame with the
columns ``image`` (a path, or a `Scene` that is drawn when asked for) and ``text``.
Images stay on disk until something needs their pixels.
"""

from cmlearn.datasets._common import DatasetError
from cmlearn.datasets._emoji import load_emoji
from cmlearn.datasets._folder import iter_pairs, load_folder
from cmlearn.datasets._grocery import load_grocery
from cmlearn.datasets._huggingface import load_huggingface
from cmlearn.datasets._scenes import Scene, load_scenes
from cmlearn.datasets._stamps import load_stamps

__all__ = [
    "DatasetError",
    "Scene",
    "iter_pairs",
    "load_emoji",
    "load_folder",
    "load_grocery",
    "load_huggingface",
    "load_scenes",
    "load_stamps",
]
