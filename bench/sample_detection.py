"""How many drawn faces OpenCV's face detector finds exactly once, and how long drawing takes.

python -m bench.sample_detection --count 2000
"""

import time
from collections import Counter
from typing import Annotated

import cv2
import typer
from cv2.data import haarcascades

from facescan.datasets import sample


def main(
    count: Annotated[int, typer.Option(min=1)] = 2000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw the faces, look for them, and print the counts."""
    cv2.setNumThreads(1)
    started = time.perf_counter()
    drawn = [sample.draw(seed, index) for index in range(count)]
    drawing = time.perf_counter() - started
    started = time.perf_counter()
    for pixels, _ in drawn:
        sample.encode(pixels)
    encoding = time.perf_counter() - started
    cascade = cv2.CascadeClassifier(haarcascades + "haarcascade_frontalface_alt2.xml")
    faces = Counter[int]()
    for pixels, _ in drawn:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        faces[len(cascade.detectMultiScale(grey, 1.1, 3))] += 1
    print(f"drawn: {1e3 * drawing / count:.2f} ms a face, JPEG {1e3 * encoding / count:.2f} ms")
    print(f"exactly one face found: {faces[1]} of {count} ({100 * faces[1] / count:.2f} %)")
    print(f"none: {faces[0]}, several: {count - faces[0] - faces[1]}")


if __name__ == "__main__":
    typer.run(main)
