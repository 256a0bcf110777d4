"""The server of the page: who gets in, the next question, an answer, a video.

The address holds a random token. A request without it, with another Host or Origin, or with a body that is not a small
JSON object of the right fields, is refused. Paths of files come from the questions alone, never from a request.
"""

from __future__ import annotations

import hmac
import html
import logging
import re
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flask import Flask, Response, abort, jsonify, request, send_file
from werkzeug.exceptions import HTTPException
from werkzeug.serving import make_server

from common.errors import InputError, remedy
from tools.label import guess
from tools.label.answers import CHOICES, Answers
from tools.label.clips import Clips
from tools.label.questions import Pairs, Question

PAGE = Path(__file__).with_name("page.html")
SAVE_EVERY = 10
"""answers between two writings of the NPZ"""
LARGEST_BODY = 1_000
"""bytes of a request"""
POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; connect-src 'self'; media-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Session:
    """What the page shows, as JSON.

    Args:
        save: writes the NPZ; returns the commands that train on it or, of a judgement (`judge`), the result.
    """

    def __init__(self, answers: Answers, pairs: Pairs, clips: Clips, save: Callable[[], list[str]],
                 judge: bool = False):  # fmt: skip
        self.answers, self.pairs, self.clips, self.save, self.judge = answers, pairs, clips, save, judge
        self.saving, self.warning, self.commands = threading.Lock(), "", save()

    def next(self) -> int:
        """The first question without an answer, or the number of questions."""
        numbers = (q.number for q in self.pairs.questions if q.number not in self.answers.given)
        return next(numbers, len(self.pairs.questions))

    def videos(self, question: Question) -> list[Path]:
        """Of the segment on the left and of that on the right."""
        return self.clips.paths(question.pair)[:: -1 if question.swapped else 1]

    def example(self) -> str:
        """Of the good clip: "none", "making", "ready", or why there will be none."""
        if not self.clips.example:
            return "none"
        path = self.clips.path(*self.clips.example)
        return "ready" if path.exists() else self.clips.failed.get(path, "making")

    def show(self, number: int) -> dict:
        """Question `number`, and how far the labeller is."""
        total = len(self.pairs.questions)
        same, both = self.answers.agreement(self.pairs)
        state = {"number": number, "total": total, "answered": len(self.answers.given), "done": number == total,
                 "labelled": len(self.answers.labels(self.pairs)), "skipped": self.answers.skipped(self.pairs),
                 "seconds": self.answers.seconds(), "same": same, "both": both, "judge": self.judge,
                 "guessed": guess.shown(self.answers.guessed(self.pairs)),
                 "commands": self.commands, "example": self.example(), "warning": self.warning}  # fmt: skip
        if number < total:
            paths = self.clips.paths(self.pairs.questions[number].pair)
            state |= {"ready": all(path.exists() for path in paths),
                      "error": next((self.clips.failed[path] for path in paths if path in self.clips.failed), ""),
                      "times": self.answers.times[number],
                      "answer": self.answers.given.get(number, {}).get("answer")}  # fmt: skip
        return state

    def answer(self, body: dict) -> bool:
        """Save an answer; False: the question was answered meanwhile. The NPZ follows at every tenth and at the end.

        Where that file cannot be written the answers are safe, and the page says so.
        """
        question = self.pairs.questions[body["number"]]
        if not self.answers.add(question, body["times"], body["answer"], body["seconds"], body["waited"]):
            return False
        done = len(self.answers.given)
        if done % SAVE_EVERY == 0 or done == len(self.pairs.questions) or body["times"]:
            with self.saving:
                try:
                    self.commands, self.warning = self.save(), ""
                except (OSError, InputError) as error:
                    self.warning = f"Your answers are saved, but not the file for training: {error}"
                    print(self.warning, file=sys.stderr)
        return True


