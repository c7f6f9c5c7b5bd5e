"""What Lighthouse thinks of the built book on a phone: `make lighthouse`.

Needs npm and Chromium. Serves the book compressed, as a real host does, runs Lighthouse
on the front page and every lesson, and prints scores and bytes; fails below 95. Scores
are medians of three runs, since they depend on what else the machine does.
"""

import functools
import gzip
import http.server
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

HTML = Path(__file__).parents[1] / "_build" / "html"
LIGHTHOUSE = "lighthouse@13.5.0"
LEAST, RUNS = 95, 3
CATEGORIES = ("performance", "accessibility", "best-practices", "seo")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Compressed(http.server.SimpleHTTPRequestHandler):
    """Serves text with gzip and lets a browser keep every file."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(path))
        self.send_header("Cache-Control", "max-age=3600")
        if path.suffix not in (".png", ".woff2"):
            content = gzip.compress(content)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def report(url: str) -> Any:
    """Run Lighthouse once, as on a middling phone on a slow line."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        flags = "--headless=new --no-sandbox --disable-gpu"
        command = ["npx", "--yes", LIGHTHOUSE, url, "--quiet", "--output=json"]
        command += [f"--output-path={out}", f"--chrome-flags={flags}"]
        environment = os.environ | {"CHROME_PATH": str(CHROMIUM)}
        subprocess.run(command, check=True, env=environment)
        return json.loads(out.read_text(encoding="utf-8"))


def main() -> int:
    if not shutil.which("npx") or not CHROMIUM:
        print("skipped: Lighthouse needs npm and chromium on the PATH")
        return 0
    if not HTML.exists():
        print("The book is not built: make book", file=sys.stderr)
        return 1
    pages = ["book/index.html"]
    pages += sorted(f"notebooks/{page.name}" for page in HTML.glob("notebooks/*.html"))
    pages = [page for page in pages if not page.endswith("_lab.html")]
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Compressed, directory=str(HTML))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    worst = 100.0
    print(f"{'page':34}{'  '.join(CATEGORIES)}  kB  shift  blocked")
    for page in pages:
        url = f"http://127.0.0.1:{server.server_port}/{page}"
        runs = [report(url) for _ in range(RUNS)]
        scores = [
            100 * statistics.median(run["categories"][kind]["score"] for run in runs)
            for kind in CATEGORIES
        ]
        kilobytes, shift, blocked = (
            statistics.median(run["audits"][name]["numericValue"] for run in runs)
            for name in (
                "total-byte-weight", "cumulative-layout-shift", "total-blocking-time",
            )
        )  # fmt: skip
        shown = "  ".join(
            f"{score:{len(kind)}.0f}"
            for kind, score in zip(CATEGORIES, scores, strict=True)
        )
        print(
            f"{page:34}{shown}  {kilobytes / 1000:.0f}  {shift:.3f}  {blocked:.0f} ms"
        )
        worst = min(worst, *scores)
    return int(worst < LEAST)


if __name__ == "__main__":
    sys.exit(main())
