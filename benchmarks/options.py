"""What the commands share: their options, and the JSON report that they write."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import msgspec

from benchmarks.rounds import SITTING
from benchmarks.rows import LABELS, NOT_INSTALLED

QUICK_SCALE, QUICK_ROUNDS = 0.1, SITTING

PACKAGES = (
    "piapi-async",
    "aiohttp",
    "cattrs",
    "msgspec",
    "uvloop",
    "openai",
    "litellm",
    "flexllm",
    "httpx",
    "httpx2",
    "httpx-sse",
    "pyreqwest",
)


def add_common(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Adds the options that all commands have."""
    parser.add_argument("--quick", action="store_true", help="a tenth of the counts, few rounds: a rough look")
    parser.add_argument("--peers", help="which peers besides the baseline, separated by commas (default: all)")
    parser.add_argument("--rounds", type=int, help=f"how many rounds at most (default: {rounds})")
    parser.add_argument("--scale", type=float, help="multiply the counts by this (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.set_defaults(default_rounds=rounds)


def check(parser: argparse.ArgumentParser, options: argparse.Namespace, what: str, names: Collection[str]) -> None:
    """Refuses unknown names, and fills in the counts that were not given."""
    for option, known in ((what, names), ("peers", LABELS)):
        given = getattr(options, option)
        unknown = set(given.split(",")) - set(known) if given is not None else set()
        if unknown:
            parser.error(f"unknown {option}: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    if (options.uvloop or getattr(options, "loops", False)) and find_spec("uvloop") is None:
        parser.error("uvloop is not installed; it comes with the extra: pip install 'piapi-async[speed]'")
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else options.default_rounds)
    options.scale = options.scale or (QUICK_SCALE if options.quick else 1.0)


def environment() -> dict[str, str]:
    """Returns the versions of everything that the figures depend on, by name: Python, the platform, the packages."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = NOT_INSTALLED
    return found


def write_report(options: argparse.Namespace, **measured: object) -> None:
    """Writes what was measured to the file of ``--json``, with the versions and options that it depends on."""
    report = {
        "environment": environment(),
        "uvloop": options.uvloop,
        "scale": options.scale,
        "rounds": options.rounds,
        **measured,
    }
    options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
