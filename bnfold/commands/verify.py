"""`bnfold verify`: the parity suite on a bundle."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.commands.options import Commands, add_command, names, seconds
from bnfold.errors import ParityError

if TYPE_CHECKING:
    from bnfold.commands.console import Console


def add(commands: Commands) -> None:
    """Declare the parser."""
    parser = add_command(
        commands,
        "verify",
        run,
        "Prove a bundle, or say what is wrong with it. "
        "Exit code 0: parity holds; 1: it does not hold; 2: it cannot be told.",
    )
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        type=Path,
        nargs="?",
        help="a version folder, or a model folder for its newest version; with --self-test it may be left out",
    )
    parser.add_argument(
        "--self-test",
        action="store_true",
        help="put the suite itself to the test: wrong folds of every kind, of BUNDLE or of small networks for every "
        "move; shows which tier notices which (T6). Exit code 1 when one passes both T1 and T2",
    )
    parser.add_argument(
        "--tier",
        metavar="TIER",
        action="append",
        help="a tier to run, T0 to T6, T3b or T3h, instead of all but T6; repeatable, or with commas",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        type=Path,
        help="more samples to decide on: an .npz, or a folder of images",
    )
    parser.add_argument(
        "--url",
        metavar="URL",
        help="also ask a running server that serves this bundle, as in http://127.0.0.1:8000",
    )
    parser.add_argument(
        "--html",
        metavar="PAGE.html",
        type=Path,
        help="write the report as a page that needs nothing else; it replaces one of that name",
    )
    parser.add_argument(
        "--junit",
        metavar="FILE.xml",
        type=Path,
        help="write the report as JUnit XML, a suite a tier, for a CI server; it replaces one of that name",
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=seconds,
        default=float("inf"),
        help="a budget of time: tiers that sample stop early when it is spent, after everything was looked at once",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Print the verdict of every tier; the exit code is the report's."""
    if options.self_test:
        _refuse_beside_self_test(options)
        return _self_test(options, console)
    if options.bundle is None:
        raise ParityError("verify was given no bundle; expected a version folder, as in `bnfold verify models/x/1`")
    from bnfold.bundle import inspect_bundle
    from bnfold.commands.versions import find_version
    from bnfold.pages.page import JUNIT, check_place, write_page
    from bnfold.pages.parity import parity_page
    from bnfold.parity import verify
    from bnfold.parity.junit import to_junit

    if options.html is not None:
        check_place(options.html)
    if options.junit is not None:
        check_place(options.junit, JUNIT)
    tiers = None if options.tier is None else [name for text in options.tier for name in names(text)]
    folder = find_version(options.bundle)
    report = verify(
        folder,
        tiers=tiers,
        data=options.data,
        url=options.url,
        seconds=options.seconds,
        progress=lambda text: console.progress(f"proving {folder.parent.name}/{folder.name}: {text}"),
    )
    document = report.to_dict()
    if options.html is not None:
        bundle = inspect_bundle(folder)[0]
        manifest = bundle.manifest.to_dict()
        again = _again(f"{report.name}/{report.version}", options, tiers)
        page = parity_page(document, fold_report=bundle.fold_report(), manifest=manifest, command=again)
        write_page(page, options.html)
    if options.junit is not None:
        write_page(to_junit(report), options.junit, JUNIT)
    console.result(document, report.to_table())
    return report.exit_code


def _again(label: str, options: argparse.Namespace, tiers: Sequence[str] | None) -> str:
    """The command that gives the report once more, with what shaped it; names of files without their folders."""
    words = ["bnfold", "verify", label]
    words += ["--tier", ",".join(tiers)] if tiers is not None else []
    words += ["--data", options.data.name] if options.data is not None else []
    words += ["--url", options.url] if options.url is not None else []
    words += ["--seconds", f"{options.seconds:g}"] if math.isfinite(options.seconds) else []
    return shlex.join(words)


def _refuse_beside_self_test(options: argparse.Namespace) -> None:
    """An option that --self-test knows nothing of would be left undone without a word."""
    given = [f"--{name}" for name in ("tier", "data", "url", "html", "junit") if getattr(options, name) is not None]
    if math.isfinite(options.seconds):
        given.append("--seconds")
    if given:
        raise ParityError(
            f"--self-test was given {', '.join(given)}, which it does not know; leave that out, "
            "or run T6 on a bundle, which goes into every report: `bnfold verify BUNDLE --tier T6`"
        )


def _self_test(options: argparse.Namespace, console: Console) -> int:
    """Print the kill table; the exit code is the table's."""
    from bnfold.bundle import load_bundle
    from bnfold.commands.versions import find_version
    from bnfold.parity.evidence import Evidence
    from bnfold.parity.mutants import self_test

    evidence = None if options.bundle is None else Evidence(load_bundle(find_version(options.bundle)))
    table = self_test(evidence, progress=console.progress)
    console.result(table.to_dict(), table.to_table())
    return table.exit_code
