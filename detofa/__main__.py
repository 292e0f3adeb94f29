"""`python -m detofa`: the command line."""

from detofa.cli import main

if __name__ == "__main__":
    main()
