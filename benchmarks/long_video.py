"""Peak memory of ``relocal find`` against the length of the video.

python -m benchmarks.long_video --minutes 5 60                      (1.56 frames a second)
python -m benchmarks.long_video --minutes 5 60 --query-seconds 6    (5 frames a second)

Writes moving pictures of each length, searches each in a process of its own for a clip and prints
the peak of its resident memory beside what all feature rows of the video would take. They wait in a
temporary file and are read a block at a time: what grows is the list of windows, which ends at
100,000.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import tyro


def main(
    minutes: tuple[float, ...] = (5, 60),
    fps: int = 5,
    query_seconds: float = 60.0,
    network: bool = False,
) -> None:
    """Measure.

    Args:
        minutes: Lengths of the videos.
        fps: Their frames per second.
        query_seconds: Length of the clip; the frames looked at per second follow from it.
        network: Search with the network of the recommended preset, not trained, which looks at all
            rows at once, instead of the contrast matcher.
    """
    with tempfile.TemporaryDirectory() as folder:
        query = write(Path(folder) / "query.mp4", query_seconds, fps)
        print(f"{'minutes':>8} {'steps':>7} {'features MB':>12} {'peak MB':>8} {'seconds':>8}")
        for length in minutes:
            video = write(Path(folder) / "long.mp4", 60 * length, fps)
            start = time.perf_counter()
            arguments = [sys.executable, "-m", "benchmarks.long_video", "--measure"]
            arguments += ["network"] if network else ["matcher"]
            done = subprocess.run(
                [*arguments, str(query), str(video)], check=True, capture_output=True, text=True
            )
            result = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{length:>8g} {result['steps']:>7} {result['steps'] * 5120 / 1e6:>12.1f} "
                f"{result['peak_mb']:>8.0f} {time.perf_counter() - start:>8.0f}"
            )


def write(path: Path, seconds: float, fps: int) -> Path:
    """Write a bright square that wanders over noise."""
    import av

    rng = np.random.default_rng(0)
    ground = rng.integers(0, 120, size=(90, 120, 3), dtype=np.uint8)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=fps)
        stream.height, stream.width, stream.pix_fmt = 90, 120, "yuv420p"
        for number in range(round(seconds * fps)):
            picture = ground.copy()
            x, y = (number * 3) % 100, (number * 2) % 70
            picture[y : y + 20, x : x + 20] = (number % 200, 250, 250)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def measure(kind: str, query: str, reference: str) -> None:
    """Search in this process and print its peak memory."""
    from relocal_pyg.models import ContrastMatcher
    from relocal_pyg.training import RECOMMENDED
    from relocal_pyg.training.recipe import build_network
    from relocal_pyg.video import EfficientNetLite0, find_moments

    backbone = EfficientNetLite0()
    model = (
        build_network(RECOMMENDED.network, backbone.dim).eval()
        if kind == "network"
        else ContrastMatcher()
    )
    found = find_moments(query, reference, model=model, backbone=backbone)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_mb": peak, "steps": found.settings["reference_steps"]}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        tyro.cli(main)
