"""`python -m pipeline`."""

import sys

try:
    from pipeline.command.main import main
except KeyboardInterrupt:  # Ctrl-C before there is anything to stop
    sys.exit(130)

if __name__ == "__main__":
    main()
