"""The command line as such: what it loads, what it prints where, how it fails. Commands themselves: test_cli_*.py."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bnfold.cli import build_parser, main
from bnfold.commands import inspect
from bnfold.commands.console import Console, to_json
from bnfold.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "train", "recalibrate", "fold-and-export", "unfold", "inspect", "verify", "audit", "serve", "predict", "study",
)  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fail_with(monkeypatch: pytest.MonkeyPatch, problem: BaseException) -> None:
    def run(*_: Any) -> int:
        raise problem

    monkeypatch.setattr(inspect, "run", run)


def test_help_loads_the_parsers_and_the_standard_library_only():
    program = (
        "import sys\n"
        "from bnfold.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "print(*sorted(sys.modules), file=sys.stderr)\n"
    )
    ran = subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(ran.stderr.split())
    assert {name for name in loaded if name.partition(".")[0] == "bnfold"} == {
        "bnfold",
        "bnfold.cli",
        "bnfold.commands",
        "bnfold.commands.audit",
        "bnfold.commands.console",
        "bnfold.commands.fold_and_export",
        "bnfold.commands.inspect",
        "bnfold.commands.options",
        "bnfold.commands.predict",
        "bnfold.commands.recalibrate",
        "bnfold.commands.serve",
        "bnfold.commands.study",
        "bnfold.commands.train",
        "bnfold.commands.unfold",
        "bnfold.commands.verify",
        "bnfold.errors",
    }
    # The flags of `serve` are made from the settings of the server.
    assert {name for name in loaded if name.partition(".")[0] == "service"} == {
        "service",
        "service.setting",
        "service.settings",
    }
    ours = {"bnfold", "service", "__main__"}
    assert not {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names) - ours


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_commands_are_the_ones_of_this_release():
    usage = build_parser().format_help()
    assert all(f"    {command}" in usage for command in COMMANDS)


def test_docs_of_the_command_line_are_those_of_the_parsers():
    script = runpy.run_path(str(ROOT / "scripts" / "write_cli_docs.py"))
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == script["render"](), "run `make docs`"
    assert all(f"## {command}\n" in page for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], "COMMAND"),
        (["fold"], "invalid choice: 'fold'"),
        (["inspect"], "SOURCE"),
        (["fold-and-export", "x.onnx"], "-o"),
        (["inspect", "m:f", "--input-shape", "1,x"], "found '1,x'; expected positive numbers"),
        (["inspect", "m:f", "--input-shape", "3,0,1"], "found '3,0,1'"),
        (["inspect", "x.onnx", "--numbers", "nan"], "found 'nan'; expected a number from 0"),
        (["inspect", "x.onnx", "--numbers", "one"], "found 'one'"),
        (["unfold", "models/x"], "-o"),
        (["serve", "--port", "65536"], "expected a whole number from 0 to 65535"),
        (["serve", "--device", "tpu"], "'tpu'"),
        (["inspect", "x.onnx", "--jso"], "unrecognized arguments: --jso"),
    ],
)
def test_wrong_options_give_one_sentence_and_exit_code_2(
    arguments: list[str], found: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert found in err
    assert "--help" in err
    assert len(err.splitlines()) == 1


def test_error_of_bnfold_gives_one_line_on_stderr_and_exit_code_2(monkeypatch, capsys):
    fail_with(monkeypatch, DataError("the recipe\nhas no network; add one"))
    assert main(["inspect", "x.onnx"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "bnfold: the recipe has no network; add one\n"


def test_error_with_json_is_one_document_on_stdout_as_well(monkeypatch, capsys):
    fail_with(monkeypatch, DataError("no such file"))
    assert main(["inspect", "x.onnx", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {"error": "no such file"}


def test_unexpected_error_gives_one_sentence_and_asks_for_a_report(monkeypatch, capsys):
    fail_with(monkeypatch, RuntimeError("the impossible\nhas happened"))
    monkeypatch.delenv("BNFOLD_DEBUG", raising=False)
    assert main(["inspect", "x.onnx"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "RuntimeError (the impossible has happened)" in err
    assert "report" in err


def test_debug_shows_the_traceback_below_the_sentence(monkeypatch, capsys):
    fail_with(monkeypatch, RuntimeError("the impossible"))
    monkeypatch.setenv("BNFOLD_DEBUG", "1")
    assert main(["inspect", "x.onnx"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_missing_framework_names_the_extra_to_install(monkeypatch, capsys):
    fail_with(monkeypatch, ModuleNotFoundError("No module named 'torch'", name="torch.nn"))
    assert main(["inspect", "x.onnx"]) == 2
    assert "the extra `torch`" in capsys.readouterr().err


def test_missing_module_of_bnfold_itself_is_a_defect_and_no_missing_package(monkeypatch, capsys):
    fail_with(monkeypatch, ModuleNotFoundError("No module named 'bnfold.x'", name="bnfold.x"))
    assert main(["inspect", "x.onnx"]) == 2
    assert "please report it" in capsys.readouterr().err


def test_error_of_the_operating_system_names_the_file(monkeypatch, capsys):
    fail_with(monkeypatch, PermissionError(13, "Permission denied", "models/x"))
    assert main(["inspect", "x.onnx"]) == 2
    assert capsys.readouterr().err == "bnfold: models/x: Permission denied\n"


def test_interrupt_gives_130_and_no_traceback(monkeypatch, capsys):
    fail_with(monkeypatch, KeyboardInterrupt())
    assert main(["inspect", "x.onnx"]) == 130
    assert capsys.readouterr().err == "bnfold: interrupted\n"


def test_reader_that_goes_away_gives_141_and_silence():
    program = (
        "import sys\n"
        "from bnfold.cli import main\n"
        "from bnfold.commands import inspect\n"
        "def run(options, console):\n"
        "    console.result({}, 'x' * 1_000_000)\n"
        "    return 0\n"
        "inspect.run = run\n"
        "sys.exit(main(['inspect', 'x.onnx']))\n"
    )
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, "")


def run_with(redirections: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = f'"{sys.executable}" -m bnfold "$@" {redirections}'
    return subprocess.run(
        ["sh", "-c", command, "sh", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [("inspect", "models/digits-cnn/1/reference.onnx"), ("inspect", "nothing.onnx")])
def test_full_disk_gives_2_and_no_traceback(arguments: tuple[str, ...]):
    for options in ((), ("--json",)):
        ran = run_with(">/dev/full", *arguments, *options)
        assert ran.returncode == 2
        assert len(ran.stderr.splitlines()) == 1, ran.stderr
    assert "nothing.onnx" in ran.stderr or "the standard output: No space left" in ran.stderr
    ran = run_with("2>/dev/full", "inspect", "nothing.onnx", "--json")
    assert ran.returncode == 2
    assert "nothing.onnx" in json.loads(ran.stdout)["error"]


def test_closed_streams_change_no_exit_code():
    good, bad = ("inspect", "models/digits-cnn/1/reference.onnx"), ("inspect", "nothing.onnx")
    for redirection in (">&-", "2>&-", ">&- 2>&-"):
        for arguments, code in ((good, 0), ((*good, "--json"), 0), (bad, 2), ((*bad, "--json"), 2)):
            ran = run_with(redirection, *arguments)
            assert ran.returncode == code, (redirection, arguments, ran.stderr)
            assert "Traceback" not in ran.stderr
            assert "unexpected" not in ran.stderr


def test_wrong_options_with_json_are_one_document_as_well(capsys):
    for arguments in (
        ["predict", "--json"],
        ["serve", "--json", "--port", "x"],
        ["--json"],
        ["inspect", "a", "\x1b[2J\nb", "--json"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        out, err = capsys.readouterr()
        assert stop.value.code == 2
        assert json.loads(out)["error"] in err.replace("\\x1b", "\x1b")
        assert len(err.splitlines()) == 1
        assert "\x1b" not in err


def test_interrupt_with_json_is_one_document_as_well(monkeypatch, capsys):
    fail_with(monkeypatch, KeyboardInterrupt())
    assert main(["inspect", "x.onnx", "--json"]) == 130
    assert json.loads(capsys.readouterr().out) == {"error": "interrupted"}


def test_failure_after_the_result_adds_no_second_document(monkeypatch, capsys):
    def run(_: Any, console: Console) -> int:
        console.result({"url": "http://127.0.0.1"}, "")
        raise DataError("the server fell over")

    monkeypatch.setattr(inspect, "run", run)
    assert main(["inspect", "x.onnx", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"url": "http://127.0.0.1"}
    assert err == "bnfold: the server fell over\n"


def test_what_libraries_print_does_not_get_into_the_result(monkeypatch, capsys):
    def run(_: Any, console: Console) -> int:
        print("a library talks")
        console.result({"norms": 1}, "one norm")
        return 0

    monkeypatch.setattr(inspect, "run", run)
    assert main(["inspect", "x.onnx", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"norms": 1}
    assert err == "a library talks\n"


def test_progress_appears_on_a_terminal_and_is_erased_before_the_result():
    terminal, out = Terminal(), io.StringIO()
    console = Console(json=False, out=out, err=terminal)
    console.progress("epoch 1\nof 2")
    console.progress("epoch 2")
    console.result({}, "done")
    assert terminal.getvalue() == "\r\x1b[Kepoch 1 of 2\r\x1b[Kepoch 2\r\x1b[K"
    assert out.getvalue() == "done\n"


def test_colours_are_for_terminals_and_for_those_who_want_them(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "77")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console = Console(json=False, out=Terminal(), err=io.StringIO())
    assert console.width == 77
    assert console.paint is not None
    assert console.paint("kept", "kept") == "\x1b[33mkept\x1b[0m"
    assert console.paint("x", "no outcome") == "x"
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as context:
            context.setenv(name, value)
            assert console.paint is None
    plain = Console(json=False, out=io.StringIO(), err=io.StringIO())
    assert (plain.width, plain.paint) == (None, None)


def test_inspect_on_a_terminal_is_in_colour_and_fits_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    options = build_parser().parse_args(["inspect", str(ROOT / "models/digits-cnn/1/reference.onnx"), "--keep", "*.1"])
    assert options.run(options, Console(json=False, out=terminal, err=io.StringIO())) == 0
    text = terminal.getvalue()
    assert "\x1b[32mfolded\x1b[0m" in text
    assert "\x1b[33mkept\x1b[0m" in text
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())) <= 60


def test_progress_that_is_not_written_is_not_flushed_either():
    class Log(io.StringIO):
        flushed = 0

        def flush(self):
            self.flushed += 1

    now, err = [0.0], Log()
    console = Console(json=False, out=io.StringIO(), err=err, clock=lambda: now[0])
    for now[0] in (0.0, 1.0, 29.0, 31.0, 32.0):
        console.progress("epoch")
    assert (err.getvalue(), err.flushed) == ("epoch\n", 1)


def test_progress_in_a_file_is_a_line_every_half_minute_and_none_of_what_is_over_before():
    err, now = io.StringIO(), iter((100.0, 129.9, 130.0, 159.9, 175.0))
    console = Console(json=False, out=io.StringIO(), err=err, clock=lambda: next(now))
    for epoch in range(5):
        console.progress(f"epoch {epoch}\nof 5")
    assert err.getvalue() == "epoch 2 of 5\nepoch 4 of 5\n"


def test_control_characters_of_foreign_names_do_not_reach_the_terminal():
    out, err = io.StringIO(), io.StringIO()
    console = Console(json=False, out=out, err=err)
    console.result({}, "norm \x1b[2J\x07\n\tkept é")
    console.failure("bad \x9b name")
    assert out.getvalue() == "norm \\x1b[2J\\x07\n\tkept é\n"
    assert err.getvalue() == "bnfold: bad \\x9b name\n"


def test_json_has_no_nan_and_takes_paths_and_numpy_values():
    import numpy as np

    document = {
        "a": float("nan"),
        "b": [np.float64("inf"), np.int64(3)],
        "c": Path("x/y"),
        "d": np.array([1.5, -np.inf]),
    }
    assert json.loads(to_json(document), parse_constant=pytest.fail) == {
        "a": "nan",
        "b": ["inf", 3],
        "c": "x/y",
        "d": [1.5, "-inf"],
    }
