"""Read before any other module of the tests, and so before one of them imports a library that reads the environment."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # of TRL's trainers; llmpipe's own processes set it themselves
