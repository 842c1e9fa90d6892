"""`python -m autoseg` is the `autoseg` command."""

from autoseg.cli.main import main

if __name__ == "__main__":
    main()
