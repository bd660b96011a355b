"""The commands of ``piapi-async``: ``batch``, ``chat``, ``demo``, ``models``, ``serve``.

Each command prints its result to standard output. If it fails, it says why in one sentence on standard error. Where
standard output is no terminal, the lines are plain: no colours, no progress bar.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Literal

import anyio
import anyio.to_thread
import attrs
from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from rich.text import Text

from piapi_async import Client, Limits, Provider, quote_batch
from piapi_async.catalog import CATALOG, at_vendor_price, cost, to_dollars
from piapi_async.cli.batch import INTERRUPTED, print_quotes
from piapi_async.cli.batch import Job as BatchJob
from piapi_async.cli.batch import run as run_batch_job
from piapi_async.cli.demo import CONCURRENCY, QUESTIONS
from piapi_async.cli.demo import run as run_demo
from piapi_async.cli.terminal import clean, make_console, make_error_console, make_table, write_tokens
from piapi_async.errors import BatchError, ConfigurationError, InvalidRequestError, PiAPIError
from piapi_async.models import ChatParams
from piapi_async.report import check_report, write_report
from piapi_async.testing import LocalServer

DEFAULT_MODEL = "gpt-4o-mini"
"""The cheapest model on PiAPI's page, and the only one on its free plan."""

BACKUP_KEY = "PIAPI_BACKUP_API_KEY"
"""The environment variable that holds the backup's key."""

KEPT_REQUESTS = 1000
"""Requests that `serve` keeps in memory."""

app = App(
    name="piapi-async",
    help="PiAPI's LLM API from the command line. The key comes from the environment variable PIAPI_API_KEY.",
    version=lambda: version("piapi-async"),
    suppress_keyboard_interrupt=False,  # `piapi_async.__main__` takes care of it for every command
)

_Natural = Parameter(validator=Number(gte=1))
_Positive = Parameter(validator=Number(gt=0))


