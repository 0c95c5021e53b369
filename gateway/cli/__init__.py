"""The command line: one file per verb. Data goes to standard output, logs to standard error.

Exit codes: 0 fine, 1 a problem with what was asked, 2 wrong usage, 3 could not start.
"""

import typer

from gateway.cli.calibrate import calibrate
from gateway.cli.check import check
from gateway.cli.demo import demo
from gateway.cli.doctor import doctor
from gateway.cli.engine import engine
from gateway.cli.explain import explain
from gateway.cli.keys import app as keys
from gateway.cli.limits import app as limits
from gateway.cli.plan import plan
from gateway.cli.replay import replay
from gateway.cli.serve import serve
from gateway.cli.tokenizers import app as tokenizers

app = typer.Typer(
    name="headgate",
    help="One OpenAI-compatible door in front of your inference engines.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(check)
app.command()(explain)
app.command()(engine)
app.command()(doctor)
app.command()(demo)
app.command()(replay)
app.command()(calibrate)
app.command()(plan)
app.add_typer(keys, name="keys")
app.add_typer(limits, name="limits")
app.add_typer(tokenizers, name="tokenizers")
