"""The state of a training on disk, so that an interrupted one goes on as if it had not been."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np

from cmlearn.runtime import replace_when_whole

CHECKPOINT_FILE = "checkpoint.npz"
_NOTES = ("fingerprint", "epoch", "history", "stopped", "stopping")


class CheckpointError(ValueError):
    """A checkpoint is damaged, or of another network or other data."""


class Checkpoint:
    """The state of a training, on disk after every epoch.

    Everything that decides what comes next is kept: weights, the optimiser's averages, the state
    of every random layer, the best weights so far. The order of the rows follows from the seed.
    """

    def __init__(self, folder, fingerprint: dict[str, str]):
        self.path = Path(folder) / CHECKPOINT_FILE
        self.fingerprint = fingerprint
        self.history: dict[str, list[float]] = {}
        self.stopped = False
        self._stopping: dict = {}
        self._best: list[np.ndarray] | None = None

    def restore(self, model, epochs: int) -> int:
        """Put the stored state into a compiled network; return how many epochs it has been trained.

        Raises
        ------
        CheckpointError
            If the file is damaged, holds more than `epochs`, or is of another training.
        """
        model.optimizer.build(model.trainable_variables)
        if not self.path.exists():
            return 0
        variables = _variables(model)
        notes, arrays = self._read()
        self._check(notes, epochs)
        for i, variable in enumerate(variables):
            variable.assign(arrays[f"variable_{i}"])
        best = [arrays[name] for name in sorted(arrays, key=_number) if name.startswith("best_")]
        self._best = best or None
        self._stopping = notes["stopping"]
        self.history, self.stopped = notes["history"], notes["stopped"]
        return notes["epoch"]

    def callback(self, stopping):
        """Return the Keras callback that keeps the state; it runs after `stopping`."""
        import keras

        checkpoint = self

        class KeepState(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                for name, value in checkpoint._stopping.items():
                    setattr(stopping, name, value)
                if stopping is not None:
                    stopping.best_weights = checkpoint._best

            def on_epoch_end(self, epoch, logs=None):
                for name, value in logs.items():
                    checkpoint.history.setdefault(name, []).append(float(value))
                checkpoint._write(self.model, epoch + 1, stopping)

        return KeepState()

    def _write(self, model, epoch: int, stopping) -> None:
        notes = {
            "fingerprint": self.fingerprint,
            "epoch": epoch,
            "history": self.history,
            "stopped": bool(model.stop_training),
            "stopping": {},
        }
        arrays = {f"variable_{i}": v.numpy() for i, v in enumerate(_variables(model))}
        if stopping is not None:
            notes["stopping"] = {
                "wait": stopping.wait,
                "best": float(stopping.best),
                "best_epoch": stopping.best_epoch,
            }
            arrays |= {f"best_{i}": values for i, values in enumerate(stopping.best_weights)}
        with replace_when_whole(self.path) as partial:
            np.savez(partial, notes=np.array(json.dumps(notes)), **arrays)

    def _read(self) -> tuple[dict, dict[str, np.ndarray]]:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            notes = json.loads(arrays.pop("notes").item())
            return {name: notes[name] for name in _NOTES}, arrays
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
            raise CheckpointError(
                f"{self.path} is not a whole checkpoint ({error}); remove it to train from the "
                "beginning"
            ) from error

    def _check(self, notes: dict, epochs: int) -> None:
        stored = notes["fingerprint"]
        differing = [
            f"{name} (stored {stored.get(name, 'nothing')}, here {value})"
            for name, value in self.fingerprint.items()
            if stored.get(name) != value and name != "data"
        ]
        if stored.get("data") != self.fingerprint["data"]:
            differing.append("the training data")
        if differing:
            raise CheckpointError(
                f"{self.path} belongs to another training: it differs in {', '.join(differing)}. "
                "Give another folder, or remove the file to train from the beginning"
            )
        if notes["epoch"] > epochs:
            raise CheckpointError(
                f"{self.path} holds a training of {notes['epoch']} epochs already, more than "
                f"epochs={epochs}; raise epochs, or give another folder"
            )


def _variables(model) -> list:
    """Return all that a training step reads and changes."""
    return [*model.variables, *model.optimizer.variables]


def _number(name: str) -> int:
    return int(name.rpartition("_")[2]) if "_" in name else -1