def run(argv: Sequence[str]) -> int:
    """Run one command. If it fails, say why in one sentence on standard error.

    Args:
        argv: The arguments after the program's name.

    Returns:
        The exit status: 0 for success, 1 if a request failed, 2 for bad input or a missing key, 130 for an interrupted
        batch.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed. By then everything is closed.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # an answer may hold characters that the terminal's encoding lacks
        reconfigure(errors="replace")
    try:
        status = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _failed(str(error), 2)
    except PiAPIError as error:
        return _failed(str(error), 2 if isinstance(error, BatchError | ConfigurationError | InvalidRequestError) else 1)
    return status if isinstance(status, int) else 0


def _failed(reason: str, status: int) -> int:
    sys.stderr.write(f"piapi-async: {clean(' '.join(reason.split()))}\n")
    return status


@app.command
def chat(
    prompt: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    model: str = DEFAULT_MODEL,
    system: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    base_url: str | None = None,
    backup: str | None = None,
) -> None:
    """Stream one answer to standard output.

    Args:
        prompt: The question; "-" reads it from standard input.
        model: The model to ask.
        system: A system message to send first.
        temperature: How random the answer is, 0 to 2.
        max_tokens: The longest answer, in tokens.
        base_url: Ask this OpenAI-compatible server instead of PiAPI, such as http://127.0.0.1:8000/v1.
        backup: Who answers when the first server can't, as NAME=URL. Put its key into PIAPI_BACKUP_API_KEY.
    """
    # No coroutine: inside a running loop, Ctrl-C would not end a read of standard input.
    if prompt == "-":
        prompt = _read_prompt()
    if not prompt:
        raise ConfigurationError("the prompt is empty; write a question")
    backups = _read_backup(backup)
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})

    async def stream() -> None:
        async with (
            Client(base_url=base_url, model=model, backups=backups) as client,
            client.stream(messages, temperature=temperature, max_tokens=max_tokens) as tokens,
        ):
            await write_tokens(tokens, make_console())

    asyncio.run(stream())


def _read_prompt() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ConfigurationError("the prompt on standard input is not UTF-8; convert it first") from None


def _read_backup(backup: str | None) -> list[Provider]:
    if backup is None:
        return []
    name, equals, url = backup.partition("=")
    if not name or not equals:
        raise ConfigurationError("--backup: it must be NAME=URL, such as other=https://api.example.com/v1")
    if not os.environ.get(BACKUP_KEY):
        raise ConfigurationError(f"--backup: its key is missing; set the environment variable {BACKUP_KEY}")
    try:
        return [Provider(name, url, os.environ[BACKUP_KEY])]
    except ConfigurationError as error:
        raise ConfigurationError(f"--backup: {error}") from None


@app.command(name="batch")
async def batch_command(
    requests: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    output: Annotated[str, Parameter(name=("--output", "-o"), allow_leading_hyphen=True)],
    model: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    base_url: str | None = None,
    backup: str | None = None,
    concurrency: Annotated[int, _Natural] = Limits().concurrency,
    rpm: Annotated[float | None, _Positive] = None,
    tpm: Annotated[float | None, _Positive] = None,
    budget: str | None = None,
    deadline: Annotated[float | None, _Positive] = None,
    stream: bool = False,
    retry_failed: bool = False,
    stop_after: Annotated[int, Parameter(validator=Number(gte=0))] = 10,
    dry_run: bool = False,
    report: str | None = None,
) -> int:
    """Ask every row of a file and save each answer. If it is stopped or killed, run it again: it goes on from there.

    A row is a line in OpenAI's batch format, or {"prompt": …} or {"messages": […]} with any parameters beside it. In a
    text file, each line is a prompt. Results are in OpenAI's format, one line each, as they come in. The exit status is
    0 if every row has its answer, 1 if not, 2 if nothing was sent, 130 after Ctrl-C.

    Args:
        requests: The file of requests; "-" for standard input.
        output: The file of results; "-" for standard output, from which no later run can go on.
        model: The model for rows that name none.
        temperature: How random answers are, 0 to 2, for rows that don't say.
        max_tokens: The longest answer, in tokens, for rows that don't say.
        base_url: Ask this OpenAI-compatible server instead of PiAPI, such as http://127.0.0.1:8000/v1.
        backup: Who answers when the first server can't, as NAME=URL. Put its key into PIAPI_BACKUP_API_KEY.
        concurrency: How many rows may be in flight at once.
        rpm: How many requests to send in a minute at most.
        tpm: How many tokens to use in a minute at most, prompts and answers together.
        budget: How many US dollars the batch may cost at most, earlier runs included.
        deadline: How many seconds this run may take; a later run does the rest.
        stream: Stream the answers, to see how soon they begin, and ask for token counts in the streams.
        retry_failed: Ask the rows again that failed in earlier runs.
        stop_after: End the run after so many failures of one kind in a row; 0: never.
        dry_run: Send nothing. Count the rows and say what they would cost.
        report: At the end, write a page of charts about the results to this file; needs the extra 'report'.
    """
    client = Client(
        "nothing-is-sent" if dry_run else None,
        base_url=base_url,
        model=model,
        backups=_read_backup(backup),
        budget=budget,
        limits=Limits(concurrency, rpm, tpm),
        stream_usage=stream,
    )
    params = ChatParams(temperature=temperature, max_tokens=max_tokens)
    if dry_run:
        quotes = await quote_batch(requests, output, client=client, retry_failed=retry_failed, **params)
        print_quotes(quotes, make_console())
        return 0
    job = BatchJob(
        requests=requests,
        output=output,
        deadline=deadline,
        stream=stream,
        retry_failed=retry_failed,
        stop_after=stop_after or None,
        params=params,
    )
    return await _run_job(client, job, report)


async def _run_job(client: Client, job: BatchJob, report: str | None) -> int:
    if report is not None:
        if job.output == "-":
            raise ConfigurationError("--report: it needs a file of results; name one with --output")
        check_report(report, job.requests, job.output)
    status = await run_batch_job(client, job, make_console(), make_error_console())
    if report is not None and status != INTERRUPTED:
        await anyio.to_thread.run_sync(write_report, job.output, report)
    return status


@app.command(name="demo")
async def demo_command(
    *,
    live: bool = False,
    base_url: str | None = None,
    backup: str | None = None,
    model: str = DEFAULT_MODEL,
    concurrency: Annotated[int, _Natural] = CONCURRENCY,
    questions: Annotated[int, Parameter(validator=Number(gte=1, lte=QUESTIONS))] = QUESTIONS,
) -> int:
    """Await one answer, stream one, and fan out many while the provider dies: the whole library in a few seconds.

    It starts two servers of its own that speak PiAPI's API, so it needs neither a key nor a network.

    Args:
        live: Ask the real service instead, with the key in PIAPI_API_KEY. This costs about a cent.
        base_url: Ask this OpenAI-compatible server instead, with the key in PIAPI_API_KEY.
        backup: Who answers when that one can't, as NAME=URL. Put its key into PIAPI_BACKUP_API_KEY.
        model: The model to ask.
        concurrency: How many questions may be in flight at once.
        questions: How many questions to fan out.
    """
    if live and base_url is not None:
        raise ConfigurationError("--live and --base-url do not go together; choose one")
    if backup is not None and not live and base_url is None:
        raise ConfigurationError("--backup: the demo's own server has one already; use it with --live or --base-url")
    return await run_demo(
        make_console(),
        live=live,
        base_url=base_url,
        backups=_read_backup(backup),
        model=model,
        concurrency=concurrency,
        questions=questions,
    )


@app.command
def models(
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    calls: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    tokens: Annotated[tuple[int, int], Parameter(validator=Number(gte=0))] = (1000, 300),
) -> None:
    """Print PiAPI's models: their prices, the plan they need, and whether they take system messages.

    Args:
        as_json: Print JSON, for other programs. Amounts are strings, so that they stay exact.
        calls: Print a Markdown table of what so many calls cost, at PiAPI and at the vendor's own price.
        tokens: How many tokens go into each of these calls, and how many come out.
    """
    if calls is not None:
        sys.stdout.write(_cost_table(calls, *tokens))
        return
    if as_json:
        sys.stdout.write(json.dumps([attrs.asdict(info) for info in CATALOG.values()], default=str, indent=2) + "\n")
        return
    console = make_console()
    table = make_table(console)
    for heading in ("model", "input $", "output $", "least $", "plan", "system"):
        table.add_column(heading, justify="right" if "$" in heading else "left", no_wrap=True)
    for info in CATALOG.values():
        table.add_row(
            info.model,
            f"{info.input_price:f}",
            f"{info.output_price:f}",
            f"{info.minimum_charge:f}" if info.minimum_charge else "-",
            info.plan,
            "yes" if info.system_role else "no",
        )
    console.print(table)
    console.print(Text("US dollars per million tokens; least: the least that one call costs.", style="dim"))


def _cost_table(calls: int, tokens_in: int, tokens_out: int) -> str:
    """What so many calls cost with each model, by the catalogue alone."""
    lines = ["| model | at PiAPI | at the vendor's price |", "| --- | ---: | ---: |"]
    for info in CATALOG.values():
        prices = (info, at_vendor_price(info) or info)
        own, theirs = (f"${to_dollars(calls * cost(price, tokens_in, tokens_out)):,.4f}" for price in prices)
        lines.append(f"| {info.model} | {own} | {theirs} |")
    return "\n".join(lines) + "\n"


@app.command
async def serve(
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8000,
    plan: Literal["free", "creator", "pro"] = "creator",
    terminator: Literal["[none]", "[DONE]"] = "[none]",
    tokens_per_second: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    api_key: str = "sk-local",
) -> None:
    """Run a local server that speaks PiAPI's API, until Ctrl-C.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0: any free one.
        plan: The key's PiAPI plan. It decides which models answer.
        terminator: The data that ends a stream: [none] as on PiAPI's page, [DONE] as OpenAI's SDKs want it.
        tokens_per_second: The pace of each stream; as fast as possible if not given.
        api_key: The key that callers must send.
    """
    server = LocalServer(
        plan=plan,
        terminator=terminator,
        host=host,
        port=port,
        tokens_per_second=tokens_per_second,
        api_key=api_key,
        keep=KEPT_REQUESTS,
    )
    try:
        await server.start()
    except OSError as error:
        reason = "it is already taken" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigurationError(
            f"cannot listen on port {port} of {host}: {reason}; choose another with --port (0: any free one)"
        ) from None
    try:
        _print_server(server)
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await server.close()


def _print_server(server: LocalServer) -> None:
    body = json.dumps({"model": DEFAULT_MODEL, "messages": [{"role": "user", "content": "Hello!"}], "stream": True})
    sys.stdout.write(
        f"Base URL  {server.base_url}\n"
        f"API key   {server.api_key}\n"
        "\n"
        f"curl -N {server.base_url}/chat/completions -H 'Authorization: Bearer {server.api_key}'"
        f" -H 'Content-Type: application/json' -d '{body}'\n"
        "\n"
        "Ctrl-C ends it.\n"
    )
    sys.stdout.flush()
