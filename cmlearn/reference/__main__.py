"""Run what the command line names: ``python -m cmlearn.reference methods``."""

import argparse
import importlib
import pkgutil
import signal
import sys

from cmlearn import reference

UNFINISHED = 3
"""Exit status of a run whose time was up: the same command goes on where it stopped."""


class TimeIsUp(BaseException):
    """The minutes that the command line gave have passed."""


def main() -> int:
    """Compute the named reference runs, one after the other, and store them."""
    known = _known_runs()
    parser = _parser(known)
    options = parser.parse_args()
    for name in options.names:
        if name not in known:
            parser.error(f"there is no run {name!r}; there are {', '.join(known)}")
    if not options.names:
        parser.print_help()
    if options.minutes:
        _stop_after(options.minutes)
    for name in options.names:
        path = reference.RUNS / f"{name}.json"
        try:
            importlib.import_module(f"cmlearn.reference.{name}").run(path)
        except TimeIsUp:
            print(f"{name}: time is up; the same command goes on from here", file=sys.stderr)
            return UNFINISHED
        print(f"Wrote {path}")
    return 0


def _known_runs() -> list[str]:
    return sorted(
        module.name
        for module in pkgutil.iter_modules(reference.__path__)
        if not module.name.startswith("_")
    )


def _parser(known: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cmlearn.reference", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument(
        "--minutes",
        type=float,
        help="stop after so long with exit status 3; 'finetuning' then goes on where it stopped, "
        "the others begin anew",
    )
    return parser


def _stop_after(minutes: float) -> None:
    def stop(number, frame):
        raise TimeIsUp

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)


if __name__ == "__main__":
    sys.exit(main())
