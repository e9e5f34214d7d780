"""The whole job on real handwritten digits: train, fold, export, prove, serve, predict over HTTP.

Everything is done by the commands that a user types, with --json; this file only starts them and reads what they say.
Exit code 0 when every step held, 1 otherwise. What was made stays in build/demo to be looked at.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "demo"
RECIPE = ROOT / "models" / "digits-cnn" / "recipe.toml"

ASKED = 10
LOWEST_ACCURACY = 0.97  # a broken network has far less; one seed of a sound one may have 98% on 359 digits
EVERY_FIFTH = 5  # the held-out split of the recipe: sample i is held out when i % 5 == 4
FULL_SCALE = 16  # scikit-learn's digits go from 0 to 16
STOP_TIMEOUT_S = 30

# The proxy of the environment is not for a server on this machine.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@dataclass(frozen=True, eq=False)
class Digits:
    """Held-out digits: images (N, 8, 8) from 0 to 16, labels (N,), and their places in the data set."""

    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    samples: range

    @property
    def inputs(self) -> np.ndarray[Any, Any]:
        """What the network takes: (N, 1, 8, 8) float32 from 0 to 1."""
        return (self.images[:, np.newaxis] / FULL_SCALE).astype(np.float32)


@dataclass(frozen=True)
class Answer:
    """What the server said of one held-out digit."""

    sample: int
    truth: str
    label: str
    probability: float


@dataclass(frozen=True)
class Findings:
    """The numbers of the summary, as the commands gave them."""

    accuracy: float
    unfolded_accuracy: float
    norms: dict[str, int]
    worst_ulp: float
    worst_ratio: float
    rows: int
    disagreements: int
    answers: tuple[Answer, ...]

    @classmethod
    def of(cls, built: Any, proven: Any, answers: Sequence[Answer]) -> Findings:
        """Read them out of the documents of fold-and-export and verify."""
        tiers = {tier["tier"]: tier["summary"] for tier in proven["tiers"]}
        return cls(
            accuracy=tiers["T4"]["folded_accuracy"],
            unfolded_accuracy=tiers["T4"]["unfolded_accuracy"],
            norms=built["fold"]["counts"],
            worst_ulp=tiers["T1"]["worst_ulp"],
            worst_ratio=tiers["T2"]["worst_ratio"],
            rows=tiers["T4"]["rows"],
            disagreements=tiers["T4"]["disagreements"],
            answers=tuple(answers),
        )

    def summary(self, seconds: float, bundle: str) -> str:
        """The page that the demo ends with."""
        norms = ", ".join(f"{count} {outcome}" for outcome, count in self.norms.items() if count or outcome == "kept")
        agreeing = self.rows - self.disagreements
        right = sum(answer.label == answer.truth for answer in self.answers)
        lines = [
            "",
            f"held-out accuracy    {self.accuracy:.2%} folded, {self.unfolded_accuracy:.2%} unfolded "
            f"({self.rows} digits that training never saw)",
            f"norms                {sum(self.norms.values())} found: {norms}",
            f"weight certificate   worst {self.worst_ulp:.4f} ulp (0.5 or less: every value is the nearest)",
            f"local bound          worst difference {self.worst_ratio:.3f} of its rounding bound (at most 1)",
            f"top-1 agreement      {agreeing} of {self.rows} ({agreeing / self.rows:.0%}), folded against unfolded",
            f"over HTTP            {right} of {len(self.answers)} held-out digits read right, sent as PNG:",
            "",
            "    sample   true   predicted   probability",
        ]
        for answer in self.answers:
            mark = "" if answer.label == answer.truth else "   wrong"
            lines.append(f"    {answer.sample:6}{answer.truth:>7}{answer.label:>12}{answer.probability:14.4f}{mark}")
        return "\n".join([*lines, "", f"done in {seconds:.0f} s; the bundle is {short(bundle)}"])

    def faults(self, held_out: int) -> list[str]:
        """Whatever does not hold, a sentence each."""
        unfolded = sum(self.norms.values()) - self.norms["folded"]
        right = sum(answer.label == answer.truth for answer in self.answers)
        checks = (
            (self.accuracy >= LOWEST_ACCURACY, f"accuracy {self.accuracy:.2%}, expected {LOWEST_ACCURACY:.0%} or more"),
            (not unfolded and self.norms["folded"], f"{unfolded} norms are left, expected every norm to be folded"),
            (self.worst_ulp <= 0.5, f"a weight is {self.worst_ulp} ulp off, expected the nearest value"),
            (self.worst_ratio <= 1, f"a difference is {self.worst_ratio} times its bound, expected at most 1"),
            (self.rows == held_out, f"decisions on {self.rows} digits, expected all {held_out} held-out ones"),
            (not self.disagreements, f"{self.disagreements} decisions differ, expected none"),
            (
                right >= len(self.answers) - 1,
                f"{right} of {len(self.answers)} digits right over HTTP, expected 9 or 10",
            ),
        )
        return [message for holds, message in checks if not holds]


def main(overrides: Sequence[str]) -> int:
    """Run the demo; overrides go to `bnfold train --set`."""
    started = time.monotonic()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    settings = [word for override in overrides for word in ("--set", override)]
    trained = bnfold("train", str(RECIPE), "-o", str(WORK / "checkpoint"), *settings)
    built = bnfold("fold-and-export", trained["checkpoint"], "-o", str(WORK / "models" / "digits-cnn"))
    digits = held_out()
    np.savez(WORK / "held-out.npz", input=digits.inputs, labels=digits.labels)
    proven = bnfold("verify", built["bundle"], "--data", str(WORK / "held-out.npz"))
    with server(WORK / "models") as url:
        answers = ask(url, digits)
    found = Findings.of(built, proven, answers)
    print(found.summary(time.monotonic() - started, built["bundle"]))
    faults = found.faults(len(digits.labels))
    for fault in faults:
        print(f"demo: {fault}", file=sys.stderr)
    return 1 if faults else 0


def bnfold(*arguments: str) -> Any:
    """Run one command; its progress goes to the terminal, its JSON document comes back. Ends the demo if it fails."""
    say(f"bnfold {' '.join(short(word) for word in arguments)}")
    command = [sys.executable, "-m", "bnfold", *arguments, "--json"]
    ran = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, check=False)
    if ran.returncode != 0:
        sys.exit(f"demo: bnfold {arguments[0]} ended with exit code {ran.returncode}")
    return json.loads(ran.stdout)


@contextlib.contextmanager
def server(repository: Path) -> Iterator[str]:
    """A running `bnfold serve` on a free loopback port; stopped by SIGTERM, which must end it with exit code 0."""
    say(f"bnfold serve {short(str(repository))} --port 0")
    command = [sys.executable, "-m", "bnfold", "serve", str(repository), "--port", "0", "--json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield announced_url(process)
        process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if code != 0:
        sys.exit(f"demo: bnfold serve ended with exit code {code} on SIGTERM, expected 0")


def announced_url(process: subprocess.Popen[str]) -> str:
    """The URL that the server says once its models are proven and it answers. Ends the demo if it does not come up."""
    said = ""
    for line in process.stdout or ():
        said += line
        if line == "}\n":
            return str(json.loads(said)["url"])
    sys.exit(f"demo: bnfold serve ended with exit code {process.wait()} before it was ready")


def held_out() -> Digits:
    """Scikit-learn's bundled digits that the recipe keeps out of training: every fifth one."""
    data = load_digits()
    samples = range(EVERY_FIFTH - 1, len(data.target), EVERY_FIFTH)
    return Digits(data.images[samples], data.target[samples], samples)


