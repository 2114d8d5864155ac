"""The other side of benchmarks/corruptions.py: times `imagecorruptions`.

  python corruptions_reference.py IMAGES.npy

Reads lines `["name", severity]` and answers each with the seconds for all
images. Imports nothing of this project, as it runs in an environment of old
libraries.
"""

import json
import sys
import time

import imagecorruptions
import numpy as np


def main():
  """Answers until the input ends."""
  images = np.load(sys.argv[1])
  for line in sys.stdin:
    name, severity = json.loads(line)
    start = time.perf_counter()
    for image in images:
      imagecorruptions.corrupt(image, corruption_name=name, severity=severity)
    print(time.perf_counter() - start, flush=True)


if __name__ == '__main__':
  main()
