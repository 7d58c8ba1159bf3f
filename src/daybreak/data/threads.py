"""How many threads, and OpenCV's own."""

import os

import cv2


def processors() -> int:
    """Return the number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """Return the number of processors this process may use, at most 16."""
    return min(processors(), 16)


def quiet_opencv() -> None:
    """Turn off OpenCV's own threads: ours each work on an image, and two pools on one set of cores only wait.

    Called by what starts such threads, not when the module is imported, which must change nothing for others.
    """
    cv2.setNumThreads(0)
