"""Settings: four sources, one order, and a sentence for each value that is not taken."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from bnfold.cli import main
from bnfold.errors import BnfoldError
from service.configuration import configure, to_environment
from service.settings import DESCRIBED, Settings

ROOT = Path(__file__).resolve().parents[2]

# One value of each field that is not its default.
OTHERS = Settings(
    repository=Path("/srv/models"),
    version_policy="specific:1,3",
    poll_interval=2.5,
    state_dir=Path("/srv/state"),
    host="::1",
    port=9000,
    grpc_port=9001,
    api_key_file=Path("keys"),
    admin_key_file=Path("admin keys"),
    insecure=True,
    tls_cert=Path("cert.pem"),
    tls_key=Path("key.pem"),
    device="cpu",
    workers=2,
    threads=3,
    max_batch_rows=8,
    conv_search="heuristic",
    max_delay=0.0005,
    max_inline=0.0005,
    compress_answers=False,
    max_request_rows=100,
    max_queue_rows=200,
    max_body_bytes=2**21 + 1,
    max_json_bytes=2**20,
    max_json_values=2**19,
    max_pixels=10_000,
    max_connections=77,
    max_memory_bytes=2**30,
    request_timeout=0.001,
    header_timeout=0.02,
    body_timeout=1.25,
    keep_alive_timeout=60.0,
    write_timeout=5.0,
    drain_delay=0.0,
    drain_timeout=1 / 3,
    hang_timeout=1.5,
    log_format="json",
    access_log=True,
    otlp_endpoint='http://127.0.0.1:4318/"\\',
)


def test_the_other_values_differ_in_every_field():
    assert [field.name for field in fields(Settings) if getattr(OTHERS, field.name) == field.default] == []


def test_flags_win_over_the_environment_and_that_over_the_file_and_that_over_defaults(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text('host = "::1"\nport = 1\nthreads = 7\nworkers = 4\n', encoding="utf-8")
    found = configure({"port": 3, "device": None}, {"BNFOLD_PORT": "2", "BNFOLD_THREADS": "6", "PORT": "5"}, file)
    assert found.settings == Settings(host="::1", port=3, threads=6, workers=4)
    named = {name: origin for name, origin in found.origins.items() if origin != "default"}
    assert named == {"host": str(file), "workers": str(file), "port": "--port", "threads": "BNFOLD_THREADS"}


def test_every_field_can_come_from_the_environment():
    assert configure(environment=to_environment(OTHERS)).settings == OTHERS
    assert configure(environment=to_environment(Settings())).settings == Settings()


def test_every_field_can_come_from_a_file_which_is_what_show_settings_writes(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text(configure(environment=to_environment(OTHERS)).as_toml(), encoding="utf-8")
    assert configure(environment={}, file=file).settings == OTHERS
    assert configure(environment={"BNFOLD_CONFIG": str(file)}).settings == OTHERS


def test_every_field_is_a_flag_and_show_settings_says_so(capsys, monkeypatch):
    for name in to_environment(OTHERS):
        monkeypatch.delenv(name, raising=False)
    words: list[str] = []
    for name, described in DESCRIBED.items():
        value = described.write(getattr(OTHERS, name))
        if described.kind is bool:
            words.append(described.flag if value == "true" else described.flag.replace("--", "--no-", 1))
        else:
            words += [described.flag, value] if described.flag.startswith("-") else [value]
    assert main(["serve", "--show-settings", "--json", *words]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {name: item["from"] for name, item in said.items()} == {
        name: described.flag for name, described in DESCRIBED.items()
    }
    assert configure({name: item["value"] for name, item in said.items()}, {}).settings == OTHERS


def test_an_empty_variable_is_not_given():
    assert configure(environment={"BNFOLD_PORT": "", "BNFOLD_TLS_CERT": "", "BNFOLD_CONFIG": ""}).settings == Settings()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_body_bytes", "65536", 65536),
        ("max_body_bytes", "64KiB", 65536),
        ("max_memory_bytes", "1 GiB", 2**30),
        ("body_timeout", "20", 20.0),
        ("body_timeout", "500ms", 0.5),
        ("body_timeout", "2min", 120.0),
        ("max_delay", "250us", 0.00025),
        ("insecure", "Yes", True),
        ("insecure", "off", False),
    ],
)
def test_reads_sizes_times_and_truths(name: str, text: str, value: object):
    assert getattr(configure(environment={f"BNFOLD_{name.upper()}": text}).settings, name) == value


@pytest.mark.parametrize(
    ("environment", "arguments", "named"),
    [
        ({"BNFOLD_PORT": "http"}, {}, "whole number"),
        ({"BNFOLD_PORT": "80s"}, {}, "whole number"),
        ({"BNFOLD_PORT": "1_000"}, {}, "whole number"),
        ({"BNFOLD_REQUEST_TIMEOUT": "soon"}, {}, "BNFOLD_REQUEST_TIMEOUT"),
        ({"BNFOLD_REQUEST_TIMEOUT": "nan"}, {}, "a time from 0.001s"),
        ({"BNFOLD_REQUEST_TIMEOUT": "3MiB"}, {}, "a time from 0.001s"),
        ({"BNFOLD_MAX_BODY_BYTES": "3MB"}, {}, "as in 64MiB"),
        ({"BNFOLD_MAX_BODY_BYTES": "1.5MiB"}, {}, "as in 64MiB"),
        ({"BNFOLD_INSECURE": "maybe"}, {}, "true or false"),
        ({"BNFOLD_DEVICE": "gpu"}, {}, "auto, cpu or cuda"),
        ({"BNFOLD_LOG_FORMAT": "xml"}, {}, "text or json"),
        ({"BNFOLD_VERSION_POLICY": "newest"}, {}, "latest:N"),
        ({"BNFOLD_VERSION_POLICY": "specific:1,"}, {}, "latest:N"),
        ({}, {"port": 65536}, "0 to 65535"),
        ({}, {"port": True}, "0 to 65535"),
        ({}, {"insecure": 1}, "true or false"),
        ({}, {"max_batch_rows": 0}, "from 1"),
        ({}, {"max_batch_rows": 1.5}, "from 1"),
        ({}, {"host": ""}, "a host name"),
        ({}, {"host": "a\nb"}, "one line"),
        ({}, {"max_queue_rows": 10}, "max_request_rows"),
        ({}, {"max_memory_bytes": 2048}, "max_body_bytes"),
        ({}, {"tls_cert": "cert.pem"}, "because --tls-cert is given"),
        ({}, {"tls_key": "key.pem"}, "because --tls-key is given"),
        ({"BNFOLD_OTLP_ENDPOINT": "http://me:secret@host"}, {}, "without a password"),
        ({}, {"prot": 1}, "did you mean port?"),
    ],
)
def test_refuses_a_value_in_one_sentence(environment: dict[str, str], arguments: dict[str, object], named: str):
    with pytest.raises(BnfoldError) as refusal:
        configure(arguments, environment)
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot = 1\n", "did you mean port?"),
        ("[server]\nport = 1\n", "unknown key 'server'"),
        ("port = \n", "no TOML"),
        ("port = '80 80'\n", "whole number"),
        ("port = 1.5\n", "whole number"),
        ("host = 3\n", "one line"),
        ("port = 1979-05-27\n", "whole number"),
        ("x = '" + "a" * 2**20 + "'\n", "larger than"),
    ],
)
def test_refuses_a_file_in_one_sentence(tmp_path, text: str, named: str):
    (tmp_path / "serve.toml").write_text(text, encoding="utf-8")
    with pytest.raises(BnfoldError) as refusal:
        configure(environment={}, file=tmp_path / "serve.toml")
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_bytes(b"\xff"), lambda _: None])
def test_refuses_a_file_that_cannot_be_read(tmp_path, make):
    make(tmp_path / "serve.toml")
    with pytest.raises(BnfoldError, match=r"serve\.toml"):
        configure(environment={}, file=tmp_path / "serve.toml")


def test_warns_of_a_variable_that_is_no_setting_and_names_the_nearest():
    found = configure(environment={"BNFOLD_MAX_BODY_BYTE": "1", "BNFOLD_DEBUG": "1", "BNFOLD_PORT": "1", "OTHER": "x"})
    (warning,) = found.warnings
    assert "BNFOLD_MAX_BODY_BYTE " in warning
    assert warning.endswith("did you mean BNFOLD_MAX_BODY_BYTES?")


def test_the_command_warns_of_it_in_one_line():
    command = [sys.executable, "-m", "bnfold", "serve", "--show-settings"]
    ran = subprocess.run(command, env={"BNFOLD_PROT": "1"}, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.splitlines() == [
        "bnfold: the variable BNFOLD_PROT is no setting, and is passed over; did you mean BNFOLD_PORT?"
    ]


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--port", "70000"], "--port"), (["--max-delay", "1d"], "--max-delay"), (["--device", "gpu"], "--device")],
)
def test_a_wrong_flag_is_named(words, named, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", *words])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert named in err


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_knows_whether_other_machines_can_reach_it(host: str, loopback: bool):
    assert Settings(host=host).is_loopback is loopback


def test_threads_are_the_cores_unless_said_otherwise():
    assert Settings().thread_count >= 1
    assert Settings(threads=3).thread_count == 3


def test_the_table_is_what_the_fields_say():
    script = runpy.run_path(str(ROOT / "scripts" / "write_settings_docs.py"))
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == script["render"](), "say `make docs`"
