"""`python -m ontogeny`: the command line, if the environment's scripts are not on the path."""

from ontogeny.cli import main

if __name__ == "__main__":
    main()
