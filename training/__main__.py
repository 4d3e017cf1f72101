"""`python -m training`."""

import sys

try:
    from training.command.main import main
except KeyboardInterrupt:  # Ctrl-C before there is anything to stop
    sys.exit(130)

if __name__ == "__main__":
    main()