def ask(url: str, digits: Digits) -> list[Answer]:
    """Send ten of the digits, spread over all of them, as PNG images to /predict."""
    say(f"POST {url}/predict, {ASKED} PNG images of digits that training never saw")
    folder = WORK / "digits"
    folder.mkdir()
    answers = []
    for row in range(0, len(digits.labels), len(digits.labels) // ASKED)[:ASKED]:
        sample, truth, body = digits.samples[row], str(digits.labels[row]), png(digits.images[row])
        (folder / f"{sample}-is-{truth}.png").write_bytes(body)
        request = urllib.request.Request(f"{url}/predict", data=body, headers={"Content-Type": "image/png"})
        with _open(request, timeout=30) as response:
            (answer,) = json.load(response)["predictions"]
        answers.append(Answer(sample, truth, str(answer["label"]), float(answer["probability"])))
    return answers


def png(image: np.ndarray[Any, Any]) -> bytes:
    """An 8x8 digit as an 8-bit grey PNG."""
    stream = io.BytesIO()
    Image.fromarray(np.rint(image * (255 / FULL_SCALE)).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def say(text: str) -> None:
    """A step, on stderr beside the progress of the commands."""
    print(f"==> {text}", file=sys.stderr, flush=True)


def short(word: str) -> str:
    """A path as seen from the checkout."""
    return word.replace(f"{ROOT}/", "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
