"""`python -m proxy` is the `sluice` command."""

from proxy.cli import main

if __name__ == "__main__":
    main()
