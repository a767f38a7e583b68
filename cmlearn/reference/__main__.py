"""Run what the command line names: ``python -m cmlearn.reference methods``."""

import importlib
import pkgutil
import sys

from cmlearn import reference


def main() -> int:
    """Compute the named reference runs, one after the other, and store them."""
    known = sorted(
        module.name
        for module in pkgutil.iter_modules(reference.__path__)
        if not module.name.startswith("_")
    )
    names = sys.argv[1:]
    if not names or set(names) - set(known):
        print(f"usage: python -m cmlearn.reference {{{','.join(known)}}} ...", file=sys.stderr)
        return 2
    for name in names:
        path = reference.RUNS / f"{name}.json"
        importlib.import_module(f"cmlearn.reference.{name}").run(path)
        print(f"Wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
