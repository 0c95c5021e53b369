"""The command line: `python -m loadtest run ...`, `fleet ...`, `compare A.json B.json`.

Exit codes: 0 the run took place (its errors are figures), 1 nothing was answered, or something did not start,
2 wrong usage, 3 worse than the baseline by more than `--fail-above`, or policies in another order than the
twin's.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.replay.traces import TraceInvalid
from loadtest import fleet_command, run_command
from loadtest.arguments import factor
from loadtest.outcome import against, read
from loadtest.processes import DidNotStart
from loadtest.running import WarmUpFailed


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True)
    run_command.add(verbs)
    fleet_command.add(verbs)
    compared = verbs.add_parser("compare", help="two runs written with --json, as ratios")
    compared.add_argument("a", type=Path)
    compared.add_argument("b", type=Path)
    compared.add_argument(
        "--fail-above", type=factor, metavar="TIMES", help="exit with 3 where B is so much worse"
    )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parser().parse_args(arguments)
    given.arguments = list(arguments)
    try:
        if given.verb == "compare":
            return against(read(given.a), read(given.b), given.fail_above)
        return run_command.execute(given) if given.verb == "run" else fleet_command.execute(given)
    except (WarmUpFailed, DidNotStart) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 1
    except (TraceInvalid, ValueError, OSError) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 2
    except KeyError as error:
        print(f"loadtest: not a run written by --json: {error} is missing", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
