"""What Lighthouse thinks of the built book on a phone: `make lighthouse`.

Needs npm and Chromium. Serves the book compressed, as a real host does, runs Lighthouse
on the front page and every lesson, and prints scores and bytes; fails below 95. Scores
are medians of three runs, since they depend on what else the machine does.

Lighthouse makes the processor of a fast desktop, with a benchmark of 1,500 to 2,000, 4
times slower. On a slower one its documentation asks for less (docs/throttling.md), so
the factor follows the benchmark that it measures here: `--slower 4` is its default.
"""

import argparse
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


def slowdown(benchmark: float) -> float:
    """How many times slower a middling phone is, by the middles of Lighthouse's table.

    4 for a fast desktop, of 1,500 to 2,000; 2 for a slow one, of 1,000 to 1,500. A
    machine that is faster still is slowed down in proportion.
    """
    if benchmark > 1750:
        return 4 * benchmark / 1750
    return max(1.0, 2 + (benchmark - 1250) / 250)


def report(url: str, slower: float) -> Any:
    """Run Lighthouse once, as on a middling phone on a slow line."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        flags = "--headless=new --no-sandbox --disable-gpu"
        command = ["npx", "--yes", LIGHTHOUSE, url, "--quiet", "--output=json"]
        command += [f"--output-path={out}", f"--chrome-flags={flags}"]
        command += [f"--throttling.cpuSlowdownMultiplier={slower}"]
        environment = os.environ | {"CHROME_PATH": str(CHROMIUM)}
        subprocess.run(command, check=True, env=environment)
        return json.loads(out.read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slower", type=float, help="this factor, on any machine")
    slower = parser.parse_args().slower
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
    address = f"http://127.0.0.1:{server.server_port}"
    if slower is None:
        runs = [report(f"{address}/{pages[0]}", 4) for _ in range(RUNS)]
        index = statistics.median(run["environment"]["benchmarkIndex"] for run in runs)
        slower = slowdown(index)
        print(f"benchmark {index:.0f}: a phone is {slower:.1f} times slower")
    worst = 100.0
    print(f"{'page':34}{'  '.join(CATEGORIES)}  kB  shift  blocked")
    for page in pages:
        runs = [report(f"{address}/{page}", slower) for _ in range(RUNS)]
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