def valid(body, questions: int) -> bool:
    """Whether a request's JSON is an answer."""
    if not isinstance(body, dict) or body.keys() != {"number", "times", "answer", "seconds", "waited"}:
        return False
    ranges = {"number": ((int,), questions - 1), "times": ((int,), 1e9)}
    ranges |= dict.fromkeys(("seconds", "waited"), ((int, float), 1e6))
    return body["answer"] in CHOICES and all(
        type(body[name]) in types and 0 <= body[name] <= high for name, (types, high) in ranges.items())  # fmt: skip


def make_app(token: str, hosts: list[str], texts: dict[str, str], session: Session) -> Flask:
    """The application.

    Args:
        hosts: the values of the Host header that are let in.  texts: what stands in the page for QUESTION and ABOUT.
    """
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY
    origins = [f"http://{host}" for host in hosts]
    last = len(session.pairs.questions)

    @app.before_request
    def guard() -> None:
        given = request.path.split("/")[1] if "/" in request.path else ""
        known = request.headers.get("Host") in hosts and request.headers.get("Origin", origins[0]) in origins
        if not known or not hmac.compare_digest(given.encode(errors="replace"), token.encode()):
            abort(403, "no entry: open the address that the command printed")

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> tuple[Response, int]:
        return Response(f"{error.description}\n", mimetype="text/plain"), error.code or 500

    @app.errorhandler(OSError)
    def unsaved(error: OSError) -> tuple[Response, int]:
        print(f"an answer could not be saved: {error}", file=sys.stderr)
        way = remedy(error, session.answers.path, "--labels-dir") or "try again"
        return Response(f"Not saved: {error.strerror}; {way}.\n", mimetype="text/plain"), 507

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        if response.mimetype != "video/webm":
            response.headers["Cache-Control"] = "no-store"
        return response

    @app.get(f"/{token}/")
    def page() -> Response:
        nonce = secrets.token_urlsafe(16)
        shown = texts | {"NONCE": nonce}
        text = re.sub("|".join(shown), lambda found: html.escape(shown[found[0]]), PAGE.read_text())
        return Response(text, mimetype="text/html", headers={"Content-Security-Policy": POLICY.format(nonce)})

    @app.get(f"/{token}/question")
    @app.get(f"/{token}/question/<int:number>")
    def ask(number: int = -1) -> Response:
        number = session.next() if number < 0 else number
        return jsonify(session.show(number)) if number <= last else abort(404, "no such question")

    @app.post(f"/{token}/answer")
    def answer() -> tuple[Response, int]:
        body = request.get_json()
        if not valid(body, last):
            abort(400, "not an answer")
        saved = session.answer(body)
        return jsonify(session.show(session.next())), 200 if saved else 409

    @app.get(f"/{token}/video/<int:number>/<any(left, right):side>")
    def video(number: int, side: str) -> Response:
        if number >= last:
            abort(404, "no such question")
        path = session.videos(session.pairs.questions[number])[side == "right"]
        return clip(path)

    @app.get(f"/{token}/example")
    def example() -> Response:
        if not session.clips.example:
            abort(404, "there is none")
        return clip(session.clips.path(*session.clips.example))

    def clip(path: Path) -> Response:
        if not path.exists():
            abort(404, "not rendered yet")
        return send_file(path.resolve(), mimetype="video/webm", conditional=True, max_age=3600)

    return app


def named(host: str) -> str:
    """A host as browsers write it in an address."""
    return f"[{host}]" if ":" in host else host.lower()


@contextmanager
def serve(host: str, port: int, token: str, texts: dict[str, str], session: Session) -> Iterator[int]:
    """Serve the page from a thread while the block runs; gives the port. InputError: host or port cannot be had."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # a line a request
    try:
        server = make_server(host, port, lambda *_: [], threaded=True)
    except (OSError, SystemExit) as error:
        reason = getattr(error, "strerror", None) or "is in use, or not of this machine"
        raise InputError(f"--host {host} --port {port}: {reason}; choose others, or --port 0") from None
    names = (host, "localhost") if host == "127.0.0.1" else (named(host),)  # what browsers call this server
    server.app = make_app(token, [f"{name}:{server.port}" for name in names], texts, session)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
